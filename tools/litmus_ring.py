from x
PARKING = [
    Pattern(
        "park, subscriber",
        "park",
        "the publisher sees nobody parked, the subscriber that parks sees no event",
        {"tail": 0, "parked": 0},
        {
            "P tail": TAIL,
            "P parked": ("producer.c", "parked = LOAD_{}(&self->lines.topic->parked)"),
            "S parked": OR,
            "S tail": ("consumer.c", "if (LOAD_{}(&self->sources[i].ring->view.header->tail)"),
        },
        dekker([store("tail", "P tail"), load("parked", "P parked")], [rmw("parked", "S parked"), load("tail", "S tail")]),
        neither,
    ),
    Pattern(
        "park, worker",
        "park",
        "the publisher sees nobody parked, the worker that parks sees no record",
        {"tail": 0, "parked": 0},
        {
            "P tail": WORK_TAIL,
            "P parked": ("producer.c", "any |= LOAD_{}(&line->parked[w])"),
            "W parked": OR,
            "W tail": READY_TAIL,
        },
        dekker([store("tail", "P tail"), load("parked", "P parked")], [rmw("parked", "W parked"), load("tail", "W tail")]),
        neither,
    ),
    Pattern(
        "park, given back",
        "park",
        "who gives a record back sees nobody parked, the worker that parks sees `next` where it was",
        {"next": 0, "parked": 0},
        {"N next": LOWER, "N parked": WORD_LOAD, "W parked": OR, "W next": READY_NEXT},
        dekker([rmw("next", "N next"), load("parked", "N parked")], [rmw("parked", "W parked"), load("next", "W next")]),
        neither,
    ),
    *(
        Pattern(
            f"park, new ring, {who}",
            "epoch",
            f"the publisher of a new ring sees nobody parked, the {who} that parks sees the old epoch",
            {"epoch": 0, "parked": 0},
            {
                "P epoch": ADD,
                "P parked": ("producer.c", parked),
                "C parked": OR,
                "C epoch": (file, "return LOAD_{}(&self->lines.topic->epoch) != self->lines.epoch;"),
            },
            dekker(
                [rmw("epoch", "P epoch"), load("parked", "P parked")],
                [rmw("parked", "C parked"), load("epoch", "C epoch")],
            ),
            neither,
        )
        for who, file, parked in (
            ("subscriber", "consumer.c", "parked = LOAD_{}(&self->lines.topic->parked)"),
            ("worker", "claims.c", "any |= LOAD_{}(&line->parked[w])"),
        )
    ),
]


def _await(o: Orders) -> list[Thread]:
    def sleeper() -> Run:
        yield Rmw("awaiting", put(1), o["S bits"])
        yield Rmw("parked", put(1), o["S bits"])
        return {}

    def waker() -> Run:
        cleared = yield Rmw("parked", put(0), o["W parked"])
        return {"cleared": cleared, "awaiting": (yield Load("awaiting", o["W awaiting"]))}

    return [sleeper, waker]


# ---- join


def _join(o: Orders) -> list[Thread]:
    """Position 0 is what both want; the slot's old cursor, 1, gates nobody. Intent 1 covers position 0."""

    def publisher() -> Run:
        yield Store("intent", 1, o["P intent"])
        if (yield Load("version", o["P version"])) != 0:
            yield Load("version", o["P scan"])
            if (yield Load("members", o["P members"])) and (yield Load("cursor", o["P cursor"])) == 0:
                yield Store("intent", 0, o["P take back"])
                return {"wrote": 0}
        yield Store("word", 1, o["P word"])
        return {"wrote": 1}

    def joiner() -> Run:
        yield Store("cursor", 0, o["J cursor"])
        yield Rmw("members", put(1), o["J members"])
        yield Rmw("version", lambda v: v + 1, o["J version"])
        sequence = yield Load("word", o["J sequence"])
        if (yield Load("intent", o["J intent"])) != 0:
            yield Store("cursor", 1, o["J moves"])
            return {"pinned": 0, "torn": 0}
        return {"pinned": 1, "torn": sequence | (yield Load("word", PLAIN))}

    return [publisher, joiner]


# ---- broadcast


def _lossy(o: Orders) -> list[Thread]:
    def publisher() -> Run:
        yield Store("intent", 1, o["P intent"])
        yield Store("head", 1, o["P head"])
        yield Store("body", 1, o["P body"])
        return {}

    def reader() -> Run:
        head = yield Load("head", o["R head"])
        body = yield Load("body", o["R body"])
        return {"torn": head | body, "intent": (yield Load("intent", o["R intent"]))}

    return [publisher, reader]


def _reuse(o: Orders) -> list[Thread]:
    def subscriber() -> Run:
        seen = yield Load("body", PLAIN)
        yield Store("cursor", 1, o["S cursor"])
        return {"torn": seen}

    def publisher() -> Run:
        if (yield Load("cursor", o["P cursor"])) == 1:
            yield Store("body", 1, o["P body"])
        return {}

    return [subscriber, publisher]


def _books(o: Orders) -> list[Thread]:
    def publisher() -> Run:
        yield Store("tail", 1, o["P tail"])
        return {}

    def subscriber() -> Run:
        if (yield Load("tail", o["S tail"])) == 1:
            yield Store("cursor", 1, o["S cursor"])
        return {}

    def observer() -> Run:
        return {"cursor": (yield Load("cursor", o["O cursor"])), "tail": (yield Load("tail", o["O tail"]))}

    return [publisher, subscriber, observer]


def _room(o: Orders) -> list[Thread]:
    def publisher() -> Run:
        yield Store("waiting", 1, o["P waiting"])
        return {"cursor": (yield Load("cursor", o["P cursor"]))}

    def subscriber() -> Run:
        yield Store("cursor", 1, o["S advances"])
        yield Store("cursor", 1, o["S settles"])
        return {"waiting": (yield Load("waiting", o["S waiting"]))}

    return [publisher, subscriber]
