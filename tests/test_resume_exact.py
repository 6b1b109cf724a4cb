"""A run killed at random moments ends bit for bit as one that was left alone: weights, metrics, no gaps.

`make soak` does the same a hundred times, for every engine and precision. In `make test` it is
`test_run_matrix.py` that kills runs.
"""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from itertools import product
from pathlib import Path
from unittest.mock import Mock

import pytest

from lab.soak import CASES, SMALL, STEPS, Outcome, differences, render, soak
from sgdpo.config.compose import compose_run, to_run_config
from sgdpo.config.schema import RunConfig, TrainerConfig
from sgdpo.engine.nodes import Node
from sgdpo.runs import run as run_module
from sgdpo.runs.records import view_run
from sgdpo.runs.run import Run, _take_over, execute
from sgdpo.store import seal, write_json


@pytest.mark.proof
@pytest.mark.parametrize(
    "case",
    ["single, float32", "single, BCO", "single, lean", "zero3", "fsdp"],
)
def test_a_killed_run_continues_bit_for_bit(case: str, tmp_path: Path, monkeypatch) -> None:
    """Seed 97 kills after step 9, in the second epoch, a random fraction of a second later."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    outcome = soak(case, kills=1, seed=97, folder=tmp_path)
    assert outcome.kills == 1
    assert outcome.differences == []


@pytest.mark.proof
@pytest.mark.timeout(1200)
def test_a_killed_run_goes_on_under_another_host_name(tmp_path: Path, monkeypatch) -> None:
    """After half a minute without a sign of life the first host counts as gone."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr("lab.soak.MOVES", 1.0)
    outcome = soak("single, float32", kills=2, seed=97, folder=tmp_path)
    assert (outcome.kills, outcome.moved, outcome.differences) == (2, 2, [])
    (record,) = (tmp_path / "killed").glob("*/*/record.json")
    assert len({attempt["machine"] for attempt in json.loads(record.read_text())["attempts"]}) > 1


def finished(folder: Path, rows: list[dict], weights: bytes) -> Path:
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "model.safetensors").write_bytes(weights)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


ROWS = [
    {"step": step, "split": "train", "loss": 0.7 - step / 100, "pairs_per_second": 3.0} for step in (1, 2, 3)
]


def test_the_soak_sees_what_would_be_wrong(tmp_path: Path) -> None:
    """A changed weight, a repeated row and a changed number are differences; another speed is none."""
    alone = finished(tmp_path / "alone", ROWS, b"weights")
    faster = [row | {"pairs_per_second": 9.0} for row in ROWS]
    assert differences(alone, finished(tmp_path / "same", faster, b"weights")) == []
    assert differences(alone, finished(tmp_path / "w", ROWS, b"weightz")) == ["model.safetensors differs"]
    repeated = finished(tmp_path / "twice", [ROWS[0], *ROWS], b"weights")
    assert "metrics.jsonl has gaps or duplicates" in differences(alone, repeated)
    other = [ROWS[0], ROWS[1] | {"loss": 0.7}, ROWS[2]]
    assert differences(alone, finished(tmp_path / "loss", other, b"weights")) == ["step 2 (train) differs"]


def test_the_table_names_every_case(tmp_path: Path) -> None:
    table = render([Outcome(case, kills=3, torn=1, runs=2) for case in CASES])
    assert all(case in table for case in CASES)
    assert table.count("bit-identical") == len(CASES)


@pytest.mark.slow
def test_a_run_killed_after_its_last_checkpoint_trains_no_step_more(tmp_path: Path) -> None:
    """What is left to do then is the final model and the record."""
    config = to_run_config(compose_run([*SMALL, "trainer.keep_finished=true", f"outputs={tmp_path}"]))
    folder = execute(config)
    rows, weights = (folder / "metrics.jsonl").read_text(), (folder / "model/model.safetensors").read_bytes()
    last = [row["split"] for row in map(json.loads, rows.splitlines()) if row["step"] == STEPS]
    assert sorted(last) == ["eval", "samples", "train"]
    (folder / "model" / "model.safetensors").unlink()
    record = json.loads((folder / "record.json").read_text())
    (folder / "record.json").write_text(json.dumps(record | {"status": "running", "pid": 2**22 + 1}))
    assert execute(config) == folder
    assert json.loads((folder / "record.json").read_text())["status"] == "finished"
    assert (folder / "metrics.jsonl").read_text() == rows
    assert (folder / "model/model.safetensors").read_bytes() == weights


# ---- another content: a run is taken over --------------------------------------------------


@cache
def of_pairs(outputs: Path) -> RunConfig:
    words = [
        "method=dpo",
        "init=pretrained",
        "data=local",
        f"data.train={outputs}/pairs.jsonl",
        f"outputs={outputs}",
    ]
    return to_run_config(compose_run(words))


def on_rows(outputs: Path, rows: int, **changes) -> Run:
    pairs = ({"prompt": f"{n}", "chosen": "a", "rejected": "b"} for n in range(rows))
    (outputs / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    return Run.of(replace(of_pairs(outputs), **changes))


@pytest.fixture
def failed(tmp_path: Path) -> Path:
    """A run on nine rows that failed after its fourth step."""
    run = on_rows(tmp_path, 9)
    (run.folder / "checkpoints" / "checkpoint-4").mkdir(parents=True)
    identity = {key: getattr(run.identity, key) for key in ("run_hash", "settings_hash", "contents")}
    write_json(run.folder / "record.json", {"format": 1, "status": "failed", **identity})
    return run.folder


@pytest.mark.parametrize(
    ("left", "killed"),
    [([], False), (["output.log", "ranks/rank0.log"], False), (["output.log"], True)],
)
def test_a_run_is_taken_over_whatever_lies_in_its_new_folder_and_after_a_kill_on_the_way(
    failed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: list[str], killed: bool
) -> None:
    new = on_rows(tmp_path, 8, resume="anyway")
    for folder, name in product((failed, new.folder), left):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(folder.name)
    if killed:
        monkeypatch.setattr(run_module, "_rename_record", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            _take_over(new)
        monkeypatch.undo()
        new = on_rows(tmp_path, 8)  # the word was given once
    _take_over(new)
    assert on_rows(tmp_path, 8).folder == new.folder != failed
    assert view_run(new.folder)["run_hash"] == new.identity.run_hash
    assert (new.folder / "checkpoints" / "checkpoint-4").is_dir()
    assert not failed.exists()
    for name in left:
        assert (new.folder / name).read_text() == new.folder.name
        assert (new.folder / f"{name}.before").read_text() == failed.name


def test_of_several_machines_the_first_alone_takes_a_run_over(
    failed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = on_rows(tmp_path, 8, resume="anyway")
    for rank in (1, 0):
        monkeypatch.setattr(run_module, "this_node", lambda engine, rank=rank: Node(rank, "first", 1))
        _take_over(new)
        assert (failed.exists(), new.folder.exists()) == (rank > 0, rank == 0)


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("asked", [False, True])
def test_a_finished_run_that_is_asked_for_again_keeps_what_it_was_trained_to_keep(
    tmp_path: Path, kept: bool, asked: bool
) -> None:
    run = on_rows(tmp_path, 9, trainer=TrainerConfig(keep_finished=asked))
    for name in ("checkpoints/checkpoint-4", "model"):
        (run.folder / name).mkdir(parents=True)
    seal(run.folder / "model")
    (run.folder / "config.yaml").write_text(f"trainer:\n  keep_finished: {str(kept).lower()}\n")
    found = {"format": 1, "status": "finished", "run_hash": run.identity.run_hash}
    write_json(run.folder / "record.json", found)
    assert execute(run.config) == run.folder
    assert (run.folder / "checkpoints").exists() == kept
