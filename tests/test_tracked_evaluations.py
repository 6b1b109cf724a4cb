"""An evaluation joins the W&B run of what it judged, by W&B's own code and read back from its file."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from lab.answers.prompts import Sample
from lab.benchmarks.benchmark import Subject
from lab.benchmarks.constraints import Constraints
from lab.evaluation.evaluate import judge_samples, sample_rows
from lab.judging.judges import Checker
from sgdpo.config.schema import TrackingConfig
from sgdpo.runs.tracking import add_evaluation, open_tracker
from sgdpo.store import read_json
from wandb_files import CONFIG, entries, log, offline_file, open_record, rows, without_key

ODD = [
    {"met": True, "of": [1, "a"], "said": None},
    {"met": 0.5, "of": {"a": None}},
    {"met": "half", "of": "no"},
]


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    without_key(monkeypatch, tmp_path)


def judged_rows() -> list[dict]:
    """The rows of a real benchmark whose instructions have constraints of their own, answered alike."""
    benchmark = Constraints(subject=Subject("run"), limit=12)
    prompts = benchmark.prompts()
    samples = [Sample(prompt.prompt_id, "One - two.", 4, truncated=False) for prompt in prompts]
    judged = [benchmark.row(each, "checker") for each in judge_samples(benchmark, samples, Checker())]
    return sample_rows(prompts, samples, judged)


@pytest.mark.parametrize("held", [judged_rows, lambda: ODD], ids=["constraints", "odd"])
def test_an_evaluation_joins_the_run_whatever_its_rows_hold(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, held: Callable[[], list[dict]]
) -> None:
    """W&B refuses a column of several kinds, and the evaluation went on without it."""
    samples = held()
    record = open_record(tmp_path / "default" / "run")
    tracker = open_tracker(TrackingConfig(mode="offline"), record, CONFIG)
    log(record, tracker, rows(range(1, 3)))
    tracker.finish({})
    record.finish()
    shutil.rmtree(offline_file(record).parent)
    add_evaluation(record.folder, TrackingConfig(), "mine-checker", {"score_mean": 0.25}, samples)
    assert "W&B stopped" not in caplog.text
    (found,) = [entry["item"] for entry in entries(record, "history")]
    assert found["evaluation/mine-checker/samples.nrows"] == len(samples)
    table = read_json(offline_file(record).parent / "files" / found["evaluation/mine-checker/samples.path"])
    shown = [dict(zip(table["columns"], values, strict=True)) for values in table["data"]]
    for row, own in zip(shown, samples, strict=True):
        for name, value in row.items():
            said = own.get(name)
            assert value in (said, str(said), json.dumps(said, ensure_ascii=False)), name
