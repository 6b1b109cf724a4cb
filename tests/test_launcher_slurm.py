"""launcher=slurm, the whole way with the real entry: submitit talks to an sbatch that runs the jobs on this machine."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from test_sweep_continues import SMALL, numbers

HERE = Path(__file__).with_name("slurm_here.py")
TRAIN = Path(__file__).resolve().parents[1] / "src" / "train.py"
COMMANDS = ("sbatch", "srun", "sacct", "squeue", "scancel", "scontrol")


class Cluster:
    """A Slurm of this machine for one test: its commands on the PATH, its log."""

    def __init__(self, folder: Path, minute: float = 60.0):
        self.folder = folder / "slurm"
        (self.folder / "bin").mkdir(parents=True)
        for command in COMMANDS:
            script = self.folder / "bin" / command
            script.write_text(f'#!/bin/sh\nexec {sys.executable} {HERE} {command} "$@"\n')
            script.chmod(0o755)
        self.environment = {
            **os.environ, "OMP_NUM_THREADS": "1", "SLURM_HERE": str(self.folder), "SLURM_HERE_MINUTE": str(minute),
            "PATH": f"{self.folder / 'bin'}{os.pathsep}{os.environ['PATH']}",
        }  # fmt: skip

    def start(self, *arguments: str) -> subprocess.Popen:
        return subprocess.Popen(
            [sys.executable, str(TRAIN), *arguments], env=self.environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def run(self, *arguments: str) -> tuple[int, str]:
        process = self.start(*arguments)
        output, _ = process.communicate(timeout=280)
        return process.returncode, output

    def log(self) -> str:
        path = self.folder / "log"
        return path.read_text() if path.exists() else ""

    def close(self) -> None:
        """Cancel what a failed test left."""
        jobs = [path.name.removeprefix("job-") for path in self.folder.glob("job-*")]
        subprocess.run(["scancel", *jobs], env=self.environment, check=False)


@pytest.fixture
def cluster(tmp_path):
    cluster = Cluster(tmp_path, minute=float(os.environ.get("SLURM_HERE_MINUTE", "60")))
    yield cluster
    cluster.close()


def arguments(outputs: Path, *more: str) -> list[str]:
    fast = ("launcher=slurm", "hydra.launcher.poll_seconds=0.5", f"outputs={outputs}")
    return [*SMALL, *fast, *more]


@pytest.mark.slow
def test_the_starts_come_first_then_the_cells_as_one_array_and_the_numbers_are_the_local_ones(
    cluster, tmp_path
):
    code, screen = cluster.run(*arguments(tmp_path / "there"))
    assert code == 0, screen
    assert "3 of 3 cells done, 0 failed" in screen
    submitted = re.findall(r"submitted (\d+) (\S+) (\S*) (\d+)", cluster.log())
    assert submitted == [("7", "ratio_grid-start", "", "1"), ("8", "ratio_grid", "afterany:7", "3")]
    assert cluster.log().index("end 7") < cluster.log().index("start 8_0")
    assert "SFT start: trained 0×, reused 3×" in screen
    local = subprocess.run(
        [sys.executable, str(TRAIN), *SMALL, f"outputs={tmp_path / 'here'}"], env=cluster.environment,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert local.returncode == 0, local.stdout
    assert numbers(tmp_path / "there") == numbers(tmp_path / "here")
    code, screen = cluster.run(*arguments(tmp_path / "there"))
    assert (code, "3 are finished already" in screen) == (0, True)
    assert len(re.findall("submitted", cluster.log())) == 2
