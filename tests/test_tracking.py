"""W&B mirrors metrics.jsonl: read back from the real offline file, resumed, and without a server."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from PIL import Image

import killed_run as train
from marks import proofs_but
from sgdpo.config.schema import TrackingConfig
from sgdpo.processes import without_environment
from sgdpo.runs.records import RunView, read_runs, view_run
from sgdpo.runs.run import execute
from sgdpo.runs.tracking import (
    GRACE,
    NoTracker,
    browse_hint,
    choose_mode,
    open_tracker,
)
from sgdpo.store import read_jsonl
from wandb_files import CONFIG, entries, history, log, mirrored, offline_file, open_record, rows, without_key


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    without_key(monkeypatch, tmp_path)


def test_the_offline_file_read_back_equals_the_metrics(tmp_path):
    record = open_record(tmp_path / "speed" / "run")
    tracker = open_tracker(TrackingConfig(tags=["mine"]), record, CONFIG)
    log(record, tracker, rows(range(1, 6)))
    Image.new("RGB", (4, 4)).save(tmp_path / "curve.png")
    tracker.image("reward_curves", tmp_path / "curve.png")
    tracker.finish({"seconds": 3.5})
    record.finish()
    assert history(record) == mirrored(read_jsonl(record.folder / "metrics.jsonl", torn_end=True))
    assert entries(record, "history")[-1]["item"]["reward_curves._type"] == "image-file"
    (run,) = entries(record, "run")
    assert (run["project"], run["run_group"], run["job_type"]) == ("sgdpo", "speed", "preference")
    assert run["display_name"] == "run"
    assert run["tags"] == ["dpo", "tiny_llama", "verifiable", "mine"]
    assert run["config"]["update"]["ratio"] == {"chosen": 0.6, "rejected": 0.9}
    hint = browse_hint(view_run(record.folder))
    assert f"wandb leet {record.folder}/wandb/offline-run-" in hint
    odd = RunView(Path("my runs"), {"tracker": {"folder": "wandb/a", "mode": "offline"}}, "finished")
    assert "wandb leet 'my runs/wandb/a'\n" in browse_hint(odd)
    assert "wandb sync" in hint


def test_a_resumed_offline_run_is_one_whole_run_under_its_old_id(tmp_path):
    """Steps 3 and 4 were logged, the checkpoint was at 2: they come again, once, beside 1 and 2 and the answers."""
    folder = tmp_path / "default" / "run"
    record = open_record(folder)
    tracker = open_tracker(TrackingConfig(mode="offline"), record, CONFIG)
    log(record, tracker, rows(range(1, 3)))
    tracker.table("samples", record.sample([{"step": 2, "number": 0, "response": "yes"}]))
    checkpoint = {"step": 2, **record.mark()}
    log(record, tracker, rows(range(3, 5)))
    first = record.fields["tracker"]["id"]
    tracker.finish({}, failed=True)
    again = open_record(folder, checkpoint)
    tracker = open_tracker(TrackingConfig(mode="offline"), again, CONFIG)
    log(again, tracker, rows(range(3, 7)))
    tracker.finish({})
    again.finish()
    assert again.fields["tracker"]["id"] == first
    assert history(again) == mirrored(rows(range(1, 7)))
    assert [entry["item"].get("samples.nrows") for entry in entries(again, "history")][1] == 1


def test_a_run_that_starts_again_from_nothing_replaces_its_offline_file(tmp_path):
    folder = tmp_path / "default" / "run"
    record = open_record(folder)
    tracker = open_tracker(TrackingConfig(mode="offline"), record, CONFIG)
    log(record, tracker, rows(range(1, 4)))
    tracker.finish({}, failed=True)
    record.fail("out of memory")
    again = open_record(folder)
    tracker = open_tracker(TrackingConfig(mode="offline"), again, CONFIG)
    log(again, tracker, rows(range(1, 3)))
    tracker.finish({})
    assert again.fields["tracker"]["id"] == record.fields["tracker"]["id"]
    assert history(again) == mirrored(rows(range(1, 3)))


@pytest.mark.parametrize(
    ("ended", "sent"),
    [
        ("finished", "synced"),
        ("failed", "synced"),
        ("finished", None),
        ("failed", None),
        ("failed", "syncstate"),
    ],
)
def test_a_run_that_is_told_to_start_again_is_never_mixed_with_the_earlier_one(tmp_path, ended, sent):
    """What is offline is replaced by the first row, a further file of it too; what W&B has stays a run of its own."""
    folder = tmp_path / "default" / "run"
    record = open_record(folder)
    tracker = open_tracker(TrackingConfig(), record, CONFIG)
    log(record, tracker, rows(range(1, 7)))
    tracker.finish({})
    record.finish() if ended == "finished" else record.fail("out of memory")
    old = offline_file(record).parent
    if sent:
        (old / f"run.wandb.{sent}").touch()  # W&B's own: it has all rows, or those of a run that was killed
    else:
        shutil.copytree(old, old.with_name(f"offline-run-20200101_000000-{old.name.split('-')[-1]}"))
    again = open_record(folder)
    tracker = open_tracker(TrackingConfig(), again, CONFIG, again=True)
    assert old.exists(), "an attempt that ends before its first row has replaced nothing"
    log(again, tracker, rows(range(1, 3)))
    tracker.finish({})
    again.finish()
    assert old.exists() == (sent == "synced")
    if sent:
        assert again.fields["tracker"]["id"] not in old.name
    if sent == "synced":
        shutil.rmtree(old)
    assert history(view_run(folder)) == mirrored(rows(range(1, 3)))


def test_a_forced_run_leaves_one_offline_run_and_its_metrics_are_in_it(tmp_path):
    train.write_inputs(tmp_path / "place")
    config = replace(train.composed(tmp_path / "place"), tracking=TrackingConfig(mode="offline"))
    folder = execute(config)
    assert execute(replace(config, force=True)) == folder
    assert history(view_run(folder)) == mirrored(read_jsonl(folder / "metrics.jsonl"))


def test_what_was_synced_before_is_not_written_twice(tmp_path):
    folder = tmp_path / "default" / "run"
    record = open_record(folder)
    tracker = open_tracker(TrackingConfig(mode="offline"), record, CONFIG)
    log(record, tracker, rows(range(1, 3)))
    tracker.finish({})
    synced = offline_file(record)
    synced.with_suffix(".wandb.synced").touch()
    again = open_record(folder, {"step": 2, **record.mark()})
    tracker = open_tracker(TrackingConfig(), again, CONFIG)
    log(again, tracker, rows(range(3, 5)))
    tracker.finish({})
    assert synced.exists()
    synced.unlink()
    assert history(again) == mirrored(rows(range(3, 5)))


@pytest.mark.parametrize("recorded", [True, False], ids=["after the record", "before the record"])
def test_a_kill_while_wandb_starts_leaves_no_second_offline_run(tmp_path, recorded):
    """A kill between the new offline file and the record, or before its rows: both would be uploaded."""
    folder = tmp_path / "default" / "run"
    record = open_record(folder)
    tracker = open_tracker(TrackingConfig(), record, CONFIG)
    log(record, tracker, rows(range(1, 3)))
    checkpoint = {"step": 2, **record.mark()}
    tracker.finish({}, failed=True)
    killed = offline_file(record).parent
    shutil.copytree(killed, killed.with_name(f"offline-run-20200101_000000-{killed.name.split('-')[-1]}"))
    if not recorded:
        record.note(tracker={**record.fields["tracker"], "folder": None})
    again = open_record(folder, checkpoint)
    tracker = open_tracker(TrackingConfig(), again, CONFIG)
    log(again, tracker, rows(range(3, 5)))
    tracker.finish({})
    assert history(again) == mirrored(rows(range(1, 5)))


# ---- W&B's service dies, hangs or loses its disk ------------------------------------------------------------


def service() -> psutil.Process:
    (found,) = [child for child in psutil.Process().children() if child.name() == "wandb-core"]
    return found


def lose_the_disk(process: psutil.Process, folder: Path) -> None:
    """No file may grow any more, of this one process alone."""
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (0, 0))


FAULTS = {
    "killed": lambda process, folder: process.kill(),
    "hangs": lambda process, folder: process.suspend(),
    "full disk": lose_the_disk,
    "folder gone": lambda process, folder: shutil.rmtree(folder / "wandb"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_service_that_fails_in_mid_run_is_one_line_and_a_bounded_wait(tmp_path, caplog, capfd, fault):
    """The run logs on without waiting; the next run of the same process has a service again."""
    record = open_record(tmp_path / "default" / "run")
    tracker = open_tracker(TrackingConfig(finish_timeout=1), record, CONFIG)
    log(record, tracker, rows(range(1, 4)))
    wandb_core = service()
    FAULTS[fault](wandb_core, record.folder)
    began = time.monotonic()
    for _ in range(10):  # more than a socket holds
        log(record, tracker, [{**row, "much": "x" * 100_000} for row in rows(range(4, 8))])
        tracker.note("a line of the log")
    assert time.monotonic() - began < 2
    record.finish()
    tracker.finish({"seconds": 1.0})
    assert time.monotonic() - began < 2 * (1 + GRACE) + 2
    said = [line.message for line in caplog.records if "W&B" in line.message]
    assert len(said) == 1, said
    assert capfd.readouterr().err.count("Traceback") == 0
    assert view_run(record.folder).status == "finished"

    assert not wandb_core.is_running()
    after = open_record(tmp_path / "default" / "next")
    tracker = open_tracker(TrackingConfig(), after, CONFIG)
    log(after, tracker, rows(range(1, 3)))
    tracker.finish({})
    assert history(after) == mirrored(rows(range(1, 3)))


@pytest.mark.slow
def test_a_server_that_does_not_answer_leaves_an_offline_run(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    record = open_record(tmp_path / "default" / "run")
    tracker = open_tracker(TrackingConfig(init_timeout=2), record, CONFIG)
    log(record, tracker, rows(range(1, 3)))
    tracker.finish({})
    assert record.fields["tracker"]["mode"] == "offline"
    assert history(record) == mirrored(rows(range(1, 3)))
    assert "written offline" in caplog.text


@pytest.mark.parametrize(
    ("environment", "wanted", "mode"),
    [
        (None, "auto", "offline"),
        (None, "online", "offline"),
        (None, "offline", "offline"),
        ("offline", "online", "offline"),
        ("dryrun", "auto", "offline"),
        ("disabled", "auto", "disabled"),
    ],
)
def test_without_a_key_every_mode_is_offline_and_the_environment_wins(monkeypatch, environment, wanted, mode):
    if environment:
        monkeypatch.setenv("WANDB_MODE", environment)
    assert choose_mode(wanted) == mode


def test_a_malformed_key_is_said_and_the_run_is_offline(monkeypatch, caplog):
    monkeypatch.setenv("WANDB_API_KEY", "too-short")
    assert choose_mode("auto") == "offline"
    assert "key cannot be used" in caplog.text


def test_an_unknown_mode_is_refused():
    with pytest.raises(ValueError, match="auto, online, offline or disabled"):
        choose_mode("onlin")


def test_the_run_of_a_wandb_agent_has_the_agents_id(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_RUN_ID", "ofagent1")
    record = open_record(tmp_path / "default" / "run")
    tracker = open_tracker(TrackingConfig(mode="offline"), record, CONFIG)
    tracker.finish({})
    assert record.fields["tracker"]["id"] == "ofagent1"
    with without_environment("WANDB_RUN_ID", "WANDB_SWEEP_ID"):
        assert "WANDB_RUN_ID" not in os.environ
    assert os.environ["WANDB_RUN_ID"] == "ofagent1"


def test_tracking_off_writes_nothing(tmp_path):
    record = open_record(tmp_path / "default" / "run")
    tracker = open_tracker(TrackingConfig(enabled=False), record, CONFIG)
    assert isinstance(tracker, NoTracker)
    log(record, tracker, rows(range(1, 3)))
    tracker.image("reward_curves", tmp_path / "none.png")
    tracker.finish({})
    assert not (record.folder / "wandb").exists()
    assert "metrics.jsonl" in browse_hint(view_run(record.folder))


def fails_in_mid_run(folder: Path, fault: str) -> tuple[subprocess.Popen, str]:
    """Train as a user does while W&B's service of that process meets a fault."""
    (folder / "tmp").mkdir()
    process = train.start(
        folder, "tracking=wandb", "tracking.mode=offline", "tracking.finish_timeout=1", "optimizer.max_steps=200",
        TMPDIR=str(folder / "tmp"),
    )  # fmt: skip
    while not list(folder.glob("outputs/default/*/checkpoints/checkpoint-8")):
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.005)
    (core,) = [each for each in psutil.Process(process.pid).children() if each.name() == "wandb-core"]
    FAULTS[fault](core, next(folder.glob("outputs/default/*")))
    assert process.poll() is None, "the run ended before the fault"
    return process, process.communicate(timeout=120)[0]


@pytest.mark.slow
@pytest.mark.parametrize("fault", proofs_but(FAULTS, "killed"))
def test_a_whole_run_ends_well_whatever_wandbs_service_does(tmp_path, fault):
    train.write_inputs(tmp_path / "place")
    process, said = fails_in_mid_run(tmp_path / "place", fault)
    assert process.returncode == 0, said
    assert said.count("W&B stopped") == 1, said
    assert "Traceback" not in said
    (run,) = read_runs(tmp_path / "place" / "outputs")
    assert run.status == "finished"
    assert len(train.rows(run.folder)) == 200
    assert not (run.folder / "checkpoints").exists()
    assert "W&B stopped" in (run.folder / "log.txt").read_text()


@pytest.mark.proof
def test_a_killed_run_leaves_nothing_of_wandbs_and_continues_as_one(tmp_path):
    """Neither a temporary file elsewhere nor a second offline run; the rows that its file holds are all, once."""
    place, elsewhere = tmp_path / "place", tmp_path / "tmp"
    elsewhere.mkdir()
    train.write_inputs(place)
    words = ("tracking=wandb", "tracking.mode=offline")
    folder = train.kill_in_the_middle(place, *words, TMPDIR=str(elsewhere))
    assert train.start(place, *words, TMPDIR=str(elsewhere)).wait(120) == 0
    assert [path for path in elsewhere.rglob("*") if not path.name.startswith("torchinductor")] == []
    assert not list((folder / "wandb" / "tmp").iterdir())
    record = view_run(folder)
    assert len(record["attempts"]) == 2
    assert history(record) == mirrored(read_jsonl(folder / "metrics.jsonl"))
