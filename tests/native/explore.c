/* Runs the scenes and prints one line for each. tools/explore.py builds and calls this.
 *
 *   explore [--long] [--scene NAME]            all scenes, or one
 *   explore --scene NAME --replay SCHEDULE     one schedule, printed access by access
 *   explore --scene NAME --bounds 3/1         preemptions without a kill, and beside one
 *   explore --list                             names and what they show
 *
 * Exit code: 0 all held, 1 a violation, 2 the harness itself failed. */
#include "explore.h"

#include <stdio.h>
#include <string.h>

static const scene *const groups[] = {ring_scenes,   join_scenes,  park_scenes, work_scenes, chain_scenes,
                                      retire_scenes, delay_scenes, pool_scenes, row_scenes,  lane_scenes};

typedef struct options {
    const char *scene, *schedule;
    bounds bounds;
    bool bounded;
    bool full, list;
} options;

static bool parse(int argc, char **argv, options *out) {
    for (int i = 1; i < argc; i++) {
        bool more = i + 1 < argc;
        if (!strcmp(argv[i], "--long"))
            out->full = true;
        else if (!strcmp(argv[i], "--list"))
            out->list = true;
        else if (!strcmp(argv[i], "--scene") && more)
            out->scene = argv[++i];
        else if (!strcmp(argv[i], "--replay") && more)
            out->schedule = argv[++i];
        else if (!strcmp(argv[i], "--bounds") && more &&
                 sscanf(argv[++i], "%d/%d", &out->bounds.preemptions, &out->bounds.with_kill) == 2)
            out->bounded = true;
        else
            return false;
    }
    return !out->schedule || out->scene;
}

static bool run(const scene *s, const options *o) {
    if (o->list) {
        printf("%s\t%s\n", s->name, s->what);
        return true;
    }
    if (o->schedule)
        return replay(s, o->schedule);
    counts c;
    bounds b = o->bounded ? o->bounds : o->full ? s->full : s->brief;
    bool good = explore(s, b, &c);
    printf("%s\t%lu\t%lu\t%lu\t%lu\t%d\t%d\t%s\n", s->name, c.schedules, c.kills, c.kill_points, c.longest,
           b.preemptions, b.with_kill, good ? "ok" : "FAILED");
    fflush(stdout);
    return good;
}

int main(int argc, char **argv) {
    options o = {0};
    bool good = true, found = false;
    if (!parse(argc, argv, &o)) {
        fprintf(stderr, "usage: explore [--long] [--list] [--bounds N/N] [--scene NAME [--replay SCHEDULE]]\n");
        return 2;
    }
    for (unsigned g = 0; g < sizeof groups / sizeof *groups; g++)
        for (const scene *s = groups[g]; s->name; s++)
            if (!o.scene || !strcmp(o.scene, s->name)) {
                found = true;
                good = run(s, &o) && good;
            }
    if (!found)
        fprintf(stderr, "no scene %s\n", o.scene);
    return !found ? 2 : !good;
}
