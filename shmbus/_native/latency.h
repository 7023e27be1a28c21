/* Latency lines: how long a consumer's events took from publish to hand-out, sampled, as a histogram.
 *
 * Layout      layout.h: latency_line, one beside each consumer_line.
 * Writers     Whoever hands out the consumer's events adds: one subscriber, or any worker of a group. Who gives the line
 *             to a consumer zeroes it before, under the bus lock.
 * Invariants  H1  no index and no bound comes from the segment: a corrupt one shows nonsense, and harms nothing.
 *             H2  an event that is chosen with probability 1/w adds w: the sum estimates the events, without bias.
 * Crash order None: a death between two words costs one sample, and readers take the words as they find them.
 */
#ifndef SHMBUS_LATENCY_H
#define SHMBUS_LATENCY_H

#include "layout.h"

#define LATENCY_WEIGHT 64 /* of an event chosen by its sequence: it stands for so many */

typedef struct latency_terms { /* quantiles are the largest latency of their bucket, at most 19% above the sample's */
    uint64_t count;            /* events, estimated */
    uint64_t p50_ns, p99_ns;
    uint64_t max_ns; /* of the samples, exact */
} latency_terms;

/* One of LATENCY_WEIGHT sequences. Multiples of the golden ratio: the chosen ones lie 34, 55 or 89 apart, so neither a
 * batch nor a turn of workers falls into step with them. */
static inline bool latency_chosen(uint64_t sequence) { return sequence * 0x9e3779b97f4a7c15ull >> 58 == 0; }

unsigned latency_bucket(uint64_t ns);
uint64_t latency_bound(unsigned bucket);
void latency_record(latency_line *line, uint64_t ns, uint64_t weight);
bool latency_terms_of(const latency_line *line, latency_terms *out);

#endif
