"""The run record survives what a long job meets: a kill, a torn line, other settings, a broken neighbour."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sgdpo.config.identity import Identity
from sgdpo.runs import provenance
from sgdpo.runs.records import Record, amend_record, find_runs, read_runs, require_runs, view_run
from sgdpo.store import read_jsonl

SETTINGS = {
    "method": {"name": "sgdpo", "beta": 0.1},
    "model": {"name": "tiny_llama"},
    "data": {"name": "verifiable"},
    "ratio": {"chosen": 0.6, "rejected": 0.9},
    "optimizer": {"lr": 1e-5},
    "seed": 42,
}


def open_record(
    folder: Path, *, settings=SETTINGS, digest="aaaa", result="rrrr", checkpoint=None, force=False
) -> Record:
    identity = Identity(folder.name, settings, {}, digest, digest, result, result)
    return Record.open(folder, identity, phase="preference", checkpoint=checkpoint, force=force)


def row(step: int, split: str = "train", **metrics: float) -> dict:
    return {"step": step, "epoch": step / 10, "split": split, **metrics}


def test_a_finished_record_holds_what_a_table_needs(tmp_path):
    record = open_record(tmp_path / "default" / "run")
    record.log(row(1, loss=0.7))
    record.log(row(2, loss=0.5))
    record.log(row(2, "eval", loss=0.6))
    record.finish(data={"fingerprint": "f", "counts": {"train": {"read": 3}}})
    run = view_run(record.folder)
    assert run.status == "finished"
    assert run["final"] == {"train": row(2, loss=0.5), "eval": row(2, "eval", loss=0.6)}
    assert [run[key] for key in ("method", "model", "dataset", "seed")] == [
        "sgdpo",
        "tiny_llama",
        "verifiable",
        42,
    ]
    assert run["data"]["fingerprint"] == "f"
    assert run["ratio"] == {"chosen": 0.6, "rejected": 0.9}
    assert run["versions"]["torch"]
    assert set(run["git"]) == {"commit", "dirty"}
    assert run["peak_memory_mb"] > 10
    assert run["seconds"] >= 0
    assert [r["step"] for r in run.metrics()] == [1, 2, 2]


def test_rows_are_on_disk_as_soon_as_they_are_logged(tmp_path):
    record = open_record(tmp_path / "default" / "run")
    record.log(row(1, loss=1.0))
    assert read_jsonl(record.folder / "metrics.jsonl", torn_end=True) == [row(1, loss=1.0)]


def test_a_number_that_is_not_finite_is_null_and_every_line_is_strict_json(tmp_path):
    record = open_record(tmp_path / "default" / "run")
    record.log(row(1, loss=math.nan, grad_norm=math.inf))
    line = (record.folder / "metrics.jsonl").read_text()
    assert json.loads(line, parse_constant=pytest.fail)["loss"] is None


def test_resume_drops_later_rows_and_a_torn_last_line_and_adds_up_the_seconds(tmp_path):
    folder = tmp_path / "default" / "run"
    record = open_record(folder)
    for step in (1, 2):
        record.log(row(step, loss=1.0 / step))
    checkpoint = {"step": 2, **record.mark()}
    record.log(row(3, loss=0.3))
    record.note(tracker={"id": "abc", "mode": "offline", "folder": "wandb"})
    record.leave()
    (folder / ".heartbeat").write_text("100.0")  # its last sign of life
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"step": 4, "spl')
    again = open_record(folder, checkpoint=checkpoint)
    again.log(row(3, loss=9.0))
    again.finish()
    assert [r["loss"] for r in read_jsonl(folder / "metrics.jsonl")] == [1.0, 0.5, 9.0]
    run = view_run(folder)
    assert run["seconds"] >= 100.0
    assert run["tracker"]["id"] == "abc"
    assert [attempt["seconds"] >= 100.0 for attempt in run["attempts"]] == [True, False]
    assert [attempt["from_step"] for attempt in run["attempts"]] == [0, 2]
    assert run["training"] == run["attempts"][0]["id"]


def test_without_a_checkpoint_an_earlier_attempt_is_replaced(tmp_path):
    folder = tmp_path / "default" / "run"
    open_record(folder).log(row(1))
    open_record(folder).log(row(7))
    assert [r["step"] for r in read_jsonl(folder / "metrics.jsonl", torn_end=True)] == [7]


@pytest.mark.parametrize("force", [True, False])
def test_what_an_earlier_attempt_left_stays_until_the_new_one_has_a_row(tmp_path, force):
    """A forced run that fails as it reads its data must cost nothing."""
    folder = tmp_path / "default" / "run"
    record = open_record(folder)
    record.log(row(1, loss=1.0))
    (folder / "checkpoints" / "checkpoint-1").mkdir(parents=True)
    (folder / "model").mkdir()
    record.finish() if force else record.leave()
    again = open_record(folder, force=force)
    again.note(steps=3)
    again.fail("the token cache is torn")
    run = view_run(folder)
    assert [r["step"] for r in run.metrics()] == [1]
    assert (run.status, run.error) == (("finished", None) if force else ("failed", "the token cache is torn"))
    assert (folder / "checkpoints" / "checkpoint-1").is_dir()
    third = open_record(folder, force=force)
    third.log(row(1, loss=2.0))
    assert [r["loss"] for r in read_jsonl(folder / "metrics.jsonl")] == [2.0]
    assert not (folder / "checkpoints").exists()
    assert not (folder / "model").exists()
    assert view_run(folder).status == "running"


def test_an_attempt_that_starts_again_removes_a_link_to_weights_and_not_the_weights(tmp_path):
    """A run that trains nothing links to its model's own; killed before its end, it could never be made again."""
    weights = tmp_path / "weights"
    weights.mkdir()
    (weights / "model.safetensors").write_text("whole")
    for _ in range(2):
        record = open_record(tmp_path / "default" / "run")
        record.note(steps=0)
        (record.folder / "model").symlink_to(weights)
        record.leave()
    assert (weights / "model.safetensors").read_text() == "whole"


def test_a_damaged_line_that_is_not_the_last_is_named(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(ValueError, match="line 2"):
        read_jsonl(path, torn_end=True)


def test_another_runs_folder_is_refused_with_the_setting_that_differs(tmp_path):
    folder = tmp_path / "default" / "run"
    open_record(folder).finish()
    other = {**SETTINGS, "optimizer": {"lr": 2e-5}}
    with pytest.raises(ValueError, match=r"optimizer\.lr is 1e-05 there, 2e-05 here"):
        open_record(folder, settings=other, digest="bbbb")


def test_a_record_of_another_format_is_refused(tmp_path):
    folder = tmp_path / "default" / "run"
    open_record(folder).finish()
    edit(folder, format=99)
    with pytest.raises(ValueError, match="format 99, this code reads format 1"):
        open_record(folder)
    assert view_run(folder).status == "broken"


@contextmanager
def opened_elsewhere(folder: Path, host: str = "") -> Iterator[subprocess.Popen]:
    """A process, on this host or on one of another name, that has opened the record and works."""
    code = (
        "import sys, time; sys.path[:0] = ['src', 'tests']\n"
        "from pathlib import Path; from test_records import open_record, row\n"
        f"open_record(Path({str(folder)!r})).log(row(1, loss=1.0)); print('ready', flush=True)\n"
        "time.sleep(60)"
    )
    command, environment = [sys.executable, "-c", code], {**os.environ, "SGDPO_HOST": host}
    child = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[1], env=environment)
    try:
        assert child.stdout.readline() == b"ready\n"
        yield child
    finally:
        child.kill()
        child.wait()


def test_a_killed_run_is_interrupted_and_may_be_resumed(tmp_path):
    folder = tmp_path / "default" / "run"
    with opened_elsewhere(folder) as child:
        assert view_run(folder).status == "running"
        with pytest.raises(ValueError, match=f"being trained by process {child.pid}"):
            open_record(folder)
    assert view_run(folder).status == "interrupted"
    open_record(folder).finish()
    assert view_run(folder).status == "finished"


@pytest.mark.parametrize("force", [True, False])
def test_on_another_host_a_sign_of_life_tells_the_living_from_the_dead(tmp_path, force):
    """A record that says running must neither count as alive for ever nor be taken from a process that works."""
    folder, long_ago = tmp_path / "default" / "run", time.time() - 3600
    with opened_elsewhere(folder, "another host") as child:
        assert view_run(folder).status == "running"
        pid = os.getpid() if force else child.pid  # each container counts its own from 1
        edit(folder, pid=pid)
        with pytest.raises(ValueError, match=f"being trained by process {pid}"):
            open_record(folder, force=force)
    os.utime(folder / ".heartbeat", (long_ago, long_ago))
    assert view_run(folder).status == "interrupted"
    open_record(folder, force=force).finish()
    machines = [attempt["machine"] for attempt in view_run(folder)["attempts"]]
    assert len(set(machines)) == 2


@pytest.mark.parametrize("host", ["", "another host"])
@pytest.mark.parametrize("hours", [-3, 3])
def test_a_clock_that_is_set_takes_no_run_from_the_living(tmp_path, monkeypatch, host, hours):
    """The clock of whoever looks is wrong by hours; then that of the disk is set, so that the last beat looks old."""
    folder, real, off = tmp_path / "default" / "run", time.time, hours * 3600
    with opened_elsewhere(folder, host) as child:
        monkeypatch.setattr(time, "time", lambda: real() + off)
        assert view_run(folder).status == "running"
        os.utime(folder / ".heartbeat", (real() - off, real() - off))
        with pytest.raises(ValueError, match=f"being trained by process {child.pid}"):
            open_record(folder)
        assert view_run(folder).status == "running"
    os.utime(folder / ".heartbeat", (real() - off, real() - off))
    assert view_run(folder).status == "interrupted"


def test_a_recycled_process_id_does_not_look_alive_and_another_machine_is_judged_by_its_sign_of_life(
    tmp_path,
):
    folder = tmp_path / "default" / "run"
    open_record(folder).leave()
    assert view_run(folder).status == "running"
    edit(folder, pid_started=1.0)
    assert view_run(folder).status == "interrupted"
    edit(folder, pid_started=1.0, machine="elsewhere")
    assert view_run(folder).status == "running"
    long_ago = time.time() - 60
    os.utime(folder / ".heartbeat", (long_ago, long_ago))
    assert view_run(folder).status == "interrupted"


def test_a_failed_run_says_why_and_keeps_its_metrics(tmp_path):
    record = open_record(tmp_path / "default" / "run")
    record.log(row(1, loss=1.0))
    record.fail("loss is NaN at step 2")
    run = view_run(record.folder)
    assert (run.status, run.error, len(run.metrics())) == ("failed", "loss is NaN at step 2", 1)


def test_runs_are_found_by_a_value_of_their_record_the_finished_first(tmp_path):
    open_record(tmp_path / "one" / "a", digest="s1", result="r1").fail("no")
    open_record(tmp_path / "one" / "b", digest="s1", result="r1").finish()
    open_record(tmp_path / "two" / "a", digest="s2", result="r1").finish()
    assert [run.name for run in find_runs(tmp_path, "one", "*", "run_hash", "s1")] == ["b", "a"]
    assert [run.name for run in find_runs(tmp_path, "one", "a*", "run_hash", "s1")] == ["a"]
    assert find_runs(tmp_path, "two", "*", "run_hash", "s1") == []
    assert len(find_runs(tmp_path, None, "*", "result_hash", "r1")) == 3


def test_one_broken_record_does_not_hide_the_others(tmp_path):
    open_record(tmp_path / "one" / "a").finish()
    (tmp_path / "one" / "b").mkdir()
    (tmp_path / "one" / "b" / "record.json").write_text("{")
    assert [(run.name, run.status) for run in read_runs(tmp_path)] == [("a", "finished"), ("b", "broken")]


def test_an_unknown_experiment_lists_those_that_exist_and_the_command(tmp_path):
    open_record(tmp_path / "one" / "a").finish()
    with pytest.raises(ValueError, match=r"'tow'.*there: one\).*make table3"):
        require_runs(tmp_path, "tow", "make table3")


def test_evaluations_are_added_to_a_finished_record(tmp_path):
    folder = tmp_path / "one" / "a"
    open_record(folder).finish()
    amend_record(folder, eval={"verifiable-checker": {"score_mean": 7.5}})
    amend_record(folder, eval={"mt_bench-gpt4": {"overall": 6.0}})
    assert view_run(folder)["eval"] == {
        "verifiable-checker": {"score_mean": 7.5},
        "mt_bench-gpt4": {"overall": 6.0},
    }
    assert view_run(folder).status == "finished"


def test_the_record_holds_no_machine_name_and_no_folder(tmp_path):
    record = open_record(tmp_path / "default" / "run")
    record.finish()
    text = (record.folder / "record.json").read_text()
    assert os.uname().nodename not in text
    assert str(tmp_path) not in text


@pytest.mark.parametrize("missing", ["PATH", "GIT_DIR"])
def test_the_record_does_without_git(monkeypatch, tmp_path, missing):
    """No such program, or no repository."""
    monkeypatch.setenv(missing, str(tmp_path))
    assert provenance.git_state.__wrapped__() == {"commit": None, "dirty": None}


def edit(folder: Path, **fields) -> None:
    path = folder / "record.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))
