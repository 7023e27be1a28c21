"""Tensors over views and views of tensors: the recipes of docs/payloads.md, by DLPack and by PyTorch where it is."""

from __future__ import annotations

import os
from typing import Any

import pytest
from events import opened

pytest.importorskip("numpy", reason="needs numpy")

import numpy as np
from frames import ALBUMS, FRAMES, MIB, Album, Frame, frame, used, whole

import shmbus


class Tensor:
    """What another library has: it speaks DLPack, and is no array."""

    def __init__(self, array: Any) -> None:
        self._array = array

    def __dlpack__(self, **how: Any) -> Any:
        return self._array.__dlpack__(**how)

    def __dlpack_device__(self) -> Any:
        return self._array.__dlpack_device__()


def test_dlpack(bus_name: str) -> None:
    """What speaks DLPack is published by one copy; a tensor over a view shares its memory, and keeps its extent."""
    with opened(bus_name) as bus, bus.publisher(FRAMES) as pub, bus.subscriber(FRAMES) as sub:
        array: Any = np.from_dlpack(Tensor(np.full(MIB, 7, np.uint8)))
        pub.publish(Frame(7, array))
        view = sub.receive(0).image
        tensor = np.from_dlpack(Tensor(view))
        assert np.shares_memory(tensor, view)
        assert not tensor.flags.writeable
        del view
        pub.publish(frame(8))
        assert (tensor == 7).all()
        assert whole(sub.receive(0))
        assert used(bus) == MIB
        del tensor
        assert used(bus) == 0


def test_written_into_the_pool(bus_name: str) -> None:
    """A tensor over memory of `empty` is written in place; published, it needs no copy."""
    with opened(bus_name) as bus, bus.publisher(FRAMES) as pub, bus.subscriber(FRAMES) as sub:
        image = pub.empty((1024, 1024), np.uint8)
        np.from_dlpack(Tensor(image))[:] = 9
        pub.publish(Frame(9, image))
        assert used(bus) == MIB
        assert whole(sub.receive(0))
        with pytest.raises(ValueError, match="read-only"):
            image[0] = 1


def test_torch(bus_name: str) -> None:
    """The same with PyTorch."""
    torch = pytest.importorskip("torch", reason="needs torch")
    with opened(bus_name) as bus, bus.publisher(FRAMES) as pub, bus.subscriber(FRAMES) as sub:
        array: Any = np.from_dlpack(torch.full((MIB,), 7, dtype=torch.uint8))
        pub.publish(Frame(7, array))
        view = sub.receive(0).image
        with pytest.warns(UserWarning, match="not writable"):
            tensor = torch.from_numpy(view)
        assert tensor.data_ptr() == view.ctypes.data
        image = pub.empty(MIB)
        torch.from_numpy(image).copy_(tensor)
        pub.publish(Frame(7, image))
        assert whole(sub.receive(0))


def test_a_record_array(bus_name: str) -> None:
    """A subclass of ndarray in a field arrives as an array of its dtype, seen in place like any other."""
    rows = np.rec.array([(1, 2.0)] * 500, dtype=[("a", "<i4"), ("b", "<f8")])
    with opened(bus_name) as bus, bus.publisher(ALBUMS) as pub, bus.subscriber(ALBUMS) as sub:
        pub.publish(Album("rows", cover=rows))
        found = sub.receive(0).cover
        assert type(found) is np.ndarray
        assert (found["b"] == 2.0).all()
        assert not found.flags.owndata
        assert used(bus) == 8192


def test_views_take_no_descriptors(bus_name: str) -> None:
    """However many views a process keeps, it opens nothing for them."""
    small = shmbus.Topic("small", np.ndarray, pool=4 * MIB)
    with opened(bus_name) as bus, bus.publisher(small) as pub, bus.subscriber(small) as sub:
        pub.publish(np.zeros(2000, np.uint8))
        kept = [sub.receive(0)]
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(500):
            pub.publish(np.zeros(2000, np.uint8))
            kept.append(sub.receive(0))
        assert len(os.listdir("/proc/self/fd")) == before
        assert len({array.ctypes.data for array in kept}) == 501
