"""Processes of a sweep: none outlives its parent, each knows its share of the machine."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator, Sequence

import psutil

from lab.sweeps.errors import SweepError


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


def how_it_ended(returncode: int) -> str:
    """Return the words for a process that ended without a result."""
    if returncode >= 0:
        return f"its process ended with exit code {returncode} before the run was finished"
    name = signal.Signals(-returncode).name
    hint = " (out of memory, or killed from outside)" if -returncode == signal.SIGKILL else ""
    return f"its process was killed by {name}{hint}"


def share_of_cores(n_jobs: int) -> dict[str, str]:
    """Return the thread settings of one of n_jobs processes; the user's own settings stay.

    Idle threads soon sleep instead of spinning: beside other busy processes spinning made steps many times slower.
    """
    ours = {
        "OMP_NUM_THREADS": str(max(1, len(os.sched_getaffinity(0)) // n_jobs)),
        "GOMP_SPINCOUNT": "20000",
    }
    return {key: value for key, value in ours.items() if key not in os.environ}


def visible_gpus() -> list[str]:
    """Return the names of the GPUs that this process may use."""
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        return [name for name in os.environ["CUDA_VISIBLE_DEVICES"].split(",") if name.strip()]
    import torch

    return [str(number) for number in range(torch.cuda.device_count())]


def gpu_slots(gpus: Sequence[str], n_jobs: int, processes: int) -> list[dict[str, str]]:
    """Return the environment of each of n_jobs slots, `processes` GPUs for a cell.

    One job keeps what is visible. Single-process cells may share a GPU when there are fewer GPUs than jobs.
    Raises SweepError if cells of several processes do not fit.
    """
    if not gpus or n_jobs == 1:
        return [{}] * n_jobs
    if n_jobs * processes > len(gpus) and processes > 1:
        raise SweepError(
            f"error: n_jobs={n_jobs} cells of {processes} processes need {n_jobs * processes} GPUs, "
            f"{len(gpus)} are visible; use n_jobs={max(1, len(gpus) // processes)}"
        )
    first = [slot * processes % len(gpus) for slot in range(n_jobs)]
    return [{"CUDA_VISIBLE_DEVICES": ",".join(gpus[i : i + processes])} for i in first]
