/* Pool: what the events of one publisher carry beside them, written once and looked at in place by everybody.
 *
 * Layout      layout.h: pool_header with the holders, one entry of 64 bytes for each block, then the blocks. An extent is
 *             known by its first block; where no run of blocks is long enough it has several, linked by `shape`.
 * Writers     The publisher alone allocates and frees: it writes generations, shapes, lengths and, below the generation,
 *             the bytes. Each holder sets and clears its own bit of `holds`; the holder of the bus lock clears those of
 *             the dead. `holders` changes by CAS from 0.
 * Who is owed No word says it, for the rings do: an extent is owed while a reliable cursor stands before its record, or a
 *             group's claim word of it is not DONE. So joining, leaving, death and removal of a consumer need nothing here.
 * Invariants  X1  an extent whose bit is set, and whose generation was seen unchanged after that, keeps its bytes until
 *                 the bit is cleared.
 *             X2  the publisher frees an extent when it is owed to nobody, and reuses it when no bit is set after the
 *                 generation went on (SYNC extent: a Dekker of the two).
 *             X3  a slip names an extent by block and generation: one that was freed, or never was, is not opened.
 *             X4  who copies without a bit compares the generation after the last byte.
 * Crash order Publisher: generation, shape, bytes, then the record (SYNC tail): before that nobody knows the extent, and
 *             with its publisher dead nobody allocates it. Receiver: bit, generation, then cursor or claim word. A death
 *             between any two leaves bits of a holder that is dead, and no others.
 */
#ifndef SHMBUS_POOL_H
#define SHMBUS_POOL_H

#include "ring.h"
#include "work.h"

typedef struct pool_view { /* a checked window on one segment */
    pool_header *header;
    extent *extents;
    unsigned char *data;
    uint64_t blocks;
} pool_view;

typedef struct pool_writer {
    pool_view view;
    uint64_t *used; /* a bit a block, in memory of the publisher's own */
    uint64_t free;  /* blocks */
    uint64_t high;
    uint64_t next;   /* where the next search begins */
    uint64_t serial; /* of the last allocation: no two extents of a pool ever had one generation */
} pool_writer;

typedef struct run {
    uint64_t block, blocks;
} run;

static inline uint64_t pool_blocks(uint64_t bytes) { return (bytes + POOL_BLOCK - 1) / POOL_BLOCK; }

uint64_t pool_size(uint64_t bytes);
int pool_format(void *base, uint64_t size, uint64_t bytes, uint64_t pool_id);
int pool_open(pool_view *view, void *base, uint64_t size);

int pool_enter(const pool_view *view, uint64_t life, uint64_t consumer);
void pool_leave(const pool_view *view, unsigned holder);
uint64_t pool_forget(const pool_view *view, unsigned holder);

int pool_hold(const pool_view *view, unsigned holder, uint64_t block, uint64_t generation);
bool pool_let_go(const pool_view *view, unsigned holder, uint64_t block);
bool pool_held(const pool_view *view, uint64_t block);
int pool_check(const pool_view *view, const slip *slip, uint64_t *runs);
bool pool_next_run(const pool_view *view, uint64_t *block, run *out);
int pool_copy(const pool_view *view, const slip *slip, void *into);

uint64_t pool_bitmap_words(const pool_view *view);
void pool_writer_open(pool_writer *w, const pool_view *view, uint64_t *used);
int pool_allocate(pool_writer *w, uint64_t length, uint64_t now_ns, bool spread, slip *out);
void pool_end(pool_writer *w, uint64_t block);
bool pool_reuse(pool_writer *w, uint64_t block);

uint64_t pool_debtors(const ring_view *ring, uint64_t end);

int pool_slips(const unsigned char *payload, uint64_t length, uint64_t *count, uint64_t *end);
bool pool_gone(const pool_view *view, const unsigned char *payload, uint64_t length);
int pool_body(const unsigned char *payload, uint64_t length, uint64_t *body);
int pool_owed(const pool_view *view, const ring_view *ring, bool work, uint64_t *bits);

#endif
