/* Lease: the bytes of one extent, held for as long as anything refers to them, whatever becomes of handles, buses and the
 * pool's name. A publisher's own, a loan, may be written until it is sealed. */
#include "pools.h"

#include <structmember.h>
#include <sys/mman.h>

#define NESTED 64 /* views of views; NumPy keeps that short */

PyTypeObject *lease_type;
static PyObject *base_name, *object_name;

/* Maps the runs of an extent side by side: the same pages once more, by mremap of nothing (mremap(2), old_size 0). */
static unsigned char *map_runs(const Pool *pool, uint64_t block, uint64_t length, uint64_t *mapped) {
    uint64_t size = pool_blocks(length) * POOL_BLOCK, done = 0;
    unsigned char *memory = mmap(NULL, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED)
        return NULL;
    for (run one; block != UINT64_MAX && pool_next_run(&pool->view, &block, &one);) {
        uint64_t bytes = one.blocks * POOL_BLOCK;
        bytes = bytes < size - done ? bytes : size - done;
        if (!bytes || mremap(pool->view.data + one.block * POOL_BLOCK, 0, bytes, MREMAP_MAYMOVE | MREMAP_FIXED,
                             memory + done) == MAP_FAILED)
            break;
        done += bytes;
    }
    if (done == size) {
        *mapped = size;
        return memory;
    }
    munmap(memory, size);
    return NULL;
}

/* What an extent that we hold is to be read by: 0, or -1 with an exception. */
static int lease_map(Lease *lease) {
    Pool *pool = lease->pool;
    uint64_t runs;
    if (pool_check(&pool->view, &lease->slip, &runs) != RING_OK) {
        PyErr_Format(CorruptSegmentError, "pool %llu: an extent cannot be", (unsigned long long)pool->id);
        return -1;
    }
    lease->memory = runs == 1 ? pool->view.data + lease->slip.block * POOL_BLOCK
                              : map_runs(pool, lease->slip.block, lease->slip.length, &lease->mapped);
    if (!lease->memory)
        PyErr_SetFromErrno(PyExc_OSError);
    return lease->memory ? 0 : -1;
}

/* A lease of an extent whose bit we have set; without one, if this fails. */
Lease *lease_new(Pool *pool, const slip *slip, bool loan) {
    Lease *lease = (Lease *)PyType_GenericAlloc(lease_type, 0);
    if (!lease) {
        pool_let_go(&pool->view, (unsigned)pool->holder, slip->block);
        return NULL;
    }
    lease->pool = (Pool *)Py_NewRef((PyObject *)pool);
    lease->slip = *slip;
    lease->loan = lease->writable = loan;
    pool->live[slip->block] = lease; /* its end clears the bit */
    if (loan)
        pool->uses[slip->block]++;
    if (lease_map(lease) < 0)
        Py_CLEAR(lease);
    return lease;
}

static int lease_copy(Pool *pool, const slip *slip, Lease **out) {
    Lease *lease = (Lease *)PyType_GenericAlloc(lease_type, 0);
    if (!lease)
        return POOL_ERROR;
    lease->owned = true;
    lease->slip = (struct slip){.length = slip->length};
    if (slip->length > pool->view.blocks * POOL_BLOCK ||
        !(lease->memory = PyMem_Malloc(slip->length + !slip->length))) {
        Py_DECREF((PyObject *)lease);
        if (slip->length > pool->view.blocks * POOL_BLOCK)
            return RING_CORRUPT;
        PyErr_NoMemory();
        return POOL_ERROR;
    }
    int status;
    Py_BEGIN_ALLOW_THREADS;
    status = pool_copy(&pool->view, slip, lease->memory);
    Py_END_ALLOW_THREADS;
    if (status == RING_OK)
        *out = lease;
    else
        Py_DECREF((PyObject *)lease);
    return status;
}

/* The lease of what a slip names: RING_OK, RING_LOST, RING_CORRUPT, or POOL_ERROR with an exception. */
int lease_take(Pool *pool, const slip *slip, bool copy, Lease **out) {
    if (copy || pool->holder < 0)
        return lease_copy(pool, slip, out);
    if (slip->block >= pool->view.blocks)
        return RING_CORRUPT;
    Lease *known = pool->live[slip->block];
    uint64_t runs;
    struct slip all = *slip;
    if (known) { /* a bit is one for all that this mapping has of the extent */
        *out = (Lease *)Py_NewRef((PyObject *)known);
        bool same = known->slip.generation == slip->generation && slip->length <= known->slip.length &&
                    slip->offset <= known->slip.length - slip->length;
        if (!same)
            Py_CLEAR(*out);
        return same ? RING_OK : RING_CORRUPT;
    }
    int status = pool_hold(&pool->view, (unsigned)pool->holder, slip->block, slip->generation);
    if (status != RING_OK)
        return status;
    if (pool_check(&pool->view, slip, &runs) != RING_OK) {
        pool_let_go(&pool->view, (unsigned)pool->holder, slip->block);
        return RING_CORRUPT;
    }
    all.offset = 0;
    all.length = LOAD_ACQUIRE(&pool->view.extents[slip->block].length);
    *out = lease_new(pool, &all, false);
    return *out ? RING_OK : POOL_ERROR;
}

/* Posts a publisher that waits for the view that went. From within a collection: no error leaves this. */
static void wake(const Pool *pool) {
    PyObject *error = PyErr_Occurred() ? error_take() : NULL;
    PyObject *post = Py_XNewRef(pool->wake), *done = post && !guard_exiting() ? call_none(post) : NULL;
    if (!done)
        PyErr_Clear();
    Py_XDECREF(done);
    Py_XDECREF(post);
    if (error)
        error_restore(error);
}

static void free_runs(const Pool *pool, uint64_t block) {
    for (run one; block != UINT64_MAX && pool_next_run(&pool->view, &block, &one);)
        madvise(pool->view.data + one.block * POOL_BLOCK, one.blocks * POOL_BLOCK, MADV_REMOVE);
}

static void let_go(Lease *lease) {
    Pool *pool = lease->pool;
    uint64_t block = lease->slip.block;
    pool->live[block] = NULL;
    if (!pool_ours(pool))
        return;
    bool waits = pool_let_go(&pool->view, (unsigned)pool->holder, block);
    if (lease->loan)
        pool_unuse(pool, block);
    if (LOAD_ACQUIRE(&pool->view.header->retired) && !pool_held(&pool->view, block))
        free_runs(pool, block); /* nobody allocates it again */
    if (waits)
        wake(pool);
}

static void lease_dealloc(PyObject *object) {
    Lease *self = (Lease *)object;
    if (self->mapped)
        munmap(self->memory, self->mapped);
    if (self->owned)
        PyMem_Free(self->memory);
    if (self->pool) {
        let_go(self);
        Py_DECREF((PyObject *)self->pool);
    }
    object_free(object);
}

static int lease_getbuffer(PyObject *object, Py_buffer *view, int flags) {
    Lease *self = (Lease *)object;
    return PyBuffer_FillInfo(view, object, self->memory, (Py_ssize_t)self->slip.length, !self->writable, flags);
}

static Py_ssize_t lease_length(PyObject *object) { return (Py_ssize_t)((Lease *)object)->slip.length; }

static PyObject *lease_address(PyObject *object, void *unused) {
    (void)unused;
    return PyLong_FromVoidPtr(((Lease *)object)->memory);
}

/* ---- what publishing does with a loan ---- */

/* What a view is a view of: 1, 0 where there is no such thing, -1 with an exception. */
static int base_of(PyObject *view, PyObject **base) {
    *base = NULL;
    if (PyBytes_Check(view) || PyByteArray_Check(view))
        return 0;
    *base = PyObject_GetAttr(view, PyMemoryView_Check(view) ? object_name : base_name);
    if (!*base) {
        if (!PyErr_ExceptionMatches(PyExc_AttributeError))
            return -1;
        PyErr_Clear();
    } else if (*base == Py_None) {
        Py_CLEAR(*base);
    }
    return *base != NULL;
}

/* The loan of a pool, NULL for any, that a view lies in, a new reference; NULL for any other, and for what only tells where its bytes are,
 * as NumPy's strided views do: nobody could make that writable again. */
int lease_of(const Pool *pool, PyObject *view, Lease **loan) {
    PyObject *base = Py_NewRef(view), *next;
    int found = 1;
    *loan = NULL;
    for (int i = 0; i < NESTED && found > 0 && Py_TYPE(base) != lease_type && PyObject_CheckBuffer(base); i++) {
        found = base_of(base, &next);
        Py_DECREF(base);
        base = next;
    }
    if (base && Py_TYPE(base) == lease_type && (!pool || ((Lease *)base)->pool == pool))
        *loan = (Lease *)base;
    else
        Py_XDECREF(base);
    return found < 0 ? -1 : 0;
}

/* Whether the bytes of a buffer lie in this loan, in C order and without gaps; and where. */
bool lease_has(const Lease *self, const Py_buffer *view, uint64_t *offset) {
    uintptr_t from = (uintptr_t)self->memory, at = (uintptr_t)view->buf;
    *offset = (uint64_t)(at - from);
    return self->loan && PyBuffer_IsContiguous(view, 'C') && at >= from && at - from <= self->slip.length &&
           (uint64_t)view->len <= self->slip.length - (at - from);
}

static PyObject *setflags_name; /* a seventh of what `flags.writeable = False` takes */

static int set_flags(PyObject *array, PyObject *writable) {
    PyObject *done = PyObject_CallMethodObjArgs(array, setflags_name, writable, NULL);
    Py_XDECREF(done);
    return done ? 0 : -1;
}

/* The same of one that there is, a memoryview or an array. */
static int seal_view(PyObject *view, PyObject *sealed) {
    Py_buffer buffer;
#ifndef Py_LIMITED_API
    if (PyMemoryView_Check(view)) {
        if (PyMemoryView_GET_BUFFER(view)->readonly)
            return 0;
        PyMemoryView_GET_BUFFER(view)->readonly = 1;
        return PyList_Append(sealed, view);
    }
#endif
    if (PyObject_GetBuffer(view, &buffer, PyBUF_STRIDES) < 0)
        return -1;
    bool writable = !buffer.readonly;
    PyBuffer_Release(&buffer);
    if (!writable)
        return 0;
    return set_flags(view, Py_False) < 0 ? -1 : PyList_Append(sealed, view);
}

/* An event that is on its way has it: nothing is written from now on through new buffers of it, nor through those from this
 * view to the loan. To be undone by lease_unseal, also where this fails. */
int lease_seal(Lease *self, PyObject *view, bool writable) {
    PyObject *base;
    int found = 1;
    self->seals++;
    self->writable = false;
    if (!self->sealed && !(self->sealed = PyList_New(0)))
        return -1;
    for (Py_INCREF(view); found > 0; view = base, writable = true) {
        base = NULL;
        if (Py_TYPE(view) == lease_type)
            found = 0;
        else if (writable)
            found = seal_view(view, self->sealed) < 0 ? -1 : 1;
        if (found > 0)
            found = base_of(view, &base);
        Py_DECREF(view);
    }
    return found;
}

/* Makes writable again what was sealed, a memoryview, or an array if `arrays`: NumPy asks on what an array hangs. */
static void unseal_view(PyObject *view, bool arrays) {
    if (PyMemoryView_Check(view) == arrays)
        return;
    if (arrays && set_flags(view, Py_True) < 0)
        PyErr_Clear();
#ifndef Py_LIMITED_API
    if (!arrays)
        PyMemoryView_GET_BUFFER(view)->readonly = 0;
#endif
}

/* One of those events is published, or given up. After the last of them all is as it was, if none was published. */
void lease_unseal(Lease *self) {
    if (--self->seals)
        return;
    PyObject *sealed = self->sealed;
    Py_ssize_t count = sealed && !self->shipped ? PyList_Size(sealed) : 0;
    self->sealed = NULL;
    self->writable = !self->shipped;
    for (int arrays = 0; arrays < 2; arrays++)
        for (Py_ssize_t i = 0; i < count; i++)
            unseal_view(PyList_GetItem(sealed, i), arrays);
    Py_XDECREF(sealed);
}

static PyMemberDef lease_members[] = {{"writable", T_BOOL, offsetof(Lease, writable), READONLY, NULL},
                                      {"pool", T_OBJECT, offsetof(Lease, pool), READONLY, NULL},
                                      {NULL, 0, 0, 0, NULL}};

static PyGetSetDef lease_getset[] = {{"address", lease_address, NULL, NULL, NULL}, {NULL, NULL, NULL, NULL, NULL}};

static PyType_Slot lease_slots[] = {{Py_tp_dealloc, lease_dealloc},
                                    {Py_tp_members, lease_members},
                                    {Py_tp_getset, lease_getset},
                                    {Py_sq_length, lease_length},
                                    {Py_bf_getbuffer, lease_getbuffer},
                                    {Py_tp_doc, "The bytes of one extent of a pool, as a buffer."},
                                    {0, NULL}};

static PyType_Spec lease_spec = {.name = "shmbus._core.Lease",
                                 .basicsize = sizeof(Lease),
                                 .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
                                 .slots = lease_slots};

int leases_add(PyObject *module) {
    setflags_name = PyUnicode_InternFromString("setflags");
    base_name = PyUnicode_InternFromString("base");
    object_name = PyUnicode_InternFromString("obj");
    lease_type = setflags_name && base_name && object_name ? type_add(module, &lease_spec, NULL) : NULL;
    return lease_type ? 0 : -1;
}
