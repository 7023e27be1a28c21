/* Waking others: whoever clears a parked bit posts its owner's semaphore (SYNC park).
 *
 *   _post(group, slot)   posts a subscriber (group -1) or a worker; returns what posts its semaphore again, or None
 *
 * The posts are posix_ipc's, called without a Python frame from the second time on. */
#include "python.h"

/* Calls what is cached; false if there is nothing, or it has been closed since. */
bool post_cached(PyObject **post) {
    if (!*post)
        return false;
    PyObject *result = PyObject_CallNoArgs(*post);
    if (!result) {
        PyErr_Clear();
        Py_CLEAR(*post);
    }
    Py_XDECREF(result);
    return result != NULL;
}

static int post_slot(PyObject *self, wakers *w, unsigned slot, bool awaiting) {
    if (!awaiting && post_cached(&w->posts[slot]))
        return 0;
    int group = w->group;
    PyObject *post = PyObject_CallMethod(self, "_post", "iI", group, slot);
    if (!post)
        return -1;
    /* Another thread may have closed the handle meanwhile, or given this place to another group. */
    if (post != Py_None && !awaiting && w->group == group && w->posts && !w->posts[slot])
        w->posts[slot] = post;
    else
        Py_DECREF(post);
    return 0;
}

/* A hook may have closed the handle, and with it gone the lines. */
static bool gone(const guard *g) { return g && g->closed; }

/* Wakes up to `most` of those whose bits are set in `count` words: how many, or -1. A bit that another one has cleared is
 * that one's to post: the next is tried. */
int wakers_wake(PyObject *self, const guard *guard, wakers *w, word *parked, word *awaiting, unsigned count,
                uint64_t most) {
    uint64_t woken = 0;
    for (unsigned i = 0; i < count && woken < most && !gone(guard); i++)
        for (uint64_t bits = LOAD_SEQ(&parked[i]); bits && woken < most && !gone(guard); bits &= bits - 1) {
            uint64_t bit = bits & (~bits + 1);
            if (!(AND_SEQ(&parked[i], ~bit) & bit)) /* SYNC park */
                continue;
            woken++;
            unsigned slot = i * 64 + (unsigned)__builtin_ctzll(bit);
            if (post_slot(self, w, slot, (LOAD_SEQ(&awaiting[i]) & bit) != 0) < 0)
                return -1;
        }
    return (int)woken;
}

int wakers_init(wakers *w, int group, unsigned slots) {
    *w = (wakers){.group = group, .slots = slots, .posts = PyMem_Calloc(slots, sizeof(PyObject *))};
    if (w->posts)
        return 0;
    PyErr_NoMemory();
    return -1;
}

void wakers_clear(wakers *w) {
    for (unsigned i = 0; w->posts && i < w->slots; i++)
        Py_XDECREF(w->posts[i]);
    PyMem_Free(w->posts);
    w->posts = NULL;
}
