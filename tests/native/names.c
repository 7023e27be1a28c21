/* Names of shared words, for traces. */
#include "explore.h"

#include <stdio.h>
#include <string.h>

typedef struct field {
    unsigned offset;
    const char *name;
} field;

typedef struct region {
    const unsigned char *base;
    uint64_t size;
    uint32_t kind; /* of a ring; 0: plain words */
    const char *label;
} region;

#define FIELD(type, name) {offsetof(type, name), #name}

static const field header_fields[] = {FIELD(ring_header, tail),
                                      FIELD(ring_header, intent),
                                      FIELD(ring_header, oldest),
                                      FIELD(ring_header, position),
                                      FIELD(ring_header, gate_version),
                                      FIELD(ring_header, waiting),
                                      FIELD(ring_header, need),
                                      FIELD(ring_header, members),
                                      FIELD(ring_header, reliable),
                                      FIELD(ring_header, refused),
                                      FIELD(ring_header, refused_first),
                                      FIELD(ring_header, refused_last),
                                      FIELD(ring_header, unrouted),
                                      FIELD(ring_header, next),
                                      FIELD(ring_header, gate),
                                      FIELD(ring_header, rejected),
                                      FIELD(ring_header, undecodable),
                                      FIELD(ring_header, capacity),
                                      FIELD(ring_header, slots),
                                      FIELD(ring_header, refused_first_ns),
                                      FIELD(ring_header, refused_last_ns),
                                      FIELD(ring_header, due),
                                      FIELD(ring_header, abandoned)};
static const field slot_fields[] = {FIELD(cursor_slot, cursor),        FIELD(cursor_slot, position),
                                    FIELD(cursor_slot, attached),      FIELD(cursor_slot, join_position),
                                    FIELD(cursor_slot, join_sequence), FIELD(cursor_slot, refused_base),
                                    FIELD(cursor_slot, lossy),         FIELD(cursor_slot, flip)};
static const field loss_fields[] = {FIELD(loss_record, count), FIELD(loss_record, first), FIELD(loss_record, last),
                                    FIELD(loss_record, first_ns), FIELD(loss_record, last_ns)};

#define LOOKUP(fields, offset) lookup(fields, sizeof(fields) / sizeof(field), offset)

static region regions[8];
static unsigned region_count;
static bool of_record[ARENA_BYTES / 8];

void forget_names(void) {
    region_count = 0;
    memset(of_record, 0, sizeof of_record);
}

static const char *lookup(const field *fields, size_t count, uint64_t offset) {
    for (size_t i = 0; i < count; i++)
        if (fields[i].offset == offset)
            return fields[i].name;
    return "?";
}

static const region *region_of(const void *at) {
    for (unsigned i = 0; i < region_count; i++)
        if ((const unsigned char *)at >= regions[i].base &&
            (const unsigned char *)at < regions[i].base + regions[i].size)
            return &regions[i];
    return NULL;
}

static uint64_t data_offset(const region *r) {
    if (r->kind == RING_BROADCAST)
        return sizeof(broadcast_segment);
    return r->kind == RING_WORK ? r->size - ((const ring_header *)r->base)->capacity : r->size;
}

void name_region(void *base, uint64_t size, uint32_t ring_kind, const char *label) {
    const region *r = &regions[region_count];
    regions[region_count++] = (region){base, size, ring_kind, label};
    for (uint64_t offset = data_offset(r); offset < size; offset += 8)
        of_record[((unsigned char *)base - arena + offset) / 8] = true;
}

bool is_record_word(const void *at) { return of_record[((const unsigned char *)at - arena) / 8]; }

static void name_slot_word(const region *r, uint64_t offset, char *out, size_t size) {
    uint64_t slot = (offset - PAGE) / sizeof(cursor_slot), inner = (offset - PAGE) % sizeof(cursor_slot);
    uint64_t losses = inner - offsetof(cursor_slot, losses);
    if (inner < offsetof(cursor_slot, losses) || inner >= offsetof(cursor_slot, flip)) {
        snprintf(out, size, "%s.slot[%u].%s", r->label, (unsigned)slot, LOOKUP(slot_fields, inner));
        return;
    }
    const char *cause = losses % sizeof(loss_pair) < sizeof(loss_record) ? "overrun" : "undecodable";
    snprintf(out, size, "%s.slot[%u].losses[%u].%s.%s", r->label, (unsigned)slot,
             (unsigned)(losses / sizeof(loss_pair)), cause, LOOKUP(loss_fields, losses % sizeof(loss_record)));
}

void name_of(const void *at, char *out, size_t size) {
    const region *r = region_of(at);
    uint64_t offset = r ? (uint64_t)((const unsigned char *)at - r->base) : 0;
    if (!r)
        snprintf(out, size, "?");
    else if (!r->kind)
        snprintf(out, size, "%s[%u]", r->label, (unsigned)(offset / 8));
    else if (offset >= data_offset(r))
        snprintf(out, size, "%s.records+%u", r->label, (unsigned)(offset - data_offset(r)));
    else if (offset < PAGE)
        snprintf(out, size, "%s.%s", r->label, LOOKUP(header_fields, offset));
    else if (r->kind == RING_BROADCAST)
        name_slot_word(r, offset, out, size);
    else if (offset >= PAGE + ((const ring_header *)r->base)->slots * sizeof(descriptor))
        snprintf(out, size, "%s.note[%u].%s", r->label,
                 (unsigned)((offset - PAGE) / sizeof(note) - ((const ring_header *)r->base)->slots),
                 (offset - PAGE) % sizeof(note) ? "due" : "spared");
    else
        snprintf(out, size, "%s.descriptor[%u].%s", r->label, (unsigned)((offset - PAGE) / sizeof(descriptor)),
                 (offset - PAGE) % sizeof(descriptor) ? "claim" : "place");
}
