/* Puts the explorer in the place of every shared access: included by shmbus/_native/atomics.h as SHMBUS_HOOKS.
 *
 * Each access first gives the scheduler its turn and is then performed at once: sequential consistency. Memory orders
 * are not modelled; what they are for is shown by the thread sanitizer on stress.c. */
#ifndef SHMBUS_TEST_HOOKS_H
#define SHMBUS_TEST_HOOKS_H

enum access { ACCESS_LOAD, ACCESS_STORE, ACCESS_CAS, ACCESS_ADD, ACCESS_OR, ACCESS_AND, ACCESS_SLEEP };

uint64_t hook_load(const volatile void *at);
void hook_store(volatile void *at, uint64_t value);
bool hook_cas(volatile void *at, uint64_t *expected, uint64_t value);
uint64_t hook_change(volatile void *at, enum access how, uint64_t value);

#define LOAD_RELAXED(p) hook_load(p)
#define LOAD_ACQUIRE(p) hook_load(p)
#define LOAD_SEQ(p) hook_load(p)
#define STORE_RELAXED(p, v) hook_store((p), (v))
#define STORE_RELEASE(p, v) hook_store((p), (v))
#define STORE_SEQ(p, v) hook_store((p), (v))
#define CAS_SEQ(p, expected, v) hook_cas((p), (expected), (v))
#define ADD_SEQ(p, v) hook_change((p), ACCESS_ADD, (v))
#define OR_SEQ(p, v) hook_change((p), ACCESS_OR, (v))
#define AND_SEQ(p, v) hook_change((p), ACCESS_AND, (v))

#endif
