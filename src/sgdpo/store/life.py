"""A sign of life: whoever works long, or waits for another's work that moves, says so; a watchdog looks at it.

Clocks of machines that share a disk differ, and any may be set: a sign's age is told by the clock that stamps files.
"""

import os
import tempfile
import time
from contextlib import suppress
from pathlib import Path

ALIVE = "SGDPO_ALIVE"  # names the file that this process touches
EVERY_SECONDS = 1.0
_last = 0.0


def beat() -> None:
    """Say that this process is alive: touch the file that SGDPO_ALIVE names, at most once a second."""
    global _last
    if time.monotonic() - _last > EVERY_SECONDS and (path := os.environ.get(ALIVE)):
        _last = time.monotonic()
        Path(path).touch()


def age(sign: Path) -> float:
    """Return the seconds since a file was written; infinite if there is none."""
    try:
        written = sign.stat().st_mtime
    except OSError:
        return float("inf")
    return abs(_now_in(sign.parent) - written)


def _now_in(folder: Path) -> float:
    with suppress(OSError), tempfile.TemporaryFile(prefix=".", dir=folder) as file:
        return os.fstat(file.fileno()).st_mtime
    return time.time()  # of a folder that may only be read
