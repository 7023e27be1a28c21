/* Pool: one mapping of what a publisher's events carry. In a forked child it holds nothing. */
#include "pools.h"

#include <structmember.h>
#include <sys/mman.h>

PyTypeObject *pool_type;

/* ---- forks ---- */

static Pool *pools; /* all that hold anything */

static void enlist(Pool *self) {
    self->behind = pools;
    if (pools)
        pools->before = self;
    pools = self;
}

static void strike_off(Pool *self) {
    if (self->before)
        self->before->behind = self->behind;
    else if (pools == self)
        pools = self->behind;
    if (self->behind)
        self->behind->before = self->before;
}

/* Puts a copy of our own in the place of an extent, at the same address: whoever refers to it sees no difference. */
static bool keep_copy(const Lease *lease) {
    uint64_t size = pool_blocks(lease->slip.length ? lease->slip.length : 1) * POOL_BLOCK;
    void *copy = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (copy == MAP_FAILED)
        return false;
    memcpy(copy, lease->memory, lease->slip.length);
    return mremap(copy, size, size, MREMAP_MAYMOVE | MREMAP_FIXED, lease->memory) != MAP_FAILED;
}

static uint64_t each_view(bool (*what)(const Lease *)) {
    uint64_t count = 0;
    for (Pool *pool = pools; pool; pool = pool->behind)
        for (uint64_t block = 0, high = LOAD_ACQUIRE(&pool->view.header->high); pool->live && block < high; block++)
            if (block < pool->view.blocks && pool->live[block])
                count += !what || what(pool->live[block]);
    return count;
}

/* count_views(): extents that this process looks at, whatever in it does. */
static PyObject *count_views(PyObject *module, PyObject *unused) {
    (void)module, (void)unused;
    return PyLong_FromUnsignedLongLong(each_view(NULL));
}

/* keep_views(): in a forked child, whose parent's holds are not its own: copies of all of them. */
static PyObject *keep_views(PyObject *module, PyObject *unused) {
    (void)module, (void)unused;
    return PyLong_FromUnsignedLongLong(each_view(keep_copy));
}

static PyMethodDef functions[] = {{"count_views", count_views, METH_NOARGS, NULL},
                                  {"keep_views", keep_views, METH_NOARGS, NULL},
                                  {NULL, NULL, 0, NULL}};

/* ---- pools ---- */

static int pool_map(Pool *self, PyObject *segment) {
    self->writable = PyObject_GetBuffer(segment, &self->buffer, PyBUF_WRITABLE) == 0;
    if (!self->writable) {
        PyErr_Clear();
        if (PyObject_GetBuffer(segment, &self->buffer, PyBUF_SIMPLE) < 0)
            return -1;
    }
    self->open = true;
    int status = pool_open(&self->view, self->buffer.buf, (uint64_t)self->buffer.len);
    if (status == RING_FOREIGN)
        PyErr_SetString(LayoutMismatchError, "a pool segment of another layout version, or of another program");
    else if (status != RING_OK)
        PyErr_SetString(CorruptSegmentError, "pool segment: its size cannot be");
    else
        self->id = self->view.header->pool_id;
    return status == RING_OK ? 0 : -1;
}

/* Pool(segment, life=0, consumer=0, keeper=None, wake=None): with a life it holds what it looks at, for that consumer. */
static PyObject *pool_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"segment", "life", "consumer", "keeper", "wake", NULL};
    PyObject *segment, *keeper = NULL, *post = NULL;
    unsigned long long life = 0, consumer = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O|KKOO:Pool", names, &segment, &life, &consumer, &keeper, &post))
        return NULL;
    Pool *self = (Pool *)PyType_GenericAlloc(type, 0);
    if (!self)
        return NULL;
    self->holder = -1;
    self->fork_generation = fork_generation;
    if (pool_map(self, segment) < 0) {
        Py_DECREF((PyObject *)self);
        return NULL;
    }
    self->life = life;
    self->keeper = Py_XNewRef(keeper);
    self->wake = post && post != Py_None ? Py_NewRef(post) : NULL;
    if (life && self->writable) {
        self->live = PyMem_Calloc(self->view.blocks, sizeof(Lease *));
        if (!self->live) {
            Py_DECREF((PyObject *)self);
            return PyErr_NoMemory();
        }
        self->holder = pool_enter(&self->view, life, consumer);
        enlist(self);
    }
    return (PyObject *)self;
}

static void pool_dealloc(PyObject *object) {
    Pool *self = (Pool *)object;
    if (self->weak)
        PyObject_ClearWeakRefs(object);
    shipping_clear(self);
    strike_off(self);
    if (self->open) {
        if (self->holder >= 0 && pool_ours(self))
            pool_leave(&self->view, (unsigned)self->holder);
        PyBuffer_Release(&self->buffer);
    }
    PyMem_Free(self->live);
    Py_XDECREF(self->keeper);
    Py_XDECREF(self->wake);
    object_free(object);
}

static PyObject *pool_size_(PyObject *type, PyObject *arg) {
    (void)type;
    unsigned long long bytes = PyLong_AsUnsignedLongLong(arg);
    return PyErr_Occurred() ? NULL : PyLong_FromUnsignedLongLong(pool_size(bytes));
}

static PyObject *pool_format_(PyObject *type, PyObject *args) {
    (void)type;
    PyObject *segment;
    unsigned long long bytes, id;
    Py_buffer buffer;
    if (!PyArg_ParseTuple(args, "OKK:format", &segment, &bytes, &id) ||
        PyObject_GetBuffer(segment, &buffer, PyBUF_WRITABLE) < 0)
        return NULL;
    int status = pool_format(buffer.buf, (uint64_t)buffer.len, bytes, id);
    PyBuffer_Release(&buffer);
    if (status == RING_OK)
        Py_RETURN_NONE;
    return PyErr_Format(PyExc_ValueError, "cannot lay out a pool: bytes=%llu", bytes);
}

/* What one holder has: [extents, bytes, since_ns of the oldest]. */
static void pool_views(const Pool *self, unsigned holder, uint64_t seen[3]) {
    uint64_t high = LOAD_ACQUIRE(&self->view.header->high);
    for (uint64_t block = 0; block < high && block < self->view.blocks; block++) {
        extent *e = &self->view.extents[block];
        if (!(LOAD_RELAXED(&e->holds[holder / 64]) >> holder % 64 & 1))
            continue;
        uint64_t since = LOAD_RELAXED(&e->since_ns);
        seen[0]++;
        seen[1] += pool_blocks(LOAD_RELAXED(&e->length)) * POOL_BLOCK;
        if (since && (!seen[2] || since < seen[2]))
            seen[2] = since;
    }
}

/* holders(): [(life, consumer, views, bytes, since_ns), ...] of those that look at anything. */
static PyObject *pool_holders(PyObject *object, PyObject *unused) {
    (void)unused;
    Pool *self = (Pool *)object;
    PyObject *list = PyList_New(0);
    for (unsigned i = 0; list && i < POOL_HOLDERS; i++) {
        uint64_t life = LOAD_SEQ(&self->view.header->holders[i].life), seen[3] = {0};
        if (!life)
            continue;
        pool_views(self, i, seen);
        if (!seen[0])
            continue;
        PyObject *one =
            Py_BuildValue("(KKKKK)", (unsigned long long)life,
                          (unsigned long long)LOAD_RELAXED(&self->view.header->holders[i].consumer),
                          (unsigned long long)seen[0], (unsigned long long)seen[1], (unsigned long long)seen[2]);
        if (!one || PyList_Append(list, one) < 0)
            Py_CLEAR(list);
        Py_XDECREF(one);
    }
    return list;
}

/* lives(): [(number, life), ...], at the cost of a look at the header. */
static PyObject *pool_lives(PyObject *object, PyObject *unused) {
    (void)unused;
    Pool *self = (Pool *)object;
    PyObject *list = PyList_New(0);
    for (unsigned i = 0; list && i < POOL_HOLDERS; i++) {
        uint64_t life = LOAD_SEQ(&self->view.header->holders[i].life);
        PyObject *one = life ? Py_BuildValue("(IK)", i, (unsigned long long)life) : NULL;
        if (life && (!one || PyList_Append(list, one) < 0))
            Py_CLEAR(list);
        Py_XDECREF(one);
    }
    return list;
}

static PyObject *refuse_read_only(void) {
    PyErr_SetString(AccessError, "the pool is attached read-only");
    return NULL;
}

/* forget(number, life): under the bus lock, of a holder whose life is over: how many extents it held. */
static PyObject *pool_forget_(PyObject *object, PyObject *args) {
    Pool *self = (Pool *)object;
    unsigned number;
    unsigned long long life;
    if (!PyArg_ParseTuple(args, "IK:forget", &number, &life))
        return NULL;
    if (!self->writable)
        return refuse_read_only();
    if (number >= POOL_HOLDERS || LOAD_SEQ(&self->view.header->holders[number].life) != life)
        return PyLong_FromLong(0);
    return PyLong_FromUnsignedLongLong(pool_forget(&self->view, number));
}

static uint64_t extent_blocks(const Pool *self, uint64_t block, uint64_t *bits) {
    uint64_t count = 0;
    for (run one; block != UINT64_MAX && count < self->view.blocks && pool_next_run(&self->view, &block, &one);)
        for (uint64_t i = one.block; i < one.block + one.blocks; i++, count++)
            if (bits)
                bits[i / 64] |= 1ull << i % 64;
    return count;
}

/* used([ring, ...]): bytes of the extents that the publisher's rings owe to somebody, or that somebody looks at. */
static PyObject *pool_used(PyObject *object, PyObject *rings) {
    Pool *self = (Pool *)object;
    if (!PyList_Check(rings))
        return PyErr_Format(PyExc_TypeError, "used([ring, ...])");
    uint64_t words = pool_bitmap_words(&self->view), high = LOAD_ACQUIRE(&self->view.header->high), used = 0;
    uint64_t *bits = PyMem_Calloc(words, sizeof(uint64_t));
    if (!bits)
        return PyErr_NoMemory();
    for (Py_ssize_t i = 0; i < PyList_Size(rings); i++) {
        Ring *ring = (Ring *)PyList_GetItem(rings, i); /* a ring that is corrupt says so elsewhere */
        pool_owed(&self->view, &ring->view, ring->view.header->kind == RING_WORK, bits);
    }
    for (uint64_t block = 0; block < self->view.blocks && block < high; block++)
        if (bits[block / 64] >> block % 64 & 1 || pool_held(&self->view, block))
            used += extent_blocks(self, block, NULL) * POOL_BLOCK;
    PyMem_Free(bits);
    return PyLong_FromUnsignedLongLong(used < self->view.blocks * POOL_BLOCK ? used : self->view.blocks * POOL_BLOCK);
}

/* retire(): under the bus lock, when nobody is owed anything: the memory that nobody looks at goes back now, the rest with
 * the last view of it. How many extents are still looked at. */
static PyObject *pool_retire(PyObject *object, PyObject *unused) {
    (void)unused;
    Pool *self = (Pool *)object;
    if (!self->writable)
        return refuse_read_only();
    STORE_SEQ(&self->view.header->retired, 1);
    uint64_t *bits = PyMem_Calloc(pool_bitmap_words(&self->view), sizeof(uint64_t)), held = 0, from = 0;
    if (!bits)
        return PyErr_NoMemory();
    for (uint64_t block = 0; block < self->view.blocks; block++)
        if (pool_held(&self->view, block)) {
            extent_blocks(self, block, bits);
            held++;
        }
    for (uint64_t block = 0; held && block <= self->view.blocks; block++) {
        if (block < self->view.blocks && !(bits[block / 64] >> block % 64 & 1))
            continue;
        if (block > from)
            madvise(self->view.data + from * POOL_BLOCK, (block - from) * POOL_BLOCK, MADV_REMOVE);
        from = block + 1;
    }
    PyMem_Free(bits);
    return PyLong_FromUnsignedLongLong(held);
}

static PyObject *pool_bytes(PyObject *object, void *unused) {
    (void)unused;
    return PyLong_FromUnsignedLongLong(((Pool *)object)->view.blocks * POOL_BLOCK);
}

static PyMemberDef pool_members[] = {{"__weaklistoffset__", T_PYSSIZET, offsetof(Pool, weak), READONLY, NULL},
                                     {"pool_id", T_ULONGLONG, offsetof(Pool, id), READONLY, NULL},
                                     {"holder", T_INT, offsetof(Pool, holder), READONLY, NULL},
                                     {NULL, 0, 0, 0, NULL}};

static PyGetSetDef pool_getset[] = {{"bytes", pool_bytes, NULL, NULL, NULL}, {NULL, NULL, NULL, NULL, NULL}};

static PyMethodDef pool_methods[8 + SHIPPING] = {
    {"size", pool_size_, METH_O | METH_STATIC, NULL}, {"format", pool_format_, METH_VARARGS | METH_STATIC, NULL},
    {"holders", pool_holders, METH_NOARGS, NULL},     {"lives", pool_lives, METH_NOARGS, NULL},
    {"forget", pool_forget_, METH_VARARGS, NULL},     {"used", pool_used, METH_O, NULL},
    {"retire", pool_retire, METH_NOARGS, NULL},       {NULL, NULL, 0, NULL},
};

static PyType_Slot pool_slots[] = {{Py_tp_new, pool_new},
                                   {Py_tp_dealloc, pool_dealloc},
                                   {Py_tp_members, pool_members},
                                   {Py_tp_getset, pool_getset},
                                   {Py_tp_methods, pool_methods},
                                   {Py_tp_doc, "One mapping of a publisher's pool."},
                                   {0, NULL}};

static PyType_Spec pool_spec = {
    .name = "shmbus._core.Pool", .basicsize = sizeof(Pool), .flags = Py_TPFLAGS_DEFAULT, .slots = pool_slots};

int pools_add(PyObject *module) {
    memcpy(pool_methods + 7, shipping_methods, sizeof(PyMethodDef) * SHIPPING);
    pool_type = leases_add(module) == 0 ? type_add(module, &pool_spec, NULL) : NULL;
    return pool_type ? PyModule_AddFunctions(module, functions) : -1;
}
