/* Threads on pools, rows and `latest`, without hooks: built with the sanitizers by tools/sanitize.py, as stress.c.
 *
 *   stress_pool [--short]
 *
 * One publisher ships extents with a broadcast ring and a work ring, and writes rows to a third ring. Two viewers and a
 * worker keep what they look at beyond their cursor or ack, one copies without a hold, one holds what it is not owed and
 * is forgotten as the dead are. Of the rows one takes runs in place, one the newest. In the end every extent is free. */
#include "demand.h"
#include "pool.h"

#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define CAPACITY (4 * MIN_CAPACITY)
#define BLOCKS 24u
#define LARGEST 3u /* blocks of an extent */
#define FIRST 1000u
#define START ((1ull << 32) - 64 * CAPACITY) /* positions pass 2^32 */
#define ROW 64u
#define ROWS 8u /* to an event */
#define SLIP_BYTES (8 + sizeof(slip))
#define WATCHDOG_S 1800u
enum { VIEWER, OTHER_VIEWER, COPIER, LATE, WORKER, HOLDERS };

static ring_view frames, jobs, rows;
static pool_view pool;
static uint64_t events;
static _Atomic unsigned running; /* readers that are not done */
static _Atomic bool finished;
static _Atomic uint64_t copies, gone, forgotten, skipped;

/* ---- contents: the first and the last word of each block of an extent are the event's sequence ---- */

static uint64_t length_of(uint64_t sequence) { return (sequence * 2654435761u % LARGEST + 1) * POOL_BLOCK; }

/* What is written is atomic for who copies; who holds reads plainly, so that the thread sanitizer sees a missing order. */
static void write_extent(const slip *one, uint64_t sequence) {
    uint64_t block = one->block;
    for (run run; block != UINT64_MAX;) {
        DEMAND(pool_next_run(&pool, &block, &run), "a run of event %llu cannot be", (unsigned long long)sequence);
        for (uint64_t i = run.block; i < run.block + run.blocks; i++) {
            word *at = (word *)(pool.data + i * POOL_BLOCK);
            STORE_RELAXED(&at[0], sequence);
            STORE_RELAXED(&at[POOL_BLOCK / 8 - 1], sequence);
        }
    }
}

static void look(const slip *one, uint64_t sequence) {
    uint64_t block = one->block;
    for (run run; block != UINT64_MAX;) {
        DEMAND(pool_next_run(&pool, &block, &run), "a run of event %llu cannot be", (unsigned long long)sequence);
        for (uint64_t i = run.block; i < run.block + run.blocks; i++) {
            const uint64_t *at = (const uint64_t *)(const void *)(pool.data + i * POOL_BLOCK);
            DEMAND(at[0] == sequence && at[POOL_BLOCK / 8 - 1] == sequence, "X1: event %llu shows %llu",
                   (unsigned long long)sequence, (unsigned long long)at[0]);
        }
    }
}

static void fill_row(unsigned char *row, uint64_t sequence) {
    for (unsigned i = 0; i < ROW; i++)
        row[i] = (unsigned char)(sequence * 31 + i * 7);
}

static bool whole_row(const unsigned char *row, uint64_t sequence) {
    unsigned char expected[ROW];
    fill_row(expected, sequence);
    return !memcmp(row, expected, ROW);
}

static slip slip_in(const unsigned char *body) {
    slip one;
    memcpy(&one, body + 8, sizeof(one));
    return one;
}

/* ---- publisher ---- */

typedef struct shipment {
    uint64_t block, end, sequence;
} shipment;

static pool_writer writer;
static shipment out[BLOCKS];
static uint64_t over[BLOCKS];
static unsigned shipped, ended;

static bool owed(const shipment *one) {
    return work_owed(&jobs, one->sequence, NULL) || pool_debtors(&frames, one->end) != 0;
}

/* What shipping.c does. */
static void collect(void) {
    for (unsigned i = 0; i < ended;)
        if (pool_reuse(&writer, over[i]))
            over[i] = over[--ended];
        else
            i++;
    for (unsigned i = 0; i < shipped;) {
        if (owed(&out[i])) {
            i++;
            continue;
        }
        uint64_t block = out[i].block;
        pool_end(&writer, block);
        out[i] = out[--shipped];
        if (!pool_reuse(&writer, block))
            over[ended++] = block;
    }
}

static void write_rows(ring_writer *to) {
    unsigned char some[ROWS * ROW];
    for (uint64_t left = ROWS; left;) {
        int status;
        while ((status = ring_reserve(to, ROW)) == RING_FULL)
            sched_yield();
        DEMAND(status == RING_OK, "the publisher finds the ring of rows corrupt");
        uint64_t count = ring_rows(to, ROW);
        count = count < left ? count : left;
        for (uint64_t i = 0; i < count; i++)
            fill_row(some + i * ROW, to->sequence + i);
        part first = {.payload = some, .payload_length = ROW, .time_ns = to->sequence};
        ring_write_rows(to, &first, count);
        left -= count;
    }
    ring_commit(to);
}

static void *publisher(void *unused) {
    ring_writer ring, wide;
    work_writer work;
    DEMAND(ring_writer_open(&ring, &frames) == RING_OK && ring_writer_open(&wide, &rows) == RING_OK &&
               work_writer_open(&work, &jobs) == RING_OK,
           "rings cannot be written");
    for (uint64_t sequence = FIRST; sequence < FIRST + events; sequence++) {
        unsigned char payload[SLIP_BYTES] = {1};
        slip one;
        for (collect(); pool_allocate(&writer, length_of(sequence), 1, true, &one) != RING_OK; collect())
            sched_yield();
        write_extent(&one, sequence);
        memcpy(payload + 8, &one, sizeof(one));
        part part = {.payload = payload, .payload_length = sizeof(payload), .flags = RECORD_POOLED};
        while (ring_reserve(&ring, sizeof(payload)) != RING_OK || work_reserve(&work, sizeof(payload)) != RING_OK)
            sched_yield();
        ring_write(&ring, &part);
        work_write(&work, &part);
        out[shipped++] = (shipment){.block = one.block, .end = ring.head, .sequence = work.sequence - 1};
        ring_commit(&ring);
        work_commit(&work);
        write_rows(&wide);
    }
    atomic_store_explicit(&finished, true, RELAXED);
    for (collect(); atomic_load(&running); collect())
        sched_yield();
    collect();
    DEMAND(writer.free == BLOCKS && !shipped && !ended, "P2: %llu of %u blocks are free",
           (unsigned long long)writer.free, BLOCKS);
    return unused;
}

/* ---- who looks ---- */

typedef struct album { /* what a holder looks at: the last few */
    slip view[4];
    uint64_t sequence[4];
    unsigned count;
} album;

static void drop(album *a, unsigned holder, unsigned which) {
    look(&a->view[which], a->sequence[which]);
    pool_let_go(&pool, holder, a->view[which].block);
    a->count--;
    a->view[which] = a->view[a->count];
    a->sequence[which] = a->sequence[a->count];
}

static void keep(album *a, unsigned holder, const slip *one, uint64_t sequence) {
    if (a->count == 4)
        drop(a, holder, (unsigned)sequence % 4);
    uint64_t runs;
    DEMAND(pool_hold(&pool, holder, one->block, one->generation) == RING_OK && pool_check(&pool, one, &runs) == RING_OK,
           "P1: event %llu is owed to holder %u, and its extent is gone", (unsigned long long)sequence, holder);
    look(one, sequence);
    a->view[a->count] = *one;
    a->sequence[a->count++] = sequence;
}

static void *viewer(unsigned slot) {
    album a = {.count = 0};
    ring_reader r;
    DEMAND(ring_reader_open(&r, &frames, slot) == RING_OK, "slot %u cannot be read", slot);
    while (r.sequence < FIRST + events) {
        record got;
        int status = ring_peek(&r, &got);
        DEMAND(status >= 0 && status != RING_OVERRUN, "a viewer finds its ring corrupt");
        if (status == RING_EMPTY) {
            ring_settle(&r);
            if (a.count)
                drop(&a, slot, 0); /* the publisher may wait for it */
            sched_yield();
            continue;
        }
        slip one = slip_in(got.body);
        keep(&a, slot, &one, got.sequence);
        ring_advance(&r, &got);
    }
    ring_settle(&r);
    while (a.count)
        drop(&a, slot, 0);
    return NULL;
}

/* The next event of a lossy reader, copied; false: there is none now. */
static bool next_copy(ring_reader *r, unsigned char *body, record *got) {
    int status = ring_peek(r, got);
    if (status == RING_OK) {
        DEMAND(got->length <= SLIP_BYTES + ROW, "event of %u bytes", got->length);
        status = ring_copy(r, got, body);
    }
    if (status == RING_OVERRUN) {
        atomic_fetch_add_explicit(&skipped, r->lost_last - r->lost_first + 1, RELAXED);
        ring_overrun(r, 1);
    }
    DEMAND(status >= 0, "a lossy reader finds its ring corrupt");
    return status == RING_OK;
}

static void *copier(unsigned slot) {
    static uint64_t copy[LARGEST * POOL_BLOCK / 8];
    unsigned char body[SLIP_BYTES + ROW];
    ring_reader r;
    record got;
    DEMAND(ring_reader_open(&r, &frames, slot) == RING_OK, "slot %u cannot be read", slot);
    while (!atomic_load_explicit(&finished, RELAXED)) {
        if (!next_copy(&r, body, &got)) {
            sched_yield();
            continue;
        }
        slip one = slip_in(body);
        int status = pool_copy(&pool, &one, copy);
        DEMAND(status == RING_OK || status == RING_LOST, "a slip that was published cannot be");
        atomic_fetch_add_explicit(status == RING_OK ? &copies : &gone, 1, RELAXED);
        for (uint64_t i = 0; status == RING_OK && i < length_of(got.sequence); i += POOL_BLOCK)
            DEMAND(copy[i / 8] == got.sequence && copy[(i + POOL_BLOCK) / 8 - 1] == got.sequence,
                   "X4: a whole copy of event %llu is of %llu", (unsigned long long)got.sequence,
                   (unsigned long long)copy[i / 8]);
        ring_advance(&r, &got);
    }
    return NULL;
}

/* Holds what it comes to, owed or not, and dies with it. */
static void *late(unsigned slot) {
    unsigned char body[SLIP_BYTES + ROW];
    ring_reader r;
    record got;
    DEMAND(ring_reader_open(&r, &frames, slot) == RING_OK, "slot %u cannot be read", slot);
    for (unsigned held = 0; !atomic_load_explicit(&finished, RELAXED);) {
        if (next_copy(&r, body, &got)) {
            slip one = slip_in(body);
            int status = pool_hold(&pool, slot, one.block, one.generation);
            DEMAND(status == RING_OK || status == RING_LOST, "a slip that was published cannot be");
            if (status == RING_OK)
                look(&one, got.sequence), held++;
            ring_advance(&r, &got);
        } else {
            sched_yield();
        }
        if (held < 3)
            continue;
        atomic_fetch_add_explicit(&forgotten, pool_forget(&pool, slot), RELAXED);
        DEMAND(pool_enter(&pool, slot + 1, slot) == (int)slot, "a number is not free again");
        held = 0;
    }
    pool_forget(&pool, slot);
    return NULL;
}

static void *worker(unsigned owner) {
    album a = {.count = 0};
    for (uint64_t done = 0; done < events;) {
        claim c;
        int status = work_ready(&jobs) ? work_claim(&jobs, owner, 1, &c) : RING_EMPTY;
        DEMAND(status >= 0, "the worker finds the work ring corrupt");
        if (status != RING_OK) {
            if (a.count)
                drop(&a, owner, 0);
            sched_yield();
            continue;
        }
        slip one = slip_in(c.record.body);
        keep(&a, owner, &one, c.record.sequence);
        DEMAND(work_done(&jobs, &c) == RING_OK, "a claim went away");
        done++;
    }
    while (a.count)
        drop(&a, owner, 0);
    return NULL;
}

/* ---- rows ---- */

static void *runner(unsigned slot) {
    ring_reader r;
    DEMAND(ring_reader_open(&r, &rows, slot) == RING_OK, "slot %u cannot be read", slot);
    while (r.sequence < FIRST + events * ROWS) {
        record got;
        row_run run;
        uint64_t next = r.sequence;
        int status = ring_peek(&r, &got);
        DEMAND(status == RING_OK || status == RING_EMPTY, "who takes runs finds its ring corrupt");
        if (status == RING_EMPTY) {
            ring_settle(&r);
            sched_yield();
            continue;
        }
        DEMAND(ring_run(&r, &got, 11, &run) == RING_OK && run.sequence == next && run.count <= 11, "no run");
        for (uint64_t i = 0; i < run.count; i++)
            DEMAND(whole_row(run.payload + i * run.stride, run.sequence + i), "row %llu is not whole",
                   (unsigned long long)(run.sequence + i));
        ring_advance_run(&r, &run);
    }
    ring_settle(&r);
    return NULL;
}

static void *latest(unsigned slot) {
    unsigned char body[SLIP_BYTES + ROW];
    ring_reader r;
    record got;
    DEMAND(ring_reader_open(&r, &rows, slot) == RING_OK, "slot %u cannot be read", slot);
    r.latest = true;
    for (uint64_t last = 0; !atomic_load_explicit(&finished, RELAXED);) {
        if (!next_copy(&r, body, &got)) {
            sched_yield();
            continue;
        }
        DEMAND(got.sequence > last && got.length == ROW && whole_row(body, got.sequence), "row %llu after %llu",
               (unsigned long long)got.sequence, (unsigned long long)last);
        atomic_fetch_add_explicit(&skipped, last ? got.sequence - last - 1 : 0, RELAXED);
        last = got.sequence;
        ring_advance(&r, &got);
    }
    return NULL;
}

/* ---- the run ---- */

static void *segment(uint64_t size) {
    void *base = aligned_alloc(PAGE, size);
    DEMAND(base, "no memory");
    memset(base, 0, size);
    return base;
}

static void make_ring(ring_view *view, uint64_t id) {
    uint64_t size = ring_size(CAPACITY);
    void *base = segment(size);
    DEMAND(ring_format(base, size, CAPACITY, id, FIRST, START) == RING_OK &&
               ring_open(view, base, size, RING_BROADCAST) == RING_OK,
           "a ring cannot be made");
}

static void make(void) {
    uint64_t size = work_size(CAPACITY), bytes = pool_size(BLOCKS * POOL_BLOCK);
    void *table = segment(size), *blocks = segment(bytes);
    static uint64_t used;
    make_ring(&frames, 1);
    make_ring(&rows, 2);
    DEMAND(work_format(table, size, CAPACITY, 3, FIRST, START) == RING_OK &&
               ring_open(&jobs, table, size, RING_WORK) == RING_OK &&
               pool_format(blocks, bytes, BLOCKS * POOL_BLOCK, 4) == RING_OK &&
               pool_open(&pool, blocks, bytes) == RING_OK,
           "the segments cannot be made");
    pool_writer_open(&writer, &pool, &used);
    for (unsigned slot = VIEWER; slot <= LATE; slot++)
        DEMAND(ring_join(&frames, slot, slot >= COPIER, false) == RING_OK, "slot %u cannot be joined", slot);
    for (unsigned slot = 0; slot < 2; slot++)
        DEMAND(ring_join(&rows, slot, slot == 1, false) == RING_OK, "slot %u cannot be joined", slot);
    for (unsigned holder = 0; holder < HOLDERS; holder++)
        DEMAND(pool_enter(&pool, holder + 1, holder) == (int)holder, "no holder %u", holder);
}

typedef struct role {
    void *(*run)(unsigned);
    unsigned number;
} role;

static void *play(void *argument) {
    const role *r = argument;
    r->run(r->number);
    atomic_fetch_sub(&running, 1);
    return NULL;
}

int main(int argc, char **argv) {
    static role roles[] = {{viewer, VIEWER}, {viewer, OTHER_VIEWER}, {copier, COPIER},
                           {late, LATE},     {worker, WORKER},       {runner, 0},
                           {latest, 1}};
    enum { COUNT = sizeof roles / sizeof *roles };
    pthread_t threads[COUNT], first;
    bool brief = argc > 1 && !strcmp(argv[1], "--short");
    events = brief ? 10000 : 200000;
    alarm(WATCHDOG_S);
    make();
    atomic_store(&running, COUNT);
    DEMAND(pthread_create(&first, NULL, publisher, NULL) == 0, "no thread");
    for (unsigned i = 0; i < COUNT; i++)
        DEMAND(pthread_create(&threads[i], NULL, play, &roles[i]) == 0, "no thread");
    for (unsigned i = 0; i < COUNT; i++)
        pthread_join(threads[i], NULL);
    pthread_join(first, NULL);
    printf("%llu events with extents, %llu copied whole, %llu gone before, %llu views of the dead, %llu skipped\n",
           (unsigned long long)events, (unsigned long long)copies, (unsigned long long)gone,
           (unsigned long long)forgotten, (unsigned long long)skipped);
    free(frames.header);
    free(rows.header);
    free(jobs.header);
    free(pool.header);
    return 0;
}
