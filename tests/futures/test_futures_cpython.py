"""CPython's own tests of `ProcessPoolExecutor`, with the type swapped: `test.test_concurrent_futures` of 3.13.

All that makes a process pool runs, under the three start methods, but what `LEFT_OUT` names with its reason.
"""

from __future__ import annotations

import importlib
import sys
import unittest
from typing import Any
from unittest import mock

import pytest

from shmbus.futures import Executor

pytestmark = [
    pytest.mark.usefixtures("no_executor_left"),
    pytest.mark.filterwarnings("default"),  # theirs, not ours
    pytest.mark.skipif(sys.version_info[:2] != (3, 13), reason="the tests are those of CPython 3.13"),
]

MODULES = ("test_process_pool", "test_shutdown", "test_init", "test_deadlock", "test_wait", "test_as_completed")

_PRIVATE = "asks for a private part of the original: "
_BREAKS = "demands that the whole pool breaks; ours: tests/futures/test_executor.py, "

LEFT_OUT = {
    "test_killed_child": _BREAKS + "test_death",
    "test_exit_at_task_unpickle": _BREAKS + "test_does_not_load (the task's own SystemExit)",
    "test_error_at_task_unpickle": _BREAKS + "test_does_not_load (the task's own UnpicklingError)",
    "test_error_during_result_unpickle_in_result_handler": _BREAKS + "test_does_not_load (the error itself)",
    "test_exit_during_result_unpickle_in_result_handler": _BREAKS + "test_does_not_load (the error itself)",
    "test_del_shutdown": _PRIVATE + "_call_queue; ours: tests/futures/test_ends.py, test_forgotten",
    "test_shutdown_no_wait": _PRIVATE + "_call_queue; ours: the same, test_shutdown_no_wait",
    "test_shutdown_deadlock_pickle": _PRIVATE + "_executor_manager_thread; ours: test_does_not_pickle",
    "test_gh105829_should_not_deadlock_if_wakeup_pipe_full": _PRIVATE + "_ExecutorManagerThread, _ThreadWakeup",
    "test_max_workers_too_large": "is of Windows",
}
"""What does not run, and why."""


def _scripts(run: Any) -> Any:
    """`assert_python_ok` for scripts that import the type by its name from `concurrent.futures`."""

    def patched(*args: str, **options: Any) -> Any:
        swapped = [text.replace("from concurrent.futures import Executor", _IMPORT) for text in args]
        return run(*swapped, **options)

    return patched


_IMPORT = "from shmbus.futures import Executor"


def _swapped(case: type[Any], module: Any) -> type[Any]:
    def set_up(self: Any) -> None:
        for target, name, value in (
            ("concurrent.futures", "ProcessPoolExecutor", Executor),
            (module.__name__, "assert_python_ok", _scripts(getattr(module, "assert_python_ok", None))),
        ):
            patch = mock.patch(f"{target}.{name}", value, create=True)
            patch.start()
            self.addCleanup(patch.stop)
        case.setUp(self)

    own: dict[str, Any] = {"executor_type": Executor, "setUp": set_up, "__module__": case.__module__}  # for children
    for name, reason in LEFT_OUT.items():
        if hasattr(case, name):
            own[name] = unittest.skip(reason)(lambda self: None)
    swapped = type(case.__name__, (case,), own)
    setattr(module, case.__name__, swapped)  # or its methods would not pickle
    return swapped


def _cases() -> dict[str, type[Any]]:
    found: dict[str, type[Any]] = {}
    for name in MODULES:
        module = importlib.import_module(f"test.test_concurrent_futures.{name}")
        for case in list(vars(module).values()):
            if (
                isinstance(case, type)
                and issubclass(case, unittest.TestCase)
                and case.__name__.startswith("ProcessPool")
            ):
                found[case.__name__] = _swapped(case, module)
    return found


if sys.version_info[:2] == (3, 13):
    globals().update(_cases())
