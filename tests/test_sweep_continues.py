"""The real thing, small: a sweep that is killed again and again ends with the same bits as one left alone."""

import os
import random
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from sgdpo.runs.records import read_runs

TRAIN = Path(__file__).resolve().parents[1] / "src" / "train.py"
SPEED = ("seconds", "per_second", "memory")
SMALL = (
    "sweep=ratio_grid", "ratio.chosen=0.6,0.8", "ratio.rejected=0.9", "n_jobs=2", "tracking=off", "device=cpu",
    "optimizer.sft.max_steps=4", "optimizer.preference.max_steps=12", "trainer.save_steps=2",
    "optimizer.sft.batch_size=8", "optimizer.preference.batch_size=8", "data.world.pairs=96",
    "data.world.demonstrations=64", "data.world.test_pairs=16",
)  # fmt: skip


def sweep(outputs: Path, seconds: float | None) -> int:
    """Run the sweep; SIGKILL it after so many seconds. Returns its exit code."""
    process = subprocess.Popen(
        [sys.executable, str(TRAIN), *SMALL, f"outputs={outputs}"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        output, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        workers = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        process.communicate()
        _, alive = psutil.wait_procs(workers, timeout=20)
        assert not alive, "a worker outlived its sweep"
    else:
        assert process.returncode == 0, output.decode()
    return process.returncode


def numbers(outputs: Path) -> dict[str, list[dict]]:
    """Return every run's rows without the speed and time fields."""
    return {
        run.name: [{k: v for k, v in row.items() if not any(s in k for s in SPEED)} for row in run.metrics()]
        for run in read_runs(outputs, "ratio_grid")
        if run.status == "finished"
    }


@pytest.mark.proof
def test_a_sweep_killed_three_times_ends_with_the_same_bits(tmp_path):
    """Three cells and their SFT start; the moments are drawn with a seed, the first while the imports run."""
    sweep(tmp_path / "straight", None)
    moments = random.Random(3)
    kills = [sweep(tmp_path / "killed", moments.uniform(6, 12)) for _ in range(3)]
    sweep(tmp_path / "killed", None)
    straight, killed = numbers(tmp_path / "straight"), numbers(tmp_path / "killed")
    assert kills[0] == -9
    assert len(straight) == 4
    assert killed == straight
    assert {len(rows) for rows in straight.values()} != {0}
