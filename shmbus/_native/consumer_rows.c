/* Rows of a subscriber: a run of a ring in place, consumed when the next is asked for; copies of any that there are. */
#include "consumer.h"

/* The run that was handed out is behind the subscriber; returns its source, NULL if there is none, or no longer. */
source *consumer_settle_shown(Consumer *self) {
    Py_ssize_t index = self->shown.count ? consumer_index_of(self, self->shown_in) : -1;
    source *s = index < 0 ? NULL : &self->sources[index];
    if (s && s->reader.position == self->shown.start)
        ring_advance_run(&s->reader, &self->shown);
    self->shown.count = 0;
    return s;
}

/* As receiver_handing_out, for all of a run: what is chosen lies at least 34 apart. */
static void sample_run(Receiver *base, const row_run *run) {
    record r = {.sequence = run->sequence, .time_ns = run_time(run, 0)};
    if (base->waited)
        receiver_sample(base, &r);
    for (uint64_t i = 0; i < run->count; i++)
        if (latency_chosen(run->sequence + i)) {
            r.time_ns = run_time(run, i);
            receiver_sample(base, &r);
            i += 33;
        }
    base->event_ns = run_time(run, run->count - 1);
}

/* The length of what was found, which is consumed and told of if it is no row. */
static int check_row(Consumer *self, found *f) {
    uint64_t padded = (f->record.headers + 7u) & ~(uint64_t)7;
    if (record_fits(self->base.record, f->record.length - padded) == 0)
        return 0;
    consumer_undecodable(self, f);
    return -1;
}

static int run_from(found *f, Py_ssize_t most, row_run *out) {
    int status = ring_run(&f->source->reader, &f->record, (uint64_t)most, out);
    return status == RING_OK ? 0 : corrupt(f->source->ring, "tail cannot be");
}

PyObject *consumer_take_rows(Receiver *base) {
    Consumer *self = (Consumer *)base;
    found f;
    row_run run;
    int status = consumer_find(self, &f);
    if (status <= 0)
        return status < 0 ? NULL : Py_NewRef(Nothing);
    if (f.source->reader.lossy)
        return consumer_take_copies(base); /* which finds the same, or what is left of it */
    if (check_row(self, &f) < 0 || run_from(&f, base->call->most, &run) < 0)
        return NULL;
    Rows *rows = rows_in_place(f.source->ring, &run, base->record->size);
    if (!rows)
        return NULL;
    sample_run(base, &run);
    self->shown = run;
    self->shown_in = f.source->ring->id;
    self->turn += run.count < TURN ? (int)run.count : TURN;
    return (PyObject *)rows;
}

/* Copies what was found, of a reliable reader as much as there is: 0, -1 with nothing consumed. */
static int copy_found(Consumer *self, found *f, Rows *rows, uint64_t most) {
    uint32_t size = self->base.record->size;
    bool lossy = f->source->reader.lossy;
    row_run run = run_of(&f->record, f->source->reader.position);
    if (!lossy && run_from(f, (Py_ssize_t)most, &run) < 0)
        return -1;
    unsigned char *to = rows_grow(rows, run.count);
    if (!to)
        return -1;
    for (uint64_t i = 0; i < run.count; i++, to += size)
        memcpy(to, run.payload + i * run.stride, size);
    if (lossy) {
        consumer_consume(self, f);
        return 0;
    }
    sample_run(&self->base, &run);
    ring_advance_run(&f->source->reader, &run);
    self->turn += run.count < TURN ? (int)run.count : TURN;
    if (consumer_worth_settling(f->source) && consumer_settle(self, f->source) < 0)
        error_hold(&self->base.held_error);
    return 0;
}

/* Up to `most` rows of their own, out of any ring. An error waits for the next call, as it does behind a list. */
PyObject *consumer_take_copies(Receiver *base) {
    Consumer *self = (Consumer *)base;
    Rows *rows = NULL;
    int status = 0;
    uint64_t most = (uint64_t)base->call->most, got = 0;
    while (got < most && !base->held_error) {
        found f;
        status = consumer_find(self, &f);
        if (status <= 0)
            break;
        status = -1;
        if (check_row(self, &f) < 0 || (!rows && !(rows = rows_new(base->record->size, base->call->most))) ||
            copy_found(self, &f, rows, most - got) < 0)
            break;
        got = rows_count(rows);
        status = 1;
    }
    if (status < 0 && got)
        error_hold(&base->held_error);
    if (got)
        return (PyObject *)rows;
    Py_XDECREF((PyObject *)rows);
    return status < 0 ? NULL : Py_NewRef(Nothing);
}
