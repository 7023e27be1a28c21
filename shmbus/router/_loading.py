"""MODULE:ROUTER: finding the router that a command line names. May touch: sys.path, and imports what it is told."""

from __future__ import annotations

import importlib
import os
import re
import sys

from shmbus.errors import ConfigError
from shmbus.router.router import Router

_FORM = re.compile(r"([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*):([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*)")


def check_target(target: str) -> str:
    """The target if it has the form MODULE:ROUTER. Raises ConfigError."""
    if not _FORM.fullmatch(target):
        raise ConfigError(f"MODULE:ROUTER names a module and a Router in it, as shop.workers:router: {target!r}")
    return target


def load(target: str) -> Router:
    """Import the module, from the working directory too, and return its router. Raises ConfigError, and whatever the
    import raises.
    """
    here = os.getcwd()
    if here not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)
    module, _, path = check_target(target).partition(":")
    found: object = importlib.import_module(module)
    for name in path.split("."):
        if not hasattr(found, name):
            raise ConfigError(f"{module} has no {path}")
        found = getattr(found, name)
    if not isinstance(found, Router):
        raise ConfigError(f"{target} is no Router: {found!r}")
    if not found.routes:
        raise ConfigError(f"{target} has no handlers")
    return found


def own_files() -> list[str]:
    """Files of the modules that are loaded, but for those of Python and of what is installed."""
    prefixes = {os.path.realpath(p) for p in (sys.prefix, sys.base_prefix, os.path.dirname(os.__file__))}
    files = set()
    for module in list(sys.modules.values()):
        name = getattr(module, "__file__", None)
        if not isinstance(name, str) or getattr(module, "__name__", "").split(".")[0] == "shmbus":
            continue
        path = os.path.realpath(name)
        if not any(path.startswith(prefix + os.sep) for prefix in prefixes):
            files.add(path)
    return sorted(files)
