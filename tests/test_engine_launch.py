"""A relaunched run shows rank 0, keeps every rank's log, names the first failure, and leaves no orphan."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from marks import proofs_but
from sgdpo.config.compose import compose_run, to_run_config
from sgdpo.engine.launch import LaunchError, is_distributed, launch, signs_of_life
from sgdpo.engine.ranks import RankFiles
from sgdpo.runs.run import Run

TESTS = Path(__file__).parent
SRC = TESTS.parent / "src"


@pytest.fixture(autouse=True)
def _actors_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(TESTS))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def play(act: str, outputs: Path, *overrides: str) -> tuple[Run, RankFiles]:
    base = ["engine=ddp", "engine.num_processes=2", "device=cpu", f"experiment={act}", f"outputs={outputs}"]
    run = Run.of(to_run_config(compose_run([*base, *overrides])))
    return run, RankFiles(run.folder / "ranks")


def launched(run: Run) -> int:
    return launch(run.config, run.folder, run.to_json(), "acting_rank")


def test_one_process_without_deepspeed_stays_in_this_process() -> None:
    assert not is_distributed(to_run_config(compose_run([])))
    assert is_distributed(to_run_config(compose_run(["engine=ddp"])))
    assert is_distributed(to_run_config(compose_run(["engine=zero3", "engine.num_processes=1"])))


def test_rank_0_is_shown_and_every_rank_has_its_log(tmp_path: Path, capsys) -> None:
    """1 + 2 = 3: the two ranks really met."""
    run, files = play("done", tmp_path)
    assert launched(run) == 0
    assert "rank 0 of 2 sees the sum 3" in capsys.readouterr().out
    assert "rank 1 of 2 sees the sum 3" in files.log(1).read_text()
    assert not any(_alive(pid) for pid in _pids(files))


@pytest.mark.slow
@pytest.mark.parametrize("act", proofs_but(("raises", "killed", "bad_input"), "killed", "bad_input"))
def test_the_first_rank_that_failed_is_named_with_its_reason(tmp_path: Path, act: str) -> None:
    run, files = play(act, tmp_path)
    with pytest.raises(LaunchError) as caught:
        launched(run)
    said = str(caught.value)
    if act == "raises":
        assert said.startswith("rank 1 failed first: KeyError: 'what rank 1 could not find'")
        assert "in raises" in said  # the traceback
    elif act == "killed":
        assert said.startswith("rank 1 was ended by SIGKILL")
    else:
        assert "the disk was full while something was saved" in said
        assert "Traceback" not in said  # an expected error is one sentence; the traceback is in the log
        assert "Traceback" in files.log(0).read_text()
    assert not any(_alive(pid) for pid in _pids(files))


@pytest.mark.slow
def test_a_run_in_which_nothing_moves_is_stopped(tmp_path: Path) -> None:
    """0.4 minutes are 24 s: on a busy machine the ranks take 10 s to start."""
    run, files = play("hangs", tmp_path, "engine.timeout_minutes=0.4")
    began = time.time()
    with pytest.raises(
        LaunchError, match=r"no rank has shown a sign of life for 0\.4 minutes[\s\S]*rank 1 in hangs"
    ):
        launched(run)
    assert time.time() - began < 90
    assert not any(_alive(pid) for pid in _pids(files))


@pytest.mark.proof
def test_a_rank_that_hangs_after_anothers_failure_is_not_out_of_memory(tmp_path: Path) -> None:
    """The agent waits half a minute for it, then kills it: the failure comes first, the hang is named as one."""
    run, files = play("stuck", tmp_path)
    with pytest.raises(LaunchError) as caught:
        launched(run)
    said = str(caught.value)
    assert said.startswith("rank 1 failed first: KeyError: 'what rank 1 could not find'")
    assert "rank 0 hung: it did not answer and had to be killed" in said
    assert "memory" not in said
    assert not any(_alive(pid) for pid in _pids(files))


@pytest.mark.slow
def test_checkpoints_may_go_while_the_watch_looks_at_them(tmp_path: Path) -> None:
    """`make soak` found a run that ended because its watch read a folder that was being pruned."""
    done = threading.Event()

    def save_and_prune() -> None:
        while not done.is_set():
            for step in range(8):
                (tmp_path / f"checkpoint-{step}" / "a" / "b").mkdir(parents=True)
            for step in range(8):
                shutil.rmtree(tmp_path / f"checkpoint-{step}")

    thread = threading.Thread(target=save_and_prune)
    thread.start()
    try:
        assert not any(signs_of_life(tmp_path) for _ in range(1000))
    finally:
        done.set()
        thread.join()


def test_what_other_processes_write_is_no_sign_of_a_ranks_life(tmp_path: Path) -> None:
    """W&B's service writes what the machine does, and a thread its heartbeat, while the ranks hang."""
    for name in ("wandb/offline-run-1/run-1.wandb", ".heartbeat", "ranks/rank0.log"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    signs = signs_of_life(tmp_path)
    for name in ("wandb/offline-run-1/run-1.wandb", "wandb/new", ".heartbeat"):
        (tmp_path / name).write_text("more")
    assert signs_of_life(tmp_path) == signs
    for earlier in (0, 3 * 3600):  # a clock set back gives new signs older times
        os.utime(tmp_path / "ranks/rank0.log", (time.time() - earlier,) * 2)
        assert signs_of_life(tmp_path) != signs
        signs = signs_of_life(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("hours", proofs_but((-3, 3), 3))
def test_a_clock_that_is_set_stops_no_launch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hours: int
) -> None:
    began, real = time.monotonic(), time.time
    monkeypatch.setattr(time, "time", lambda: real() + (hours * 3600 if time.monotonic() - began > 2 else 0))
    run, files = play("done", tmp_path, "engine.timeout_minutes=1")
    assert launched(run) == 0
    assert files.result.is_file()


@pytest.mark.proof
def test_an_abort_after_all_work_is_done_is_no_failure(tmp_path: Path) -> None:
    """gloo aborts at exit now and then; rank 0's result says that the work was done."""
    run, files = play("aborts_at_exit", tmp_path)
    assert launched(run) == 0
    assert files.result.is_file()


@pytest.mark.slow
def test_two_machines_meet_at_the_address_in_the_environment(tmp_path: Path) -> None:
    """Two launches on this machine play two machines of one process each: ranks 0 and 1 see 1 + 2 = 3."""
    run, files = play("done", tmp_path, "engine.num_nodes=2", "engine.num_processes=1")
    with socket.socket() as probe:
        probe.bind(("", 0))
        port = probe.getsockname()[1]
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "PYTHONPATH": f"{SRC}{os.pathsep}{TESTS}"}
    command = [sys.executable, "-c", LAUNCH, json.dumps(run.to_json())]
    machines = [subprocess.Popen(command, env={**os.environ, **place, "NODE_RANK": node}) for node in "01"]
    assert [machine.wait(120) for machine in machines] == [0, 0]
    for rank in (0, 1):
        assert (
            f"rank {rank} of 2 sees the sum 3"
            in (files.folder / f"node{rank}" / f"rank{rank}.log").read_text()
        )


LAUNCH = """
import json, sys
from sgdpo.engine.launch import launch
from sgdpo.runs.run import Run
run = Run.from_json(json.loads(sys.argv[1]))
launch(run.config, run.folder, run.to_json(), "acting_rank")
"""


@pytest.mark.slow
def test_no_rank_outlives_a_killed_parent(tmp_path: Path) -> None:
    run, files = play("hangs", tmp_path)
    environment = {**os.environ, "PYTHONPATH": f"{SRC}{os.pathsep}{TESTS}"}
    parent = subprocess.Popen([sys.executable, "-c", LAUNCH, json.dumps(run.to_json())], env=environment)
    _wait(lambda: all("sees the sum 3" in _text(files.log(rank)) for rank in (0, 1)))
    parent.send_signal(signal.SIGKILL)
    parent.wait(20)
    _wait(lambda: not any(_alive(pid) for pid in _pids(files)))


def _pids(files: RankFiles) -> list[int]:
    found = [int(path.read_text()) for path in files.folder.glob("pid*")]
    assert len(found) == 2
    return found


def _alive(pid: int) -> bool:
    status = Path(f"/proc/{pid}/status")
    return status.is_file() and "State:\tZ" not in status.read_text()


def _text(path: Path) -> str:
    return path.read_text() if path.is_file() else ""


def _wait(condition, seconds: float = 60) -> None:
    until = time.time() + seconds
    while not condition():
        assert time.time() < until, "it did not happen in time"
        time.sleep(0.1)
