/* Plain: small trees of the plainest types as bytes. See plain.c. */
#ifndef SHMBUS_PLAIN_H
#define SHMBUS_PLAIN_H

#include "python.h"

#define PLAIN 1 /* the first byte: a pickle begins with another one, and a note of a queue with 0 */

PyObject *plain_encode(PyObject *value);
PyObject *plain_decode(PyObject *bytes);

static inline bool plain_is(PyObject *bytes) { return BYTES_SIZE(bytes) > 0 && BYTES_DATA(bytes)[0] == PLAIN; }

#endif
