"""Say what made a result (versions, commit, code, memory, never the machine's name), and whether its maker lives."""

import os
import platform
import resource
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from functools import cache, partial
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from sgdpo.places import ROOT
from sgdpo.processes import ask
from sgdpo.runs.contents import code_hash
from sgdpo.store import age, hash_text

PACKAGES = ("torch", "transformers", "accelerate", "deepspeed", "datasets", "hydra-core", "wandb", "numpy")
# Another machine's process counts as gone when its sign of life is older; long enough for a process that writes tens
# of gigabytes while it holds the interpreter's lock.
BEAT_SECONDS, DEAD_SECONDS = 2.0, 30.0
# So old a sign is a dead process's, or the clock was set since it was given: then a few beats tell.
LONG_AGO, FEW_BEATS = 600.0, 3 * BEAT_SECONDS
HOST = "SGDPO_HOST"  # names this machine where several share one host name


def peak_memory_mb() -> float:
    """Return the largest resident memory of this process so far, MiB."""
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit, 1)


def this_process() -> dict[str, Any]:
    """Return what tells later whether this process still lives: pid, start, machine fingerprint."""
    return {"pid": os.getpid(), "pid_started": _started(os.getpid()), "machine": _machine()}


def _machine() -> str:
    """Return a fingerprint of what process ids mean something on: host, boot and container; without its name."""
    words = [os.environ.get(HOST) or platform.node()]
    with suppress(OSError):
        words += [Path("/proc/sys/kernel/random/boot_id").read_text(), os.readlink("/proc/self/ns/pid")]
    return hash_text(" ".join(words), 12)


def _started(pid: int) -> float | None:
    """Return when a process started, None if it is gone. In ticks since boot: a clock that is set does not move it."""
    try:
        if sys.platform == "linux":
            state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            return None if state in "ZX" else float(fields[18])
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    except (OSError, psutil.NoSuchProcess):
        return None


def process_is_gone(fields: Mapping[str, Any], heartbeat: Path | None = None) -> bool:
    """Tell whether a process has ended: on this machine by its id, on another by its sign of life; without one it
    counts as alive."""
    if fields.get("machine") == _machine():
        return _started(fields["pid"]) != fields["pid_started"]
    return heartbeat is not None and age(heartbeat) > DEAD_SECONDS


def wait_until_judged(fields: Mapping[str, Any], heartbeat: Path) -> bool:
    """Tell as `process_is_gone`, but watch another machine's sign of life instead of trusting a clock.

    What this process, or one that started it, left unfinished is in nobody's way.
    """
    if fields.get("machine") == _machine():
        ours = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
        return fields["pid"] in ours or process_is_gone(fields)
    if not heartbeat.exists():
        return True
    patience = FEW_BEATS if age(heartbeat) > LONG_AGO else DEAD_SECONDS
    before, until = heartbeat.stat().st_mtime_ns, time.monotonic() + patience
    while time.monotonic() < until:
        time.sleep(BEAT_SECONDS / 4)
        with suppress(OSError):
            if heartbeat.stat().st_mtime_ns != before:
                return False
    return True


class Heartbeat:
    """Write into a file, again and again from a thread, how many seconds this process has worked."""

    def __init__(self, path: Path) -> None:
        self._path, self._began, self._stop = path, time.monotonic(), threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)
        path.write_text("0")
        self._thread.start()

    @property
    def seconds(self) -> float:
        return round(time.monotonic() - self._began, 3)

    def stop(self) -> None:
        """End it; the file keeps the seconds."""
        self._stop.set()
        self._thread.join()
        with suppress(OSError):
            self._path.write_text(str(self.seconds))

    def _beat(self) -> None:
        while not self._stop.wait(BEAT_SECONDS):
            with suppress(OSError):  # a full disk must not stop a run, nor its folder that a user removes
                self._path.write_text(str(self.seconds))


@cache
def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that decide the numbers."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


@cache
def git_state() -> dict[str, Any]:
    """Return the commit of this code and whether src, conf or scripts differ from it; nulls without git."""
    git = partial(ask, "git", "-C", str(ROOT), timeout=10)
    if commit := git("rev-parse", "HEAD").strip():
        changed = git("status", "--porcelain", "--", "src", "conf", "scripts")
        return {"commit": commit, "dirty": bool(changed)}
    return {"commit": None, "dirty": None}


def made_by() -> dict[str, Any]:
    """Return the code and the packages of this process."""
    return {**git_state(), "code": code_hash(), "versions": versions()}
