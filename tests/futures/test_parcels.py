"""Large arguments and results: beside the rings, whatever their size, and each its own."""

from __future__ import annotations

import os

import futures_tasks as tasks
import pytest
from futures_tasks import PATIENT, Make

import shmbus
from shmbus._futures import parcels


@pytest.mark.parametrize("size", [1 << 10, 1 << 15, 1 << 20, 40 << 20])
def test_sizes(executor: Make, size: int) -> None:
    """Arguments and results of any size arrive as they were: objects, bytes, buffers."""
    pool = executor(2)
    data = os.urandom(size)
    assert pool.submit(tasks.echo, data).result(PATIENT) == data
    assert pool.submit(tasks.echo, {"a": [bytearray(data), size]}).result(PATIENT) == {"a": [bytearray(data), size]}


def test_arrays(executor: Make) -> None:
    """Arrays are writable there and here, and each is its own, whatever is kept of one."""
    np = pytest.importorskip("numpy")
    pool = executor(1)
    array = np.arange(200_000)
    found = [pool.submit(tasks.ones_of, array).result(PATIENT) for _ in range(5)]
    assert all((one == array + 1).all() for one in found)
    found[0][:] = 0
    assert (found[1] == array + 1).all()
    assert pool.submit(tasks.keep, np.ones(100_000)).result(PATIENT) == 100_000
    for _ in range(5):
        assert pool.submit(tasks.ones_of, np.zeros(100_000)).result(PATIENT).sum() == 100_000
        assert pool.submit(tasks.kept).result(PATIENT) == 100_000
    strided = np.arange(400_000)[::2]
    assert (pool.submit(tasks.echo, strided).result(PATIENT) == strided).all()


def test_no_room_in_shared_memory(executor: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where /dev/shm has no room for large arguments and results, they go by the folder for temporary files."""
    real = parcels._create

    def create(path: str, size: int) -> tuple[str, int]:
        if path.startswith("/dev/shm"):
            raise shmbus.NoSpaceError(28, path, size, 0)
        return real(path, size)

    monkeypatch.setattr(parcels, "_create", create)
    pool = executor(1)
    data = os.urandom(1 << 20)
    assert pool.submit(tasks.echo, data).result(PATIENT) == data
