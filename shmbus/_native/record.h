/* Records: the events of a topic with codec="record" as fixed-size rows. record.c compiles the table and is the Python
 * type, record_encode.c and record_decode.c go over it.
 *
 * Invariants  R1  an offset into an object comes from a member descriptor of its exact class, checked when the table is
 *                 made; an object of any other class is read by attribute.
 *             R2  what the encoder takes, the decoder gives back equal: the limits hold on both sides, and what a column
 *                 cannot tell apart (text that ends with NUL, an int that no float equals) is refused.
 *             R3  a row is read once, by value: it may lie in a ring. */
#ifndef SHMBUS_RECORD_H
#define SHMBUS_RECORD_H

#include "python.h"

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "records are little-endian, and are copied as they are"
#endif

enum column_kind { COLUMN_BOOL, COLUMN_INT, COLUMN_UINT, COLUMN_FLOAT, COLUMN_STR, COLUMN_BYTES, COLUMN_STRUCT };

typedef union number {
    int64_t i;
    uint64_t u;
    double f;
} number;

typedef struct RecordCodec RecordCodec;

typedef struct column {
    enum column_kind kind;
    bool checked; /* has limits that are tighter than its type, or choices: a row is looked at when it comes as such */
    bool narrow;  /* a number with limits */
    bool special; /* choices, or limits that take more than two comparisons */
    uint32_t offset; /* in the row */
    uint32_t size;
    Py_ssize_t slot; /* in the object */
    number low, high, multiple;
    Py_ssize_t shortest;
    PyObject *member;  /* the descriptor of the slot */
    PyObject *shown;   /* name on the wire */
    PyObject *pattern; /* callable; NULL */
    PyObject *choices; /* dict: what the column holds -> the value; NULL */
    PyTypeObject *choice;
    RecordCodec *nested;
} column;

struct RecordCodec {
    PyObject_HEAD PyTypeObject *type;
    uint32_t size;
    uint32_t count;
    bool plain;   /* objects can be made without tp_alloc, which tracks what holds nothing but numbers and text */
    bool tracked; /* they may be part of a cycle */
    bool checked; /* some column is */
    PyObject *post_init;
    column *columns;
};

typedef struct spot { /* where an error was met */
    const struct spot *above;
    const column *column; /* NULL: of the rows that came as such, this one */
    size_t row;
} spot;

RecordCodec *record_of(PyObject *callable);
int record_encode(const RecordCodec *self, PyObject *event, unsigned char *row);
PyObject *record_decode(const RecordCodec *self, const unsigned char *row);
PyObject *record_decode_payload(const RecordCodec *self, const unsigned char *payload, uint64_t length);
int record_fits(const RecordCodec *self, uint64_t length);
int record_check(const RecordCodec *self, const unsigned char *rows, size_t count);

/* ---- shared by the two ways ---- */

int record_refuse(const spot *at, const char *expected, PyObject *value);
int record_number_refused(const spot *at, PyObject *value);
int record_text_checked(const spot *at, PyObject *value, Py_ssize_t characters);

bool record_multiple(const column *c, number v);

/* Whether the limits of a number admit it; NaN is within none. */
static inline bool record_within(const column *c, number v) {
    bool inside = c->kind == COLUMN_INT    ? v.i >= c->low.i && v.i <= c->high.i
                  : c->kind == COLUMN_UINT ? v.u >= c->low.u && v.u <= c->high.u
                                           : v.f >= c->low.f && v.f <= c->high.f;
    return inside && (!c->multiple.u || record_multiple(c, v));
}

#endif
