/* A row into its Struct, and rows that come as such. See record.h for what must hold. */
#include "record.h"

#include <string.h>

static PyObject *decode_at(const RecordCodec *self, const unsigned char *row, const spot *above);

static number load(const column *c, const unsigned char *cell) {
    number found = {.u = 0};
    switch (c->size) {
    case 1:
        found.u = *cell;
        break;
    case 2:
        memcpy(&found, cell, 2);
        break;
    case 4:
        memcpy(&found, cell, 4);
        break;
    default:
        memcpy(&found, cell, 8);
    }
    if (c->kind == COLUMN_INT && c->size < 8) { /* the sign */
        unsigned shift = 64 - 8 * c->size;
        found.i = (int64_t)(found.u << shift) >> shift;
    }
    return found;
}

static PyObject *decode_number(const spot *at, const unsigned char *cell) {
    const column *c = at->column;
    number found = load(c, cell);
    PyObject *value = c->kind == COLUMN_INT    ? PyLong_FromLongLong(found.i)
                      : c->kind == COLUMN_UINT ? PyLong_FromUnsignedLongLong(found.u)
                                               : PyFloat_FromDouble(found.f);
    if (value && c->narrow && !record_within(c, found)) {
        record_number_refused(at, value);
        Py_CLEAR(value);
    }
    return value;
}

static PyObject *decode_bool(const spot *at, const unsigned char *cell) {
    unsigned char found = *cell;
    if (found < 2)
        return Py_NewRef(found ? Py_True : Py_False);
    PyObject *value = PyLong_FromLong(found);
    if (value)
        record_refuse(at, "0 or 1", value);
    Py_XDECREF(value);
    return NULL;
}

#define SHORT 64 /* bytes of text that are copied out of the ring on the stack */

/* Up to the NUL characters that fill it up. */
static size_t text_length(const unsigned char *cell, size_t size) {
    while (size && !cell[size - 1])
        size--;
    return size;
}

static bool is_ascii(const unsigned char *text, size_t length) {
    uint64_t all = 0, some;
    for (; length >= 8; length -= 8, text += 8) {
        memcpy(&some, text, 8);
        all |= some;
    }
    for (; length; length--, text++)
        all |= *text;
    return !(all & 0x8080808080808080ull);
}

static PyObject *text_of(const unsigned char *text, size_t length) {
#ifndef Py_LIMITED_API
    if (length > 1 && is_ascii(text, length)) {
        PyObject *value = PyUnicode_New((Py_ssize_t)length, 127);
        if (value)
            memcpy(PyUnicode_1BYTE_DATA(value), text, length);
        return value;
    }
#endif
    return PyUnicode_DecodeUTF8((const char *)text, (Py_ssize_t)length, NULL);
}

/* Text that is none: the bytes say more than UnicodeDecodeError, which has them too but not the path. */
static PyObject *no_text(const spot *at, const unsigned char *text, size_t length) {
    if (!PyErr_ExceptionMatches(PyExc_UnicodeError))
        return NULL;
    PyErr_Clear();
    PyObject *value = PyBytes_FromStringAndSize((const char *)text, (Py_ssize_t)length);
    if (value)
        record_refuse(at, "UTF-8", value);
    Py_XDECREF(value);
    return NULL;
}

static PyObject *decode_text(const spot *at, const unsigned char *cell) {
    const column *c = at->column;
    unsigned char local[SHORT], *text = c->size <= SHORT ? local : PyMem_Malloc(c->size);
    if (!text)
        return PyErr_NoMemory();
    memcpy(text, cell, c->size); /* R3 */
    size_t length = text_length(text, c->size);
    PyObject *value = c->kind == COLUMN_STR ? text_of(text, length)
                                            : PyBytes_FromStringAndSize((const char *)text, (Py_ssize_t)length);
    if (!value)
        value = no_text(at, text, length);
    if (text != local)
        PyMem_Free(text);
    if (value && (c->shortest || c->pattern) &&
        record_text_checked(at, value, c->kind == COLUMN_STR ? PyUnicode_GetLength(value) : (Py_ssize_t)length) < 0)
        Py_CLEAR(value);
    return value;
}

static PyObject *decode_value(const spot *at, const unsigned char *cell) {
    switch (at->column->kind) {
    case COLUMN_BOOL:
        return decode_bool(at, cell);
    case COLUMN_INT:
    case COLUMN_UINT:
    case COLUMN_FLOAT:
        return decode_number(at, cell);
    case COLUMN_STR:
    case COLUMN_BYTES:
        return decode_text(at, cell);
    default:
        return decode_at(at->column->nested, cell, at);
    }
}

static PyObject *decode_choice(const spot *at, const unsigned char *cell) {
    PyObject *value = decode_value(at, cell), *found = NULL;
    if (value) {
        found = Py_XNewRef(PyDict_GetItemWithError(at->column->choices, value));
        if (!found && !PyErr_Occurred())
            record_refuse(at, "one of the field's values", value);
        Py_DECREF(value);
    }
    return found;
}

/* ---- objects ---- */

#ifdef Py_LIMITED_API
#define NEW_OBJECT(self) PyType_GenericAlloc((self)->type, 0)
#define SET_FIELD(object, c, value) ((void)(object), Py_DECREF(value))
#define END_OBJECT(self, object) ((void)(object))
#else
/* An object with empty slots, as msgspec makes them: not tracked while it holds nothing that could refer to it. */
static PyObject *new_object(const RecordCodec *self) {
    PyTypeObject *type = self->type;
    if (!self->plain)
        return type->tp_alloc(type, 0);
    PyObject *object =
        type->tp_flags & Py_TPFLAGS_HAVE_GC ? PyObject_GC_New(PyObject, type) : PyObject_New(PyObject, type);
    if (object)
        memset((char *)object + sizeof(PyObject), 0, (size_t)type->tp_basicsize - sizeof(PyObject));
    return object;
}
#define NEW_OBJECT(self) new_object(self)
#define SET_FIELD(object, c, value) (*(PyObject **)((char *)(object) + (c)->slot) = (value))
#define END_OBJECT(self, object)                                                                                       \
    ((self)->plain && (self)->tracked && PyObject_IS_GC(object) ? PyObject_GC_Track(object) : (void)0)
#endif

/* What a class does to a new object; ValueError and TypeError say that there is none such. */
static int post_init(const RecordCodec *self, PyObject *object) {
    PyObject *done = self->post_init ? call_one(self->post_init, object) : Py_NewRef(Py_None);
    Py_XDECREF(done);
    return done ? 0 : -1;
}

static PyObject *decode_at(const RecordCodec *self, const unsigned char *row, const spot *above) {
    PyObject *object = NEW_OBJECT(self);
    for (uint32_t i = 0; object && i < self->count; i++) {
        const column *c = &self->columns[i];
        spot at = {above, c, 0};
        PyObject *value = c->choices ? decode_choice(&at, row + c->offset) : decode_value(&at, row + c->offset);
        if (value)
            SET_FIELD(object, c, value);
        else
            Py_CLEAR(object);
    }
    if (!object)
        return NULL;
    END_OBJECT(self, object);
    if (self->post_init && post_init(self, object) < 0)
        Py_CLEAR(object);
    return object;
}

PyObject *record_decode(const RecordCodec *self, const unsigned char *row) { return decode_at(self, row, NULL); }

int record_fits(const RecordCodec *self, uint64_t length) {
    if (length == self->size)
        return 0;
    PyErr_Format(PyExc_ValueError, "a record has %u bytes, not %llu", self->size, (unsigned long long)length);
    return -1;
}

PyObject *record_decode_payload(const RecordCodec *self, const unsigned char *payload, uint64_t length) {
    return record_fits(self, length) < 0 ? NULL : decode_at(self, payload, NULL);
}

/* ---- rows that come as such ---- */

/* True where a cell is sure to be sound; where not, it is decoded, and says what is wrong itself. */
static inline bool cell_sound(const column *c, const unsigned char *cell) {
    if (c->choices || c->shortest || c->pattern || c->kind == COLUMN_STRUCT)
        return false;
    if (c->kind == COLUMN_BOOL)
        return *cell < 2;
    return c->kind == COLUMN_STR ? is_ascii(cell, c->size) : record_within(c, load(c, cell));
}

static bool all_bools(const RecordCodec *self, const unsigned char *cell, size_t count) {
    unsigned char all = 0;
    for (size_t i = 0; i < count; i++)
        all |= cell[i * self->size];
    return all < 2;
}

static int check_column(const RecordCodec *self, const column *c, const unsigned char *rows, size_t count) {
    spot row = {NULL, NULL, 0}, at = {&row, c, 0};
    const unsigned char *cell = rows + c->offset;
    if (c->kind == COLUMN_BOOL && !c->choices && all_bools(self, cell, count))
        return 0;
    for (size_t i = 0; i < count; i++, cell += self->size) {
        if (cell_sound(c, cell))
            continue;
        row.row = i;
        PyObject *value = c->choices ? decode_choice(&at, cell) : decode_value(&at, cell);
        if (!value)
            return -1;
        Py_DECREF(value);
    }
    return 0;
}

/* Whether rows hold what the decoder gives back: column by column, those that need it. */
int record_check(const RecordCodec *self, const unsigned char *rows, size_t count) {
    for (uint32_t i = 0; i < self->count; i++)
        if (self->columns[i].checked && check_column(self, &self->columns[i], rows, count) < 0)
            return -1;
    return 0;
}
