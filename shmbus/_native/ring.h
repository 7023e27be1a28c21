/* Broadcast ring: one publisher, up to 64 subscribers, each of which sees every event.
 *
 * Layout      layout.h: ring_header, 64 cursor slots, then `capacity` bytes of records.
 * Writers     The publisher alone writes records, tail, intent and oldest; each subscriber its own cursor and losses;
 *             members, gate_version and the join fields change under the bus lock.
 * Invariants  B1  bytes in [oldest, tail) are whole records.
 *             B2  tail - min(reliable cursors) <= capacity.
 *             B3  a publisher killed anywhere leaves [oldest, tail) readable.
 *             B4  a subscriber sees one publisher's events in order, never one twice.
 *             F   every boundary in [oldest, tail] holds the sequence of the record that begins there.
 * Crash order oldest, intent, record, frontier, tail. Death before the tail store leaves no visible record; death after
 *             the intent store costs lossy readers and history what the announced chunk covers, and nobody else anything.
 *
 * A function returns RING_OK or says why not; none blocks, allocates or trusts a number that it read from the segment.
 */
#ifndef SHMBUS_RING_H
#define SHMBUS_RING_H

#include "layout.h"

enum ring_status {
    RING_OK = 0,
    RING_EMPTY = 1, /* nothing to read */
    RING_FULL = 2,  /* no room before the gate */
    RING_OVERRUN =
        3,         /* a lossy reader lost what `lost_first` to `lost_last` say, and stands on an intact record again */
    RING_LOST = 4, /* a claim that is not ours (any more), a slot that was given up */
    RING_CORRUPT = -1,
    RING_FOREIGN = -2, /* not a ring of this layout */
};

typedef struct ring_view { /* a checked window on one segment; every bound is a local copy */
    ring_header *header;
    unsigned char *data;
    uint64_t capacity;
    uint64_t slots;
} ring_view;

typedef struct record { /* one record, already checked against its ring */
    const unsigned char *body;
    uint64_t sequence;
    uint64_t time_ns;
    uint32_t length;  /* headers and payload */
    uint32_t headers; /* bytes of headers at the start of body */
    uint32_t flags;   /* RECORD_POOLED, RECORD_RUN */
    uint32_t follow;  /* so many records behind it are like it, says its publisher */
    uint64_t end;     /* position behind it */
} record;

typedef struct row_run {          /* records of one stride, one behind the other: what an array shows in place */
    const unsigned char *payload; /* of the first */
    uint64_t start;               /* its position */
    uint64_t sequence;            /* its sequence; they have no holes */
    uint64_t count;
    uint64_t stride;  /* bytes from one to the next */
    uint64_t end;     /* position behind the last */
    uint64_t time_ns; /* of the first */
    uint64_t even;    /* so many, from the first, are stamped a nanosecond apart */
    uint32_t headers; /* bytes in front of each payload, rounded up */
} row_run;

typedef struct part { /* what a publisher hands in for one event */
    const void *headers;
    uint32_t headers_length;
    uint32_t flags;  /* of the record */
    uint32_t follow; /* for RECORD_RUN, with no headers */
    unsigned lane;   /* of its key, in the work ring of a group that has one */
    const void *payload;
    uint64_t payload_length;
    uint64_t time_ns;
} part;

#define CHUNKS 16 /* to a ring: how far one announcement goes, and where boundaries are remembered */

typedef struct ring_writer {
    ring_view view;
    uint64_t head;         /* end of what is written; ahead of tail within a batch */
    uint64_t sequence;     /* of the next record */
    uint64_t newest;       /* position of the last written record */
    uint64_t limit;        /* intent: records may be written below it */
    uint64_t oldest;       /* local copy */
    uint64_t gate;         /* slowest reliable cursor at the last scan, head when there is none */
    uint64_t gate_version; /* at the last scan */
    uint64_t peak;         /* most bytes that were waited for at a scan; whoever asks begins anew */
    uint64_t marked_from;  /* a multiple of the chunk: from here on, and below `marked`, the first boundary at or */
    uint64_t marked;       /* behind a multiple of the chunk is in `marks` */
    uint64_t marks[2 * CHUNKS];
} ring_writer;

typedef struct ring_reader {
    ring_view view;
    cursor_slot *slot; /* NULL for a tap, which keeps no books */
    bool lossy;
    bool latest;      /* lossy, and handed the newest record alone */
    bool by_sequence; /* lossy when it came: its cursor is a sequence, for good, and its position what gates */
    uint64_t position;
    uint64_t sequence; /* of the next record */
    uint64_t tail;     /* local copy */
    uint64_t settled;  /* position of the last look at `waiting` */
    uint64_t lost_first, lost_last;
} ring_reader;

typedef struct ring_terms { /* one consumer's books on one ring; see design of the books in docs/architecture.md */
    uint64_t next;          /* sequence of the first event of `depth` */
    uint64_t offered, delivered, depth, overrun, refused, undecodable;
    uint64_t oldest_ns; /* CLOCK_REALTIME of the first event not yet received, 0 when depth is 0 or it cannot be read */
    uint64_t pending_first,
        pending_last; /* part of overrun: overwritten, and its reader does not know yet; 0, 0 for none */
} ring_terms;

/* The second word of a record. */
#define RECORD_META(length, kind, flags, headers)                                                                      \
    ((uint64_t)(length) | (uint64_t)(kind) << 32 | (uint64_t)(flags) << 40 | (uint64_t)(headers) << 48)

static inline uint64_t record_span(uint64_t length) {
    return (RECORD_HEADER + length + (RECORD_ALIGN - 1)) & ~(uint64_t)(RECORD_ALIGN - 1);
}

static inline uint64_t record_maximum(uint64_t capacity) { /* bytes of headers and payload; leaves room for padding */
    uint64_t quarter = capacity / 4 - RECORD_HEADER;
    return quarter < RECORD_LIMIT ? quarter : RECORD_LIMIT;
}

static inline cursor_slot *slot_of(const ring_view *view, unsigned slot) {
    return &((broadcast_segment *)view->header)->cursors[slot];
}

/* What a reliable slot holds its publisher at. Who was lossy and no longer is keeps its books by sequences. */
static inline uint64_t gate_at(const cursor_slot *s) {
    return LOAD_SEQ(LOAD_ACQUIRE(&s->lossy) ? &s->position : &s->cursor); /* SYNC cursor */
}

static inline word *word_at(const ring_view *view, uint64_t position) {
    return (word *)(view->data + (position & (view->capacity - 1)));
}

#define RING_PATIENCE                                                                                                  \
    4096 /* looks at a publisher that is faster than us; beyond it the numbers are not a publisher's */

#define COUNT_LIMIT (1ull << 48) /* events of one ring: nine years of a million a second; sums of it fit into a word */

#define AHEAD_LIMIT 512 /* bytes that are worth asking for: the hardware follows longer runs by itself */

/* Asks for the record after this one, which is likely to be as long, while the current one is decoded. */
static inline void record_prefetch(const ring_view *view, uint64_t position, uint64_t span) {
    const unsigned char *next = view->data + (position & (view->capacity - 1));
    for (uint64_t ahead = 0; ahead < span && ahead < AHEAD_LIMIT; ahead += LINE)
        __builtin_prefetch(next + ahead);
}

/* The same before a record is written: the lines lie in the caches of those who read them a lap ago. */
static inline void record_prefetch_write(const ring_view *view, uint64_t position, uint64_t span) {
    const unsigned char *next = view->data + (position & (view->capacity - 1));
    for (uint64_t ahead = LINE; ahead <= span && ahead <= AHEAD_LIMIT; ahead += LINE)
        PREFETCH_WRITE(next + ahead);
}

static inline row_run run_of(const record *first, uint64_t start) {
    uint32_t headers = (first->headers + 7u) & ~7u;
    return (row_run){.payload = first->body + headers,
                     .start = start,
                     .sequence = first->sequence,
                     .count = 1,
                     .stride = record_span(first->length),
                     .end = first->end,
                     .time_ns = first->time_ns,
                     .even = 1,
                     .headers = headers};
}

/* Whether a record goes on where a run ends, in memory too. */
static inline bool run_takes(const row_run *run, const record *first, const record *next, uint64_t start) {
    return start == run->end && next->body == first->body + run->count * run->stride && next->length == first->length &&
           next->headers == first->headers && next->sequence == run->sequence + run->count;
}

/* When the record of a run that is `i` behind its first was published. It was looked at, and may be anything since. */
static inline uint64_t run_time(const row_run *run, uint64_t i) {
    if (i < run->even)
        return run->time_ns + i;
    return LOAD_RELAXED((word *)(run->payload + i * run->stride - run->headers - 8));
}

uint64_t ring_size(uint64_t capacity);
int ring_format(void *base, uint64_t size, uint64_t capacity, uint64_t ring_id, uint64_t first_sequence,
                uint64_t start);
int ring_open(ring_view *view, void *base, uint64_t size, uint32_t kind);
int ring_sequence_at(const ring_view *view, uint64_t position, uint64_t *sequence);
void record_write(unsigned char *at, uint64_t sequence, unsigned kind, const part *part);
void record_write_row(unsigned char *at, uint64_t sequence, const part *part);
int record_header(const ring_view *view, uint64_t position, uint64_t end, record *out, unsigned *kind);
int record_read(const ring_view *view, uint64_t position, uint64_t end, record *out);

int ring_writer_open(ring_writer *w, const ring_view *view);
uint64_t ring_need(const ring_writer *w, uint64_t length);
int ring_reserve(ring_writer *w, uint64_t length);
void ring_write(ring_writer *w, const part *part);
uint64_t ring_rows(const ring_writer *w, uint64_t length);
void ring_write_rows(ring_writer *w, const part *first, uint64_t count);
void ring_commit(ring_writer *w);
void ring_refuse(const ring_view *view, uint64_t sequence, uint64_t count, uint64_t time_ns);
uint64_t ring_room(const ring_view *view);
uint64_t ring_peak(ring_writer *w);
uint64_t ring_blocking(const ring_view *view, uint64_t need);
uint64_t ring_behind(const ring_view *view, uint64_t position);

int ring_join(const ring_view *view, unsigned slot, bool lossy, bool oldest);
void ring_leave(const ring_view *view, unsigned slot);
void ring_ungate(const ring_view *view, uint64_t slots);

int ring_reader_open(ring_reader *r, const ring_view *view, unsigned slot);
int ring_tap_open(ring_reader *r, const ring_view *view, bool oldest);
int ring_regate(ring_reader *r);
int ring_peek(ring_reader *r, record *out);
int ring_copy(ring_reader *r, const record *record, void *into);
void ring_advance(ring_reader *r, const record *record);
int ring_run(ring_reader *r, const record *first, uint64_t most, row_run *out);
void ring_advance_run(ring_reader *r, const row_run *run);
void ring_pass(ring_reader *r, const record *record);
void ring_supersede(ring_reader *r, const record *record, uint64_t now_ns);
void ring_skip(ring_reader *r, const record *record, uint64_t now_ns);
void ring_undecodable(ring_reader *r, const record *record, uint64_t now_ns);
void ring_overrun(ring_reader *r, uint64_t now_ns);
uint64_t ring_settle(ring_reader *r);
uint64_t ring_release_publisher(const ring_view *view);
int ring_terms_of(const ring_view *view, unsigned slot, ring_terms *out);

#endif
