"""Names that this very process holds: freed with their bus and with the garbage, told where somebody refers to them."""

from __future__ import annotations

import os
import pickle
from typing import Any

import pytest

import shmbus
from shmbus import Bus, NameTakenError, Topic

READINGS = Topic("camera/readings", int)
KINDS = ["publisher", "subscriber"]


def opened(bus: Bus, kind: str, name: str = "notebook") -> Any:
    return getattr(bus, kind)(READINGS, name=name)


@pytest.mark.parametrize("kind", KINDS)
def test_who_holds_it_and_where(bus_name: str, kind: str) -> None:
    """The error says that this very process has the name, where it was opened, and what to do."""
    with Bus(bus_name) as first, Bus(bus_name) as second:
        handle = opened(first, kind)
        for bus in (first, second):
            with pytest.raises(NameTakenError, match=rf"{kind} 'notebook' of topic 'camera/readings'") as caught:
                opened(bus, kind)
            assert f"this very process, at {__file__}:" in str(caught.value)
            assert "close that one or its bus" in str(caught.value)
            assert (caught.value.pid, caught.value.name, caught.value.kind) == (os.getpid(), "notebook", kind)
            assert pickle.loads(pickle.dumps(caught.value)).topic == "camera/readings"
        opened(second, kind, "other").close()
        handle.close()
        opened(second, kind).close()


@pytest.mark.parametrize("kind", KINDS)
def test_a_closed_bus_frees_names(bus_name: str, kind: str) -> None:
    """Names of a closed bus are free, whoever still refers to the bus, its handles, or an error that they raised."""
    kept = []
    for _ in range(3):
        bus = Bus(bus_name)
        handle = opened(bus, kind)
        try:
            opened(bus, kind)
        except NameTakenError as error:
            kept += [error, bus, handle]
        bus.close()
    assert len(kept) == 9


@pytest.mark.filterwarnings("ignore:.*was never closed:ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_garbage_frees_names(bus_name: str, kind: str) -> None:
    """A handle in a cycle that nothing refers to any more, as a traceback leaves it, gives its name up."""

    def cell(bus: Bus) -> None:
        handle = opened(bus, kind)
        try:
            raise ValueError(handle)
        except ValueError as error:
            mine: Any = error  # its traceback has this frame, and this frame has it
            assert mine.args

    with Bus(bus_name) as bus:
        cell(bus)
        opened(bus, kind).close()


def test_another_process_is_named_as_ever(bus_name: str, processes: Any) -> None:
    """A name that another process holds is told with its pid and no word of this one."""
    code = """
        import sys, shmbus
        with shmbus.Bus(sys.argv[1]) as bus, bus.subscriber(shmbus.Topic("camera/readings", int), name="notebook"):
            print("in", flush=True)
            sys.stdin.read()
    """
    child = processes.spawn(code, bus_name)
    assert child.stdout.readline() == "in\n"
    with Bus(bus_name) as bus:
        with pytest.raises(NameTakenError, match=f"exists in process {child.pid}") as caught:
            opened(bus, "subscriber")
        assert "this very process" not in str(caught.value)
    assert isinstance(caught.value, shmbus.ShmbusError)
    child.stdin.close()
    assert child.wait() == 0
