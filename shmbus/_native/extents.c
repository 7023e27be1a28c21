/* Extents: the publisher allocates blocks of its pool and frees them. See pool.h.
 *
 * A run of blocks that is long enough is taken whole, and costs a look at as many bits. Where there is none, an extent has
 * several runs, the longest first, and whoever looks at it maps them side by side: so no allocation fails for want of
 * anything but blocks, and a pool that is used like a ring never comes to that. */
#include "pool.h"

#define NONE UINT64_MAX

uint64_t pool_bitmap_words(const pool_view *view) { return (view->blocks + 63) / 64; }

/* `used` is all zero. What other publishers left in the pool is nobody's: there is one publisher to a pool, ever. */
void pool_writer_open(pool_writer *w, const pool_view *view, uint64_t *used) {
    *w = (pool_writer){.view = *view, .used = used, .free = view->blocks};
}

/* The first block from `at` on that is used (or free), `limit` if there is none below. */
static uint64_t seek(const pool_writer *w, uint64_t at, uint64_t limit, bool used) {
    while (at < limit) {
        uint64_t bits = (used ? w->used[at / 64] : ~w->used[at / 64]) >> at % 64;
        if (bits) {
            at += (uint64_t)__builtin_ctzll(bits);
            return at < limit ? at : limit;
        }
        at = (at / 64 + 1) * 64;
    }
    return limit;
}

/* The first of `blocks` free blocks in a row that begin in [from, to), NONE. */
static uint64_t find(const pool_writer *w, uint64_t from, uint64_t to, uint64_t blocks) {
    uint64_t end = w->view.blocks;
    for (uint64_t at = seek(w, from, to, false); at < to; at = seek(w, at, to, false)) {
        if (blocks > end - at)
            return NONE;
        uint64_t stop = seek(w, at, at + blocks, true);
        if (stop == at + blocks)
            return at;
        at = stop;
    }
    return NONE;
}

static void set_used(pool_writer *w, uint64_t at, uint64_t blocks, bool used) {
    uint64_t end = at + blocks;
    w->free = used ? w->free - blocks : w->free + blocks;
    while (at < end) {
        uint64_t some = 64 - at % 64 < end - at ? 64 - at % 64 : end - at;
        uint64_t bits = (some == 64 ? ~0ull : (1ull << some) - 1) << at % 64;
        w->used[at / 64] = used ? w->used[at / 64] | bits : w->used[at / 64] & ~bits;
        at += some;
    }
}

static void take(pool_writer *w, uint64_t at, uint64_t blocks) {
    set_used(w, at, blocks, true);
    STORE_RELEASE(&w->view.extents[at].shape, blocks);
    if (at + 1 > w->high) { /* before anybody can hold it */
        w->high = at + 1;
        STORE_RELEASE(&w->view.header->high, w->high);
    }
}

/* Takes `blocks` in several runs, the longest first: the first block. There are as many free. */
static uint64_t take_runs(pool_writer *w, uint64_t blocks) {
    uint64_t first = NONE, last = NONE;
    for (uint64_t least = blocks / 2; blocks; least /= 2) {
        uint64_t at = seek(w, 0, w->view.blocks, false);
        while (blocks && at < w->view.blocks) {
            uint64_t stop = seek(w, at, w->view.blocks, true), some = stop - at < blocks ? stop - at : blocks;
            if (some >= least) {
                take(w, at, some);
                if (first == NONE)
                    first = at;
                else
                    STORE_RELEASE(&w->view.extents[last].shape, LOAD_RELAXED(&w->view.extents[last].shape) | (at + 1)
                                                                                                                 << 32);
                last = at;
                blocks -= some;
            }
            at = seek(w, stop, w->view.blocks, false);
        }
    }
    return first;
}

/* An extent of `length` bytes, as the slip that names all of it: RING_OK, or RING_FULL. In one run, unless it may `spread`. */
int pool_allocate(pool_writer *w, uint64_t length, uint64_t now_ns, bool spread, slip *out) {
    uint64_t blocks = pool_blocks(length ? length : 1);
    if (length > MAX_POOL || blocks > w->free)
        return RING_FULL;
    uint64_t at = find(w, w->next, w->view.blocks, blocks);
    if (at == NONE)
        at = find(w, 0, w->next, blocks);
    if (at == NONE && !spread)
        return RING_FULL;
    if (at == NONE)
        at = take_runs(w, blocks);
    else
        take(w, at, blocks);
    w->next = (at + blocks) % w->view.blocks;
    extent *e = &w->view.extents[at];
    STORE_RELAXED(&e->length, length);
    STORE_RELAXED(&e->since_ns, now_ns);
    uint64_t generation = 2 * ++w->serial + 1;
    STORE_SEQ(&e->generation, generation); /* SYNC extent */
    *out = (slip){.block = at, .generation = generation, .length = length};
    (void)pool_held(&w->view,
                    at); /* seq_cst loads between the generation and the bytes: whoever sees new bytes sees it */
    return RING_OK;
}

/* Nobody is owed the extent any more: from now on nobody gets to hold it who does not hold it already. */
void pool_end(pool_writer *w, uint64_t block) {
    word *generation = &w->view.extents[block].generation;
    uint64_t now = LOAD_RELAXED(generation);
    STORE_SEQ(generation, now + now % 2); /* SYNC extent */
}

/* Frees the blocks of an extent that has ended, if nobody looks at it (X2). */
bool pool_reuse(pool_writer *w, uint64_t block) {
    run one;
    if (pool_held(&w->view, block))
        return false;
    for (uint64_t blocks = 0; block != NONE && blocks < w->view.blocks; blocks += one.blocks) {
        if (!pool_next_run(&w->view, &block, &one))
            break; /* somebody wrote into our table: what it hides stays used */
        if (seek(w, one.block, one.block + one.blocks, false) == one.block + one.blocks)
            set_used(w, one.block, one.blocks, false);
    }
    return true;
}
