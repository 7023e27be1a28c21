"""Types as people have them: a class in a second object, defaults that differ from process to process."""

from __future__ import annotations

import enum
import gc
import importlib
import math
import pickle
import subprocess
import sys
import types
import weakref
from pathlib import Path
from typing import Any

import msgspec
import pytest
from support import child_environment

import shmbus
from shmbus import Bus, EventTypeError, Topic

DEFINITION = """
import dataclasses, enum, typing, msgspec
T = typing.TypeVar("T")
class Item(msgspec.Struct):
    sku: str
class Paid(msgspec.Struct, tag=True):
    n: int
    items: list[Item] = []
class Refund(msgspec.Struct, tag=True):
    n: int
class Box(msgspec.Struct, typing.Generic[T]):
    value: T
class Pair(typing.NamedTuple):
    x: int
    y: int
@dataclasses.dataclass
class Data:
    a: int
class Colour(enum.Enum):
    RED = "red"
class Plain:
    pass
"""


def defined(module: str = "app", source: str = DEFINITION) -> types.ModuleType:
    """What the source defines, as a module of that name would; each call makes other objects of it."""
    made = types.ModuleType(module)
    exec(compile(source, module, "exec", dont_inherit=True), made.__dict__)
    return made


TYPES: list[tuple[Any, Any]] = [
    (lambda m: m.Paid, lambda m: m.Paid(1, [m.Item("x")])),
    (lambda m: m.Paid | m.Refund, lambda m: m.Refund(2)),
    (lambda m: m.Paid | None, lambda m: m.Paid(2)),
    (lambda m: m.Box[int], lambda m: m.Box(1)),
    (lambda m: m.Pair, lambda m: m.Pair(1, 2)),
    (lambda m: m.Data, lambda m: m.Data(1)),
    (lambda m: m.Colour, lambda m: m.Colour.RED),
    (lambda m: list[m.Paid], lambda m: [m.Paid(1)]),  # type: ignore[name-defined]
]


@pytest.mark.parametrize("codec", ["msgpack", "json"])
@pytest.mark.parametrize(("event_type", "event"), TYPES)
def test_same_definition_in_another_object(bus_name: str, event_type: Any, event: Any, codec: Any) -> None:
    """An event of a class that is the topic's by definition is published, and received as the topic's own class."""
    ours, theirs = defined(), defined("other")
    topic: Topic[Any] = Topic("t", event_type(ours), codec=codec)
    with Bus(bus_name) as bus, bus.subscriber(topic) as sub, bus.publisher(topic) as pub:
        pub.publish(event(theirs))
        assert pub.publish_many([event(theirs), event(ours)]) == 2
        for _ in range(3):
            received = sub.receive(timeout=5)
            assert received == event(ours)
            assert type(received) is type(event(ours))


def test_another_definition_is_named(bus_name: str) -> None:
    """The error of a class that differs has both modules and names, and each difference."""
    ours, theirs = defined(), defined("other", DEFINITION.replace("n: int", "n: str", 1))
    with Bus(bus_name) as bus, bus.publisher(Topic("paid", ours.Paid)) as pub:
        with pytest.raises(EventTypeError) as caught:
            pub.publish(theirs.Paid("x"))
        assert str(caught.value) == (
            "topic 'paid' carries app.Paid, got other.Paid: Paid.n: ours integer, theirs string"
        )
        assert (caught.value.topic, caught.value.difference) == ("paid", ("Paid.n: ours integer, theirs string",))
        assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
        for stranger in (theirs.Refund(1), theirs.Data(1), 5, "x", None, {}, object(), Paid(1)):
            with pytest.raises(EventTypeError, match=r"^topic 'paid' carries app\.Paid, got "):
                pub.publish(stranger)
        assert bus.stats().publishers[0].published == 0


class Paid(msgspec.Struct, tag=True, array_like=True):
    n: int


def test_nested_difference_counts(bus_name: str) -> None:
    """A class whose fields name another definition is refused, however deep that lies."""
    ours, theirs = defined(), defined("other", DEFINITION.replace("sku: str", "sku: int"))
    with Bus(bus_name) as bus, bus.publisher(Topic("paid", ours.Paid | ours.Refund)) as pub:
        with pytest.raises(EventTypeError, match=r"Item\.sku: ours string, theirs integer"):
            pub.publish(theirs.Paid(1))
        assert pub.publish(theirs.Refund(1)) == 1


def test_subclasses_of_builtins_are_refused(bus_name: str) -> None:
    """What a subclass of a builtin is written as nobody knows, so it is no event."""

    class Text(str):
        pass

    class Table(dict[str, int]):
        pass

    with Bus(bus_name) as bus:
        for event_type, event in ((str, Text("x")), (dict[str, int], Table()), (int, True), (int, 1.5)):
            with bus.publisher(Topic[Any](f"t.{type(event).__name__}", event_type)) as pub:
                with pytest.raises(EventTypeError, match=type(event).__name__):
                    pub.publish(event)


def test_looked_at_once_and_held_weakly(bus_name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A class that was admitted is not asked about again, and nothing keeps it once its module is gone."""
    from shmbus._schema import refusal

    asked: list[type] = []
    against = refusal.against
    monkeypatch.setattr(refusal, "against", lambda *a, **k: asked.append(a[1]) or against(*a, **k))  # type: ignore[func-returns-value]
    with Bus(bus_name) as bus, bus.publisher(Topic("t", Moved, capacity=1 << 16)) as pub:
        seen = []
        for _ in range(3):
            cls = again()
            seen.append(weakref.ref(cls))
            for n in range(5):
                pub.publish(cls(n))
            pub.publish(Moved(1))
            assert asked == [cls]
            asked.clear()
            del cls
        gc.collect()
        assert [ref() for ref in seen] == [None, None, None]


class Moved(msgspec.Struct):
    n: int


def again() -> Any:
    """Moved, as a cell that ran again defines it."""
    return msgspec.defstruct("Moved", [("n", int)], module=__name__)


def run(folder: Path, *command: str) -> str:
    done = subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env={**child_environment(), "PYTHONSAFEPATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("codec", ["msgpack", "pickle"])
@pytest.mark.parametrize("command", [["app.py"], ["-m", "app"]])
def test_module_that_runs_and_is_imported(tmp_path: Path, bus_name: str, codec: str, command: list[str]) -> None:
    """A script that another module imports has its classes twice, and publishes either."""
    (tmp_path / "app.py").write_text(
        f"import sys, msgspec, shmbus\nclass Event(msgspec.Struct):\n    n: int\n"
        f"TOPIC = shmbus.Topic('events', Event, codec={codec!r})\n"
        "if __name__ == '__main__':\n    import service\n    service.run(sys.argv[1], TOPIC)\n"
    )
    (tmp_path / "service.py").write_text(
        "import shmbus\nfrom app import Event\n"
        "def run(name, topic):\n"
        "    assert topic.type is not Event\n"
        "    with shmbus.Bus(name) as bus, bus.subscriber(topic) as sub, bus.publisher(topic) as pub:\n"
        "        pub.publish(Event(1)); pub.publish(topic.type(2))\n"
        "        print(sub.receive(timeout=5).n, sub.receive(timeout=5).n)\n"
    )
    assert run(tmp_path, *command, bus_name) == "1 2\n"


def test_reloaded_module(tmp_path: Path, bus_name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a reload both the old class and the new one are events of either topic."""
    name = f"reloaded_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text("import msgspec\nclass Event(msgspec.Struct):\n    n: int\n")
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module(name)
    before = module.Event
    importlib.reload(module)
    assert before is not module.Event
    for cls in (before, module.Event):
        topic = Topic("events", cls)
        with Bus(bus_name) as bus, bus.subscriber(topic) as sub, bus.publisher(topic) as pub:
            pub.publish_many([before(1), module.Event(2)])
            assert [type(sub.receive(timeout=5)), type(sub.receive(timeout=5))] == [cls, cls]


def test_pickle_topics_go_by_the_name_that_is_looked_up(bus_name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pickle topic takes a class of the same module and name, and no other of the same definition."""
    ours, again, theirs = defined(), defined(), defined("other")
    with Bus(bus_name) as bus, bus.publisher(Topic("plain", ours.Plain, codec="pickle")) as pub:
        monkeypatch.setitem(sys.modules, "app", again)
        pub.publish(again.Plain())
        with pytest.raises(EventTypeError, match=r"ours app\.Plain, theirs other\.Plain"):
            pub.publish(theirs.Plain())
        with pytest.raises(EventTypeError, match=r"topic 'plain': Can't pickle .* - at `\$`"):
            pub.publish(ours.Plain())  # its module has another class under that name


# -- defaults


def order(**options: Any) -> type[msgspec.Struct]:
    fields = [("a", int, options.pop("default"))] if "default" in options else [("a", int)]
    return msgspec.defstruct("Order", fields, **options)


SAME: list[tuple[Any, Any]] = [
    ({"default": 1}, {"default": 2}),
    ({"default": math.nan}, {"default": None}),
    ({"default": object()}, {}),
    ({"default": msgspec.field(default_factory=int)}, {"default": msgspec.field(default_factory=lambda: 5)}),
    ({"forbid_unknown_fields": True}, {}),
    ({"default": 1, "array_like": True}, {"array_like": True}),
    ({"default": 1, "array_like": True, "omit_defaults": True}, {"array_like": True}),
    ({"default": 1, "omit_defaults": True}, {"default": 1, "omit_defaults": True}),
    ({"kw_only": True}, {"frozen": True}),
]
DIFFERENT: list[tuple[Any, Any]] = [
    ({"default": 1, "omit_defaults": True}, {"default": 2, "omit_defaults": True}),
    ({"default": 1, "omit_defaults": True}, {"default": 1}),
    ({"default": math.nan, "omit_defaults": True}, {"default": None, "omit_defaults": True}),
    ({"default": math.nan, "omit_defaults": True}, {"default": math.inf, "omit_defaults": True}),
    ({"default": (math.nan,), "omit_defaults": True}, {"default": (None,), "omit_defaults": True}),
    ({"default": 1j, "omit_defaults": True}, {"omit_defaults": True}),
]


@pytest.mark.parametrize(("ours", "theirs"), SAME)
def test_defaults_that_no_byte_depends_on(ours: Any, theirs: Any, bus_name: str) -> None:
    """Two definitions are one where each reads what the other writes to the same value, whatever their defaults."""
    topic = Topic("t", order(**ours))
    other: Any = Topic("t", order(**theirs))
    with Bus(bus_name) as bus, bus.subscriber(topic) as sub, bus.publisher(other) as pub:
        pub.publish(other.type(7))
        assert sub.receive(timeout=5).a == 7  # type: ignore[attr-defined]


@pytest.mark.parametrize(("ours", "theirs"), DIFFERENT)
def test_defaults_that_are_filled_in(ours: Any, theirs: Any, bus_name: str) -> None:
    """A default is part of the definition where the writer may leave the field out."""
    with Bus(bus_name) as bus, bus.subscriber(Topic("t", order(**ours))):
        with pytest.raises(shmbus.SchemaMismatchError, match=r"Order\.a: ours "):
            bus.publisher(Topic("t", order(**theirs)))


def test_members_of_an_enum(bus_name: str) -> None:
    """Order and names of members are no difference; one that the other side cannot read is, whoever has it."""
    make: Any = enum.Enum
    ours = make("Colour", {"RED": "r", "BLUE": "b"})
    renamed = make("Colour", {"AZURE": "b", "RED": "r"})
    more = make("Colour", {"RED": "r", "BLUE": "b", "GREEN": "g"})
    with Bus(bus_name) as bus, bus.subscriber(Topic[Any]("t", ours)) as sub:
        with bus.publisher(Topic[Any]("t", renamed)) as pub:
            pub.publish(renamed["AZURE"])
            assert sub.receive(timeout=5) is ours["BLUE"]
        with pytest.raises(shmbus.SchemaMismatchError, match="'g'"):
            bus.publisher(Topic[Any]("t", more))
        bus.subscriber(Topic[Any]("t", more, schema="evolve")).close()  # it reads what the others write
