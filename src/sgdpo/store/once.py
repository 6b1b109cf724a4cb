"""Build a thing once for all who want it: one process works, the others wait and say so, a dead one is replaced.

The lock is the operating system's: it is free the moment its owner dies. Whoever waits writes a line now and
then and gives a sign of life, so that nobody takes waiting for hanging.
"""

import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from sgdpo.store.files import DamagedError, open_to_others, read_json, sync
from sgdpo.store.life import age, beat
from sgdpo.store.sealed import read_seal, seal, what_is_wrong

log = logging.getLogger(__name__)

LOOK_SECONDS = 0.2
SAY_SECONDS = 30.0


def build_once(
    place: Path, build: Callable[[Path], dict[str, Any] | None], *, what: str
) -> tuple[dict[str, Any], bool]:
    """Return the manifest of the folder `place`, and whether it was built now.

    build: writes into the empty folder it is given, and returns fields to keep in the manifest. The folder gets
    its name when it is whole; one that is damaged is built again. what: its name in messages: "the tokenised
    training set". Errors of `build` are raised, and the next who asks builds.
    """
    with held(place, what):
        wrong = what_is_wrong(place)
        if wrong is None:
            return _manifest(place), False
        if place.exists():
            log.warning("%s in %s is damaged (%s) and is built again", what, place, wrong)
        _build(place, build, what)
    return _manifest(place), True


def _build(place: Path, build: Callable[[Path], dict[str, Any] | None], what: str) -> None:
    beside = partial(place)
    remove(beside)  # what a killed owner left
    beside.mkdir(parents=True)
    try:
        seal(beside, what=what, **(build(beside) or {}))
        open_to_others(beside)
        remove(place)
        beside.rename(place)
        sync(place.parent)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise


def _manifest(place: Path) -> dict[str, Any]:
    content = read_seal(place)
    assert content is not None, place
    return content


def partial(place: Path) -> Path:
    """Return where the lock's holder builds what becomes `place`."""
    return place.with_name(f".{place.name}.partial")


def lock_of(place: Path) -> Path:
    """Return the lock file of a place."""
    return place.with_name(f"{place.name}.lock")


def remove(path: Path) -> None:
    """Remove a file or folder, or nothing if there is none."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def held(place: Path, what: str) -> Iterator[None]:
    """Hold the lock of a place for the length of a block; who had it before may have made what is wanted."""
    lock = Lock(place, what)
    while not lock.try_for(SAY_SECONDS):
        pass
    try:
        yield
    finally:
        lock.release()


class Lock:
    """Hold what names a place's lock; `what` is what its owner makes."""

    def __init__(self, place: Path, what: str) -> None:
        place.parent.mkdir(parents=True, exist_ok=True)
        # One object per place and process would let a second thread in; each asks for itself.
        self._lock = FileLock(lock_of(place), mode=0o666, thread_local=False)
        self._owner, self.what = place.with_name(f"{place.name}.owner"), what
        self._began, self._said = time.monotonic(), 0.0

    def try_for(self, seconds: float) -> bool:
        """Try for some time to become the owner; say now and then for whom this process waits."""
        until = time.monotonic() + seconds
        while True:
            try:
                self._lock.acquire(timeout=0)
            except Timeout:
                beat()
                if time.monotonic() >= until:
                    return False
                self._say()
                time.sleep(LOOK_SECONDS)
            else:
                with suppress(OSError):
                    self._owner.write_text(json.dumps({"pid": os.getpid()}))
                return True

    def release(self) -> None:
        """Let the next one in; nothing if this process is not the owner."""
        if self._lock.is_locked:
            self._owner.unlink(missing_ok=True)
            self._lock.release()

    def _say(self) -> None:
        waited = time.monotonic() - self._began
        if self._said and waited < self._said:
            return
        self._said = waited + SAY_SECONDS
        owner: dict[str, Any] = {}
        with suppress(DamagedError):
            owner = read_json(self._owner, default={}, kind=dict)
        since = f", at it for {_clock(age(self._owner))}" if owner else ""
        log.info(
            "waiting for it: process %s makes %s%s; waited %s",
            owner.get("pid", "?"),
            self.what,
            since,
            _clock(waited),
        )


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02} min"
