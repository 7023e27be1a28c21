"""`python -m shmbus`: the same as the command `shmbus`."""

from __future__ import annotations

import sys

from shmbus.cli import main

if __name__ == "__main__":
    sys.exit(main())
