/* Every shared access of the plain C strata goes through these macros, so that a harness can put its own in their
 * place (define SHMBUS_HOOKS as the header that does). No stand-alone fences: the thread sanitizer does not model them. */
#ifndef SHMBUS_ATOMICS_H
#define SHMBUS_ATOMICS_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef _Atomic uint64_t word;

_Static_assert(sizeof(word) == 8, "a shared word is eight bytes, or processes would disagree");
_Static_assert(ATOMIC_LLONG_LOCK_FREE == 2, "shared words must not hide a lock");

#define RARELY(condition) __builtin_expect(!!(condition), 0)
#define RARE __attribute__((noinline, cold)) /* off the path of most events */

#if defined(__x86_64__)
#define PREFETCH_WRITE(p) __asm__ volatile("prefetchw %0" : : "m"(*(const char *)(p)))
#else
#define PREFETCH_WRITE(p) __builtin_prefetch((p), 1)
#endif
#ifdef SHMBUS_HOOKS
#include SHMBUS_HOOKS
#else
#define LOAD_RELAXED(p) atomic_load_explicit((p), memory_order_relaxed)
#define LOAD_ACQUIRE(p) atomic_load_explicit((p), memory_order_acquire)
#define LOAD_SEQ(p) atomic_load_explicit((p), memory_order_seq_cst)
#define STORE_RELAXED(p, v) atomic_store_explicit((p), (v), memory_order_relaxed)
#define STORE_RELEASE(p, v) atomic_store_explicit((p), (v), memory_order_release)
#define STORE_SEQ(p, v) atomic_store_explicit((p), (v), memory_order_seq_cst)
#define CAS_SEQ(p, expected, v)                                                                                        \
    atomic_compare_exchange_strong_explicit((p), (expected), (v), memory_order_seq_cst, memory_order_seq_cst)
#define ADD_SEQ(p, v) atomic_fetch_add_explicit((p), (v), memory_order_seq_cst)
#define OR_SEQ(p, v) atomic_fetch_or_explicit((p), (v), memory_order_seq_cst)
#define AND_SEQ(p, v) atomic_fetch_and_explicit((p), (v), memory_order_seq_cst)
#endif

#endif
