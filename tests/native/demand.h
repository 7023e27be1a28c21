/* What the stress programs say when something does not hold. */
#ifndef SHMBUS_DEMAND_H
#define SHMBUS_DEMAND_H

#include <stdio.h>
#include <unistd.h>

#define RELAXED memory_order_relaxed
#define DEMAND(condition, ...)                                                                                         \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            fprintf(stderr, "FAILED %s:%d: ", __FILE__, __LINE__);                                                     \
            fprintf(stderr, __VA_ARGS__);                                                                              \
            fputc('\n', stderr);                                                                                       \
            _exit(1);                                                                                                  \
        }                                                                                                              \
    } while (0)

#endif
