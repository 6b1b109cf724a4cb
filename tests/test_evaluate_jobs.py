"""Evaluating several runs at a time: the same results, a failing run by name, and nothing that stays behind."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import psutil
import pytest
from omegaconf import OmegaConf

from evaluation_fixtures import chat, chat_server, finished_run
from sgdpo.runs.records import view_run

SCRIPT = Path(__file__).parents[1] / "scripts" / "evaluate.py"
NAMES = ("a", "b")


@pytest.fixture(scope="module")
def experiment(tmp_path_factory) -> Path:
    """Write outputs with two runs that began from one SFT run."""
    outputs = tmp_path_factory.mktemp("made") / "outputs"
    finished_run(outputs / "exp" / "sft", prompts=6)
    for seed, name in enumerate(NAMES, 1):
        finished_run(outputs / "exp" / name, start="sft", seed=seed, prompts=6)
    return outputs


def start(folder: Path, *words: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), *words, "benchmark.max_new_tokens=8", "device=cpu"],
        cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"COLUMNS": "250"}, preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip


def run(folder: Path, *words: str) -> tuple[int, str, str]:
    process = start(folder, *words)
    said = process.communicate(timeout=240)
    return process.returncode, *said


@pytest.mark.proof
def test_two_jobs_find_what_one_finds_in_the_order_asked_and_evaluate_the_start_once(experiment, tmp_path):
    tables, results = {}, {}
    for jobs in (1, 2):
        folder = tmp_path / str(jobs)
        shutil.copytree(experiment, folder / "outputs")
        code, said, errors = run(folder, *[f"outputs/exp/{name}" for name in "ba"], f"n_jobs={jobs}")
        assert code == 0, errors
        assert (said + errors).count("sft has no SFT start") == 1
        tables[jobs] = said[said.index("\u250f") :]
        results[jobs] = {name: view_run(folder / "outputs/exp" / name)["eval"] for name in (*NAMES, "sft")}
    assert tables[1] == tables[2]
    assert results[1] == results[2]
    assert "runs: 100%" in errors
    (line,) = (line for line in errors.split("\n") if "sft has no SFT start" in line)
    assert "runs:" not in line.rpartition("\r")[2], "a worker's line runs into the bar"


@pytest.mark.slow
def test_a_run_that_fails_is_named_in_one_error(experiment, tmp_path):
    shutil.copytree(experiment, tmp_path / "outputs")
    file = tmp_path / "outputs/exp/b/config.yaml"
    config = OmegaConf.load(file)
    config.data.settings.world.prompts = -1
    OmegaConf.save(config, file)
    code, _, errors = run(tmp_path, *[f"outputs/exp/{name}" for name in NAMES], "n_jobs=2")
    assert code == 1
    assert "Traceback" not in errors
    said = [line for line in errors.splitlines() if "error: " in line]
    assert len(said) == 1
    assert "outputs/exp/b: data.world.prompts must be at least 0" in said[0]
    code, _, errors = run(tmp_path, "outputs/exp/a", "n_jobs=0")
    assert (code, errors.strip()) == (2, "error: n_jobs must be at least 1, not 0")


@pytest.mark.slow
def test_nothing_is_left_running_by_ctrl_c_and_a_killed_worker_is_said(experiment, tmp_path, monkeypatch):
    """A served model keeps both workers waiting for its answers."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test-123456")
    shutil.copytree(experiment, tmp_path / "outputs")
    asked, go = threading.Event(), threading.Event()

    def reply(request, number):
        asked.set()
        go.wait(120)
        return chat("7")

    def workers(process):
        assert asked.wait(120), process.communicate(timeout=5)
        until = time.monotonic() + 60
        while len(found := psutil.Process(process.pid).children()) < 2:
            assert time.monotonic() < until
            time.sleep(0.1)
        return found

    with chat_server(reply) as server:
        words = ["outputs/exp/a", "outputs/exp/b", "n_jobs=2", "generator=openai", "generator.model=m"]
        words += [f"generator.base_url={server.base_url}", "benchmark.baseline=null"]
        process = start(tmp_path, *words)
        running = workers(process)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 130
        assert "stopped; the same command continues" in errors
        assert not any(worker.is_running() for worker in running)
        asked.clear()
        process = start(tmp_path, *words)
        workers(process)[0].kill()
        _, errors = process.communicate(timeout=60)
        go.set()
    assert process.returncode == 1
    assert "its process was killed by SIGKILL (out of memory, or killed from outside)" in errors
    assert "error: outputs/exp/" in errors
