/* What the scenes are made of: rings, the actors' own state, and what they saw, to be compared with the books.
 *
 * Everything private to an actor that outlives one call stands in `the`, which each schedule starts from a copy of. */
#ifndef SHMBUS_TEST_WORLD_H
#define SHMBUS_TEST_WORLD_H

#include "explore.h"
#include "lane.h"
#include "pool.h"

#define CAPACITY MIN_CAPACITY
#define BIG 1000u /* bytes of a body: four records of 1,024 bytes fill a ring but for the frontier */
#define FRESH_SLOT 60u
#define FIRST_SEQUENCE 1000u
#define FAR ((1ull << 33) + 3 * CAPACITY) /* position of a ring's start: past 2^32 */
#define MAX_JOBS 128
#define MAX_WATCHERS 3
#define MAX_SHOPS 2
#define NO_HOLDER 0xff

typedef struct source { /* a broadcast ring and its publisher */
    ring_view view;
    ring_writer writer;
    unsigned publisher; /* actor */
    uint32_t length;    /* of every body */
    uint64_t committed; /* sequence of the next event that nobody could see yet */
    uint64_t refused;
} source;

typedef struct watcher { /* a subscriber of one ring, and what it saw */
    ring_reader reader;
    const source *source;
    unsigned slot, actor;
    bool lossy, joined;
    bool passing;   /* its publisher has gone on to another ring */
    bool regated;   /* it was lossy, and lost what it has lost before it was reliable */
    uint64_t first; /* on its books */
    uint64_t delivered, lost, undecodable;
} watcher;

typedef struct job { /* one record of the work ring */
    unsigned char holder;
    unsigned char attempt, claims, nacks, done;
    unsigned char unseen;    /* claims that were given back so */
    unsigned char returning; /* of them: those of which only the explorer knows whether the word says so yet */
    unsigned char due;       /* ticks; nobody may have it before */
    bool finishing;          /* somebody who held it called work_done */
} job;

typedef struct workshop { /* a work ring, its publisher, and what became of its records */
    ring_view view;
    work_writer writer;
    uint32_t length;
    unsigned publisher; /* actor */
    uint64_t committed;
    job jobs[MAX_JOBS];
} workshop;

typedef struct larder { /* a pool, its publisher, and who looks at what */
    pool_view view;
    pool_writer writer;
    uint64_t used;
    unsigned shipped, ended;
    struct {
        uint64_t block, end, sequence; /* position behind the record; sequence in the work ring */
    } out[4];
    uint64_t over[4];          /* blocks that have ended, and are looked at */
    uint64_t held[MAX_ACTORS]; /* block + 1 that an actor looks at */
    uint64_t held_sequence[MAX_ACTORS];
    uint64_t taken; /* events whose bytes were looked at */
} larder;

typedef struct world {
    larder pool;
    source sources[2];
    watcher watchers[MAX_WATCHERS];
    workshop work[MAX_SHOPS];
    unsigned shops;
    uint64_t reclaimed; /* bit per actor: proven (or taken for) dead */
    bool repaired;      /* the supervisor has seen to the dead, and woken all */
    word *semaphores;   /* one per actor */
    topic_line *topic;
    group_line *group;
    uint64_t target;                               /* how far the actors want to come */
    uint64_t raised;                               /* times that `waiting` was set and no post answered */
    uint64_t asleep;                               /* bit per actor: sleeps and nobody posts */
    word *clock;                                   /* ticks */
    lane_table *lanes;                             /* NULL: the group has no key */
    unsigned char lane[8];                         /* of the n-th record of a ring */
    lane_memory memory[MAX_ACTORS + 1][MAX_SHOPS]; /* of each actor, and of whoever comes last */
    bool contested;             /* a claim may go while it is delayed: then what it is delayed to counts once it is */
    bool opened, lost, settled; /* what became of a slot that was to be given up */
} world;

extern world the;

/* ---- contents ---- */

void fill(unsigned char *body, uint32_t length, uint64_t sequence);
bool body_is_whole(const void *body, uint32_t length, uint64_t sequence, bool shared);

/* ---- broadcast: world_ring.c ---- */

enum when_full { FULL_SPIN, FULL_REFUSE, FULL_GIVE_UP, FULL_WAIT };

void make_source(unsigned index, uint64_t start, uint32_t length);
void make_lines(void);
bool publish(unsigned source, enum when_full how);
void stop_waiting(ring_header *h);
void publish_batch(unsigned source, unsigned count);
void publish_rows(unsigned source, unsigned count);
bool take(unsigned watcher);
bool take_run(unsigned watcher, unsigned most);
void take_undecodable(unsigned watcher);
void watch_until(unsigned watcher, uint64_t sequence);
void open_watcher(unsigned index, unsigned source, unsigned slot, bool lossy);
void join(unsigned index, unsigned source, bool lossy, bool oldest);
void regate(unsigned watcher);
void look_at_books(unsigned watcher);
void check_intent(unsigned source);
void verify_broadcast(void);

/* ---- work: world_work.c ---- */

void make_work(uint64_t start, uint32_t length);
void make_lanes(void);
int look_at(lane_look *look, workshop *w, unsigned self, claim *out);
void verify_lanes(void);
bool offer(workshop *w, enum when_full how);
void offer_batch(workshop *w, unsigned count);
void offer_rows(workshop *w, unsigned count);
bool take_job(workshop *w, unsigned self, claim *out);
bool finish_job(workshop *w, unsigned self, const claim *claim);
bool return_job(workshop *w, unsigned self, const claim *claim);
bool return_unseen(workshop *w, unsigned self, const claim *claim);
bool delay_job(workshop *w, unsigned self, const claim *claim, unsigned due, bool *first);
void promote(workshop *w, unsigned self);
void reclaim(unsigned victim);
void post(unsigned actor);
void offer_many(unsigned count);
void keep(unsigned self);
claim *kept(unsigned self);
void finish_kept(unsigned self);
void build_small_work(void);
void verify_work(void);
uint64_t open_jobs(void);

#endif
