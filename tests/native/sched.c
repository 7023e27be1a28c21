/* Runs the actors of a scene as coroutines through its schedules. See explore.h for which ones. */
#include "sched.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

#include "world.h"

#define STACK_BYTES (64 * 1024)
#define MAX_STEPS 8192
#define MAX_OPTIONS (MAX_ACTORS + 1)
#define KILL 0x80
#define NOBODY (-1)

enum outcome { OUTCOME_START, OUTCOME_OVER, OUTCOME_FAILED };

typedef struct decision {
    unsigned char options[MAX_OPTIONS], count, chosen;
} decision;

static _Alignas(16) char stacks[MAX_ACTORS][STACK_BYTES];
static ucontext_t contexts[MAX_ACTORS], main_context;
actor actors[MAX_ACTORS];
turn now;
static unsigned actor_count, starting;
static jmp_buf home;

static world first_world; /* as `build` left it */
static int preemptions, preemption_bound, kills_left;
static bool killed;
static char failure[512];

static decision path[MAX_STEPS];
static unsigned replayed;
static const char *script; /* of a replay */
static unsigned script_count;

static unsigned char kill_seen[MAX_ACTORS][MAX_STEPS];

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
        return it->starved || now.writes - it->own != it->stamp;
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
    bool holds = now.current != NOBODY && enabled((unsigned)now.current);
    d->count = 0;
    if (holds)
        d->options[d->count++] = (unsigned char)now.current;
    bool others = !holds || script || (may_preempt && preemptions < preemption_bound);
    for (unsigned a = 0; others && a < actor_count; a++)
        if ((int)a != now.current && enabled(a))
            d->options[d->count++] = (unsigned char)a;
    if (holds && kills_left && now.scene->actors[now.current].mortal)
        d->options[d->count++] = (unsigned char)(KILL | now.current);
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
        if (now.scene->actors[d->options[i] & ~KILL].letter == *script && kill == !!(d->options[i] & KILL)) {
            if (kill || --script_count == 0) {
                script += kill ? 2 : 1 + strspn(script + 1, "0123456789");
                script_count = 0;
            }
            return i;
        }
    fail("the schedule does not fit: nobody called %c may go on at step %u", *script, now.depth);
}

static unsigned choose(bool may_preempt) {
    if (now.depth == MAX_STEPS)
        fail("no end after %u steps", now.depth);
    decision *d = &path[now.depth], fresh = {.chosen = 0};
    list_options(&fresh, may_preempt);
    while (!fresh.count && starve_one())
        list_options(&fresh, may_preempt);
    if (!fresh.count)
        _longjmp(home, OUTCOME_OVER);
    if (now.depth < replayed) {
        if (d->count != fresh.count || memcmp(d->options, fresh.options, d->count) != 0)
            fail("harness: the prefix of a schedule did not repeat itself at step %u", now.depth);
    } else {
        *d = fresh;
        if (script)
            d->chosen = (unsigned char)from_script(d);
    }
    now.depth++;
    return d->options[d->chosen];
}

static void kill_current(void) {
    actor *victim = &actors[now.current];
    victim->state = STATE_DEAD;
    kill_seen[now.current][victim->accesses < MAX_STEPS ? victim->accesses : MAX_STEPS - 1] = 1;
    if (now.tracing)
        printf("  %c killed\n", now.scene->actors[now.current].letter);
    kills_left--;
    killed = true;
    now.writes++; /* whoever waits may look again: the death can be known */
    now.current = NOBODY;
}

/* Gives others their turn; returns when the caller is to go on. */
void pass_turn(bool may_preempt) {
    int self = now.current;
    for (;;) {
        bool held = now.current != NOBODY && enabled((unsigned)now.current);
        unsigned to = choose(may_preempt);
        if (to & KILL) {
            kill_current();
            continue;
        }
        if (held && (int)to != now.current)
            preemptions++;
        now.current = (int)to;
        if (now.current == self)
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

unsigned long moment(void) { return now.writes - actors[now.current].own; }

bool spin(unsigned long since) {
    actor *self = &actors[now.current];
    self->state = STATE_SPINNING;
    self->stamp = since;
    pass_turn(true);
    self->state = STATE_READY;
    bool hope = !self->starved;
    self->starved = false;
    return hope;
}

bool sleep_on(word *semaphore) {
    actor *self = &actors[now.current];
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
    now.burst = true;
}

void end_burst(void) { now.burst = false; }

/* ---- one schedule ---- */

/* The first frame of a coroutine. It never returns, so that each schedule can enter it again. */
static void body(void) {
    if (_setjmp(actors[starting].base) == 0)
        swapcontext(&contexts[starting], &main_context);
    now.scene->actors[now.current].run((unsigned)now.current);
    actors[now.current].state = STATE_DONE;
    now.writes++; /* a waiting one may see that this is the end */
    pass_turn(true);
    abort();
}

static void make_actors(void) {
    for (actor_count = 0; now.scene->actors[actor_count].letter; actor_count++) {
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
    roll_back();
    the = first_world;
    for (unsigned a = 0; a < actor_count; a++) {
        actors[a].state = now.scene->actors[a].after_death ? STATE_DORMANT : STATE_READY;
        actors[a].started = actors[a].starved = false;
        actors[a].accesses = 0;
        actors[a].own = 0;
        actors[a].last_index = actors[a].run = 0;
        actors[a].looked = NULL;
    }
    now.depth = 0;
    now.writes = 1;
    preemptions = 0;
    preemption_bound = bound;
    kills_left = kills;
    killed = now.burst = false;
    now.current = NOBODY;
}

static bool run_once(int bound, int kills) {
    begin(bound, kills);
    int outcome = _setjmp(home);
    if (outcome == OUTCOME_START) {
        now.live = true;
        now.current = NOBODY;
        unsigned to = choose(true);
        now.current = (int)to;
        actors[to].started = true;
        _longjmp(actors[to].base, 1);
    }
    now.live = now.burst = false;
    if (outcome == OUTCOME_FAILED)
        return false;
    if (_setjmp(home) == 0) {
        now.scene->verify();
        return true;
    }
    return false;
}

static void write_schedule(char *out, size_t size) {
    size_t used = 0;
    *out = 0;
    for (unsigned i = 0, same; i < now.depth && used < size; i += same) {
        unsigned option = path[i].options[path[i].chosen];
        char letter = now.scene->actors[option & ~KILL].letter;
        for (same = 1; i + same < now.depth && path[i + same].options[path[i + same].chosen] == option; same++)
            ;
        used += (size_t)(option & KILL ? snprintf(out + used, size - used, "%c!", letter)
                                       : snprintf(out + used, size - used, "%c%u", letter, same));
    }
}

/* The next schedule in depth-first order: change the last decision that has an option left. */
static bool next_schedule(void) {
    while (now.depth && path[now.depth - 1].chosen + 1 == path[now.depth - 1].count)
        now.depth--;
    if (!now.depth)
        return false;
    path[now.depth - 1].chosen++;
    replayed = now.depth;
    return true;
}

/* Runs a schedule that a person may have typed: only who goes on next counts, not what was left out of the search. */
static bool run_script(const char *schedule) {
    script = schedule;
    script_count = 0;
    replayed = 0;
    now.tracing = true;
    bool good = run_once(0, 1);
    now.tracing = false;
    script = NULL;
    return good;
}

static void report_failure(void) {
    static char schedule[16384];
    char found[sizeof failure];
    write_schedule(schedule, sizeof schedule);
    memcpy(found, failure, sizeof found);
    printf("VIOLATION in %s: %s\n", now.scene->name, found);
    if (run_script(schedule) || strcmp(found, failure) != 0)
        printf("harness: the schedule did not repeat itself\n");
    printf("replay: --scene %s --replay %s\n", now.scene->name, schedule);
}

static bool explore_pass(int bound, int kills, counts *out) {
    bool again;
    do {
        again = false;
        replayed = 0;
        out->schedules = out->kills = 0;
        do {
            if (!run_once(bound, kills)) {
                report_failure();
                return false;
            }
            *(killed ? &out->kills : &out->schedules) += 1;
            if (now.depth > out->longest)
                out->longest = now.depth;
        } while (!(again = sharing_grew()) &&
                 next_schedule()); /* a word proved contended: its points were left out, start again */
    } while (again);
    return true;
}

static void prepare(const scene *scene) {
    now.scene = scene;
    now.live = now.tracing = false;
    script = NULL;
    memset(arena, 0, sizeof arena);
    forget_sharing();
    memset(kill_seen, 0, sizeof kill_seen);
    memset(&the, 0, sizeof the);
    forget_names();
    if (_setjmp(home)) {
        printf("harness: %s cannot be set up: %s\n", scene->name, failure);
        exit(2);
    }
    scene->build();
    first_world = the;
    keep_all();
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
    bool good = run_script(schedule);
    if (!good)
        printf("VIOLATION in %s: %s\n", scene->name, failure);
    return good;
}
