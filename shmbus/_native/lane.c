/* Claims of a group with a key. See lane.h for what must hold. */
#include "lane.h"

#include "claim_word.h"

#include <string.h>

/* ---- layout ---- */

uint64_t lane_size(void) { return sizeof(lane_table); }

/* The segment comes zeroed: every lane is free. */
int lane_format(void *base, uint64_t size, uint64_t group_id) {
    lane_table *t = base;
    if (size < sizeof(lane_table))
        return RING_CORRUPT;
    t->layout_version = LAYOUT_VERSION;
    t->group_id = group_id;
    t->magic = LANE_MAGIC;
    return RING_OK;
}

int lane_open(lane_table **table, void *base, uint64_t size) {
    lane_table *t = base;
    if (size < sizeof(lane_table))
        return RING_CORRUPT;
    if (t->magic != LANE_MAGIC || t->layout_version != LAYOUT_VERSION)
        return RING_FOREIGN;
    *table = t;
    return RING_OK;
}

static uint64_t holder(unsigned owner, unsigned generation) {
    return LANE_HELD | (uint64_t)(owner & 0xff) << 16 | (generation & 0xffff);
}

/* ---- free ---- */

/* Of a claim whose word we took out of CLAIMED ourselves. One that was taken from us is not ours to free. */
static void set_free(lane_table *table, unsigned lane, uint64_t by) {
    if (CAS_SEQ(&table->lanes[lane], &by, 0)) /* SYNC lane: after the claim word and `next` */
        ADD_SEQ(&table->freed, 1);            /* SYNC lane: against parked */
}

static uint64_t holder_of(const claim *claim) { return LANE_HELD | HOLDER_OF(claim->word); }

int lane_done(lane_table *table, const ring_view *view, const claim *claim, unsigned *lane) {
    *lane = lane_of(view, claim->record.sequence); /* while the record is ours; of another's nothing comes */
    int status = work_done(view, claim);
    if (status == RING_OK)
        set_free(table, *lane, holder_of(claim));
    return status;
}

int lane_give_back(lane_table *table, const ring_view *view, const claim *claim, bool unseen, unsigned *lane) {
    *lane = lane_of(view, claim->record.sequence);
    int status = work_give_back(view, claim, unseen);
    if (status == RING_OK)
        set_free(table, *lane, holder_of(claim));
    return status;
}

/* What is DELAYED keeps its place before the others of its lane, so `next` may not be above it: L2. */
int lane_delay(lane_table *table, const ring_view *view, const claim *claim, uint64_t due_ns, bool unseen, bool *first,
               unsigned *lane) {
    *lane = lane_of(view, claim->record.sequence);
    int status = work_delay(view, claim, due_ns, unseen, first);
    if (status == RING_OK) {
        work_lower_next(view, claim->record.sequence);
        set_free(table, *lane, holder_of(claim));
    }
    return status;
}

/* ---- from outside, under the bus lock ---- */

/* As work_reclaim; the lanes of what goes back are held by `owner` of `generation`, or become so: once all rings are done,
 * lane_free_all frees them. */
int lane_reclaim(lane_table *table, const ring_view *view, unsigned owner, unsigned generation, uint64_t *count) {
    unsigned mine = (owner & 0xff) << 16 | (generation & 0xffff);
    uint64_t from, to;
    if (work_open_range(view, &from, &to) != RING_OK)
        return RING_CORRUPT;
    for (uint64_t sequence = from; sequence < to; sequence++) {
        uint64_t seen = LOAD_ACQUIRE(&descriptor_of(view, sequence)->claim);
        if (STATE_OF(seen) == CLAIM_CLAIMED && HOLDER_OF(seen) == mine && LAP_OF(seen) == lap_of(view, sequence))
            STORE_SEQ(&table->lanes[lane_of(view, sequence)], holder(owner, generation)); /* L1: nobody else's */
    }
    return work_reclaim(view, owner, generation, count); /* which lowers `next` in any case: L2 */
}

uint64_t lane_free_all(lane_table *table, unsigned owner, unsigned generation) {
    uint64_t freed = 0;
    for (unsigned lane = 0; lane < LANES; lane++)
        if (LOAD_ACQUIRE(&table->lanes[lane]) == holder(owner, generation)) {
            set_free(table, lane, holder(owner, generation));
            freed++;
        }
    return freed;
}

/* Takes a claim from a worker that lives: it is nobody's first, who can neither settle it nor free its lane any more, and
 * given back as nobody's then. One who dies in between leaves what the next one to hold the lock gives back. */
int lane_take_back(lane_table *table, const ring_view *view, const claim *claim) {
    uint64_t expected = claim->word, count;
    uint64_t nobodys = WORD(LAP_OF(expected), CLAIM_CLAIMED, ATTEMPT_OF(expected), 0, 0);
    if (!CAS_SEQ(&descriptor_of(view, claim->record.sequence)->claim, &expected, nobodys)) /* SYNC claim */
        return RING_LOST;
    int status = lane_reclaim(table, view, 0, 0, &count);
    lane_free_all(table, 0, 0);
    return status;
}

/* ---- looking ---- */

/* A look begins. */
void lane_begin(lane_look *look) {
    if (look->round > UINT32_MAX - (1u << 20)) {
        memset(look->marks, 0, sizeof(look->marks));
        look->round = 0;
    }
    look->before = ++look->round;
    look->count = 0;
    look->freed = LOAD_SEQ(&look->table->freed); /* SYNC lane: before the lanes */
}

/* The next ring. `before`: what it has open comes before the rings that follow. */
void lane_next(lane_look *look, bool before) {
    if (before)
        look->round = look->before;
    else
        look->round++;
}

static bool marked(const lane_look *look, unsigned lane) {
    return look->marks[lane] == look->before || look->marks[lane] == look->round;
}

static void mark(lane_look *look, unsigned lane) {
    if (look->marks[lane] != look->before)
        look->marks[lane] = look->round;
}

/* True if something was given back to a ring, or delayed, since it was looked at. */
static bool lowered(const lane_ring *ring) {
    return LOAD_SEQ(&ring->view->header->next) >> SEQUENCE_BITS != ring->hint >> SEQUENCE_BITS; /* SYNC lane */
}

/* True if a look at a ring may find what the last one did not. */
bool lane_changed(const lane_ring *ring) {
    return lowered(ring) || LOAD_SEQ(&ring->view->header->tail) != ring->tail; /* SYNC tail */
}

/* Claims a READY record whose lane is free: RING_OK, RING_EMPTY if it is to be passed over, LANE_AGAIN, RING_CORRUPT. */
static int claim_in_lane(lane_look *look, const lane_ring *ring, uint64_t sequence, uint64_t seen, unsigned lane,
                         claim *out) {
    uint64_t none = 0, spared = SPARED_OF(seen);
    if (LOAD_RELAXED(&look->table->lanes[lane]) || !CAS_SEQ(&look->table->lanes[lane], &none, look->me)) /* SYNC lane */
        return RING_EMPTY;
    bool again = lowered(ring); /* L3: what came back since was lowered before its lane was free */
    for (unsigned i = 0; i < look->count && !again; i++)
        again = lowered(&look->rings[i]);
    unsigned attempt = ATTEMPT_OF(seen) < MAX_ATTEMPT ? ATTEMPT_OF(seen) + 1 : MAX_ATTEMPT;
    uint64_t mine = WORD(LAP_OF(seen), CLAIM_CLAIMED, attempt, 0, 0) | (look->me & 0xffffff);
    if (!again && spared)
        work_keep_spared(ring->view, sequence, (unsigned)spared);
    if (again || !CAS_SEQ(&descriptor_of(ring->view, sequence)->claim, &seen, mine)) { /* SYNC claim */
        set_free(look->table, lane, look->me);
        return LANE_AGAIN;
    }
    *out = (claim){.word = mine,
                   .attempt = attempt < MAX_ATTEMPT && spared < attempt ? attempt - (unsigned)spared : attempt};
    int status = read_claimed(ring->view, sequence, &out->record);
    if (status != RING_OK)
        out->record.sequence = sequence;
    return status;
}

/* Raises the hint to the first record that was passed over, or behind the last one that was looked at: L2. */
static void raise_next(const lane_ring *ring, uint64_t to) {
    uint64_t hint = ring->hint;
    if (behind(hint, to))
        CAS_SEQ(&ring->view->header->next, &hint, (hint & ~SEQUENCE_MASK) | (to & SEQUENCE_MASK));
}

/* ---- what was passed over ---- */

/* A tag has 16 bits: a hint that was lowered 65,536 times looks as if it had not been. Whoever lowers it frees a lane next, or
 * promotes what freed one when it was delayed, of each lane one at most. So after no more frees than this it was not lowered
 * so often. (Or it reclaims, and then somebody is gone: whoever reads that in the document forgets, in claims_lanes.c.) */
#define MANY_FREES (1u << 13)

/* Forgets what may not be so any more. */
static void recall(lane_memory *memory, const lane_look *look, const lane_ring *ring, uint64_t from) {
    uint64_t tag = ring->hint >> SEQUENCE_BITS;
    uint64_t frees = LOAD_RELAXED(&look->table->freed) - memory->freed;
    if (memory->tag != tag || memory->to < from || frees > MANY_FREES) {
        memory->tag = tag;
        memory->to = from;
        memory->count = 0;
    }
    memory->freed = look->freed;
}

/* A record was looked at. Where there is no room for it `to` stands still, whatever comes behind. */
static void remember(lane_memory *memory, uint64_t sequence, unsigned lane, bool open) {
    if (memory->to != sequence || (open && memory->count == LANE_MEMORY))
        return;
    if (open) {
        memory->passed[memory->count].sequence = sequence;
        memory->passed[memory->count++].lane = lane;
    }
    memory->to = sequence + 1;
}

/* Looks at one record: as lane_claim; `open` if it is READY or DELAYED, and was not claimed. */
static int claim_at(lane_look *look, const lane_ring *ring, uint64_t sequence, unsigned lane, bool *open, claim *out) {
    uint64_t seen = LOAD_ACQUIRE(&descriptor_of(ring->view, sequence)->claim); /* SYNC claim */
    unsigned state = STATE_OF(seen);
    *open = LAP_OF(seen) == lap_of(ring->view, sequence) && (state == CLAIM_READY || state == CLAIM_DELAYED);
    if (!*open)
        return RING_EMPTY;
    int status = RING_EMPTY;
    if (state == CLAIM_READY && !marked(look, lane))
        status = claim_in_lane(look, ring, sequence, seen, lane, out);
    if (status == RING_EMPTY)
        mark(look, lane);
    *open = status != RING_OK;
    return status;
}

/* Looks at those that were passed over, of each lane until one has to come first: as lane_claim. */
static int claim_passed(lane_look *look, const lane_ring *ring, lane_memory *memory, claim *out) {
    unsigned kept = 0, at = 0;
    int status = RING_EMPTY;
    while (at < memory->count && status == RING_EMPTY) {
        bool open = true;
        if (!marked(look, memory->passed[at].lane))
            status = claim_at(look, ring, memory->passed[at].sequence, memory->passed[at].lane, &open, out);
        if (open) /* what is not, is again when the tag has changed */
            memory->passed[kept++] = memory->passed[at];
        at++;
    }
    memmove(&memory->passed[kept], &memory->passed[at], sizeof(memory->passed[0]) * (memory->count - at));
    memory->count -= at - kept;
    return status;
}

/* Claims the first READY record of a ring whose lane is free, and of whose lane nothing is open before: RING_OK, RING_EMPTY,
 * LANE_AGAIN, RING_CORRUPT. What the ring was like goes to `rings[count]`. */
int lane_claim(lane_look *look, const ring_view *view, lane_memory *memory, unsigned owner, unsigned generation,
               claim *out) {
    lane_ring *ring = &look->rings[look->count];
    look->me = holder(owner, generation);
    ring->view = view;
    ring->hint = LOAD_SEQ(&view->header->next);
    ring->tail = LOAD_SEQ(&view->header->tail); /* SYNC tail */
    uint64_t back = behind(ring->hint, ring->tail), tail = ring->tail, gate;
    uint64_t from = tail - (back < view->slots ? back : view->slots);
    recall(memory, look, ring, from);
    int status = claim_passed(look, ring, memory, out);
    for (uint64_t sequence = memory->to; sequence < tail && status == RING_EMPTY; sequence++) {
        unsigned lane = lane_of(view, sequence);
        bool open;
        status = claim_at(look, ring, sequence, lane, &open, out);
        if (status == RING_OK || status == RING_EMPTY)
            remember(memory, sequence, lane, open);
    }
    if (status == RING_EMPTY) {
        gate = LOAD_SEQ(&view->header->gate);
        if (from < tail && gate <= tail && tail - gate > view->slots)
            return RING_CORRUPT;
    }
    if (status == RING_OK || status == RING_EMPTY)
        raise_next(ring, memory->count ? memory->passed[0].sequence : memory->to);
    return status;
}

/* True if a READY record of a lane waits in a ring, and nobody holds the lane: for who has freed it, and will not look. */
bool lane_wanted(const lane_table *table, const ring_view *view, unsigned lane) {
    uint64_t hint = LOAD_SEQ(&view->header->next), tail = LOAD_SEQ(&view->header->tail);
    uint64_t back = behind(hint, tail), from = tail - (back < view->slots ? back : view->slots);
    for (uint64_t sequence = from; sequence < tail && !LOAD_SEQ(&table->lanes[lane]); sequence++) {
        uint64_t seen = LOAD_ACQUIRE(&descriptor_of(view, sequence)->claim);
        if (STATE_OF(seen) == CLAIM_READY && LAP_OF(seen) == lap_of(view, sequence) && lane_of(view, sequence) == lane)
            return true;
    }
    return false;
}
