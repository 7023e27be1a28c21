/* The module: constants of the layout, and the types, assembled. */
#include "python.h"

static const struct {
    const char *name;
    long long value;
} constants[] = {
    {"LAYOUT_VERSION", LAYOUT_VERSION},
    {"MAX_TOPICS", MAX_TOPICS},
    {"MAX_GROUPS", MAX_GROUPS},
    {"MAX_SUBSCRIBERS", MAX_SUBSCRIBERS},
    {"MAX_WORKERS", MAX_WORKERS},
    {"MAX_CONSUMERS", MAX_CONSUMERS},
    {"FIRST_CONSUMERS", FIRST_CONSUMERS},
    {"FIRST_DOCUMENT_BYTES", FIRST_DOCUMENT_BYTES},
    {"MAX_ATTEMPT", MAX_ATTEMPT},
    {"MAX_DELAY_NS", (long long)MAX_DELAY_NS},
    {"MAX_HEADERS", MAX_HEADERS},
    {"RECORD_LIMIT", RECORD_LIMIT},
    {"TRACE_KEPT", TRACE_KEPT},
    {"TRACE_BUCKET", TRACE_BUCKET},
    {"TRACE_WINDOW", TRACE_WINDOW},
    {"MIN_CAPACITY", MIN_CAPACITY},
    {"MAX_CAPACITY", MAX_CAPACITY},
    {"MAX_POOL", (long long)MAX_POOL},
    {"POOL_BLOCK", POOL_BLOCK},
    {"POOL_HOLDERS", POOL_HOLDERS},
    {"MAX_SLIPS", MAX_SLIPS},
    {"BUS_BYTES", sizeof(bus_segment)},
    {"BUS_MAGIC", BUS_MAGIC},
    {"BUS_BOOT_ID", offsetof(bus_header, boot_id)},
    {"BUS_LAYOUT_VERSION", offsetof(bus_header, layout_version)},
    {"BUS_LIVES_INODE", offsetof(bus_header, lives_inode)},
    {"BUS_CREATED", offsetof(bus_header, created_ns)},
    {"BUS_IDENTITY", offsetof(bus_header, identity)},
    {"BUS_VERSION", offsetof(bus_header, version)},
    {"BUS_HOLDER", offsetof(bus_header, holder)},
    {"BUS_SUPERVISOR_PID", offsetof(bus_header, supervisor_pid)},
    {"BUS_SUPERVISOR_LIFE", offsetof(bus_header, supervisor_life)},
    {"BUS_SUPERVISOR_BEAT", offsetof(bus_header, supervisor_beat)},
    {"BUS_SUPERVISOR_SPAWNED", offsetof(bus_header, supervisor_spawned)},
    {"BUS_SUPERVISOR_NAMESPACE", offsetof(bus_header, supervisor_namespace)},
    {"BUS_REMOVED", offsetof(bus_header, removed)},
    {"BUS_PROCESSES", offsetof(bus_header, processes)},
    {"TOPIC_LINES", offsetof(bus_segment, topics)},
    {"TOPIC_EPOCH", offsetof(topic_line, epoch)},
    {"TOPIC_PARKED", offsetof(topic_line, parked)},
    {"TOPIC_AWAITING", offsetof(topic_line, awaiting)},
    {"GROUP_LINES", offsetof(bus_segment, groups)},
    {"GROUP_PARKED", offsetof(group_line, parked)},
    {"GROUP_AWAITING", offsetof(group_line, awaiting)},
    {"CONSUMER_LINES", offsetof(bus_segment, consumers)},
    {"CONSUMER_STALLED", offsetof(consumer_line, stalled_since_ns)},
    {"LATENCY_LINES", offsetof(bus_segment, latencies)},
    {"LATENCY_BYTES", sizeof(latency_line)},
    {"LATENCY_SINCE", offsetof(latency_line, since_ns)},
    {"LATENCY_WEIGHTS", offsetof(latency_line, weights)},
    {"LATENCY_BUCKETS", LATENCY_BUCKETS},
    {"LATENCY_WEIGHT", LATENCY_WEIGHT},
    {"BEAT_FRESH_NS", (long long)BEAT_FRESH_NS},
    {"LIVES_LOCK", LIVES_LOCK},
    {"LIVES_LIFE", LIVES_LIFE},
    {"LIVES_LINE", LIVES_LINE},
    {"LIVES_BYTES", sizeof(lives_file)},
    {"LIVES_TICKETS", offsetof(lives_file, tickets)},
    {"LIVES_RELEASES", offsetof(lives_file, releases)},
    {"LIVES_NEXT", offsetof(lives_file, next)},
    {"LINE_THREADS", LINE_THREADS},
    {"LINE", LINE},
    {"PAGE", PAGE},
    {"DOCUMENTS", offsetof(bus_segment, documents)},
    {"DOCUMENT_BYTES", DOCUMENT_BYTES},
    {"DOCUMENT_LENGTH", offsetof(document_slot, length)},
    {"DOCUMENT_CHECKSUM", offsetof(document_slot, checksum)},
    {"DOCUMENT_BODY", offsetof(document_slot, bytes)},
    {"RING_WAITING", offsetof(ring_header, waiting)},
    {"RING_NEED", offsetof(ring_header, need)},
};

static int add_constants(PyObject *module) {
    for (size_t i = 0; i < sizeof(constants) / sizeof(constants[0]); i++) {
        PyObject *value = PyLong_FromLongLong(constants[i].value);
        int status = value ? PyModule_AddObjectRef(module, constants[i].name, value) : -1;
        Py_XDECREF(value);
        if (status < 0)
            return -1;
    }
    return 0;
}

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, .m_name = "shmbus._core",
                                        .m_doc = "Memory: layout, rings, claims.", .m_size = -1};

static int (*const parts[])(PyObject *) = {
    guard_add,     rings_add,    lanes_add,    tap_add,      window_add,   words_add,      line_add,
    mapping_add,   pools_add,    parcels_add,  packers_add,  revivers_add, semaphores_add, starter_add,
    latencies_add, producer_add, receiver_add, consumer_add, claimer_add,  record_add,     rows_add,
    ends_add,      plain_add,    depth_add,    signals_add,
};

static int add_parts(PyObject *module) {
    for (size_t i = 0; i < sizeof(parts) / sizeof(*parts); i++)
        if (parts[i](module) < 0)
            return -1;
    return PyModule_AddObjectRef(module, "NOTHING", Nothing);
}

PyMODINIT_FUNC PyInit__core(void) {
    PyObject *module = PyModule_Create(&definition);
    if (!module || common_begin() < 0 || add_constants(module) < 0 || add_parts(module) < 0) {
        Py_XDECREF(module);
        return NULL;
    }
    return module;
}
