"""Processes that a command starts: how they start, that none outlives its parent, how they ended."""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import psutil

Answer = TypeVar("Answer")
PR_SET_PDEATHSIG = 1  # from <linux/prctl.h>


def start_python(module: str, *arguments: str, **popen: Any) -> subprocess.Popen[Any]:
    """Start `python -m module ARGUMENTS PID`; the module hands its last argument to `die_with_parent`."""
    return subprocess.Popen([sys.executable, "-m", module, *arguments, str(os.getpid())], **popen)


def start(command: Sequence[str], **popen: Any) -> subprocess.Popen[Any]:
    """Start a command that ends with this process, however this process ends."""
    return subprocess.Popen(command, preexec_fn=partial(die_with_parent, os.getpid()), **popen)


def run_shown(command: Sequence[str]) -> int:
    """Run a command that writes to this process's output; return its exit code."""
    process = start(command)
    try:
        return process.wait()
    except KeyboardInterrupt:
        process.wait()  # the terminal has told it too, and it may have jobs to cancel; a second Ctrl-C ends both
        raise


def ask(*command: str, timeout: float | None = None) -> str:
    """Return what a command prints, "" if it fails or is not there: some fail when there is nothing to tell."""
    try:
        return run(command, timeout=timeout).stdout
    except (subprocess.TimeoutExpired, OSError):
        return ""


def run(
    command: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    timeout: float | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end; it ends with this process, however this process ends.

    env: set on top of this process's. The result holds its output.
    """
    return subprocess.run(
        command, env={**os.environ, **(env or {})}, capture_output=True, text=True, errors="replace",
        check=False, timeout=timeout, preexec_fn=partial(die_with_parent, os.getpid()),
    )  # fmt: skip


@contextlib.contextmanager
def without_environment(*names: str) -> Iterator[None]:
    """Leave variables out of the environment inside the block."""
    kept = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when its parent ends, however it ends (Linux).

    parent: the process id that the parent gave; if it is gone already, end at once.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def rank_0_decides(ask: Callable[[], Answer]) -> Answer:
    """Return rank 0's answer on every rank; its ValueError or OSError is raised on all of them."""
    import torch.distributed as dist

    if not dist.is_initialized():
        return ask()
    told: list[Any] = [None, None]
    if dist.get_rank() == 0:
        try:
            told[0] = ask()
        except (ValueError, OSError) as error:
            told[1] = error
    dist.broadcast_object_list(told, src=0)
    if told[1] is not None:
        raise told[1]
    return told[0]


def wait_for_ranks() -> None:
    """Wait until every rank has come here."""
    import torch.distributed as dist

    if dist.is_initialized():
        dist.barrier()


def send_output_to(path: Path) -> None:
    """Append all that this process prints from now on to a file, its libraries' C code included."""
    path.parent.mkdir(parents=True, exist_ok=True)
    output = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)


def kill_tree(pid: int) -> None:
    """Kill a process and everything it started, and wait until they are gone."""
    try:
        root = psutil.Process(pid)
        family = [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    for process in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(family, timeout=5)


def how_it_ended(returncode: int) -> str:
    """Return the words for a process that ended without a result."""
    if returncode >= 0:
        return f"its process ended with exit code {returncode} before the run was finished"
    name = signal.Signals(-returncode).name
    hint = " (out of memory, or killed from outside)" if -returncode == signal.SIGKILL else ""
    return f"its process was killed by {name}{hint}"


@contextlib.contextmanager
def termination_as_exit() -> Iterator[None]:
    """Let SIGTERM (a scheduler, a closing session) end this process the way Ctrl-C does: with its clean-up."""

    def leave(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
