/* Notes: who sends an event stands in a file beside the rings, for whoever finds it gone. shmbus/_shm/traces.py reads it.
 *
 *   who()   the span that sends now: trace id, span id and whether it is sampled, as `sender` has them; or None
 *
 * Writers     The producer alone: entries of the window, and of those that are kept the refusals of its own rings. All of it
 *             under the GIL with no hook in between, so that of threads that share a producer each notes its own event.
 * Crash order Note, then the tail, or the count of the refused: whoever can see that there is, or was, an event finds
 *             its sender. A note without an event is found by nobody: the next event takes its place, and who died
 *             sends none.
 *
 * By system calls, for a full /dev/shm is SIGBUS in a map: an event that cannot be noted is sent all the same. */
#include "producer.h"

#include <string.h>
#include <unistd.h>

static uint64_t folded(const trace_note *note) {
    const uint64_t words[] = {note->ring, note->sequence, note->trace[0], note->trace[1], note->span};
    uint64_t fold = 0;
    for (size_t i = 0; i < sizeof(words) / sizeof(*words); i++)
        fold = (fold << 7 | fold >> 57) ^ words[i];
    return fold ? fold : 1; /* what was never written is no note */
}

static void put(int file, uint64_t at, uint64_t ring, uint64_t sequence, const sender *by) {
    trace_note note = {.ring = ring,
                       .sequence = sequence | (by->sampled ? TRACE_SAMPLED : 0),
                       .trace = {by->trace[0], by->trace[1]},
                       .span = by->span};
    note.fold = folded(&note);
    ssize_t written = pwrite(file, &note, sizeof(note), (off_t)(at * sizeof(note)));
    (void)written;
}

/* A ring refuses this event, the first one that it does: that is told of as long as the ring is there. */
static void keep_refusal(int file, const Ring *ring, uint64_t sequence, const sender *by) {
    uint64_t id = ring->id | TRACE_REFUSED;
    if (LOAD_RELAXED(&ring->view.header->refused))
        return;
    trace_note bucket[TRACE_BUCKET] = {0};
    uint64_t at = (id * 31 + sequence) % (TRACE_KEPT / TRACE_BUCKET) * TRACE_BUCKET;
    ssize_t length = pread(file, bucket, sizeof(bucket), (off_t)(at * sizeof(*bucket)));
    for (unsigned i = 0; i < TRACE_BUCKET && length >= 0; i++)
        if (bucket[i].fold != folded(&bucket[i])) {
            put(file, at + i, id, sequence, by);
            return;
        }
    put(file, at + sequence % TRACE_BUCKET, id, sequence, by);
}

/* Asks who sends now; a producer that is not traced asks nobody. */
int notes_ask(Producer *self, sender *by) {
    PyObject *who = Py_NewRef(self->who), *told = PyObject_CallNoArgs(who);
    Py_DECREF(who);
    int status = told ? 0 : -1;
    *by = (sender){0};
    if (told && PyBytes_Check(told) && PyBytes_Size(told) == sizeof(*by))
        memcpy(by, PyBytes_AsString(told), sizeof(*by));
    Py_XDECREF(told);
    return status;
}

/* Before the event is written where `fits` says, and counted as refused where it does not. */
void notes_take(Producer *self, const sender *by) {
    if (!by->span || !self->who)
        return;
    if (self->fits)
        put(self->notes, TRACE_KEPT + self->writer.sequence % TRACE_WINDOW, 0, self->writer.sequence, by);
    else
        keep_refusal(self->notes, self->ring, self->writer.sequence, by);
    for (unsigned i = 0; i < self->group_count; i++)
        if (!self->groups[i].fits)
            keep_refusal(self->notes, self->groups[i].ring, self->groups[i].writer.sequence, by);
}

/* _note_in(descriptor, who): from now on each event is noted in that file, which is the producer's to close. */
PyObject *producer_note_in(PyObject *object, PyObject *args) {
    Producer *self = (Producer *)object;
    int file;
    PyObject *who;
    if (!PyArg_ParseTuple(args, "iO:_note_in", &file, &who) || guard_check(&self->guard, "publisher") < 0)
        return NULL;
    notes_drop(self);
    self->notes = file;
    self->who = Py_NewRef(who);
    Py_RETURN_NONE;
}

/* Nobody is inside of a call. */
void notes_drop(Producer *self) {
    if (!self->who)
        return;
    close(self->notes);
    Py_CLEAR(self->who);
}
