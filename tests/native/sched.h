/* What the two halves of the explorer share: sched.c gives turns, memory.c performs accesses. */
#ifndef SHMBUS_TEST_SCHED_H
#define SHMBUS_TEST_SCHED_H

#include "explore.h"

#include <setjmp.h>

enum state { STATE_READY, STATE_SPINNING, STATE_ASLEEP, STATE_DORMANT, STATE_DONE, STATE_DEAD };

typedef struct actor {
    jmp_buf base, here;
    bool started;
    enum state state;
    bool starved;             /* woken because nothing else can happen */
    unsigned long own, stamp; /* writes of its own; those of others at its last look */
    word *semaphore;
    unsigned accesses;
    size_t last_index, run;      /* of consecutive words of a record */
    const volatile void *looked; /* the same word again and again */
    unsigned looks;
    unsigned long looked_stamp;
} actor;

typedef struct turn {
    const scene *scene;
    int current;          /* who holds the turn */
    bool live;            /* actors run; otherwise set-up or verification */
    bool burst;           /* one actor's accesses are one step */
    bool tracing;         /* print each access */
    unsigned long writes; /* so far; whoever spins waits for one more */
    unsigned depth;       /* decisions so far */
} turn;

extern actor actors[MAX_ACTORS];
extern turn now;

void pass_turn(bool may_preempt);

void forget_sharing(void);
bool sharing_grew(void); /* since the last call: points to switch at were left out */
void touch(const volatile void *at, bool write);
void trace(enum access how, const volatile void *at, uint64_t value, const char *note);
void roll_back(void); /* the arena as it was at the last roll_back or keep_all */
void keep_all(void);

#endif
