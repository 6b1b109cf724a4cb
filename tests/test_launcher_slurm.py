"""launcher=slurm, the whole way with the real entry: submitit talks to an sbatch that runs the jobs on this machine."""

import json
import os
import pickle
import re
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest

from lab.sweeps import worker
from lab.sweeps.cells import SweepError
from lab.sweeps.pool import Task
from lab.sweeps.slurm import SlurmQueue, why_it_failed
from sgdpo.runs.records import read_runs
from sgdpo.store import write_json
from sweep_fixtures import cells_of, composer_for
from test_sweep_continues import SMALL, numbers, sweep

HERE = Path(__file__).with_name("slurm_here.py")
TRAIN = Path(__file__).resolve().parents[1] / "src" / "train.py"
COMMANDS = ("sbatch", "srun", "sacct", "squeue", "scancel", "scontrol")


class Cluster:
    """A Slurm of this machine for one test: its commands on the PATH, its log. event: see slurm_here.py."""

    def __init__(self, folder: Path, event: dict[str, str] | None = None):
        self.folder = folder / "slurm"
        (self.folder / "bin").mkdir(parents=True)
        for command in COMMANDS:
            script = self.folder / "bin" / command
            script.write_text(f'#!/bin/sh\nexec {sys.executable} {HERE} {command} "$@"\n')
            script.chmod(0o755)
        self.environment = {
            **os.environ, "OMP_NUM_THREADS": "1", "SLURM_HERE": str(self.folder), "SLURM_HERE_EVENT": json.dumps(event),
            "PATH": f"{self.folder / 'bin'}{os.pathsep}{os.environ['PATH']}",
        }  # fmt: skip

    def start(self, *arguments: str) -> subprocess.Popen:
        command = [sys.executable, str(TRAIN), *arguments]
        return subprocess.Popen(
            command, env=self.environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip

    def run(self, *arguments: str) -> tuple[int, str]:
        process = self.start(*arguments)
        output, _ = process.communicate(timeout=280)
        return process.returncode, output

    def log(self) -> str:
        path = self.folder / "log"
        return path.read_text() if path.exists() else ""

    def wait_for(self, words: str) -> None:
        until = time.monotonic() + 200
        while words not in self.log():
            assert time.monotonic() < until, self.log()
            time.sleep(0.1)

    def close(self) -> None:
        """Cancel what a failed test left."""
        jobs = [path.name.removeprefix("job-") for path in self.folder.glob("job-*")]
        subprocess.run([self.folder / "bin" / "scancel", *jobs], env=self.environment, check=False)


@pytest.fixture
def cluster(tmp_path):
    cluster = Cluster(tmp_path)
    yield cluster
    cluster.close()


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """Return the numbers of the same sweep, left alone in processes of this machine."""
    outputs = tmp_path_factory.mktemp("straight")
    sweep(outputs, None)
    return numbers(outputs)


def on_slurm(outputs: Path, *more: str) -> list[str]:
    return [*SMALL, "launcher=slurm", "hydra.launcher.poll_seconds=0.5", f"outputs={outputs}", *more]


@pytest.mark.slow
def test_the_starts_come_first_then_the_cells_as_one_array(cluster, tmp_path):
    """And what is finished is not submitted again; that the numbers are a local sweep's is told by the proofs."""
    code, screen = cluster.run(*on_slurm(tmp_path))
    assert code == 0, screen
    assert "3 of 3 cells done, 0 failed" in screen
    submitted = re.findall(r"submitted (\d+) (\S+) (\S*) (\d+)", cluster.log())
    assert submitted == [("7", "ratio_grid-start", "", "1"), ("8", "ratio_grid", "afterany:7", "3")]
    assert cluster.log().index("end 7") < cluster.log().index("start 8_0")
    assert "SFT start: trained 0×, reused 3×" in screen
    assert "held-out margin" in screen
    code, screen = cluster.run(*on_slurm(tmp_path))
    assert (code, "3 are finished already" in screen) == (0, True), screen
    assert len(re.findall("submitted", cluster.log())) == 2


@pytest.mark.proof
@pytest.mark.parametrize("what", ["limit", "node_fail"])
def test_a_cell_that_is_stopped_continues_on_another_host_bit_for_bit(tmp_path, straight, what):
    """The start and both cells are stopped once, after their first checkpoint; array_parallelism=1 tells them apart."""
    cluster = Cluster(
        tmp_path, {"when": f"{tmp_path}/out/*/*/checkpoints/checkpoint-*/manifest.json", "what": what}
    )
    more = ("hydra.launcher.array_parallelism=1", "ratio.chosen=0.6")
    try:
        code, screen = cluster.run(*on_slurm(tmp_path / "out", *more))
        assert code == 0, screen + cluster.log()
        starts = re.findall(r" start (\S+) (\S+)", cluster.log())
        assert re.findall(rf" {what} (\S+)", cluster.log()) == ["7", "8_0", "8_1"]
        assert sorted(starts) == [
            (t, f"node{attempt}-{t}") for t in ("7", "8_0", "8_1") for attempt in (0, 1)
        ]
        for run in read_runs(tmp_path / "out", "ratio_grid"):
            assert run["attempts"][1]["from_step"] >= 2, run.name
        found = numbers(tmp_path / "out")
        assert len(found) == 3
        assert found == {name: straight[name] for name in found}
    finally:
        cluster.close()


@pytest.mark.proof
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_ending_the_sweep_cancels_its_jobs_and_killing_it_is_noticed(cluster, straight, tmp_path, how):
    """After SIGKILL the jobs go on: the same command refuses to submit them twice, and continues once they are gone."""
    process = cluster.start(*on_slurm(tmp_path))
    cluster.wait_for("submitted 8")
    process.send_signal(how)
    screen = process.communicate(timeout=60)[0]
    if how == signal.SIGKILL:
        code, screen = cluster.run(*on_slurm(tmp_path))
        assert (code, "jobs of the last sweep of 'ratio_grid' are in the queue still" in screen) == (
            2,
            True,
        ), screen
        cluster.close()
    else:
        assert process.returncode == 130, screen
    cluster.wait_for("cancelled 8_2")
    code, screen = cluster.run(*on_slurm(tmp_path))
    assert code == 0, screen
    assert numbers(tmp_path) == straight


def test_without_slurm_it_is_one_clear_error(tmp_path):
    done = subprocess.run(
        [sys.executable, str(TRAIN), *on_slurm(tmp_path)], env={**os.environ, "PATH": ""}, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "error: launcher=slurm needs sbatch, srun, sacct, squeue on the PATH" in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def test_what_sbatch_refuses_is_one_clear_error(tmp_path, monkeypatch):
    for command in COMMANDS:
        (tmp_path / command).write_text(
            "#!/bin/sh\necho 'sbatch: error: Invalid partition name' >&2\nexit 1\n"
        )
        (tmp_path / command).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    words = ("experiment=x", "init=pretrained", "tracking=off", f"outputs={tmp_path}")
    launcher = composer_for(*words, "launcher=slurm", "hydra.launcher.partition=gpuu").master.hydra.launcher
    settings = {key: value for key, value in launcher.items() if key != "_target_"}
    queue = SlurmQueue(Task(TRAIN, "main"), settings, Mock(), Mock(jobs=[]))
    with pytest.raises(
        SweepError, match=r"^sbatch took no jobs: sbatch: error: Invalid partition name .*slurm.yaml"
    ):
        queue.run(cells_of(*words, "seed=1,2"))


@pytest.mark.parametrize("given", [(True, "auto"), (False, "never"), (False, "auto"), (False, "anyway")])
def test_a_job_that_comes_back_starts_again_only_until_its_training_has_begun(tmp_path, monkeypatch, given):
    """The first time it is stopped before its first row: what the record holds then is what it must not go on with."""
    record, words = {"format": 1, "status": "failed"}, []
    monkeypatch.setattr(worker, "send_output_to", lambda path: None)
    monkeypatch.setattr(
        worker, "load_task", lambda *_: lambda config: words.append((config.force, config.resume))
    )
    write_json(tmp_path / "record.json", {**record, "training": "old"})
    job = worker.Job("", "", {"force": given[0], "resume": given[1]}, str(tmp_path / "output.log"))
    for training in ("old", "new", "new"):
        job()
        write_json(tmp_path / "record.json", {**record, "training": training})
        job = pickle.loads(pickle.dumps(job.checkpoint().function))
    assert words == [given, given, (False, "auto" if given[1] == "never" else given[1])]


@pytest.mark.parametrize("attempts", [0, 1])
def test_a_job_that_ended_before_its_run_began_is_not_told_the_error_of_an_earlier_one(tmp_path, attempts):
    ended = [{"id": str(number)} for number in range(1 + attempts)]
    record = {"format": 1, "status": "failed", "error": "OSError: no room", "attempts": ended}
    write_json(tmp_path / "record.json", record)
    job = SimpleNamespace(
        paths=SimpleNamespace(result_pickle=tmp_path / "none"), job_id="8_0", state="NODE_FAIL"
    )
    said = "OSError: no room" if attempts else "its job 8_0 ended as NODE_FAIL before the run was finished"
    assert why_it_failed(job, tmp_path, ended[:1]) == said
