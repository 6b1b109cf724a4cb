"""A sign of life: whoever works long, or waits for another's work that moves, says so; a watchdog looks at it."""

import os
import time
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
