/* Layout of all segments: the one place that knows an offset. Python reads the constants from _core.
 *
 * Layout      A bus segment (header, topic lines, group lines, consumer lines, latency lines, two document slots), and ring
 *             segments: broadcast (header, cursor slots, records) and work (header, descriptors, notes, records), and pool
 *             segments: header with holders, a table of extents, blocks; and lane segments: header, lanes.
 * Writers     Each word names its writer below: P the publisher, S one subscriber, W any worker by CAS, V the
 *             supervisor, L whoever holds the bus lock.
 * Invariants  Sizes and offsets are ABI: LAYOUT_VERSION changes with any of them.
 * Crash order A segment is initialised whole before it gets its name, so no reader sees half a header.
 */
#ifndef SHMBUS_LAYOUT_H
#define SHMBUS_LAYOUT_H

#include "atomics.h"

#define LAYOUT_VERSION 5u
#define BEAT_FRESH_NS 3000000000ull /* a supervisor beats once a second: after this long it is not at work */

#define BUS_MAGIC 0x3173756273756d68ull  /* "hmsubsu1" in memory: no other program's first eight bytes */
#define RING_MAGIC 0x31676e6972756d68ull /* "hmuring1" */
#define POOL_MAGIC 0x316c6f6f70756d68ull /* "hmupool1" */
#define LANE_MAGIC 0x31656e616c756d68ull /* "hmulane1" */

#define LINE 64 /* bytes in a cache line of x86-64 and of most aarch64 */
#define PAGE 4096

#define RING_BROADCAST 1u
#define RING_WORK 2u

#define MIN_CAPACITY 4096ull
#define MAX_CAPACITY (1ull << 40)

/* Bus segment. The registry is one document, kept twice: slot `version & 1` is the valid one, the other is scratch for the
 * next change. Fixed words beside it are those that change too often, or too lock-free, for a document. */
#define MAX_TOPICS 1024
#define MAX_GROUPS 1024
#define MAX_SUBSCRIBERS 64 /* of one topic: one word of `parked` */
#define MAX_WORKERS 256    /* of one group: four words of `parked`, eight bits in a claim word */
#define MAX_CONSUMERS 4096
#define DOCUMENT_BYTES (1u << 22)
/* What a bus has memory for from the start. The rest of the segment is a hole in its file, and gets memory when somebody
 * enters who needs it: under the bus lock, before anything is written there (_ledger/room.py). */
#define FIRST_CONSUMERS 512
#define FIRST_DOCUMENT_BYTES (1u << 20)
#define LATENCY_BUCKETS 120 /* below 128 ns, four an octave up to 97 s, above */

typedef struct bus_header {
    /*   off  field          writer  order */
    uint64_t magic;          /*  0   creator */
    uint64_t layout_version; /*  8   creator */
    uint64_t boot_id[2];     /* 16   creator; what is from before a reboot serves nobody */
    uint64_t created_ns;     /* 32   creator; CLOCK_REALTIME, as all times here: no time namespace shifts it */
    word supervisor_spawned; /* 40   L  ns of the last start of an automatic supervisor */
    uint64_t lives_inode;    /* 48   creator; of the lives file that it goes with: with another one it is nobody's */
    uint64_t identity;       /* 56   creator; random: with it names of events are never used twice, on any bus */
    word version; /* 64   L  seq_cst after the document slot, before the epochs: SYNC document (_ledger/registry.py) */
    word holder;  /* 72   L  PID of the lock's holder, 0 when free; non-zero on entry says that it died inside */
    word supervisor_pid;       /* 80   V  in its own namespace */
    word supervisor_life;      /* 88   V  its byte of the lives file, 0: none */
    word supervisor_beat;      /* 96   V  ns of its last round */
    word supervisor_namespace; /* 104  V  inode of its PID namespace */
    word removed;              /* 112  L  1 once the bus is unlinked: handles that still map it must let go */
    word processes;            /* 120  L  how many processes take part, after the version; a hint for those who spin */
} bus_header;

#define LIVES_LOCK 0           /* the byte that is the bus lock */
#define LIVES_LIFE (1ll << 20) /* that of life 0; the numbers of lives stay far below the line */
#define LIVES_LINE (1ll << 62) /* that of ticket 0 */
#define LINE_THREADS 31 /* bits of a futex that tickets share; the last is for threads that wait for their turn */

/* The lives file: locks of the kernel's stand on ranges of it (lives.py), these words in it. They only make the bus lock fair
 * and quick to pass on: whatever they say, who holds the lock is for the kernel to say. */
typedef struct lives_file {
    word tickets; /*   0  whoever queues, add: the number that it queues under */
    uint64_t pad0[7];
    word releases; /*  64  L  add after the lock is free, then wake; a sleep is bounded besides */
    uint64_t pad1[7];
    word next; /* 128  L  behind the tickets that got the lock or were passed over: who is to be woken */
    unsigned char pad2[PAGE - 136];
} lives_file;

typedef struct topic_line { /* one cache line that every publish reads */
    word epoch;             /*  0  L  add after the document: SYNC epoch */
    word parked;            /*  8  S sets, whoever clears posts: SYNC park */
    word awaiting;          /* 16  S  bits whose owner sleeps on its FIFO instead of its semaphore */
    word reserved[5];
} topic_line;

typedef struct group_line {
    word parked[MAX_WORKERS / 64];   /*  0  W sets, whoever clears posts: SYNC park */
    word awaiting[MAX_WORKERS / 64]; /* 32  W */
} group_line;

typedef struct consumer_line {
    word stalled_since_ns; /*  0  V  CLOCK_MONOTONIC, 0 when it makes progress */
    word reserved[7];
} consumer_line;

typedef struct latency_line { /* sampled, from publish to hand-out: latency.h */
    word since_ns; /*  0  L  CLOCK_REALTIME; what was published before is history and not sampled; 0: all of it is */
    word max_ns;   /*  8  S or W  CAS */
    word reserved[6];
    word weights[LATENCY_BUCKETS]; /* 64  S or W  add */
} latency_line;

typedef struct document_slot {
    word length;                              /*  0  L */
    word checksum;                            /*  8  L  crc32 of the bytes */
    unsigned char bytes[DOCUMENT_BYTES - 16]; /* a directory, a head, a section for each topic: _ledger/slots.py */
} document_slot;

typedef struct bus_segment {
    bus_header header;
    unsigned char pad[PAGE - sizeof(bus_header)];
    topic_line topics[MAX_TOPICS];
    group_line groups[MAX_GROUPS];
    consumer_line consumers[MAX_CONSUMERS];
    latency_line latencies[MAX_CONSUMERS];
    document_slot documents[2];
} bus_segment;

/* Record: 24 bytes of header, then headers, then payload; the next record begins at the next multiple of eight.
 *
 *   0               8           12    13    14          16              24
 *   +---------------+-----------+-----+-----+-----------+---------------+----------+---------+
 *   | sequence      | length    |kind |flags| headers   | time_ns       | headers  | payload |
 *   +---------------+-----------+-----+-----+-----------+---------------+----------+---------+
 *
 * `length` counts headers and payload, `headers` the first of the two. `sequence` stands first because the publisher
 * writes the next one ahead of its tail (the frontier), so that every boundary in [oldest, tail] tells its sequence. */
#define RECORD_HEADER 24
#define RECORD_TIME 16
#define RECORD_ALIGN 8
#define RECORD_EVENT 1u
#define RECORD_PAD 2u    /* fills the ring up to its end; carries the sequence of the record that follows */
#define RECORD_POOLED 1u /* a flag: the payload begins with slips, see pool.h */
#define RECORD_RUN 2u /* another: `headers` is how many like it follow in one piece, a nanosecond apart; it has none */
#define MAX_HEADERS 0xffffu
#define RECORD_LIMIT                                                                                                   \
    0xfffffff8ull /* what `length` can say, so that it can still be rounded up to a multiple of eight */

/* Trace file: KEPT notes, then WINDOW, of the senders of one publisher's events; no segment, for it is never mapped. P, and
 * of what is kept also those who lose. `sequence % WINDOW` is the place of an event; see shmbus/_shm/traces.py. */
#define TRACE_KEPT 1024
#define TRACE_BUCKET 8 /* places of one hash among those that are kept */
#define TRACE_WINDOW (1 << 17)
#define TRACE_REFUSED (1ull << 63) /* in `ring`: what this ring refused, before the event of that sequence */
#define TRACE_SAMPLED (1ull << 63) /* in `sequence` */

typedef struct trace_note {
    uint64_t ring; /* 0: the broadcast rings of the publisher, which count on */
    uint64_t sequence;
    uint64_t trace[2]; /* the higher half first */
    uint64_t span;
    uint64_t fold; /* of the words before it, never 0: a note that is torn is none */
} trace_note;
_Static_assert(sizeof(trace_note) == 48, "layout is ABI");

typedef struct loss_record { /* events that one consumer will not get, for one cause */
    word count;
    word first; /* sequences, both inclusive */
    word last;
    word first_ns; /* CLOCK_REALTIME */
    word last_ns;
} loss_record;

/* `waiting`: what the threads of the publisher that wait for room sleep on, and its tasks. */
#define WAITS_THREAD 1u /* its semaphore */
#define WAITS_TASK 2u   /* its FIFO */
#define WAITS_LAST 4u   /* one of them waits for the last event to be received, not for room alone */

typedef struct ring_header {
    /*   off  field          writer  order */
    uint64_t magic;          /*   0  creator */
    uint32_t layout_version; /*   8  creator */
    uint32_t kind;           /*  12  creator; RING_BROADCAST or RING_WORK */
    uint64_t capacity;       /*  16  creator; bytes of records, a power of two */
    uint64_t slots;          /*  24  creator; cursor slots, or descriptors (a power of two) */
    uint64_t ring_id;        /*  32  creator; never used twice on a bus */
    uint64_t reserved0[3];

    word tail;   /*  64  P  seq_cst after the record: SYNC tail. Broadcast: a position; work: the last sequence + 1 */
    word intent; /*  72  P  seq_cst before the records that it covers: SYNC intent. Work: L, below it all is freed */
    word oldest; /*  80  P  release before intent: SYNC oldest. Work: first sequence on the books */
    word
        position; /*  88  P  before tail. Work: end of the last record in bytes. Broadcast: start of the newest; a hint */
    word reserved1[4];

    word gate_version; /* 128  L  add after a slot is taken: SYNC join */
    word waiting;      /* 136  P sets, whoever clears posts: WAITS_...; SYNC room */
    word need;         /* 144  P  bytes that it could not get, 0 when it could */
    word members;      /* 152  L  bitmap of cursor slots in use */
    word reliable;     /* 160  L  those of them that gate the publisher: SYNC join, cursor */
    word reserved2[3];

    word refused;          /* 192  P  events that did not get in */
    word refused_first;    /* 200  P  sequence that the next event got after the first refusal */
    word refused_last;     /* 208  P */
    word refused_first_ns; /* 216  P  CLOCK_REALTIME */
    word refused_last_ns;  /* 224  P */
    word unrouted;         /* 232  P  events published while nobody was there */
    word reserved3[2];

    word next; /* 256  W  CAS; hint {tag 16, sequence 48}: where to look for READY first */
    word due;  /* 264  W  CAS; hint {tag 16, ticks 48}: not above the first DELAYED record's due time; ticks 0: none */
    word reserved4[6];

    word gate; /* 320  W  CAS; first sequence that is not DONE: SYNC gate */
    word reserved5[7];

    loss_record rejected; /* 384  W  count: add before DONE; it splits `delivered`, never enters a sum. The rest is */
    loss_record undecodable; /* 424  W  advisory: two workers at once may mix it */
    loss_record abandoned;   /* 464  L  what a group was owed that is removed */
    word reserved6;
} ring_header;

typedef struct loss_pair {
    loss_record overrun;
    loss_record undecodable;
} loss_pair;

#define SLOT_ATTACHED 1u /* its reader has opened the ring, and may stand anywhere from its position on */
#define SLOT_GIVEN_UP 2u /* nobody will: the ring goes without it */

typedef struct cursor_slot {
    word
        cursor; /*   0  S  release after the event is out: SYNC cursor. Reliable: a position; lossy: the next sequence */
    word
        position; /*   8  S  lossy: where it stands, or stood; never ahead of the reader. What gates one that no longer is */
    word attached; /*  16  S when it opens the ring, L when it gives it up, both by CAS from 0: R2 */
    word reserved0[5];
    word join_position; /*  64  L */
    word join_sequence; /*  72  L  first sequence on this consumer's books */
    word refused_base;  /*  80  L  refused before it joined */
    word lossy;         /*  88  L  as it joined; one that is reliable all the same is gated by its position */
    word reserved1[4];
    loss_pair losses[2]; /* 128  S  slot `flip & 1` is valid, the other is scratch */
    word flip;           /* 288  S  release after the scratch slot: SYNC losses */
    word reserved2[3];
} cursor_slot;

/* Descriptor of a work ring, one per sequence (`sequence & (slots - 1)`).
 *
 *   claim:  63        39 38   36 35          24 23        16 15               0
 *           +-----------+-------+--------------+------------+------------------+
 *           | lap 25    |state 3| attempt 12   | owner 8    | owner generation |   CLAIMED, DONE
 *           +-----------+-------+--------------+------------+------------------+
 *           | lap 25    |state 3| attempt 12   | 0 12          | spared 12     |   READY, DELAYED
 *           +-----------+-------+--------------+---------------+---------------+
 *
 * `lap` is `sequence / slots`: a worker that slept through a lap fails its CAS. `attempt` counts claims and only grows
 * within a lap, so no word ever comes back. `spared` is how many of them were given back before anybody saw the event;
 * what is told as an attempt is the difference. */
typedef struct descriptor {
    word place; /*  0  P  before the claim word: position, and the lane of its key */
    word claim; /*  8  P at first (release: SYNC claim), then W and L by CAS */
} descriptor;

/*   place:  63          55 54               3 2          0
 *           +-------------+------------------+------------+
 *           | lane, upper | position         | lane, low  |      a position is a multiple of eight; 36 PB of records
 *           +-------------+------------------+------------+ */
#ifndef LANE_BITS /* a harness has fewer */
#define LANE_BITS 12
#endif
#define LANES (1u << LANE_BITS)
#define POSITION_MASK (((1ull << 55) - 1) & ~7ull)
#define PLACE(position, lane) ((uint64_t)(position) | ((uint64_t)(lane) & 7) | (uint64_t)(lane) >> 3 << 55)
#define POSITION_OF(place) ((place) & POSITION_MASK)
#define LANE_OF(place) ((unsigned)((place) >> 55 << 3 | ((place) & 7)))

#define CLAIM_FREE 0u
#define CLAIM_READY 1u
#define CLAIM_CLAIMED 2u
#define CLAIM_DONE 3u
#define CLAIM_DELAYED 4u
#define MAX_ATTEMPT 4095u

/* Beside each descriptor, in a table of their own behind them all, stand the words that hardly any event needs.
 *
 *   spared:  lap 52 (whole), spared 12    while it is CLAIMED, for the claim word has no room for it then; only grows
 *   due:     attempt 12, ticks 52         when it may be READY again; of the DELAYED word with that attempt, or of none */
typedef struct note {
    word spared; /*  0  W  CAS, before the claim: SYNC spared */
    word due;    /*  8  W  CAS, before the word is DELAYED: SYNC due */
} note;

#define TICK_BITS 13 /* a tick is 8,192 ns of the host's CLOCK_MONOTONIC: 48 bits of them last for 73 years */
#define MAX_DELAY_NS (7 * 86400 * 1000000000ull) /* a due time further ahead is none: nobody wrote it on this clock */

/* Lanes of a group with a key: which of its keys are in somebody's hands. A key is hashed to a lane, so two keys may share
 * one; that costs parallelism and nothing else. */
typedef struct lane_table {
    uint64_t magic;          /*   0  creator */
    uint64_t layout_version; /*   8  creator */
    uint64_t group_id;       /*  16  creator; never used twice on a bus */
    uint64_t reserved0[5];
    word freed; /*  64  W and L  add after a lane is free: SYNC lane */
    uint64_t reserved1[7];
    unsigned char pad[PAGE - 128];
    word lanes[LANES]; /* W and L by CAS: 0, or the one who holds a record of it (LANE_HELD, owner 8, generation 16) */
} lane_table;

#define LANE_HELD (1ull << 63)

typedef struct broadcast_segment {
    ring_header header;
    unsigned char pad[PAGE - sizeof(ring_header)];
    cursor_slot cursors[MAX_SUBSCRIBERS];
    /* records from here */
} broadcast_segment;

#define DESCRIBED 64ull                                     /* bytes of records to a descriptor */
#define WORK_DESCRIPTORS(capacity) ((capacity) / DESCRIBED) /* a record of 64 bytes fills both tables at once */
#define WORK_TABLES(capacity) (WORK_DESCRIPTORS(capacity) * (sizeof(descriptor) + sizeof(note)))

/* Pool: what events of one publisher carry beside them. Blocks of one size; an extent is one or more runs of blocks, known
 * by its first block, whose entry in the table says all of it. */
#define POOL_BLOCK 4096ull
#define POOL_HOLDERS 256 /* handles that look at extents in place; who comes later copies */
#define MAX_POOL (1ull << 40)

typedef struct pool_holder {
    word life;     /* 0  of the process, CAS from 0; 0 when nothing is held; L of the dead */
    word consumer; /* 8  id of its subscriber or group, of the publisher itself; for people */
} pool_holder;

typedef struct pool_header {
    uint64_t magic;          /*   0  creator */
    uint32_t layout_version; /*   8  creator */
    uint32_t reserved0;
    uint64_t pool_id; /*  16  creator; never used twice on a bus */
    uint64_t blocks;  /*  24  creator */
    uint64_t reserved1[4];
    word high;    /*  64  P  release; no entry from here on was ever used */
    word retired; /*  72  L  1 once nothing more is allocated: whoever lets go of the last view frees the memory */
    word reserved2[6];
    word waiting; /* 128  P sets, whoever clears posts: SYNC views */
    word reserved3[7];
    pool_holder holders[POOL_HOLDERS]; /* 192 */
} pool_header;

/*   shape:  63           32 31            0
 *           +---------------+---------------+
 *           | next run + 1  | blocks of run |      0: it is the last one
 *           +---------------+---------------+ */
typedef struct extent {
    word generation; /*  0  P  seq_cst: SYNC extent. Odd: in use, and no other one's; even: free, or still looked at */
    word shape;      /*  8  P  before the descriptor is out */
    word length;     /* 16  P  bytes of it that were asked for */
    word since_ns;   /* 24  P  CLOCK_REALTIME of the allocation */
    word holds[POOL_HOLDERS / 64]; /* 32  a bit a holder: OR and AND, each its own, L those of the dead: SYNC extent */
} extent;

#define POOL_TABLE (2 * PAGE) /* offset of the table */

/* Slip: what a record says of one buffer of its event. */
typedef struct slip {
    uint64_t block; /* first of the extent; SLIP_INLINE: the bytes lie in the record */
    uint64_t generation;
    uint64_t offset; /* in the extent, or from the first slip on */
    uint64_t length;
} slip;

#define SLIP_INLINE UINT64_MAX
#define SLIP_BODY (1ull << 32) /* a bit of the count: the last slip is the encoded event itself */
#define MAX_SLIPS 65536u

_Static_assert(offsetof(pool_header, high) == 64 && offsetof(pool_header, waiting) == 128, "layout is ABI");
_Static_assert(offsetof(pool_header, holders) == 192 && sizeof(pool_header) <= POOL_TABLE, "layout is ABI");
_Static_assert(sizeof(extent) == 64 && offsetof(extent, holds) == 32 && sizeof(slip) == 32, "layout is ABI");

_Static_assert(offsetof(bus_header, version) == LINE, "layout is ABI");
_Static_assert(sizeof(topic_line) == LINE && sizeof(group_line) == LINE && sizeof(consumer_line) == LINE,
               "layout is ABI");
_Static_assert(offsetof(latency_line, weights) == LINE && sizeof(latency_line) == 16 * LINE, "layout is ABI");
_Static_assert(offsetof(bus_segment, topics) == PAGE, "layout is ABI");
_Static_assert(offsetof(bus_segment, documents) % PAGE == 0, "layout is ABI");
_Static_assert(sizeof(document_slot) == DOCUMENT_BYTES, "layout is ABI");
_Static_assert(offsetof(ring_header, tail) == 64 && offsetof(ring_header, gate_version) == 128, "layout is ABI");
_Static_assert(offsetof(ring_header, refused) == 192 && offsetof(ring_header, next) == 256, "layout is ABI");
_Static_assert(offsetof(ring_header, gate) == 320 && offsetof(ring_header, rejected) == 384, "layout is ABI");
_Static_assert(offsetof(ring_header, due) == 264 && offsetof(ring_header, abandoned) == 464, "layout is ABI");
_Static_assert(sizeof(ring_header) == 512, "layout is ABI");
_Static_assert(offsetof(cursor_slot, losses) == 128 && sizeof(cursor_slot) == 320, "layout is ABI");
_Static_assert(sizeof(broadcast_segment) % PAGE == 0, "records begin on a page");
_Static_assert(sizeof(lives_file) == PAGE, "layout is ABI");
_Static_assert(offsetof(lane_table, freed) == 64 && offsetof(lane_table, lanes) == PAGE, "layout is ABI");
_Static_assert(sizeof(descriptor) == 16 && sizeof(note) == 16, "layout is ABI");

#endif
