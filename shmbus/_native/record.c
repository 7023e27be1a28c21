/* RecordCodec: the table of a record's columns, made from what Python says about a Struct. See record.h, and _schema/record.py,
 * which makes it. */
#include "record.h"

#include <stddef.h>
#include <stdio.h>
#include <structmember.h>

static PyTypeObject *record_type;

/* ---- errors: "expected integer 0 to 255, got 300 - at `$.size`" ---- */

static PyObject *path_of(const spot *at) {
    if (!at)
        return PyUnicode_FromString("$");
    if (!at->column)
        return PyUnicode_FromFormat("$[%zu]", at->row);
    PyObject *above = path_of(at->above), *path = NULL;
    if (above)
        path = PyUnicode_FromFormat("%U.%U", above, at->column->shown);
    Py_XDECREF(above);
    return path;
}

int record_refuse(const spot *at, const char *expected, PyObject *value) {
    PyObject *path = path_of(at), *name = PyType_GetName(Py_TYPE(value));
    if (path && name)
        PyErr_Format(PyExc_ValueError, "expected %s, got %U %R - at `%U`", expected, name, value, path);
    Py_XDECREF(path);
    Py_XDECREF(name);
    return -1;
}

int record_number_refused(const spot *at, PyObject *value) {
    const column *c = at->column;
    char expected[160];
    int used;
    if (c->kind == COLUMN_INT)
        used = snprintf(expected, sizeof expected, "int %lld to %lld", (long long)c->low.i, (long long)c->high.i);
    else if (c->kind == COLUMN_UINT)
        used = snprintf(expected, sizeof expected, "int %llu to %llu", (unsigned long long)c->low.u,
                        (unsigned long long)c->high.u);
    else
        used = snprintf(expected, sizeof expected, "float %.17g to %.17g", c->low.f, c->high.f);
    if (c->multiple.u && c->kind == COLUMN_FLOAT)
        snprintf(expected + used, sizeof expected - (size_t)used, ", a multiple of %.17g", c->multiple.f);
    else if (c->multiple.u)
        snprintf(expected + used, sizeof expected - (size_t)used, ", a multiple of %lld", (long long)c->multiple.i);
    return record_refuse(at, expected, value);
}

/* Whether a number is a multiple of what its limits say. */
bool record_multiple(const column *c, number v) {
    if (c->kind == COLUMN_INT)
        return v.i % c->multiple.i == 0;
    if (c->kind == COLUMN_UINT)
        return v.u % c->multiple.u == 0;
    double parts = v.f / c->multiple.f;
    return parts == __builtin_floor(parts);
}

/* What limits the text and the bytes of a column beside its room. */
int record_text_checked(const spot *at, PyObject *value, Py_ssize_t length) {
    const column *c = at->column;
    if (length < c->shortest) {
        char expected[64];
        snprintf(expected, sizeof expected, "a length of at least %zd", c->shortest);
        return record_refuse(at, expected, value);
    }
    if (!c->pattern)
        return 0;
    PyObject *found = call_one(c->pattern, value);
    int status = !found ? -1 : found != Py_None ? 0 : record_refuse(at, "text of the field's pattern", value);
    Py_XDECREF(found);
    return status;
}

/* ---- the table ---- */

static int number_of(PyObject *value, enum column_kind kind, number *out) {
    if (kind == COLUMN_UINT)
        out->u = PyLong_AsUnsignedLongLong(value);
    else if (kind == COLUMN_FLOAT)
        out->f = PyFloat_AsDouble(value);
    else
        out->i = PyLong_AsLongLong(value);
    return PyErr_Occurred() ? -1 : 0;
}

/* R1: the spot of a slot in objects of the type. */
static int slot_of_member(PyTypeObject *type, PyObject *member, Py_ssize_t *slot) {
    (void)type;
    *slot = 0;
    if (Py_TYPE(member) != &PyMemberDescr_Type) {
        PyErr_Format(PyExc_TypeError, "not the slot of a field: %R", member);
        return -1;
    }
#ifndef Py_LIMITED_API
    const PyMemberDescrObject *found = (const PyMemberDescrObject *)member;
    const PyMemberDef *def = found->d_member;
    if (!PyType_IsSubtype(type, PyDescr_TYPE(found)) || def->type != T_OBJECT_EX ||
        def->offset < (Py_ssize_t)sizeof(PyObject) || def->offset % (Py_ssize_t)sizeof(PyObject *) ||
        def->offset + (Py_ssize_t)sizeof(PyObject *) > type->tp_basicsize) {
        PyErr_Format(PyExc_TypeError, "no slot of %s: %R", type->tp_name, member);
        return -1;
    }
    *slot = def->offset;
#endif
    return 0;
}

static PyObject *optional(PyObject *object) { return object == Py_None ? NULL : Py_NewRef(object); }

static int column_init(RecordCodec *self, column *c, PyObject *entry) {
    PyObject *member, *shown, *low, *high, *multiple, *pattern, *choices, *choice, *nested;
    unsigned offset, size;
    int kind;
    if (!PyArg_ParseTuple(entry, "OUIIiOOOnOOOO", &member, &shown, &offset, &size, &kind, &low, &high, &multiple,
                          &c->shortest, &pattern, &choices, &choice, &nested))
        return -1;
    bool sized = kind == COLUMN_BOOL    ? size == 1
                 : kind == COLUMN_FLOAT ? size == 8
                 : kind <= COLUMN_UINT  ? size == 1 || size == 2 || size == 4 || size == 8
                                        : size > 0;
    if (kind < 0 || kind > COLUMN_STRUCT || !sized || size > self->size || offset > self->size - size ||
        (kind == COLUMN_STRUCT && (Py_TYPE(nested) != record_type || ((RecordCodec *)nested)->size != size)) ||
        (choices != Py_None && !PyDict_CheckExact(choices)) || (choice != Py_None && !PyType_Check(choice))) {
        PyErr_Format(PyExc_ValueError, "no such column: %R", entry);
        return -1;
    }
    c->kind = (enum column_kind)kind;
    c->offset = offset;
    c->size = size;
    c->member = Py_NewRef(member);
    c->shown = Py_NewRef(shown);
    c->pattern = optional(pattern);
    c->choices = optional(choices);
    c->choice = (PyTypeObject *)optional(choice);
    c->nested = (RecordCodec *)optional(nested);
    if (number_of(low, c->kind, &c->low) < 0 || number_of(high, c->kind, &c->high) < 0 ||
        number_of(multiple, c->kind, &c->multiple) < 0)
        return -1;
    return slot_of_member(self->type, member, &c->slot);
}

/* What a column has to be looked at for, when whole rows come. */
static void column_settle(RecordCodec *self, column *c) {
    unsigned bits = c->size * 8;
    if (c->kind == COLUMN_INT)
        c->narrow = c->low.i != INT64_MIN >> (64 - bits) || c->high.i != INT64_MAX >> (64 - bits) || c->multiple.i;
    else if (c->kind == COLUMN_UINT)
        c->narrow = c->low.u || c->high.u != UINT64_MAX >> (64 - bits) || c->multiple.u;
    else if (c->kind == COLUMN_FLOAT)
        c->narrow = c->low.f != -__builtin_inf() || c->high.f != __builtin_inf() || c->multiple.u;
    c->special = c->choices || c->shortest || c->pattern || c->multiple.u;
    c->checked = c->narrow || c->choices || c->kind == COLUMN_BOOL || c->kind == COLUMN_STR || c->shortest ||
                 (c->kind == COLUMN_STRUCT && c->nested->checked);
    self->checked = self->checked || c->checked;
    self->tracked = self->tracked || c->choice || c->kind == COLUMN_STRUCT;
}

#ifdef Py_LIMITED_API
static bool is_plain(PyTypeObject *type) { return !type; }
#else
/* Its objects are a header and slots, with nothing in front that only tp_alloc knows. */
static bool is_plain(PyTypeObject *type) {
    unsigned long extra = Py_TPFLAGS_MANAGED_DICT;
#ifdef Py_TPFLAGS_MANAGED_WEAKREF
    extra |= Py_TPFLAGS_MANAGED_WEAKREF;
#endif
    return !(type->tp_flags & extra) && !type->tp_dictoffset && !type->tp_weaklistoffset && !type->tp_itemsize;
}
#endif

/* RecordCodec(type, size, columns, post_init): columns as _schema/record.py makes them. */
static PyObject *record_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    (void)kwargs;
    PyObject *cls, *list, *post_init;
    unsigned size;
    if (!PyArg_ParseTuple(args, "O!IO!O:RecordCodec", &PyType_Type, &cls, &size, &PyList_Type, &list, &post_init))
        return NULL;
    RecordCodec *self = (RecordCodec *)PyType_GenericAlloc(type, 0);
    if (!self)
        return NULL;
    self->type = (PyTypeObject *)Py_NewRef(cls);
    self->size = size;
    self->post_init = optional(post_init);
    self->plain = is_plain(self->type);
    size_t count = (size_t)PyList_Size(list);
    self->columns = PyMem_Calloc(count ? count : 1, sizeof(column));
    if (!self->columns) {
        Py_DECREF((PyObject *)self);
        return PyErr_NoMemory();
    }
    for (size_t i = 0; i < count; i++) {
        column *c = &self->columns[self->count++];
        PyObject *entry = PyList_GetItem(list, (Py_ssize_t)i);
        if (!entry || !PyTuple_Check(entry) || column_init(self, c, entry) < 0) {
            if (!PyErr_Occurred())
                PyErr_SetString(PyExc_TypeError, "columns are tuples");
            Py_DECREF((PyObject *)self);
            return NULL;
        }
        column_settle(self, c);
    }
    return (PyObject *)self;
}

static int record_traverse(PyObject *object, visitproc visit, void *arg) {
    RecordCodec *self = (RecordCodec *)object;
    Py_VISIT(Py_TYPE(object));
    Py_VISIT((PyObject *)self->type);
    Py_VISIT(self->post_init);
    for (uint32_t i = 0; i < self->count; i++) {
        Py_VISIT(self->columns[i].member);
        Py_VISIT(self->columns[i].pattern);
        Py_VISIT(self->columns[i].choices);
        Py_VISIT((PyObject *)self->columns[i].choice);
        Py_VISIT((PyObject *)self->columns[i].nested);
    }
    return 0;
}

/* There is no tp_clear: a table that is in use stays whole. A cycle through its class is broken there. */
static void record_dealloc(PyObject *object) {
    RecordCodec *self = (RecordCodec *)object;
    PyObject_GC_UnTrack(object);
    for (uint32_t i = 0; i < self->count; i++) {
        column *c = &self->columns[i];
        Py_XDECREF(c->member);
        Py_XDECREF(c->shown);
        Py_XDECREF(c->pattern);
        Py_XDECREF(c->choices);
        Py_XDECREF((PyObject *)c->choice);
        Py_XDECREF((PyObject *)c->nested);
    }
    PyMem_Free(self->columns);
    Py_XDECREF(self->post_init);
    Py_XDECREF((PyObject *)self->type);
    object_free(object);
}

/* ---- methods ---- */

static PyObject *method_encode(PyObject *object, PyObject *event) {
    RecordCodec *self = (RecordCodec *)object;
    PyObject *payload = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)self->size);
    if (payload && record_encode(self, event, (unsigned char *)PyBytes_AsString(payload)) < 0)
        Py_CLEAR(payload);
    return payload;
}

static PyObject *method_decode(PyObject *object, PyObject *payload) {
    Py_buffer view;
    if (PyObject_GetBuffer(payload, &view, PyBUF_SIMPLE) < 0)
        return NULL;
    PyObject *event = record_decode_payload((RecordCodec *)object, view.buf, (uint64_t)view.len);
    PyBuffer_Release(&view);
    return event;
}

static PyMethodDef methods[] = {
    {"encode", method_encode, METH_O, "encode(event): its row, as bytes."},
    {"decode", method_decode, METH_O, "decode(row): the event of a row, in any contiguous buffer."},
    {NULL, NULL, 0, NULL},
};

/* The table whose bound `encode` or `decode` a callable is; NULL for any other callable. */
RecordCodec *record_of(PyObject *callable) {
    PyObject *owner = PyCFunction_Check(callable) ? PyCFunction_GetSelf(callable) : NULL;
    return owner && Py_TYPE(owner) == record_type ? (RecordCodec *)owner : NULL;
}

static PyMemberDef members[] = {
    {"size", T_UINT, offsetof(RecordCodec, size), READONLY, "Bytes of a row."},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot slots[] = {{Py_tp_new, record_new},
                              {Py_tp_dealloc, record_dealloc},
                              {Py_tp_traverse, record_traverse},
                              {Py_tp_methods, methods},
                              {Py_tp_members, members},
                              {Py_tp_doc, "Encoder and decoder of the rows of one Struct."},
                              {0, NULL}};

static PyType_Spec spec = {.name = "shmbus._core.RecordCodec",
                           .basicsize = sizeof(RecordCodec),
                           .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
                           .slots = slots};

int record_add(PyObject *module) {
    record_type = type_add(module, &spec, NULL);
    return record_type ? 0 : -1;
}
