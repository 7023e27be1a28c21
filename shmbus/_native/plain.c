/* Plain: small trees of None, bool, int, float, str, bytes, list, tuple and dict, written without pickle: it takes a third of
 * the time. What comes back is what pickle would have made: the very types, in their order, each container once.
 *
 *   0        1
 *   +--------+--------------------------------------------------------------------+
 *   | PLAIN  | value: a tag, and what follows upon it; below 128 the tag is the int |
 *   +--------+--------------------------------------------------------------------+
 *
 * Pickle is left what is none of those types to the letter; a container that something else refers to, for it may be there
 * twice, or be within itself; and what is larger than PLAIN_MOST, for pickle writes a str once that is there often. No
 * Python code runs while a value is written, so it does not change. What is read is checked: it comes from shared memory.
 *
 *   plain(value)      bytes; None: it is for pickle
 *   unplain(bytes)    the value; CorruptSegmentError */
#include "plain.h"

#define PLAIN_MOST 4096u /* bytes */
#define PLAIN_DEEP 16    /* containers within each other */
#define KEYS 256u        /* strings that dicts are indexed by, and that are not made anew; a power of two */
#define KEY_MOST 24      /* bytes */

enum tag { NONE = 0x80, TRUE, FALSE, INT, FLOAT, STR, BYTES, LIST, TUPLE, DICT };

typedef struct output {
    unsigned char *at, *end;
} output;

static bool put_bytes(output *out, enum tag tag, const void *bytes, size_t size) {
    if ((size_t)(out->end - out->at) < size + 3)
        return false;
    out->at[0] = (unsigned char)tag;
    out->at[1] = (unsigned char)size;
    out->at[2] = (unsigned char)(size >> 8);
    if (size)
        memcpy(out->at + 3, bytes, size);
    out->at += size + 3;
    return true;
}

static bool put_word(output *out, enum tag tag, const void *eight) {
    if (out->end - out->at < 9)
        return false;
    *out->at = (unsigned char)tag;
    memcpy(out->at + 1, eight, 8);
    out->at += 9;
    return true;
}

static bool put_int(output *out, PyObject *value) {
    int overflow;
    long long number = PyLong_AsLongLongAndOverflow(value, &overflow);
    if (overflow || number < 0 || number >= 128)
        return !overflow && put_word(out, INT, &number);
    if (out->at == out->end)
        return false;
    *out->at++ = (unsigned char)number;
    return true;
}

static bool put_str(output *out, PyObject *value) {
    Py_ssize_t size;
    const char *text = PyUnicode_AsUTF8AndSize(value, &size);
    if (!text)
        PyErr_Clear(); /* half a surrogate pair */
    return text && put_bytes(out, STR, text, (size_t)size);
}

static bool put_value(output *out, PyObject *value, int deep);

static bool put_dict(output *out, PyObject *dict, int deep) {
    Py_ssize_t at = 0;
    PyObject *key, *value;
    while (PyDict_Next(dict, &at, &key, &value))
        if (!put_value(out, key, deep) || !put_value(out, value, deep))
            return false;
    return true;
}

/* Nobody else refers to it; the empty tuple is always the same. The outermost has whom it may have. */
static bool once(PyObject *container, int deep) {
    return Py_REFCNT(container) == 1 || deep == 0 || (PyTuple_CheckExact(container) && !TUPLE_SIZE(container));
}

static bool put_container(output *out, PyObject *value, int deep) {
    bool is_list = PyList_CheckExact(value), is_tuple = !is_list && PyTuple_CheckExact(value);
    if ((!is_list && !is_tuple && !PyDict_CheckExact(value)) || !once(value, deep) || deep >= PLAIN_DEEP)
        return false;
    Py_ssize_t count = is_list ? PyList_Size(value) : is_tuple ? TUPLE_SIZE(value) : PyDict_Size(value);
    if (out->end - out->at < count + 3)
        return false;
    out->at[0] = is_list ? LIST : is_tuple ? TUPLE : DICT;
    out->at[1] = (unsigned char)count;
    out->at[2] = (unsigned char)(count >> 8);
    out->at += 3;
    if (!is_list && !is_tuple)
        return put_dict(out, value, deep + 1);
    for (Py_ssize_t i = 0; i < count; i++)
        if (!put_value(out, is_list ? PyList_GetItem(value, i) : TUPLE_ITEM(value, i), deep + 1))
            return false;
    return true;
}

static bool put_value(output *out, PyObject *value, int deep) {
    if (PyUnicode_CheckExact(value))
        return put_str(out, value);
    if (PyLong_CheckExact(value))
        return put_int(out, value);
    if (PyFloat_CheckExact(value)) {
        double number = PyFloat_AsDouble(value);
        return put_word(out, FLOAT, &number);
    }
    if (PyBytes_CheckExact(value))
        return put_bytes(out, BYTES, BYTES_DATA(value), (size_t)BYTES_SIZE(value));
    if (value == Py_None || value == Py_True || value == Py_False) {
        if (out->at == out->end)
            return false;
        *out->at++ = value == Py_None ? NONE : value == Py_True ? TRUE : FALSE;
        return true;
    }
    return put_container(out, value, deep);
}

/* A value as bytes; NULL without an exception: it is for pickle. */
PyObject *plain_encode(PyObject *value) {
    unsigned char buffer[PLAIN_MOST];
    output out = {buffer + 1, buffer + sizeof(buffer)};
    buffer[0] = PLAIN;
    return put_value(&out, value, 0) ? PyBytes_FromStringAndSize((const char *)buffer, out.at - buffer) : NULL;
}

/* ---- reading ---- */

typedef struct input {
    const unsigned char *at, *end;
} input;

static PyObject *corrupt_at(const input *in, const char *what) {
    PyErr_Format(CorruptSegmentError, "an object of a queue %s, %zd bytes before its end", what, in->end - in->at);
    return NULL;
}

/* The two bytes of a size or a count, of which each takes at least a byte of what follows; -1. */
static Py_ssize_t take_size(input *in) {
    Py_ssize_t size = in->end - in->at < 2 ? -1 : in->at[0] | in->at[1] << 8;
    if (size < 0 || size > in->end - in->at - 2) {
        corrupt_at(in, "is cut");
        return -1;
    }
    in->at += 2;
    return size;
}

static PyObject *keys[KEYS];

/* The str of a key. Those that came before are had again: who puts dicts puts the same keys, mostly. */
static PyObject *take_key(input *in) {
    const unsigned char *start = in->at + 1;
    Py_ssize_t size, had;
    in->at = start;
    if ((size = take_size(in)) < 0)
        return NULL;
    const char *text = (const char *)in->at;
    in->at += size;
    if (size == 0 || size > KEY_MOST)
        return PyUnicode_FromStringAndSize(text, size);
    uint64_t hash = 1469598103934665603u;
    for (Py_ssize_t i = 0; i < size; i++)
        hash = (hash ^ (unsigned char)text[i]) * 1099511628211u;
    PyObject **slot = &keys[(hash ^ hash >> 32) & (KEYS - 1)];
    const char *there = *slot ? PyUnicode_AsUTF8AndSize(*slot, &had) : NULL;
    if (there && had == size && !memcmp(there, text, (size_t)size))
        return Py_NewRef(*slot);
    PyObject *fresh = PyUnicode_FromStringAndSize(text, size);
    if (fresh)
        Py_XSETREF(*slot, Py_NewRef(fresh));
    return fresh;
}

static PyObject *take_value(input *in, int deep);

static PyObject *take_dict(input *in, Py_ssize_t count, int deep) {
    PyObject *dict = PyDict_New();
    for (Py_ssize_t i = 0; dict && i < count; i++) {
        PyObject *key = in->at < in->end && *in->at == STR ? take_key(in) : take_value(in, deep);
        PyObject *value = key ? take_value(in, deep) : NULL;
        if (!value || PyDict_SetItem(dict, key, value) < 0)
            Py_CLEAR(dict);
        Py_XDECREF(key);
        Py_XDECREF(value);
    }
    return dict;
}

static PyObject *take_container(input *in, enum tag tag, int deep) {
    Py_ssize_t count = take_size(in);
    if (count < 0)
        return NULL;
    if (deep >= PLAIN_DEEP)
        return corrupt_at(in, "is too deep");
    if (tag == DICT)
        return take_dict(in, count, deep + 1);
    PyObject *all = tag == LIST ? PyList_New(count) : PyTuple_New(count);
    for (Py_ssize_t i = 0; all && i < count; i++) {
        PyObject *one = take_value(in, deep + 1);
        if (!one)
            Py_CLEAR(all);
        else if (tag == LIST)
            PyList_SetItem(all, i, one);
        else
            PyTuple_SetItem(all, i, one);
    }
    return all;
}

static PyObject *take_text(input *in, enum tag tag) {
    Py_ssize_t size = take_size(in);
    if (size < 0)
        return NULL;
    const char *text = (const char *)in->at;
    in->at += size;
    return tag == STR ? PyUnicode_FromStringAndSize(text, size) : PyBytes_FromStringAndSize(text, size);
}

static PyObject *take_word(input *in, enum tag tag) {
    long long number;
    double real;
    if (in->end - in->at < 8)
        return corrupt_at(in, "is cut");
    memcpy(&number, in->at, 8);
    memcpy(&real, in->at, 8);
    in->at += 8;
    return tag == INT ? PyLong_FromLongLong(number) : PyFloat_FromDouble(real);
}

static PyObject *take_value(input *in, int deep) {
    if (in->at == in->end)
        return corrupt_at(in, "is cut");
    unsigned char tag = *in->at++;
    switch (tag) {
    case NONE:
        return Py_NewRef(Py_None);
    case TRUE:
        return Py_NewRef(Py_True);
    case FALSE:
        return Py_NewRef(Py_False);
    case INT:
    case FLOAT:
        return take_word(in, tag);
    case STR:
    case BYTES:
        return take_text(in, tag);
    case LIST:
    case TUPLE:
    case DICT:
        return take_container(in, tag, deep);
    default:
        return tag < 128 ? PyLong_FromLong(tag) : corrupt_at(in, "has an unknown tag");
    }
}

/* The value of bytes that begin with PLAIN. */
PyObject *plain_decode(PyObject *bytes) {
    const unsigned char *start = (const unsigned char *)BYTES_DATA(bytes);
    input in = {start + 1, start + BYTES_SIZE(bytes)};
    PyObject *value = take_value(&in, 0);
    if (value && in.at != in.end) {
        Py_DECREF(value);
        return corrupt_at(&in, "has an end too many");
    }
    return value;
}

static PyObject *plain(PyObject *module, PyObject *value) {
    (void)module;
    PyObject *bytes = plain_encode(value);
    return bytes || PyErr_Occurred() ? bytes : Py_NewRef(Py_None);
}

static PyObject *unplain(PyObject *module, PyObject *bytes) {
    (void)module;
    if (PyBytes_Check(bytes) && plain_is(bytes))
        return plain_decode(bytes);
    PyErr_SetString(PyExc_TypeError, "unplain(bytes): what plain() has made");
    return NULL;
}

static PyMethodDef methods[] = {
    {"plain", plain, METH_O, "plain(value): a small tree of the plainest types as bytes; None for any other."},
    {"unplain", unplain, METH_O, "unplain(bytes): the value. Raises CorruptSegmentError."},
    {NULL, NULL, 0, NULL},
};

int plain_add(PyObject *module) {
    return PyModule_AddFunctions(module, methods) < 0 ? -1 : PyModule_AddIntConstant(module, "PLAIN", PLAIN);
}
