"""The run record survives what a long job meets: a kill, a torn line, other settings, a broken neighbour."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sgdpo.runs import records
from sgdpo.runs.records import Record, amend_record, find_result, find_run, read_runs, require_runs, view_run
from sgdpo.store import read_jsonl

SETTINGS = {
    "method": {"name": "sgdpo", "beta": 0.1},
    "model": {"name": "tiny_llama"},
    "data": {"name": "verifiable"},
    "ratio": {"chosen": 0.6, "rejected": 0.9},
    "optimizer": {"lr": 1e-5},
    "seed": 42,
}


def open_record(folder: Path, *, settings=SETTINGS, digest="aaaa", result="rrrr", resume=False) -> Record:
    return Record.open(
        folder,
        name=folder.name,
        experiment=folder.parent.name,
        settings=settings,
        settings_hash=digest,
        result_hash=result,
        phase="preference",
        resume=resume,
    )


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
    for step in (1, 2, 3):
        record.log(row(step, loss=1.0 / step))
    record.note(tracker={"id": "abc", "mode": "offline", "folder": "wandb"})
    edit(folder, seconds=100.0)
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"step": 4, "spl')
    again = open_record(folder, resume=True)
    again.truncate_after(2)
    again.log(row(3, loss=9.0))
    again.finish()
    assert [r["loss"] for r in read_jsonl(folder / "metrics.jsonl", torn_end=True)] == [1.0, 0.5, 9.0]
    assert view_run(folder)["seconds"] >= 100.0
    assert view_run(folder)["tracker"]["id"] == "abc"


def test_without_resume_an_earlier_attempt_is_replaced(tmp_path):
    folder = tmp_path / "default" / "run"
    open_record(folder).log(row(1))
    open_record(folder, resume=False).log(row(7))
    assert [r["step"] for r in read_jsonl(folder / "metrics.jsonl", torn_end=True)] == [7]


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


def test_a_killed_run_is_interrupted_and_may_be_resumed(tmp_path):
    folder = tmp_path / "default" / "run"
    code = (
        "import sys, time; sys.path[:0] = ['src', 'tests']\n"
        "from pathlib import Path; from test_records import open_record, row\n"
        f"open_record(Path({str(folder)!r})).log(row(1, loss=1.0)); print('ready', flush=True)\n"
        "time.sleep(60)"
    )
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=records_root())
    assert child.stdout.readline() == b"ready\n"
    assert view_run(folder).status == "running"
    with pytest.raises(ValueError, match=f"being trained by process {child.pid}"):
        open_record(folder, resume=True)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert view_run(folder).status == "interrupted"
    open_record(folder, resume=True).finish()
    assert view_run(folder).status == "finished"


def test_a_recycled_process_id_does_not_look_alive_and_another_machine_is_not_judged(tmp_path):
    folder = tmp_path / "default" / "run"
    open_record(folder)
    assert view_run(folder).status == "running"
    edit(folder, pid_started=1.0)
    assert view_run(folder).status == "interrupted"
    edit(folder, pid_started=1.0, machine="elsewhere")
    assert view_run(folder).status == "running"


def test_a_failed_run_says_why_and_keeps_its_metrics(tmp_path):
    record = open_record(tmp_path / "default" / "run")
    record.log(row(1, loss=1.0))
    record.fail("loss is NaN at step 2")
    run = view_run(record.folder)
    assert (run.status, run.error, len(run.metrics())) == ("failed", "loss is NaN at step 2", 1)


def test_runs_are_found_by_settings_in_their_experiment_and_by_result_in_any(tmp_path):
    open_record(tmp_path / "one" / "a", digest="s1", result="r1").finish()
    open_record(tmp_path / "two" / "b", digest="s2", result="r2").fail("no")
    assert find_run(tmp_path, "one", "s1").name == "a"
    assert find_run(tmp_path, "two", "s1") is None
    assert find_run(tmp_path, "two", "s2").status == "failed"
    assert find_result(tmp_path, "r1").experiment == "one"
    assert find_result(tmp_path, "r2") is None, "a failed run is no result"


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


def test_the_record_does_without_git(monkeypatch):
    def no_git(*arguments):
        raise FileNotFoundError("git")

    monkeypatch.setattr("sgdpo.runs.provenance._git", no_git)
    assert records.git_state.__wrapped__() == {"commit": None, "dirty": None}


def edit(folder: Path, **fields) -> None:
    path = folder / "record.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def records_root() -> Path:
    return Path(records.__file__).parents[2]
