"""The journal: events of a topic on disk, to be replayed, caught up from, and repaired with.

- Recorder: a group's only worker, which acks what the disk has
- Journal: the file, to read: replay, and what subscribers need of it
- store: the contract of what holds the events; `sqlite` is the default, others are plugins
"""

from __future__ import annotations

from shmbus.journal.journal import Journal
from shmbus.journal.recorder import Recorder
from shmbus.journal.store import Batch, Entry, Store

__all__ = ["Batch", "Entry", "Journal", "Recorder", "Store"]
