/* Performs the accesses: each after the scheduler's turn, journalled so that the next schedule starts afresh. */
#include "sched.h"

#include <stdio.h>
#include <string.h>

#define MAX_JOURNAL 32768
#define LOOKS 6 /* at an unchanged word, by an actor that would otherwise look for ever */

_Alignas(PAGE) unsigned char arena[ARENA_BYTES];

static unsigned char touched[ARENA_BYTES / 8], written[ARENA_BYTES / 8]; /* bit per actor, over all schedules */
static bool grown;

static struct {
    size_t index;
    uint64_t old;
} journal[MAX_JOURNAL];
static size_t journal_count;

/* ---- who shares what ---- */

static size_t index_of(const volatile void *at) { return (size_t)((const volatile unsigned char *)at - arena) / 8; }

void forget_sharing(void) {
    memset(touched, 0, sizeof touched);
    memset(written, 0, sizeof written);
}

bool sharing_grew(void) {
    bool grew = grown;
    grown = false;
    return grew;
}

static bool contended(const volatile void *at) {
    size_t index = index_of(at);
    return written[index] && (touched[index] & (touched[index] - 1));
}

void touch(const volatile void *at, bool write) {
    size_t index = index_of(at);
    unsigned char bit = (unsigned char)(1u << now.current);
    if ((touched[index] & bit) && (!write || written[index]))
        return;
    bool before = contended(at);
    touched[index] |= bit;
    if (write)
        written[index] |= bit;
    grown = grown || contended(at) != before;
}

/* Past the header and the first word of a record, and not at one of the words where others may come between. */
static bool inside_body(const actor *self) { return self->run > 3 && self->run % 64 != 0; }

/* ---- journal and trace ---- */

void keep_all(void) { journal_count = 0; }

void roll_back(void) {
    while (journal_count) {
        journal_count--;
        *(uint64_t *)(arena + journal[journal_count].index * 8) = journal[journal_count].old;
    }
}

void trace(enum access how, const volatile void *at, uint64_t value, const char *note) {
    static const char *const names[] = {"load", "store", "cas", "add", "or", "and", "sleep"};
    char name[64];
    if (!now.tracing || !now.live || now.burst || inside_body(&actors[now.current]))
        return;
    name_of((const void *)at, name, sizeof name);
    printf("%5u %c %-5s %-28s %llu%s\n", now.depth, now.scene->actors[now.current].letter, names[how], name,
           (unsigned long long)value, note);
}

/* ---- accesses ---- */

/* Words of a body that follow one another: true if this one is no point to switch at. */
static bool within_run(actor *self, const volatile void *at) {
    size_t index = index_of(at);
    bool follows = is_record_word((const void *)at) && index == self->last_index + 1;
    self->last_index = index;
    self->run = follows ? self->run + 1 : 0;
    return inside_body(self);
}

/* True if the actor keeps looking at a word that nobody changes: waiting for others is all that it does. */
static bool only_looks(actor *self, const volatile void *at) {
    if (self->looked_stamp != now.writes)
        self->looked = NULL;
    self->looked_stamp = now.writes;
    if (!self->looked) {
        self->looked = at;
        self->looks = 0;
    }
    return self->looked == at && ++self->looks >= LOOKS;
}

static void step(const volatile void *at, bool write) {
    if (!now.live)
        return;
    actor *self = &actors[now.current];
    touch(at, write);
    if (now.burst || within_run(self, at))
        return;
    if (!write && only_looks(self, at))
        spin(moment());
    pass_turn(contended(at));
    self->accesses++;
}

static void put(volatile void *at, uint64_t value) {
    volatile uint64_t *cell = at;
    if (journal_count == MAX_JOURNAL)
        fail("harness: the journal is full");
    journal[journal_count].index = index_of(at);
    journal[journal_count++].old = *cell;
    *cell = value;
    now.writes++;
    if (now.live)
        actors[now.current].own++;
}

uint64_t hook_load(const volatile void *at) {
    step(at, false);
    uint64_t value = *(const volatile uint64_t *)at;
    trace(ACCESS_LOAD, at, value, "");
    return value;
}

void hook_store(volatile void *at, uint64_t value) {
    step(at, true);
    put(at, value);
    trace(ACCESS_STORE, at, value, "");
}

bool hook_cas(volatile void *at, uint64_t *expected, uint64_t value) {
    step(at, true);
    uint64_t seen = *(volatile uint64_t *)at;
    bool done = seen == *expected;
    if (done)
        put(at, value);
    *expected = seen;
    trace(ACCESS_CAS, at, done ? value : seen, done ? "" : " (lost)");
    return done;
}

uint64_t hook_change(volatile void *at, enum access how, uint64_t value) {
    step(at, true);
    uint64_t before = *(volatile uint64_t *)at;
    put(at, how == ACCESS_ADD ? before + value : how == ACCESS_OR ? before | value : before & value);
    trace(how, at, *(volatile uint64_t *)at, "");
    return before;
}
