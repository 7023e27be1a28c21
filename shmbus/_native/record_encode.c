/* A Struct into its row. See record.h for what must hold. */
#include "record.h"

#include <stdio.h>
#include <string.h>

static int encode_at(const RecordCodec *self, PyObject *event, unsigned char *row, const spot *above);

static void store(unsigned char *cell, uint32_t size, number value) {
    switch (size) { /* little-endian: the low bytes come first */
    case 1:
        *cell = (unsigned char)value.u;
        return;
    case 2:
        memcpy(cell, &value, 2);
        return;
    case 4:
        memcpy(cell, &value, 4);
        return;
    default:
        memcpy(cell, &value, 8);
    }
}

/* True and False are no numbers, whatever Python says. */
static bool is_integer(PyObject *value) { return PyLong_Check(value) && !PyBool_Check(value); }

static int encode_int(const spot *at, PyObject *value, unsigned char *cell) {
    const column *c = at->column;
    number found;
    int overflow;
    if (!is_integer(value))
        return record_refuse(at, "int", value);
    found.i = PyLong_AsLongLongAndOverflow(value, &overflow);
    if (overflow || !record_within(c, found))
        return record_number_refused(at, value);
    store(cell, c->size, found);
    return 0;
}

static int encode_uint(const spot *at, PyObject *value, unsigned char *cell) {
    const column *c = at->column;
    number found;
    int overflow;
    if (!is_integer(value))
        return record_refuse(at, "int", value);
    found.i = PyLong_AsLongLongAndOverflow(value, &overflow);
    if (overflow > 0) {
        found.u = PyLong_AsUnsignedLongLong(value);
        overflow = found.u == UINT64_MAX && PyErr_Occurred();
        PyErr_Clear();
    } else if (found.i < 0) {
        overflow = -1;
    }
    if (overflow || !record_within(c, found))
        return record_number_refused(at, value);
    store(cell, c->size, found);
    return 0;
}

/* An int is received as the float that it equals, if there is one: R2. */
static int float_of_int(const spot *at, PyObject *value, double *out) {
    *out = PyLong_AsDouble(value);
    PyObject *back = PyErr_Occurred() ? NULL : PyFloat_FromDouble(*out);
    int equal = back ? PyObject_RichCompareBool(back, value, Py_EQ) : 0;
    PyErr_Clear();
    Py_XDECREF(back);
    return equal == 1 ? 0 : record_refuse(at, "float, or an int that one equals", value);
}

static int encode_float(const spot *at, PyObject *value, unsigned char *cell) {
    const column *c = at->column;
    number found;
    if (PyFloat_Check(value))
        found.f = PyFloat_AsDouble(value);
    else if (!is_integer(value))
        return record_refuse(at, "float", value);
    else if (float_of_int(at, value, &found.f) < 0)
        return -1;
    if (c->narrow && !record_within(c, found))
        return record_number_refused(at, value);
    memcpy(cell, &found, 8);
    return 0;
}

static int encode_bool(const spot *at, PyObject *value, unsigned char *cell) {
    if (value != Py_True && value != Py_False)
        return record_refuse(at, "bool", value);
    *cell = value == Py_True;
    return 0;
}

/* Fills the column up with NUL, which therefore ends no value of it. */
static int put_text(const spot *at, PyObject *value, const char *text, Py_ssize_t length, unsigned char *cell) {
    const column *c = at->column;
    if (length > (Py_ssize_t)c->size) {
        char expected[64];
        snprintf(expected, sizeof expected, "at most %u bytes%s", c->size, c->kind == COLUMN_STR ? " of UTF-8" : "");
        return record_refuse(at, expected, value);
    }
    if (length && !text[length - 1])
        return record_refuse(at, "a last character that is not NUL, which fills the column", value);
    memcpy(cell, text, (size_t)length); /* the row is zeroed before */
    return 0;
}

static int encode_str(const spot *at, PyObject *value, unsigned char *cell) {
    const column *c = at->column;
    Py_ssize_t length;
    if (!PyUnicode_Check(value))
        return record_refuse(at, "str", value);
    const char *text = PyUnicode_AsUTF8AndSize(value, &length);
    if (!text) {
        if (!PyErr_ExceptionMatches(PyExc_UnicodeError))
            return -1;
        PyErr_Clear();
        return record_refuse(at, "text without surrogates", value);
    }
    if (put_text(at, value, text, length, cell) < 0)
        return -1;
    return c->shortest || c->pattern ? record_text_checked(at, value, PyUnicode_GetLength(value)) : 0;
}

static int encode_bytes(const spot *at, PyObject *value, unsigned char *cell) {
    if (!PyBytes_Check(value))
        return record_refuse(at, "bytes", value);
    if (put_text(at, value, BYTES_DATA(value), BYTES_SIZE(value), cell) < 0)
        return -1;
    return at->column->shortest ? record_text_checked(at, value, BYTES_SIZE(value)) : 0;
}

static int encode_value(const spot *at, PyObject *value, unsigned char *cell) {
    switch (at->column->kind) {
    case COLUMN_BOOL:
        return encode_bool(at, value, cell);
    case COLUMN_INT:
        return encode_int(at, value, cell);
    case COLUMN_UINT:
        return encode_uint(at, value, cell);
    case COLUMN_FLOAT:
        return encode_float(at, value, cell);
    case COLUMN_STR:
        return encode_str(at, value, cell);
    case COLUMN_BYTES:
        return encode_bytes(at, value, cell);
    default:
        return encode_at(at->column->nested, value, cell, at);
    }
}

/* A member of an enum by its value, and a literal by itself. */
static int encode_choice(const spot *at, PyObject *given, unsigned char *cell) {
    const column *c = at->column;
    PyObject *value;
    if (!c->choice)
        value = Py_NewRef(given);
    else if (Py_TYPE(given) == c->choice)
        value = PyObject_GetAttrString(given, "_value_");
    else
        return record_refuse(at, "a member of the field's enum", given);
    int known = value ? PyDict_Contains(c->choices, value) : -1; /* an unhashable one is of no literal */
    if (known < 0)
        PyErr_Clear();
    int status = known > 0 ? encode_value(at, value, cell) : record_refuse(at, "one of the field's values", given);
    Py_XDECREF(value);
    return status;
}

#ifdef Py_LIMITED_API
#define FIELD_OF(object, c) ((PyObject *)NULL)
#else
#define FIELD_OF(object, c) (*(PyObject **)((char *)(object) + (c)->slot))
#endif

/* Python code may run in what is out of the ordinary, and set the field anew: the value is held where it may. */
static int encode_held(const spot *at, PyObject *value, unsigned char *cell) {
    Py_INCREF(value);
    int status = at->column->choices ? encode_choice(at, value, cell) : encode_value(at, value, cell);
    Py_DECREF(value);
    return status;
}

/* An object of another class with the same fields: by attribute. */
static int encode_foreign(const RecordCodec *self, PyObject *event, unsigned char *row, const spot *above) {
    if (above) /* what an event is, its topic has checked; what lies in it is looked at here */
        return record_refuse(above, "the field's Struct", event);
    for (uint32_t i = 0; i < self->count; i++) {
        const column *c = &self->columns[i];
        spot at = {above, c, 0};
        PyObject *name = PyObject_GetAttrString(c->member, "__name__");
        PyObject *value = name ? PyObject_GetAttr(event, name) : NULL;
        int status = value ? encode_held(&at, value, row + c->offset) : -1;
        Py_XDECREF(name);
        Py_XDECREF(value);
        if (status < 0)
            return -1;
    }
    return 0;
}

#ifdef Py_LIMITED_API
#define encode_usual(c, value, cell) ((void)(c), (void)(value), (void)(cell), false)
#else
/* Copies up to 16 bytes by moves that overlap; longer text by the library. */
static inline void copy_text(unsigned char *to, const char *from, size_t length) {
    if (length > 16) {
        memcpy(to, from, length);
    } else if (length >= 8) {
        memcpy(to, from, 8);
        memcpy(to + length - 8, from + length - 8, 8);
    } else if (length >= 4) {
        memcpy(to, from, 4);
        memcpy(to + length - 4, from + length - 4, 4);
    } else {
        for (size_t i = 0; i < length; i++)
            to[i] = (unsigned char)from[i];
    }
}

static inline bool usual_int(const column *c, PyObject *value, unsigned char *cell) {
    number found;
    int overflow;
    if (!PyLong_CheckExact(value))
        return false;
    found.i = PyLong_AsLongLongAndOverflow(value, &overflow);
    if (overflow || (c->kind == COLUMN_UINT && found.i < 0) || !record_within(c, found))
        return false;
    store(cell, c->size, found);
    return true;
}

/* What most values are, without a call and with nothing that runs Python code; the row is zeroed before. False: by
 * encode_held, which says as well what is wrong. */
static inline bool encode_usual(const column *c, PyObject *value, unsigned char *cell) {
    if (c->special)
        return false;
    switch (c->kind) {
    case COLUMN_BOOL:
        *cell = value == Py_True;
        return value == Py_True || value == Py_False;
    case COLUMN_INT:
    case COLUMN_UINT:
        return usual_int(c, value, cell);
    case COLUMN_FLOAT:
        if (!PyFloat_CheckExact(value) || c->narrow)
            return false;
        memcpy(cell, &((PyFloatObject *)value)->ob_fval, 8);
        return true;
    case COLUMN_STR: {
        if (!PyUnicode_CheckExact(value) || !PyUnicode_IS_COMPACT_ASCII(value))
            return false;
        size_t length = (size_t)PyUnicode_GET_LENGTH(value);
        const char *text = PyUnicode_DATA(value);
        if (length > c->size || (length && !text[length - 1]))
            return false;
        copy_text(cell, text, length);
        return true;
    }
    default:
        return false;
    }
}
#endif

static int encode_at(const RecordCodec *self, PyObject *event, unsigned char *row, const spot *above) {
    if (Py_TYPE(event) != self->type)
        return encode_foreign(self, event, row, above);
    for (const column *c = self->columns, *end = c + self->count; c < end; c++) {
        PyObject *value = FIELD_OF(event, c);
        if (value && encode_usual(c, value, row + c->offset))
            continue;
        spot at = {above, c, 0};
        if (!value)
            return record_refuse(&at, "a value", Py_None);
        if (encode_held(&at, value, row + c->offset) < 0)
            return -1;
    }
    return 0;
}

/* Writes the row of an event, `size` bytes; -1 with a ValueError that ends with the path. */
int record_encode(const RecordCodec *self, PyObject *event, unsigned char *row) {
    memset(row, 0, self->size);
    return encode_at(self, event, row, NULL);
}
