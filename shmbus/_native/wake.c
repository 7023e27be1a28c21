/* Waking others: whoever clears a parked bit posts its owner's semaphore (SYNC park).
 *
 *   _post(group, slot)   posts a subscriber (group -1) or a worker; returns what posts its semaphore again, or None
 *
 * The posts are posix_ipc's, called without a Python frame from the second time on. They release the interpreter's lock:
 * what is used after one is held by a reference. */
#include "python.h"

/* Calls what posts a semaphore; false if it has been closed since. */
bool post_call(PyObject *post) {
    Py_INCREF(post);
    PyObject *result = PyObject_CallNoArgs(post);
    if (!result)
        PyErr_Clear();
    Py_DECREF(post);
    Py_XDECREF(result);
    return result != NULL;
}

static int post_slot(PyObject *self, PyObject *posts, int group, unsigned slot, bool awaiting) {
    PyObject *known = PyList_GetItem(posts, slot);
    if (!awaiting && known != Py_None && post_call(known))
        return 0;
    PyObject *post = PyObject_CallMethod(self, "_post", "iI", group, slot);
    if (!post)
        return -1;
    if (!awaiting)
        return PyList_SetItem(posts, slot, post); /* which takes over the reference */
    Py_DECREF(post);
    return 0;
}

/* Wakes up to `most` of those whose bits are set in `count` words: how many, or -1. A bit that another one has cleared is
 * that one's to post: the next is tried. */
int wakers_wake(PyObject *self, const wakers *w, word *parked, word *awaiting, unsigned count, uint64_t most) {
    PyObject *posts = Py_NewRef(w->posts);
    int group = w->group, status = 0;
    uint64_t woken = 0;
    for (unsigned i = 0; i < count && woken < most && status == 0; i++)
        for (uint64_t bits = LOAD_SEQ(&parked[i]); bits && woken < most && status == 0; bits &= bits - 1) {
            uint64_t bit = bits & (~bits + 1);
            if (!(AND_SEQ(&parked[i], ~bit) & bit)) /* SYNC park */
                continue;
            woken++;
            unsigned slot = i * 64 + (unsigned)__builtin_ctzll(bit);
            status = post_slot(self, posts, group, slot, (LOAD_SEQ(&awaiting[i]) & bit) != 0);
        }
    Py_DECREF(posts);
    return status < 0 ? -1 : (int)woken;
}

int wakers_init(wakers *w, int group, unsigned slots) {
    *w = (wakers){.group = group, .posts = PyList_New(slots)};
    for (unsigned i = 0; w->posts && i < slots; i++)
        PyList_SetItem(w->posts, i, Py_NewRef(Py_None));
    return w->posts ? 0 : -1;
}

void wakers_clear(wakers *w) { Py_CLEAR(w->posts); }
