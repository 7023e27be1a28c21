/* Runs the actors of a scene as coroutines through its schedules. See explore.h for which ones. */
#include "explore.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

#include "world.h"

#define STACK_BYTES (64 * 1024)
#define MAX_STEPS 8192
#define MAX_JOURNAL 32768
#define MAX_OPTIONS (MAX_ACTORS + 1)
#define LOOKS 6 /* at an unchanged word, by an actor that would otherwise look for ever */
#define KILL 0x80
#define NOBODY (-1)

enum state { STATE_READY, STATE_SPINNING, STATE_ASLEEP, STATE_DORMANT, STATE_DONE, STATE_DEAD };
enum outcome { OUTCOME_START, OUTCOME_OVER, OUTCOME_FAILED };

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

typedef struct decision {
    unsigned char options[MAX_OPTIONS], count, chosen;
} decision;

_Alignas(PAGE) unsigned char arena[ARENA_BYTES];

static _Alignas(16) char stacks[MAX_ACTORS][STACK_BYTES];
static ucontext_t contexts[MAX_ACTORS], main_context;
static actor actors[MAX_ACTORS];
static unsigned actor_count, starting;
static jmp_buf home;

static const scene *running;
static world first_world; /* as `build` left it */
static int current;       /* NOBODY while nobody holds the turn; not meaningful unless live */
static bool live, tracing, burst;
static unsigned long writes;
static int preemptions, preemption_bound, kills_left;
static bool killed;
static char failure[512];

static decision path[MAX_STEPS];
static unsigned depth, replayed;
static const char *script; /* of a replay */
static unsigned script_count;

static unsigned char touched[ARENA_BYTES / 8], written[ARENA_BYTES / 8]; /* bit per actor, over all schedules */
static bool grown;
static unsigned char kill_seen[MAX_ACTORS][MAX_STEPS];

static struct {
    size_t index;
    uint64_t old;
} journal[MAX_JOURNAL];
static size_t journal_count;

/* ---- ends of a schedule ---- */

void fail(const char *format, ...) {
    va_list args;
    va_start(args, format);
    vsnprintf(failure, sizeof failure, format, args);
    va_end(args);
    _longjmp(home, OUTCOME_FAILED);
}

bool is_dead(unsigned a) { return actors[a].state == STATE_DEAD; }

bool anybody_dead(void) {
    for (unsigned a = 0; a < actor_count; a++)
        if (is_dead(a))
            return true;
    return false;
}

/* ---- whose turn ---- */

static bool enabled(unsigned a) {
    const actor *it = &actors[a];
    if (it->state == STATE_SPINNING)
        return it->starved || writes - it->own != it->stamp;
    if (it->state == STATE_ASLEEP)
        return it->starved || *(uint64_t *)it->semaphore != 0;
    if (it->state == STATE_DORMANT)
        return anybody_dead();
    return it->state == STATE_READY;
}

/* Lets one actor go on that waits for what will never come: one that spins before one that sleeps. */
static bool starve_one(void) {
    for (enum state state = STATE_SPINNING; state <= STATE_ASLEEP; state++)
        for (unsigned a = 0; a < actor_count; a++)
            if (actors[a].state == state) {
                actors[a].starved = true;
                return true;
            }
    return false;
}

static void list_options(decision *d, bool may_preempt) {
    bool holds = current != NOBODY && enabled((unsigned)current);
    d->count = 0;
    if (holds)
        d->options[d->count++] = (unsigned char)current;
    bool others = !holds || script || (may_preempt && preemptions < preemption_bound);
    for (unsigned a = 0; others && a < actor_count; a++)
        if ((int)a != current && enabled(a))
            d->options[d->count++] = (unsigned char)a;
    if (holds && kills_left && running->actors[current].mortal)
        d->options[d->count++] = (unsigned char)(KILL | current);
}

/* The next letter of a replayed schedule; anything once it is used up. */
static unsigned from_script(const decision *d) {
    while (script && script_count == 0) {
        if (!*script) {
            script = NULL;
            preemptions = preemption_bound = kills_left = 0;
            return 0;
        }
        script_count = (unsigned)strtoul(script + 1, NULL, 10);
        if (script[1] == '!' || script_count)
            break;
        script += 1 + strspn(script + 1, "0123456789");
    }
    bool kill = script[1] == '!';
    for (unsigned i = 0; i < d->count; i++)
        if (running->actors[d->options[i] & ~KILL].letter == *script && kill == !!(d->options[i] & KILL)) {
            if (kill || --script_count == 0) {
                script += kill ? 2 : 1 + strspn(script + 1, "0123456789");
                script_count = 0;
            }
            return i;
        }
    fail("the schedule does not fit: nobody called %c may go on at step %u", *script, depth);
}

static unsigned choose(bool may_preempt) {
    if (depth == MAX_STEPS)
        fail("no end after %u steps", depth);
    decision *d = &path[depth], fresh = {.chosen = 0};
    list_options(&fresh, may_preempt);
    while (!fresh.count && starve_one())
        list_options(&fresh, may_preempt);
    if (!fresh.count)
        _longjmp(home, OUTCOME_OVER);
    if (depth < replayed) {
        if (d->count != fresh.count || memcmp(d->options, fresh.options, d->count) != 0)
            fail("harness: the prefix of a schedule did not repeat itself at step %u", depth);
    } else {
        *d = fresh;
        if (script)
            d->chosen = (unsigned char)from_script(d);
    }
    depth++;
    return d->options[d->chosen];
}

static void kill_current(void) {
    actor *victim = &actors[current];
    victim->state = STATE_DEAD;
    kill_seen[current][victim->accesses < MAX_STEPS ? victim->accesses : MAX_STEPS - 1] = 1;
    if (tracing)
        printf("  %c killed\n", running->actors[current].letter);
    kills_left--;
    killed = true;
    writes++; /* whoever waits may look again: the death can be known */
    current = NOBODY;
}

/* Gives others their turn; returns when the caller is to go on. */
static void pass_turn(bool may_preempt) {
    int self = current;
    for (;;) {
        bool held = current != NOBODY && enabled((unsigned)current);
        unsigned to = choose(may_preempt);
        if (to & KILL) {
            kill_current();
            continue;
        }
        if (held && (int)to != current)
            preemptions++;
        current = (int)to;
        if (current == self)
            return;
        if (_setjmp(actors[self].here) == 0) {
            actor *next = &actors[to];
            bool started = next->started;
            next->started = true;
            if (next->state == STATE_DORMANT)
                next->state = STATE_READY;
            _longjmp(started ? next->here : next->base, 1);
        }
        return;
    }
}

unsigned long moment(void) { return writes - actors[current].own; }

bool spin(unsigned long since) {
    actor *self = &actors[current];
    self->state = STATE_SPINNING;
    self->stamp = since;
    pass_turn(true);
    self->state = STATE_READY;
    bool hope = !self->starved;
    self->starved = false;
    return hope;
}

static bool contended(const volatile void *at) {
    size_t index = (size_t)((const volatile unsigned char *)at - arena) / 8;
    return written[index] && (touched[index] & (touched[index] - 1));
}

static void touch(const volatile void *at, bool write) {
    size_t index = (size_t)((const volatile unsigned char *)at - arena) / 8;
    unsigned char bit = (unsigned char)(1u << current);
    if ((touched[index] & bit) && (!write || written[index]))
        return;
    bool before = contended(at);
    touched[index] |= bit;
    if (write)
        written[index] |= bit;
    grown = grown || contended(at) != before;
}

static void trace(enum access how, const volatile void *at, uint64_t value, const char *note) {
    static const char *const names[] = {"load", "store", "cas", "add", "or", "and", "sleep"};
    char name[64];
    if (!tracing || !live || burst)
        return;
    name_of((const void *)at, name, sizeof name);
    printf("%5u %c %-5s %-28s %llu%s\n", depth, running->actors[current].letter, names[how], name,
           (unsigned long long)value, note);
}

bool sleep_on(word *semaphore) {
    actor *self = &actors[current];
    touch(semaphore, true);
    pass_turn(true); /* may be killed here, with its bit set */
    self->accesses++;
    self->semaphore = semaphore;
    self->state = STATE_ASLEEP;
    pass_turn(true);
    self->state = STATE_READY;
    bool posted = !self->starved;
    self->starved = false;
    if (posted)
        (*(uint64_t *)semaphore)--;
    trace(ACCESS_SLEEP, semaphore, *(uint64_t *)semaphore, posted ? " (posted)" : " (nobody posts)");
    return posted;
}

void begin_burst(void) {
    pass_turn(true);
    burst = true;
}

void end_burst(void) { burst = false; }

/* ---- accesses ---- */

/* Words of a body that follow one another: true if this one is no point to switch at. */
static bool within_run(actor *self, const volatile void *at) {
    size_t index = (size_t)((const volatile unsigned char *)at - arena) / 8;
    bool follows = is_record_word((const void *)at) && index == self->last_index + 1;
    self->last_index = index;
    self->run = follows ? self->run + 1 : 0;
    return self->run > 3 && self->run % 64 != 0;
}

/* True if the actor keeps looking at a word that nobody changes: waiting for others is all that it does. */
static bool only_looks(actor *self, const volatile void *at) {
    if (self->looked_stamp != writes)
        self->looked = NULL;
    self->looked_stamp = writes;
    if (!self->looked) {
        self->looked = at;
        self->looks = 0;
    }
    return self->looked == at && ++self->looks >= LOOKS;
}

static void step(const volatile void *at, bool write) {
    if (!live)
        return;
    actor *self = &actors[current];
    touch(at, write);
    if (burst || within_run(self, at))
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
    journal[journal_count].index = (size_t)((volatile unsigned char *)at - arena) / 8;
    journal[journal_count++].old = *cell;
    *cell = value;
    writes++;
    if (live)
        actors[current].own++;
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

/* ---- one schedule ---- */

/* The first frame of a coroutine. It never returns, so that each schedule can enter it again. */
static void body(void) {
    if (_setjmp(actors[starting].base) == 0)
        swapcontext(&contexts[starting], &main_context);
    running->actors[current].run((unsigned)current);
    actors[current].state = STATE_DONE;
    writes++; /* a waiting one may see that this is the end */
    pass_turn(true);
    abort();
}

static void make_actors(void) {
    for (actor_count = 0; running->actors[actor_count].letter; actor_count++) {
        ucontext_t *context = &contexts[actor_count];
        getcontext(context);
        context->uc_stack.ss_sp = stacks[actor_count];
        context->uc_stack.ss_size = STACK_BYTES;
        makecontext(context, body, 0);
        starting = actor_count;
        swapcontext(&main_context, context);
    }
}

static void begin(int bound, int kills) {
    while (journal_count) {
        journal_count--;
        *(uint64_t *)(arena + journal[journal_count].index * 8) = journal[journal_count].old;
    }
    the = first_world;
    for (unsigned a = 0; a < actor_count; a++) {
        actors[a].state = running->actors[a].after_death ? STATE_DORMANT : STATE_READY;
        actors[a].started = actors[a].starved = false;
        actors[a].accesses = 0;
        actors[a].own = 0;
        actors[a].last_index = actors[a].run = 0;
        actors[a].looked = NULL;
    }
    depth = 0;
    writes = 1;
    preemptions = 0;
    preemption_bound = bound;
    kills_left = kills;
    killed = burst = false;
    current = NOBODY;
}

static bool run_once(int bound, int kills) {
    begin(bound, kills);
    int outcome = _setjmp(home);
    if (outcome == OUTCOME_START) {
        live = true;
        current = NOBODY;
        unsigned to = choose(true);
        current = (int)to;
        actors[to].started = true;
        _longjmp(actors[to].base, 1);
    }
    live = burst = false;
    if (outcome == OUTCOME_FAILED)
        return false;
    if (_setjmp(home) == 0) {
        running->verify();
        return true;
    }
    return false;
}

static void print_schedule(void) {
    for (unsigned i = 0; i < depth;) {
        unsigned option = path[i].options[path[i].chosen], same = 1;
        if (option & KILL) {
            printf("%c!", running->actors[option & ~KILL].letter);
            i++;
            continue;
        }
        while (i + same < depth && path[i + same].options[path[i + same].chosen] == option)
            same++;
        printf("%c%u", running->actors[option].letter, same);
        i += same;
    }
    printf("\n");
}

/* The next schedule in depth-first order: change the last decision that has an option left. */
static bool next_schedule(void) {
    while (depth && path[depth - 1].chosen + 1 == path[depth - 1].count)
        depth--;
    if (!depth)
        return false;
    path[depth - 1].chosen++;
    replayed = depth;
    return true;
}

static void report_failure(int bound, int kills) {
    printf("VIOLATION in %s: %s\n", running->name, failure);
    replayed = depth;
    tracing = true;
    run_once(bound, kills);
    tracing = false;
    printf("replay: --scenario %s --replay ", running->name);
    print_schedule();
}

static bool explore_pass(int bound, int kills, counts *out) {
    do {
        grown = false;
        replayed = 0;
        out->schedules = out->kills = 0;
        do {
            if (!run_once(bound, kills)) {
                report_failure(bound, kills);
                return false;
            }
            *(killed ? &out->kills : &out->schedules) += 1;
            if (depth > out->longest)
                out->longest = depth;
        } while (!grown && next_schedule()); /* a word proved contended: its points were left out, start again */
    } while (grown);
    return true;
}

static void prepare(const scene *scene) {
    running = scene;
    journal_count = 0;
    live = tracing = false;
    script = NULL;
    memset(arena, 0, sizeof arena);
    memset(touched, 0, sizeof touched);
    memset(written, 0, sizeof written);
    memset(kill_seen, 0, sizeof kill_seen);
    memset(&the, 0, sizeof the);
    forget_names();
    if (_setjmp(home)) {
        printf("harness: %s cannot be set up: %s\n", scene->name, failure);
        exit(2);
    }
    scene->build();
    first_world = the;
    journal_count = 0;
    make_actors();
}

bool explore(const scene *scene, bounds bounds, counts *out) {
    counts plain = {0}, with_kill = {0};
    prepare(scene);
    bool good = explore_pass(bounds.preemptions, 0, &plain);
    if (good && bounds.with_kill >= 0)
        good = explore_pass(bounds.with_kill, 1, &with_kill);
    *out = (counts){.schedules = plain.schedules, .kills = with_kill.kills, .longest = plain.longest};
    for (unsigned a = 0; a < MAX_ACTORS; a++)
        for (unsigned i = 0; i < MAX_STEPS; i++)
            out->kill_points += kill_seen[a][i];
    return good;
}

bool replay(const scene *scene, const char *schedule) {
    prepare(scene);
    script = schedule;
    script_count = 0;
    tracing = true;
    replayed = 0;
    bool good = run_once(0, 1);
    if (!good)
        printf("VIOLATION in %s: %s\n", scene->name, failure);
    return good;
}
