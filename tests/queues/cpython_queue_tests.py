"""CPython's own tests of multiprocessing's queues and of queue.Queue's shutdown, with the type swapped.

    python cpython_queue_tests.py fork|spawn|forkserver
    python cpython_queue_tests.py shutdown FILE         # that of test.test_queue of CPython 3.13 or later

Run as a program, by test_cpython.py: spawned children import it again. What is left out is named below, with reasons.
"""

from __future__ import annotations

import faulthandler
import importlib.util
import multiprocessing
import queue
import sys
import types
import unittest
from typing import Any

import shmbus.queues

try:
    from test import _test_multiprocessing as source  # type: ignore[import-not-found,attr-defined,unused-ignore]
except ImportError:  # some distributions leave it out
    sys.exit(77)

FEEDER = "it is of the thread that feeds the pipe; here put() itself raises for what does not pickle"
LEFT_OUT = {
    "test_queue_feeder_donot_stop_onexc": FEEDER,
    "test_queue_feeder_on_queue_feeder_error": FEEDER,
    "test_closed": "it looks at private attributes: the ends of the pipe",
}

multiprocessing.Queue = shmbus.queues.Queue  # type: ignore[misc,assignment]
multiprocessing.JoinableQueue = shmbus.queues.JoinableQueue  # type: ignore[misc,assignment]
multiprocessing.SimpleQueue = shmbus.queues.SimpleQueue  # type: ignore[misc,assignment]


class WithProcessesTestQueue(source._TestQueue, source.ProcessesMixin, unittest.TestCase):  # type: ignore[misc]
    """`_TestQueue`."""

    Queue = staticmethod(shmbus.queues.Queue)
    JoinableQueue = staticmethod(shmbus.queues.JoinableQueue)


class WithSimpleQueue(source.TestSimpleQueue):  # type: ignore[misc]
    """`TestSimpleQueue`."""


def leave_out(suite: unittest.TestSuite, kept: unittest.TestSuite) -> unittest.TestSuite:
    for case in suite:
        if isinstance(case, unittest.TestSuite):
            leave_out(case, kept)
        elif case.id().rpartition(".")[2] not in LEFT_OUT:
            kept.addTest(case)
    return kept


def shutdown_tests(path: str) -> unittest.TestSuite:
    """The tests of `shutdown` in a test_queue.py, on a JoinableQueue, which has all methods of queue.Queue."""
    spec = importlib.util.spec_from_file_location("their_test_queue", path)
    assert spec is not None
    assert spec.loader is not None
    theirs = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(theirs)
    mixin: Any = theirs.BaseQueueTestMixin
    names = types.SimpleNamespace(Empty=queue.Empty, Full=queue.Full, ShutDown=shmbus.queues.ShutDown)

    class Shutdown(mixin, unittest.TestCase):  # type: ignore[misc]
        queue = names
        type2test = staticmethod(shmbus.queues.JoinableQueue)

    suite = unittest.TestSuite()
    for name in unittest.defaultTestLoader.getTestCaseNames(Shutdown):
        if "shutdown" in name:
            suite.addTest(Shutdown(name))
    return suite


def main() -> int:
    faulthandler.dump_traceback_later(280, exit=True)  # before whoever runs this gives up
    loader = unittest.defaultTestLoader
    if sys.argv[1] == "shutdown":
        suite = shutdown_tests(sys.argv[2])
    else:
        multiprocessing.set_start_method(sys.argv[1], force=True)
        found = [loader.loadTestsFromTestCase(case) for case in (WithProcessesTestQueue, WithSimpleQueue)]
        suite = leave_out(unittest.TestSuite(found), unittest.TestSuite())
    result = unittest.TextTestRunner(verbosity=2).run(suite)
    print(f"ran {result.testsRun}")
    return not result.wasSuccessful()


if __name__ == "__main__":
    sys.exit(main())
