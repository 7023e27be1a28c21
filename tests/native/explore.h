/* The explorer: actors, the schedules that it runs them through, and what a scene is made of.
 *
 * A schedule is the sequence of actors that perform the accesses, one by one. Every schedule with at most `bound`
 * preemptions is run, each from the start: replay a prefix, then go on without preempting. A switch is free where an
 * actor ends, sleeps, or would only look again. A preemption before an access to a word that nobody else touches, or
 * that everybody only reads, is the same as one later on, and is left out. Of a record's body one word in 64 is a point
 * to switch at; its header and first word always are.
 *
 * A killed actor is never scheduled again. Kills come before every access of every mortal actor, one a schedule. */
#ifndef SHMBUS_TEST_EXPLORE_H
#define SHMBUS_TEST_EXPLORE_H

#include "ring.h"
#include "work.h"

#define MAX_ACTORS 4
#define ARENA_BYTES (128 * 1024)

typedef struct actor_spec {
    char letter; /* in schedules; 0 ends the list */
    const char *role;
    void (*run)(unsigned self);
    bool mortal; /* may be killed */
    bool after_death;
} actor_spec;

typedef struct bounds {
    int preemptions; /* without a kill */
    int with_kill;   /* preemptions beside one kill; -1: no kills */
} bounds;

typedef struct scene {
    const char *name;
    const char *what;
    void (*build)(void);
    void (*verify)(void);
    actor_spec actors[MAX_ACTORS + 1];
    bounds brief, full;
} scene;

extern const scene ring_scenes[], join_scenes[], park_scenes[], work_scenes[], chain_scenes[], retire_scenes[],
    delay_scenes[], pool_scenes[], row_scenes[], lane_scenes[]; /* each ends with one without a name */

/* ---- what scenes call ---- */

extern unsigned char arena[ARENA_BYTES]; /* all that is shared */

_Noreturn void fail(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* Others' turn, until one of them has written something since `moment`; false: nobody ever will again. */
unsigned long moment(void);
bool spin(unsigned long moment);
/* Takes one post of a semaphore in the arena, waiting for it; false: nobody will ever post it again. */
bool sleep_on(word *semaphore);
bool is_dead(unsigned actor);
bool anybody_dead(void);
/* Runs what follows as one step, which no other actor comes between. */
void begin_burst(void);
void end_burst(void);

/* ---- the explorer itself ---- */

typedef struct counts {
    unsigned long schedules;   /* without a kill */
    unsigned long kills;       /* schedules with one */
    unsigned long kill_points; /* accesses of an actor, counted from its start, before which it was killed */
    unsigned long longest;     /* accesses of the longest schedule */
} counts;

bool explore(const scene *scene, bounds bounds, counts *out); /* false: a violation, printed with its trace */
bool replay(const scene *scene, const char *schedule);

void name_region(void *base, uint64_t size, uint32_t ring_kind, const char *label);
void name_of(const void *at, char *out, size_t size);
bool is_record_word(const void *at);
void forget_names(void);

#endif
