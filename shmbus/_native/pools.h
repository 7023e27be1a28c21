/* Pools: what pools.c (the Python types Pool and Lease), shipping.c (what a publisher does) and parcels.c (what is sent and
 * received) share. */
#ifndef SHMBUS_POOLS_H
#define SHMBUS_POOLS_H

#include "python.h"

#include "pool.h"
#include "producer.h"
#include "receiver.h"

typedef struct Lease Lease;

typedef struct owed_group {
    Ring *ring;
    uint64_t sequence;
} owed_group;

typedef struct shipment { /* one event that is out, and the extents that it has until nobody is owed it */
    struct shipment *next;
    Ring *ring;   /* the broadcast ring that it is in: its publisher may have left that since */
    uint64_t end; /* position behind its record; 0: it is in no broadcast ring */
    unsigned groups, blocks;
    owed_group *group;
    uint64_t *block; /* first ones */
} shipment;

typedef struct Pool { /* one mapping of a pool */
    PyObject_HEAD PyObject *weak;
    struct Pool *before, *behind; /* all that this process has */
    Py_buffer buffer;
    pool_view view;
    uint64_t id, life;
    unsigned fork_generation;
    bool open, writable;
    int holder;       /* our bit, -1: we have none, and copy */
    PyObject *keeper; /* keeps our life, for as long as we hold anything */
    PyObject *wake;   /* posts the publisher, or NULL */
    Lease **live;     /* by first block: what we hold; made when it is needed */
    /* Of its publisher alone: */
    Ring *ring; /* the broadcast ring that it ships to; NULL: this is no publisher's */
    pool_writer writer;
    uint32_t *uses; /* by first block: leases, parcels and shipments */
    shipment *oldest, *newest;
    uint64_t *ended; /* first blocks that are owed to nobody, but looked at */
    uint64_t ended_count, ended_size;
} Pool;

struct Lease { /* the bytes of one extent, for as long as anything refers to them */
    PyObject_HEAD Pool *pool;
    slip slip; /* all of it */
    unsigned char *memory;
    uint64_t mapped; /* not 0: several runs, mapped side by side */
    bool owned;      /* a copy */
    bool loan;       /* of the publisher: it counts among `uses` */
    bool writable;
    bool shipped;     /* with an event that was published: nothing makes it writable again */
    unsigned seals;   /* by events that are on their way: read-only until the last of them is given up */
    PyObject *sealed; /* list of the views of it that they made read-only; NULL while there are no seals */
};

typedef struct Parcel { /* a payload whose buffers lie in the pool, until it is sent or given up */
    PyObject_HEAD Pool *pool;
    PyObject *bytes;
    Lease **loan; /* what it has sealed */
    unsigned loans, blocks;
    uint64_t *block; /* NULL once they are a shipment's */
} Parcel;

typedef struct piece { /* one buffer of an event on its way out */
    PyObject *source;  /* what has the bytes, or writes them */
    Lease *lease;      /* that they lie in, NULL: in none */
    Py_buffer view;    /* of the source, NULL in `obj`: none yet, or its bytes do not lie in C order */
    uint64_t length, offset;
    bool laid; /* the lease is ours, to be written */
} piece;

typedef struct record_room { /* of an event with buffers */
    uint64_t small;          /* bytes up to which a buffer goes into its record */
    uint64_t most;           /* of slips, such buffers and encoded event together */
} record_room;

#define POOL_WANTED 5 /* a status: the record has extents, and we have no pool */
#define POOL_ERROR (-3)

extern PyTypeObject *pool_type, *lease_type, *parcel_type;

/* False in a forked child: the bits that it set are its parent's. */
static inline bool pool_ours(const Pool *self) { return self->fork_generation == fork_generation; }

int leases_add(PyObject *module);
Lease *lease_new(Pool *pool, const slip *slip, bool loan);
int lease_take(Pool *pool, const slip *slip, bool copy, Lease **out);
void pool_unuse(Pool *pool, uint64_t block);
bool pool_publishes(const Pool *self);
int pool_take(Pool *self, uint64_t length, slip *out);
int pool_lend(Pool *self, uint64_t length, Lease **out);
bool lease_has(const Lease *self, const Py_buffer *view, uint64_t *offset);
int lease_seal(Lease *self, PyObject *view, bool writable);
void lease_unseal(Lease *self);
int lease_of(const Pool *pool, PyObject *view, Lease **loan);
int parcel_make(Pool *pool, const record_room *room, const piece *pieces, unsigned count, PyObject *body, Parcel **out);
uint64_t parcel_shared(const record_room *room, const piece *pieces, unsigned count, uint64_t slips, uint64_t tail,
                       uint64_t *inner);
RARE int parcel_part(PyObject *payload, part *out);
RARE void parcel_ship(Producer *self, PyObject *payload);
void shipping_clear(Pool *pool);
int parcel_open(Pool *pool, const unsigned char *payload, uint64_t length, bool copy, PyObject *into, uint64_t *body);

PyObject *parcel_flatten(const Pool *pool, const unsigned char *payload, uint64_t length);

#define SHIPPING 5 /* methods of a publisher */

extern PyMethodDef shipping_methods[SHIPPING];
#endif
