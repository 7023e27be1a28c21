/* Latency lines: four buckets an octave, filled by atomic adds, read as they stand. See latency.h. */
#include "latency.h"

#define FIRST_OCTAVE 7        /* below 128 ns lies the first bucket: clocks and calls take as long */
#define LIMIT (1ull << 48)    /* of a bucket: nobody has counted beyond, and sums of such fit into a word */
#define NS_LIMIT (1ull << 63) /* no two CLOCK_REALTIME lie so far apart */

/* 2^63 times 2^0, 2^(1/4), 2^(1/2), 2^(3/4), rounded up: where the buckets of an octave begin. */
static const uint64_t starts[4] = {0x8000000000000000ull, 0x9837f0518db8a970ull, 0xb504f333f9de6485ull,
                                   0xd744fccad69d6af5ull};

unsigned latency_bucket(uint64_t ns) {
    if (ns >> FIRST_OCTAVE == 0)
        return 0;
    unsigned zeros = (unsigned)__builtin_clzll(ns);
    uint64_t fraction = ns << zeros;
    unsigned quarter = (fraction >= starts[1]) + (fraction >= starts[2]) + (fraction >= starts[3]);
    unsigned bucket = 1 + (63 - zeros - FIRST_OCTAVE) * 4 + quarter;
    return bucket < LATENCY_BUCKETS ? bucket : LATENCY_BUCKETS - 1;
}

/* The largest latency that falls into a bucket; there is none for the last. */
uint64_t latency_bound(unsigned bucket) {
    if (bucket >= LATENCY_BUCKETS - 1)
        return UINT64_MAX;
    unsigned shift = 63 - FIRST_OCTAVE - bucket / 4;
    return (starts[bucket % 4] - 1) >> shift;
}

void latency_record(latency_line *line, uint64_t ns, uint64_t weight) {
    uint64_t seen = LOAD_RELAXED(&line->max_ns);
    while (seen < ns && !CAS_SEQ(&line->max_ns, &seen, ns))
        ; /* a lost CAS has loaded a larger maximum, or one of a line that was given away */
    ADD_SEQ(&line->weights[latency_bucket(ns)], weight);
}

/* The bound of the bucket in which the first `percent` of the weights end. */
static uint64_t quantile(const uint64_t *weights, uint64_t count, unsigned percent, uint64_t max_ns) {
    uint64_t sum = 0, bound = UINT64_MAX;
    for (unsigned i = 0; i < LATENCY_BUCKETS && bound == UINT64_MAX; i++) {
        sum += weights[i];
        if (sum * 100 >= count * percent)
            bound = latency_bound(i);
    }
    return bound < max_ns ? bound : max_ns;
}

/* False: nothing was sampled, or the words cannot be. */
bool latency_terms_of(const latency_line *line, latency_terms *out) {
    uint64_t weights[LATENCY_BUCKETS], count = 0;
    for (unsigned i = 0; i < LATENCY_BUCKETS; i++) {
        weights[i] = LOAD_RELAXED(&line->weights[i]);
        if (weights[i] > LIMIT)
            return false;
        count += weights[i];
    }
    uint64_t max_ns = LOAD_RELAXED(&line->max_ns);
    if (!count || max_ns >= NS_LIMIT)
        return false;
    *out = (latency_terms){.count = count,
                           .p50_ns = quantile(weights, count, 50, max_ns),
                           .p99_ns = quantile(weights, count, 99, max_ns),
                           .max_ns = max_ns};
    return true;
}
