/* Fuzz target over the plain C readers: whatever a ring segment holds, every function ends, returns one of its codes, and
 * touches nothing outside of the segment. Built with the address and undefined-behaviour sanitizers by
 * tools/fuzz_readers.py.
 *
 *   fuzz_readers FILE...                  runs each file once: corpora and crashes of libFuzzer
 *   fuzz_readers --runs N [--seed S]      runs N mutations of healthy images (the only form without clang)
 *   fuzz_readers --write DIRECTORY        writes healthy inputs, for libFuzzer to begin with
 *
 * An input is 16 bytes of script, then an image. The image is laid out as a ring of the kind that the script names, in
 * memory of exactly its size, so that one byte too far is an error. The script says whether the header's identity is
 * repaired (else most inputs end at ring_open) and which words change while readers stand in the ring. The image's
 * beginning serves as a latency line too. */
#include "latency.h"
#include "retire.h"
#include "ring.h"
#include "work.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SCRIPT 16
#define CAPACITY MIN_CAPACITY
#define EVENTS 300 /* more than any ring of this capacity holds: a reader that gets more is in a loop */
#define LATE 4     /* words that change under the readers */
#define ROWS 6     /* at most, that are written together: a segment is as long as the longest of them */

typedef struct input {
    const uint8_t *script;
    const uint8_t *image;
    size_t size;
} input;

static uint64_t segment_size(uint32_t kind) { return kind == RING_WORK ? work_size(CAPACITY) : ring_size(CAPACITY); }

static void fail(const char *what) {
    fprintf(stderr, "FAILED: %s\n", what);
    abort();
}

/* ---- what is run ---- */

/* Changes a few words that steer readers, as somebody hostile would while they look. */
static void disturb(unsigned char *segment, uint64_t size, const uint8_t *script) {
    for (int i = 0; i < LATE; i++) {
        uint64_t at = (uint64_t)script[4 + i] * 8, value;
        if (script[8 + i] & 1)
            at += PAGE;
        memcpy(&value, script + 8, 8);
        if (script[3] >> i & 1 && at + 8 <= size)
            STORE_SEQ((word *)(segment + at), value >> (script[8 + i] & 56));
    }
}

static volatile unsigned char sink;

static void touch(const unsigned char *bytes, uint64_t length) {
    for (uint64_t i = 0; i < length; i++)
        sink ^= bytes[i];
}

/* Takes rows as arrays do, as many as the first of them, or whoever asks, says. */
static int read_rows(ring_reader *r, const record *first) {
    row_run run;
    uint64_t most = 1 + first->time_ns % 5 * EVENTS;
    int status = ring_run(r, first, most, &run);
    if (status != RING_OK)
        return status;
    if (!run.count || run.count > most || run.even > run.count || run.end != run.start + run.count * run.stride)
        fail("a run that cannot be");
    for (uint64_t i = 0; i < run.count; i++) {
        touch(run.payload + i * run.stride, first->length - run.headers);
        run_time(&run, i);
    }
    ring_advance_run(r, &run);
    return RING_OK;
}

static int read_one(ring_reader *r, bool copies) {
    record record;
    int status = ring_peek(r, &record);
    if (status == RING_OVERRUN)
        ring_overrun(r, 1);
    if (status != RING_OK)
        return status;
    if (record.headers > record.length)
        fail("headers longer than their record");
    if (!copies && record.sequence % 3)
        return read_rows(r, &record);
    if (!copies) {
        touch(record.body, record.length);
    } else {
        unsigned char *copy = malloc((record.length + 7u) & ~(size_t)7);
        status = ring_copy(r, &record, copy);
        free(copy);
        if (status != RING_OK)
            return status == RING_OVERRUN ? RING_OK : status;
    }
    if (record.sequence % 7)
        ring_advance(r, &record);
    else
        ring_undecodable(r, &record, 2);
    return RING_OK;
}

static void drain(ring_reader *r, bool copies) {
    int status = RING_OK;
    for (int i = 0; i < EVENTS && (status == RING_OK || status == RING_OVERRUN); i++)
        status = read_one(r, copies);
    if (r->slot)
        ring_settle(r);
}

/* Rows whose bytes are what lies at and behind those of the part. */
static void write_rows(ring_writer *w, const part *part, uint64_t most) {
    uint64_t count = ring_rows(w, part->payload_length);
    ring_write_rows(w, part, count < most ? count : most);
}

static void publish(const ring_view *view, const part *part) {
    ring_writer w;
    if (ring_writer_open(&w, view) != RING_OK)
        return;
    for (int i = 0; i < 20 && ring_reserve(&w, part->payload_length) == RING_OK; i++) {
        if (i % 4)
            ring_write(&w, part);
        else
            write_rows(&w, part, ROWS);
        if (i % 3)
            ring_commit(&w);
    }
    ring_refuse(view, w.sequence, 1, 3);
}

/* What may be freed lies behind the header's page, in whole pages, within the segment. */
static void check_spans(const span *spans, unsigned count, uint64_t size) {
    if (count > SPARE_SPANS)
        fail("more spans than there is room for");
    for (unsigned i = 0; i < count; i++)
        if (spans[i].offset < PAGE || spans[i].offset % PAGE || spans[i].length % PAGE || spans[i].offset > size ||
            spans[i].length > size - spans[i].offset)
            fail("a span outside of the segment");
}

static void retire_broadcast(const ring_view *view, uint64_t size) {
    ring_owed owed;
    span spans[SPARE_SPANS + 8];
    ring_owed_of(view, ~0ull, &owed);
    ring_give_up(view, 1);
    ring_slack(view);
    ring_trim(view);
    check_spans(spans, ring_spare(view, spans), size);
}

static void use_broadcast(const ring_view *view, unsigned char *segment, uint64_t size, const input *in) {
    ring_reader readers[4], taps[2];
    const unsigned slots[4] = {0, 1, 63, in->script[2] & 63};
    bool open[4], tapped[2];
    ring_terms terms;
    part part = {.payload = segment, .payload_length = in->script[1] * 3u, .time_ns = 4};
    for (int i = 0; i < 4; i++) {
        open[i] = ring_reader_open(&readers[i], view, slots[i]) == RING_OK;
        readers[i].latest = open[i] && readers[i].lossy && in->script[2] >> i & 1;
    }
    for (int i = 0; i < 2; i++)
        tapped[i] = ring_tap_open(&taps[i], view, i) == RING_OK;
    disturb(segment, size, in->script);
    for (int round = 0; round < 2; round++) {
        for (int i = 0; i < 4; i++) {
            if (open[i])
                drain(&readers[i], readers[i].lossy);
            if (ring_terms_of(view, slots[i], &terms) == RING_OK &&
                terms.offered != terms.delivered + terms.depth + terms.overrun + terms.refused + terms.undecodable)
                fail("books that do not balance");
        }
        for (int i = 0; i < 2; i++)
            if (tapped[i])
                drain(&taps[i], true);
        ring_join(view, slots[3], in->script[2] & 64, in->script[2] & 128);
        open[3] = ring_reader_open(&readers[3], view, slots[3]) == RING_OK;
        publish(view, &part);
        if (ring_room(view) > view->capacity)
            fail("more room than capacity");
        ring_blocking(view, in->script[1]);
        ring_release_publisher(view);
    }
    retire_broadcast(view, size);
    for (int i = 0; i < 4; i++)
        if (open[i])
            drain(&readers[i], readers[i].lossy);
    ring_leave(view, slots[3]);
}

static void use_work(const ring_view *view, unsigned char *segment, uint64_t size, const input *in) {
    work_writer w;
    work_terms terms;
    uint64_t count;
    part part = {.payload = segment, .payload_length = in->script[1] * 3u, .time_ns = 4};
    bool writes = work_writer_open(&w, view) == RING_OK;
    claim held[8];
    int claims = 0;
    bool first;
    uint64_t now;
    held_claim seen[4];
    unsigned char copy[CAPACITY];
    memcpy(&now, in->script + 8, 8);
    for (int round = 0; round < 3; round++) {
        for (int i = 0; i < EVENTS; i++) {
            claim c;
            int status = work_claim(view, in->script[2] & 3, 1, &c);
            if (status == RING_EMPTY)
                break;
            if (status != RING_OK)
                continue; /* another claim may be had */
            touch(c.record.body, c.record.length);
            if (i % 5 == 0 && claims < 8)
                held[claims++] = c;
            else if (i % 5 == 1)
                work_give_back(view, &c, i & 2);
            else if (i % 5 == 2)
                work_delay(view, &c, now, i & 2, &first);
            else
                work_done(view, &c);
        }
        if (!round)
            disturb(segment, size, in->script);
        for (int i = 0; i < claims; i++) {
            if (work_read(view, &held[i]) == RING_OK) {
                touch(held[i].record.body, held[i].record.length);
                if (work_copy(view, &held[i], copy) == RING_OK)
                    touch(copy, held[i].record.length);
            }
            work_count_loss(i & 1 ? &view->header->rejected : &view->header->undecodable, held[i].record.sequence, 5);
            work_done(view, &held[i]);
        }
        claims = 0;
        for (int i = 0; writes && i < 20 && work_reserve(&w, part.payload_length) == RING_OK; i++) {
            work_write(&w, &part);
            work_commit(&w);
        }
        work_reclaim(view, in->script[2] & 3, 1, &count);
        work_held(view, in->script[2] & 3, 1, seen, 4);
        work_promote(view, now + MAX_DELAY_NS);
        work_ready(view);
        if (in->script[2] & 32)
            work_abandon(view, 5, &count);
        if (work_room(view) > view->capacity)
            fail("more room than capacity");
        if (work_terms_of(view, &terms) == RING_OK && terms.offered != terms.done + terms.depth + terms.refused)
            fail("books that do not balance");
    }
    span spans[SPARE_SPANS + 8];
    check_spans(spans, work_spare(view, spans), size);
    work_slack(view);
    work_trim(view);
}

/* The image as a latency line: samples of any size may be added to it, and its terms are in order or there are none. */
static void use_latency(const input *in) {
    latency_line *line = calloc(1, sizeof *line);
    latency_terms terms;
    uint64_t ns;
    if (!line)
        return;
    memcpy(line, in->image, in->size < sizeof *line ? in->size : sizeof *line);
    memcpy(&ns, in->script + 8, 8);
    for (int i = 0; i < 2; i++) {
        if (latency_terms_of(line, &terms) &&
            (!terms.count || terms.p50_ns > terms.p99_ns || terms.p99_ns > terms.max_ns))
            fail("quantiles out of order");
        latency_record(line, ns >> (in->script[2] & 63), in->script[1]);
    }
    free(line);
}

/* ---- inputs ---- */

static void repair(unsigned char *segment, uint32_t kind) {
    ring_header *h = (ring_header *)segment;
    h->magic = RING_MAGIC;
    h->layout_version = LAYOUT_VERSION;
    h->kind = kind;
    h->capacity = CAPACITY;
    h->slots = kind == RING_WORK ? WORK_DESCRIPTORS(CAPACITY) : MAX_SUBSCRIBERS;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size < SCRIPT)
        return 0;
    input in = {data, data + SCRIPT, size - SCRIPT};
    use_latency(&in);
    uint32_t kind = in.script[0] & 1 ? RING_WORK : RING_BROADCAST;
    bool whole = in.script[0] & 2; /* else of the input's size, for ring_open to refuse or not */
    uint64_t bytes = whole ? segment_size(kind) : in.size & ~(size_t)7;
    unsigned char *segment = calloc(bytes ? bytes : 1, 1);
    if (!segment)
        return 0;
    memcpy(segment, in.image, in.size < bytes ? in.size : bytes);
    if (whole)
        repair(segment, kind);
    ring_view view;
    if (ring_open(&view, segment, bytes, kind) == RING_OK)
        (kind == RING_WORK ? use_work : use_broadcast)(&view, segment, bytes, &in);
    free(segment);
    return 0;
}

/* ---- the standalone form ---- */

#ifndef LIBFUZZER

#include <unistd.h>

#define WATCHDOG_S 60u /* seconds for BATCH inputs, which take well under one */
#define BATCH 1000
#define LARGEST (64 * 1024)

static uint64_t state;

static uint64_t chance(void) { /* splitmix64 */
    uint64_t z = state += 0x9e3779b97f4a7c15ull;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ z >> 27) * 0x94d049bb133111ebull;
    return z ^ z >> 31;
}

/* An image with everything in it: laps, padding, headers, rows, a reader that is behind, one that is lapped, losses. */
static void healthy_broadcast(unsigned char *image, uint64_t start) {
    ring_view view;
    ring_writer w;
    ring_reader r, lossy;
    record record;
    ring_format(image, ring_size(CAPACITY), CAPACITY, 7, 1, start);
    ring_open(&view, image, ring_size(CAPACITY), RING_BROADCAST);
    ring_join(&view, 0, false, false);
    ring_join(&view, 1, true, false);
    ring_writer_open(&w, &view);
    ring_reader_open(&r, &view, 0);
    ring_reader_open(&lossy, &view, 1);
    for (int i = 0; i < 150; i++) {
        part part = {
            .headers = image,
            .headers_length = 8,
            .payload = image,
            .payload_length = (uint64_t)(i % 5) * 24,
            .time_ns = 9,
        };
        if (ring_reserve(&w, 8 + part.payload_length) != RING_OK)
            break;
        ring_write(&w, &part);
        part.headers_length = 0;
        if (i % 7 == 0 && ring_reserve(&w, part.payload_length) == RING_OK)
            write_rows(&w, &part, ROWS);
        ring_commit(&w);
        if (i > 10 && ring_peek(&r, &record) == RING_OK)
            ring_advance(&r, &record);
        if (i == 100 && ring_peek(&lossy, &record) == RING_OVERRUN)
            ring_overrun(&lossy, 1);
    }
}

/* READY, CLAIMED and DONE words, in a later lap. */
static void healthy_work(unsigned char *image, uint64_t first) {
    ring_view view;
    work_writer w;
    claim c;
    work_format(image, work_size(CAPACITY), CAPACITY, 8, first, 64);
    ring_open(&view, image, work_size(CAPACITY), RING_WORK);
    work_writer_open(&w, &view);
    for (int i = 0; i < 200; i++) {
        part part = {.payload = image, .payload_length = (uint64_t)(i % 4) * 16, .time_ns = 9};
        if (work_reserve(&w, part.payload_length) != RING_OK)
            break;
        work_write(&w, &part);
        work_commit(&w);
        if (i % 4 && work_claim(&view, (unsigned)i & 3, 1, &c) == RING_OK && (i < 150 || i & 1))
            work_done(&view, &c);
    }
}

static uint64_t absurd(uint64_t old, uint64_t other) {
    static const uint64_t values[] = {0, 1, 8, 24, CAPACITY, CAPACITY - 8, 1ull << 32, 1ull << 48, 1ull << 63, ~0ull};
    switch (chance() % 9) {
    case 0:
        return values[chance() % (sizeof(values) / sizeof(values[0]))];
    case 1:
        return old + (chance() & 1 ? 1 : ~0ull);
    case 2:
        return old + (chance() % 65 - 32) * 8;
    case 3:
        return old ^ 1ull << chance() % 64;
    case 4:
        return other;
    case 5:
        return (chance() % 1200) | (chance() % 4) << 32 | (chance() & 1 ? 8ull << 48 : 0); /* a record's second word */
    case 7: /* the same of a row, which says that others follow */
        return (old & 0xffffffffffull) | (uint64_t)RECORD_RUN << 40 |
               (chance() & 1 ? chance() % 2 * ROWS : chance()) << 48;
    case 6:
        return (old & ~(7ull << 36)) | (chance() % 5) << 36; /* a claim in another state */
    default:
        return chance();
    }
}

/* Offset of a word, mostly of one that steers somebody. */
static uint64_t steering(uint64_t bytes) {
    static const uint16_t hot[] = {64, 72, 80, 88, 128, 152, 160, 192, 256, 320};
    switch (chance() % 4) {
    case 0:
        return hot[chance() % (sizeof(hot) / sizeof(hot[0]))];
    case 1:
        return PAGE + chance() % 160 * 8; /* cursor slots, or descriptors */
    case 2:
        return bytes - CAPACITY + chance() % (CAPACITY / 8) * 8;
    default:
        return chance() % (bytes / 8) * 8;
    }
}

/* A healthy image behind a random script; returns the bytes of the image. */
static uint64_t healthy(unsigned char *input, bool work, bool late) {
    uint64_t bytes = segment_size(work ? RING_WORK : RING_BROADCAST);
    memset(input + SCRIPT, 0, bytes);
    if (work)
        healthy_work(input + SCRIPT, late ? 1ull << 32 : 1);
    else
        healthy_broadcast(input + SCRIPT, late ? (1ull << 48) + 2240 : 0);
    for (int j = 0; j < SCRIPT; j++)
        input[j] = (uint8_t)chance();
    input[0] = (uint8_t)((chance() % 16 ? 2 : 0) | work);
    return bytes;
}

static void run_mutations(uint64_t runs, uint64_t seed) {
    static unsigned char input[SCRIPT + LARGEST] __attribute__((aligned(64)));
    state = seed;
    for (uint64_t i = 0; i < runs; i++) {
        unsigned char *image = input + SCRIPT;
        if (i % BATCH == 0)
            alarm(WATCHDOG_S);
        uint64_t bytes = healthy(input, chance() & 1, chance() & 1);
        for (uint64_t words = chance() % 6; words; words--) {
            word *at = (word *)(image + steering(bytes));
            STORE_RELAXED(at, absurd(LOAD_RELAXED(at), LOAD_RELAXED((word *)(image + steering(bytes)))));
        }
        uint64_t size = chance() % 32 ? bytes : chance() % bytes;
        LLVMFuzzerTestOneInput(input, SCRIPT + size);
    }
}

static int write_inputs(const char *directory) {
    static unsigned char input[SCRIPT + LARGEST] __attribute__((aligned(64)));
    for (unsigned i = 0; i < 4; i++) {
        uint64_t bytes = healthy(input, i & 1, i & 2);
        char path[4096];
        snprintf(path, sizeof(path), "%s/healthy-%u", directory, i);
        FILE *file = fopen(path, "wb");
        if (!file || fwrite(input, 1, SCRIPT + bytes, file) != SCRIPT + bytes || fclose(file)) {
            perror(path);
            return 1;
        }
    }
    return 0;
}

static int run_file(const char *path) {
    static unsigned char input[SCRIPT + LARGEST];
    FILE *file = fopen(path, "rb");
    if (!file) {
        perror(path);
        return 1;
    }
    size_t size = fread(input, 1, sizeof(input), file);
    fclose(file);
    alarm(WATCHDOG_S);
    return LLVMFuzzerTestOneInput(input, size);
}

int main(int count, char **words) {
    uint64_t runs = 0, seed = 1;
    int files = 0, failed = 0;
    for (int i = 1; i < count; i++) {
        if (i + 1 < count && !strcmp(words[i], "--runs"))
            runs = strtoull(words[++i], NULL, 10);
        else if (i + 1 < count && !strcmp(words[i], "--seed"))
            seed = strtoull(words[++i], NULL, 10);
        else if (i + 1 < count && !strcmp(words[i], "--write"))
            failed |= write_inputs(words[++i]);
        else
            failed |= run_file(words[i]), files++;
    }
    run_mutations(runs, seed);
    printf("%llu mutations, %d files\n", (unsigned long long)runs, files);
    return failed;
}

#endif
