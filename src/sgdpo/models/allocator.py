"""Keep freed memory instead of giving it back to the system after every operation (glibc, CPUs only).

Large tensors are mapped and unmapped one by one by default, so that every activation of every step is faulted in
and zeroed again. Measured on SmolLM2-135M in float32: 5 to 10 % of a step's time, for 2 % more memory.

Rows of many lengths leave holes that no later row fits into, and the process grows with every step: the same model
from 4.0 to 9.5 GB in 120 steps, its living tensors always the same 1.5 GB. `Holes` gives them back.
"""

import ctypes
import platform
from collections.abc import Callable

import psutil

# Options of mallopt(3), from <malloc.h>.
TRIM_THRESHOLD, TOP_PAD, MMAP_MAX = -1, -2, -4
NEVER_TRIM, GROW_BY = 2**31 - 1, 64 * 2**20
# How many times what a step needs a process may hold before its holes are given back.
OUTGROWN = 1.25


def keep_freed_memory() -> bool:
    """Set the process's allocator so; call it before the model is built. Return whether it took effect."""
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    settings = ((MMAP_MAX, 0), (TRIM_THRESHOLD, NEVER_TRIM), (TOP_PAD, GROW_BY))
    return all(mallopt(option, value) == 1 for option, value in settings)


def held_bytes() -> int:
    """Return the memory that this process holds, freed or not."""
    return psutil.Process().memory_info().rss


def give_back() -> None:
    """Give what is freed back to the system; a tenth of a second for gigabytes."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


class Holes:
    """Give freed memory back once a process has outgrown what its steps need.

    held: bytes that the process holds. give_back: frees what is free.
    """

    def __init__(
        self, held: Callable[[], int] = held_bytes, give_back: Callable[[], None] = give_back
    ) -> None:
        self._held, self._give_back = held, give_back
        self._needed, self._fresh = 0, True
        give_back()  # what an earlier run in this process left is not what this one needs

    def after_step(self) -> None:
        """Look at what is held; the first step, and each after giving back, shows what a step needs."""
        held = self._held()
        if self._fresh:
            self._needed = max(self._needed, held)
        self._fresh = held > OUTGROWN * self._needed
        if self._fresh:
            self._give_back()
