/* Shipping: what a publisher does with its pool. It allocates, counts its own uses of each extent (loans, parcels, events
 * that are out), and finds out from its rings when nobody is owed an event any more. See pool.h.
 *
 * Where only reliable consumers look, what comes back is used again at once, while it is in the caches. Where others may
 * come late (lossy subscribers, and whoever joins at the oldest event), the oldest goes first, and only for want of room. */
#include "pools.h"

/* ---- uses ---- */

/* An extent has ended: its blocks are free, or will be when the last view is gone. */
static void end_extent(Pool *self, uint64_t block) {
    pool_end(&self->writer, block);
    if (pool_reuse(&self->writer, block))
        return;
    if (self->ended_count == self->ended_size) {
        uint64_t size = self->ended_size ? self->ended_size * 2 : 64;
        uint64_t *grown = PyMem_Realloc(self->ended, size * sizeof(uint64_t));
        if (!grown)
            return; /* it stays used: there is no memory to remember it by */
        self->ended = grown;
        self->ended_size = size;
    }
    self->ended[self->ended_count++] = block;
}

void pool_unuse(Pool *self, uint64_t block) {
    if (self->uses && --self->uses[block] == 0)
        end_extent(self, block);
}

/* Frees what was looked at, and no longer is. */
static void collect_ended(Pool *self) {
    uint64_t kept = 0;
    for (uint64_t i = 0; i < self->ended_count; i++)
        if (!pool_reuse(&self->writer, self->ended[i]))
            self->ended[kept++] = self->ended[i];
    self->ended_count = kept;
}

/* ---- shipments ---- */

static void free_shipment(shipment *one) {
    for (unsigned i = 0; i < one->groups; i++)
        Py_DECREF((PyObject *)one->group[i].ring);
    Py_DECREF((PyObject *)one->ring);
    PyMem_Free(one->block);
    PyMem_Free(one);
}

void shipping_clear(Pool *self) {
    while (self->oldest) {
        shipment *gone = self->oldest;
        self->oldest = gone->next;
        free_shipment(gone); /* the extents stay what they are: consumers have yet to come */
    }
    self->newest = NULL;
    Py_CLEAR(self->ring);
    PyMem_Free(self->writer.used);
    PyMem_Free(self->uses);
    PyMem_Free(self->ended);
    self->writer.used = self->ended = NULL;
    self->uses = NULL;
    self->ended_count = self->ended_size = 0;
}

static uint64_t owed_slots(const shipment *one) { return one->end ? pool_debtors(&one->ring->view, one->end) : 0; }

static bool owed(const shipment *one) {
    for (unsigned i = 0; i < one->groups; i++)
        if (work_owed(&one->group[i].ring->view, one->group[i].sequence, NULL))
            return true;
    return owed_slots(one) != 0;
}

/* Lets go of what `*link` leads to: its extents end, or are another's too. It is freed with `gone`, once nobody looks at
 * the list any more: the last reference to a ring unmaps it, and with that others run. */
static void collect(Pool *self, shipment **link, shipment *before, shipment **gone) {
    shipment *one = *link;
    *link = one->next;
    if (self->newest == one)
        self->newest = before;
    for (unsigned i = 0; i < one->blocks; i++)
        pool_unuse(self, one->block[i]);
    one->next = *gone;
    *gone = one;
}

/* Nobody comes late: what comes back may be used again at once. */
static bool eager(const Pool *self) {
    const ring_header *h = self->ring->view.header;
    uint64_t reliable = LOAD_RELAXED(&h->reliable), members = LOAD_RELAXED(&h->members);
    return reliable && members == reliable;
}

static int take(Pool *self, uint64_t length, slip *out, shipment **gone) {
    uint64_t now = realtime_ns();
    if (self->ended_count)
        collect_ended(self);
    if (eager(self)) {
        while (self->oldest && !owed(self->oldest))
            collect(self, &self->oldest, NULL, gone);
        self->writer.next = 0;
    }
    if (pool_allocate(&self->writer, length, now, false, out) == RING_OK)
        return RING_OK;
    shipment *before = NULL;
    for (shipment **link = &self->oldest; *link;) {
        if (owed(*link)) {
            before = *link;
            link = &before->next;
            continue;
        }
        collect(self, link, before, gone);
        if (pool_allocate(&self->writer, length, now, false, out) == RING_OK)
            return RING_OK;
    }
    return pool_allocate(&self->writer, length, now, true, out);
}

/* Room for one extent: RING_OK, RING_FULL; POOL_ERROR: another thread has closed the publisher meanwhile. */
int pool_take(Pool *self, uint64_t length, slip *out) {
    shipment *gone = NULL;
    int status = take(self, length, out, &gone);
    while (gone) {
        shipment *next = gone->next;
        free_shipment(gone);
        gone = next;
    }
    return self->uses || pool_publishes(self) ? status : POOL_ERROR;
}

/* ---- methods of a Pool ---- */

bool pool_publishes(const Pool *self) {
    if (self->ring && self->fork_generation == fork_generation)
        return true;
    PyErr_SetString(self->ring ? ForkedError : ClosedError, "this pool is no publisher's here");
    return false;
}

/* serve(ring): this mapping is the publisher's, whose broadcast ring that is. */
static PyObject *pool_serve(PyObject *object, PyObject *ring) {
    Pool *self = (Pool *)object;
    if (!ring_checked(ring, RING_BROADCAST, true))
        return NULL;
    if (self->ring || self->holder < 0 || !self->writable)
        return PyErr_Format(PyExc_RuntimeError, "a pool is served once, by who has entered it");
    uint64_t *used = PyMem_Calloc(pool_bitmap_words(&self->view), sizeof(uint64_t));
    self->uses = used ? PyMem_Calloc(self->view.blocks, sizeof(uint32_t)) : NULL;
    if (!self->uses) {
        PyMem_Free(used);
        return PyErr_NoMemory();
    }
    pool_writer_open(&self->writer, &self->view, used);
    self->ring = (Ring *)Py_NewRef(ring);
    Py_RETURN_NONE;
}

/* A writable lease: RING_OK, RING_FULL, POOL_ERROR with an exception. */
int pool_lend(Pool *self, uint64_t length, Lease **out) {
    slip slip;
    int status = pool_take(self, length, &slip);
    if (status != RING_OK)
        return status;
    if (pool_hold(&self->view, (unsigned)self->holder, slip.block, slip.generation) == RING_OK)
        *out = lease_new(self, &slip, true);
    else
        PyErr_Format(CorruptSegmentError, "pool %llu: somebody writes into it", (unsigned long long)self->id);
    return *out ? RING_OK : POOL_ERROR;
}

/* lease(length): a writable Lease; None: there is no room. */
static PyObject *pool_lease(PyObject *object, PyObject *arg) {
    unsigned long long length = PyLong_AsUnsignedLongLong(arg);
    Lease *lease = NULL;
    if (PyErr_Occurred() || !pool_publishes((Pool *)object))
        return NULL;
    return pool_lend((Pool *)object, length, &lease) == RING_FULL ? Py_NewRef(Py_None) : (PyObject *)lease;
}

/* wanted(waits): announces that the publisher waits for room, or does so no longer. True where something could be freed. */
static PyObject *pool_wanted_(PyObject *object, PyObject *waits) {
    Pool *self = (Pool *)object;
    if (!pool_publishes(self))
        return NULL;
    STORE_SEQ(&self->view.header->waiting, PyObject_IsTrue(waits) > 0); /* SYNC views */
    for (uint64_t i = 0; i < self->ended_count; i++)
        if (!pool_held(&self->view, self->ended[i]))
            Py_RETURN_TRUE;
    for (shipment *one = self->oldest; one; one = one->next)
        if (!owed(one))
            Py_RETURN_TRUE;
    Py_RETURN_FALSE;
}

/* debtors(): (bitmap of reliable slots, [ring id of a group]) that the events in the pool are owed to. */
static PyObject *pool_debtors_(PyObject *object, PyObject *unused) {
    (void)unused;
    Pool *self = (Pool *)object;
    if (!pool_publishes(self))
        return NULL;
    uint64_t slots = 0;
    PyObject *rings = PySet_New(NULL);
    for (shipment *one = self->oldest; rings && one; one = one->next) {
        slots |= owed_slots(one);
        for (unsigned i = 0; rings && i < one->groups; i++) {
            if (!work_owed(&one->group[i].ring->view, one->group[i].sequence, NULL))
                continue;
            PyObject *id = PyLong_FromUnsignedLongLong(one->group[i].ring->id);
            if (!id || PySet_Add(rings, id) < 0)
                Py_CLEAR(rings);
            Py_XDECREF(id);
        }
    }
    return rings ? Py_BuildValue("(KN)", (unsigned long long)slots, rings) : NULL;
}

/* unserve(): the publisher is closed. */
static PyObject *pool_unserve(PyObject *object, PyObject *unused) {
    (void)unused;
    Pool *self = (Pool *)object;
    if (self->ring)
        shipping_clear(self);
    Py_RETURN_NONE;
}

PyMethodDef shipping_methods[SHIPPING] = {
    {"serve", pool_serve, METH_O, NULL},           {"unserve", pool_unserve, METH_NOARGS, NULL},
    {"lease", pool_lease, METH_O, NULL},           {"wanted", pool_wanted_, METH_O, NULL},
    {"debtors", pool_debtors_, METH_NOARGS, NULL},
};

/* ---- an event is written ---- */

/* Called when the record is in the rings, committed or not: its extents are the event's from now on. */
void parcel_ship(Producer *self, PyObject *payload) {
    Parcel *parcel = (Parcel *)payload;
    Pool *pool = parcel->pool;
    shipment *one = NULL;
    for (unsigned i = 0; i < parcel->loans; i++)
        parcel->loan[i]->shipped = true;
    if (!parcel->blocks || !parcel->block || !pool->ring)
        return;
    size_t room = sizeof(shipment) + self->group_count * sizeof(owed_group);
    if (!(one = PyMem_Calloc(1, room))) {
        parcel->block = NULL; /* no memory to remember it by: it stays used, for somebody may be owed it */
        return;
    }
    one->group = (owed_group *)(one + 1);
    one->ring = (Ring *)Py_NewRef((PyObject *)self->ring);
    one->end = self->fits ? self->writer.head : 0;
    if (pool->ring != self->ring) { /* it has left that one */
        Py_DECREF((PyObject *)pool->ring);
        pool->ring = (Ring *)Py_NewRef((PyObject *)self->ring);
    }
    for (unsigned i = 0; i < self->group_count; i++)
        if (self->groups[i].fits)
            one->group[one->groups++] = (owed_group){.ring = (Ring *)Py_NewRef((PyObject *)self->groups[i].ring),
                                                     .sequence = self->groups[i].writer.sequence - 1};
    one->blocks = parcel->blocks;
    one->block = parcel->block;
    parcel->block = NULL;
    if (pool->newest)
        pool->newest->next = one;
    else
        pool->oldest = one;
    pool->newest = one;
}
