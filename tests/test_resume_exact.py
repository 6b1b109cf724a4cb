"""A run killed at random moments ends bit for bit as one that was left alone: weights, metrics, no gaps.

`make soak` does the same a hundred times, for every engine and precision. In `make test` it is
`test_run_matrix.py` that kills runs.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lab.soak import CASES, SMALL, STEPS, Outcome, differences, render, soak
from sgdpo.config.compose import compose_run, to_run_config
from sgdpo.runs.run import execute


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
