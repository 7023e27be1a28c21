/* Depth: two methods of WorkRing for who asks before each event how much a group is owed. They read, and change nothing. */
#include "python.h"

#include "work.h"

/* depth(): (events that are not done, how many of them somebody holds); a part of terms(), for who asks often. */
PyObject *work_depth(PyObject *object, PyObject *unused) {
    (void)unused;
    work_terms t;
    if (work_terms_of(&((Ring *)object)->view, &t) != RING_OK) {
        corrupt((Ring *)object, "gate and tail cannot be");
        return NULL;
    }
    return Py_BuildValue("(KK)", (unsigned long long)t.depth, (unsigned long long)t.claimed);
}

/* span(): events from the first that is not done on: never fewer than depth(), and read off two words. */
PyObject *work_span(PyObject *object, PyObject *unused) {
    (void)unused;
    const ring_header *h = ((Ring *)object)->view.header;
    uint64_t tail = LOAD_SEQ(&h->tail), gate = LOAD_SEQ(&h->gate);
    return PyLong_FromUnsignedLongLong(gate < tail ? tail - gate : 0);
}
