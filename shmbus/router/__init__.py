"""Router: handlers by decorator, run in this process or by `shmbus run` in many.

General layout, each using those below it only:

    runner, _child, ...  `shmbus run`: worker processes, kept alive
    router               the decorators
    running              one run: threads, the event loop, publishers
    _settle              what becomes of an event once it was handled
    _chain, _hands       middleware around a handler, and what its steps have done for them
    _handlers, _routes   what a router was told
"""

from shmbus.router.router import Router

__all__ = ["Router"]
