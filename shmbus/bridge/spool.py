"""The spool: a journal between a bus and a broker, which holds what cannot be sent yet.

May touch: the journal, by its store; a recorder's group on each topic.

Must stay true: an event is on the bus or in the spool until the broker has it; it leaves the spool after that.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from shmbus._log import logger
from shmbus.journal import Recorder
from shmbus.journal.store import open_store
from shmbus.raw import topic_of

if TYPE_CHECKING:
    from shmbus.bus import Bus
    from shmbus.journal import Batch
    from shmbus.raw import Form

_log = logger("shmbus.bridge")


class Spool:
    """Store and forward: recorders write topics into one journal, from which the oldest is sent and then removed."""

    def __init__(self, bus: Bus, path: Any, store: str = "sqlite") -> None:
        self._bus = bus
        self._path = path
        self._store = open_store(store, path, write=True)
        self._recorders: dict[str, tuple[Recorder, threading.Thread]] = {}
        self._failed: BaseException | None = None

    def record(self, form: Form) -> None:
        """Have a topic written from now on, in a thread."""
        if form.name in self._recorders:
            return
        recorder = Recorder(self._bus, topic_of(form), self._path, store=self._store)
        thread = threading.Thread(target=self._run, args=(recorder,), name=f"spool {form.name}")
        self._recorders[form.name] = recorder, thread
        thread.start()

    def oldest(self, topic: str) -> Batch | None:
        """The oldest batch of a topic. Raises what has ended a recorder."""
        if self._failed is not None:
            raise self._failed
        return next(self._store.after(topic, 0), None)

    def waiting(self) -> int:
        """Events of all topics that are in it."""
        return sum(map(self._store.count, self._recorders))

    def sent(self, number: int) -> None:
        """The broker has a batch: it may go."""
        self._store.remove(number)

    def close(self) -> None:
        """End the recorders once what is in their hands is written, and let go of the journal."""
        for recorder, thread in self._recorders.values():
            recorder.stop()
            thread.join()
        self._store.close()

    def _run(self, recorder: Recorder) -> None:
        try:
            recorder.run()
        except BaseException as error:  # it is told by who asks for the oldest
            self._failed = error
