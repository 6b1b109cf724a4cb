"""Processes of a sweep: none outlives its parent, each knows its share of the machine."""

from __future__ import annotations

import os
from collections.abc import Sequence

from lab.sweeps.errors import SweepError


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
