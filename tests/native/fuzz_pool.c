/* Fuzz: everything that reads a pool, on segments in which somebody wrote anything. To be built with the address sanitizer:
 * the memory is exactly as large as the segments.
 *
 *   fuzz_pool MUTATIONS SEED
 *
 * What must hold: no access outside of the segments, every call returns, and no slip opens bytes outside of its extent. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "pool.h"

#define BLOCKS 24u
#define CAPACITY 4096u
#define PARTS 3u

static uint64_t state;

static uint64_t dice(uint64_t sides) { /* xorshift */
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state % sides;
}

typedef struct bench {
    unsigned char *pool, *ring;
    uint64_t pool_bytes, ring_bytes;
    pool_view view;
    ring_view rings;
    pool_writer writer;
    ring_writer out;
    uint64_t used[(BLOCKS + 63) / 64];
} bench;

static void check(bool fine, const char *what) {
    if (!fine) {
        fprintf(stderr, "fuzz_pool: %s\n", what);
        exit(1);
    }
}

/* A pool with extents of one run and of several, some of them sent, ended and used again. */
static void build(bench *b) {
    slip slips[8];
    memset(b->pool, 0, b->pool_bytes);
    memset(b->ring, 0, b->ring_bytes);
    memset(b->used, 0, sizeof(b->used));
    check(pool_format(b->pool, b->pool_bytes, BLOCKS * POOL_BLOCK, 1) == RING_OK &&
              pool_open(&b->view, b->pool, b->pool_bytes) == RING_OK &&
              ring_format(b->ring, b->ring_bytes, CAPACITY, 1, 1, 0) == RING_OK &&
              ring_open(&b->rings, b->ring, b->ring_bytes, RING_BROADCAST) == RING_OK &&
              ring_join(&b->rings, 0, false, false) == RING_OK && ring_writer_open(&b->out, &b->rings) == RING_OK,
          "cannot build");
    pool_writer_open(&b->writer, &b->view, b->used);
    pool_enter(&b->view, 1, 1);
    for (unsigned i = 0; i < 8; i++)
        check(pool_allocate(&b->writer, 1 + dice(2 * POOL_BLOCK), 1, true, &slips[i]) == RING_OK, "no room");
    for (unsigned i = 0; i < 8; i += 2) {
        pool_end(&b->writer, slips[i].block);
        pool_reuse(&b->writer, slips[i].block);
    }
    check(pool_allocate(&b->writer, b->writer.free * POOL_BLOCK, 1, true, &slips[0]) == RING_OK, "no runs");
    for (unsigned i = 0; i < 3; i++) {
        unsigned char payload[8 + PARTS * sizeof(slip) + 16] = {PARTS};
        slip parts[PARTS] = {slips[i ? 2 * i + 1 : 0], {SLIP_INLINE, 0, 8 + sizeof(parts), 16}, slips[1]};
        memcpy(payload + 8, parts, sizeof(parts));
        part p = {.payload = payload, .payload_length = sizeof(payload), .flags = RECORD_POOLED};
        check(ring_reserve(&b->out, sizeof(payload)) == RING_OK, "no room for a record");
        ring_write(&b->out, &p);
    }
    ring_commit(&b->out);
}

/* Some word of the header, the table or the records becomes something else. */
static void mutate(bench *b) {
    static const uint64_t values[] = {0, 1, 2, 3, BLOCKS, BLOCKS - 1, UINT32_MAX, UINT64_MAX, 1ull << 32, 1ull << 63};
    for (uint64_t left = 1 + dice(3); left; left--) {
        bool table = dice(3) != 0;
        uint64_t words = table ? (sizeof(pool_header) + 64) / 8 : 0, at;
        word *base = (word *)(table ? b->pool : b->ring);
        if (table)
            at = dice(2) ? dice(words) : POOL_TABLE / 8 + dice(BLOCKS * sizeof(extent) / 8);
        else
            at = sizeof(broadcast_segment) / 8 + dice(60);
        uint64_t value = dice(2)   ? values[dice(sizeof(values) / 8)]
                         : dice(2) ? base[at] ^ 1ull << dice(64)
                                   : dice(UINT64_MAX);
        base[at] = value;
    }
}

static void use(bench *b, const slip *one, unsigned char *into) {
    uint64_t runs = 0, block = one->block, sum = 0;
    run each;
    if (pool_check(&b->view, one, &runs) == RING_OK)
        for (; block != UINT64_MAX && runs; runs--) {
            check(pool_next_run(&b->view, &block, &each), "a run that was checked is none");
            check(each.block + each.blocks <= BLOCKS, "a run beyond the pool");
            for (uint64_t i = 0; i < each.blocks * POOL_BLOCK; i += POOL_BLOCK)
                sum += b->view.data[each.block * POOL_BLOCK + i];
        }
    (void)sum;
    if (one->length <= BLOCKS * POOL_BLOCK)
        pool_copy(&b->view, one, into);
    if (pool_hold(&b->view, 0, one->block, one->generation) == RING_OK)
        pool_let_go(&b->view, 0, one->block);
}

static void read_all(bench *b, unsigned char *into) {
    pool_view again;
    ring_reader reader;
    uint64_t bits[(BLOCKS + 63) / 64] = {0};
    if (pool_open(&again, b->pool, b->pool_bytes) != RING_OK)
        return;
    if (ring_reader_open(&reader, &b->rings, 0) == RING_OK) {
        record r;
        while (ring_peek(&reader, &r) == RING_OK) {
            uint64_t count, end, body;
            if (pool_slips(r.body, r.length, &count, &end) == RING_OK)
                for (uint64_t i = 0; i < (count & ~SLIP_BODY); i++) {
                    slip one;
                    memcpy(&one, r.body + 8 + i * sizeof(one), sizeof(one));
                    if (one.block != SLIP_INLINE)
                        use(b, &one, into);
                }
            if (pool_body(r.body, r.length, &body) == RING_OK)
                check(body <= r.length, "a body beyond its record");
            pool_gone(&b->view, r.body, r.length);
            ring_advance(&reader, &r);
        }
    }
    pool_owed(&b->view, &b->rings, false, bits);
    pool_debtors(&b->rings, b->out.head);
    pool_forget(&b->view, (unsigned)dice(POOL_HOLDERS));
    for (uint64_t block = 0; block < BLOCKS; block++) { /* the publisher, whose table somebody wrote into */
        pool_end(&b->writer, block);
        pool_reuse(&b->writer, block);
    }
    check(b->writer.free <= BLOCKS, "more free blocks than there are");
    slip more;
    pool_allocate(&b->writer, dice(BLOCKS * POOL_BLOCK), 1, true, &more);
}

int main(int count, char **words) {
    uint64_t mutations = count > 1 ? strtoull(words[1], NULL, 10) : 10000;
    state = (count > 2 ? strtoull(words[2], NULL, 10) : 1) | 1;
    bench b = {.pool_bytes = pool_size(BLOCKS * POOL_BLOCK), .ring_bytes = ring_size(CAPACITY)};
    b.pool = aligned_alloc(PAGE, b.pool_bytes);
    b.ring = aligned_alloc(PAGE, b.ring_bytes);
    unsigned char *into = malloc(BLOCKS * POOL_BLOCK);
    for (uint64_t i = 0; i < mutations; i++) {
        if (i % 8 == 0)
            build(&b);
        mutate(&b);
        read_all(&b, into);
    }
    printf("%llu mutations: nothing outside of the segments was touched\n", (unsigned long long)mutations);
    free(b.pool);
    free(b.ring);
    free(into);
    return 0;
}
