"""Weights and scores of the data: a weighted mean over the global batch; one error for what lacks or is no weight."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from data_helpers import CHATML, assistant, character_tokenizer, local, pair, user, write_jsonl
from sgdpo.data import files
from sgdpo.data.packing import RowCollator
from sgdpo.data.prepare import describe, prepare
from sgdpo.data.rows import pair_row, row_weight
from sgdpo.data.sources import data_errors, load_rows
from sgdpo.pairs import Pair
from tiny_training import random_examples, tiny_config, tiny_trainer, weights

STEADY = "optimizer.eps=1e-5"  # else AdamW divides a gradient of rounding's size by itself
SHARES = (1.0, 0.25, 3.0, 2.0, 0.5, 1.0, 4.0, 0.125)


def weighted(examples: list, shares: tuple[float, ...] = SHARES) -> list:
    return [replace(e, weight=shares[i % len(shares)]) for i, e in enumerate(examples)]


def trained(folder: Path, method: str, examples: list, rows: int = 1, **changes):
    trainer = tiny_trainer(
        tiny_config(f"method={method}", STEADY), folder, rows=rows, examples=examples, **changes
    )
    trainer.train()
    return trainer


@pytest.mark.parametrize("method", ["dpo", "sft"])
def test_weights_count_alike_however_a_step_is_cut(method: str, tmp_path: Path) -> None:
    examples = weighted(random_examples(24, sft=method == "sft"))
    whole, cut = (trained(tmp_path / str(rows), method, examples, rows) for rows in (1, 8))
    for mine, theirs in zip(cut.rows_written, whole.rows_written, strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
        assert mine["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-4)
    torch.testing.assert_close(weights(cut), weights(whole), atol=1e-5, rtol=0)


def test_equal_weights_are_no_weights_and_a_weight_of_2_is_a_pair_seen_twice(tmp_path: Path) -> None:
    method, examples = "dpo", random_examples(8)
    plain = trained(tmp_path / "plain", method, examples, steps=1)
    even = trained(tmp_path / "even", method, weighted(examples, (0.5,)), steps=1)
    assert even.rows_written[0]["loss"] == pytest.approx(plain.rows_written[0]["loss"], rel=1e-6)
    torch.testing.assert_close(weights(even), weights(plain), atol=1e-6, rtol=0)
    twice = [*examples[:4], *(replace(e, example_id=e.example_id + 500) for e in examples[:4]), *examples[4:]]
    config = tiny_config(f"method={method}", "optimizer.batch_size=12", STEADY)
    doubled = tiny_trainer(config, tmp_path / "twice", steps=1, examples=twice)
    doubled.train()
    heavy = trained(tmp_path / "heavy", method, weighted(examples, (2.0,) * 4 + (1.0,) * 4), steps=1)
    assert heavy.rows_written[0]["loss"] == pytest.approx(doubled.rows_written[0]["loss"], rel=1e-5)
    torch.testing.assert_close(weights(heavy), weights(doubled), atol=1e-5, rtol=0)


def test_a_row_without_weights_and_scores_has_no_trace_of_them() -> None:
    row = RowCollator("shared_prefix")(random_examples(3))
    assert not {"weight_B", "score_w_B", "score_l_B"} & set(row)
    assert row["count_pairs"].dtype == row["count_tokens"].dtype == torch.int64
    assert Pair(None, None, row["example_id_B"]).weighted(row["example_id_B"]) is row["example_id_B"]


@pytest.fixture
def run(tmp_path):
    """Return a function that prepares rows with some settings."""

    def _run(rows, phase="preference", scores=False, **settings):
        data = local(write_jsonl(tmp_path / "rows.jsonl", rows), **settings)
        return prepare(data, phase, character_tokenizer(CHATML), tmp_path / "cache", scores=scores)

    return _run


SCORED = {"score_chosen": 8, "score_rejected": 6.5}


def test_scores_and_weights_come_from_the_file_to_the_pair(run) -> None:
    prepared = run(
        [pair("a", **SCORED, weight=2), pair("b", **SCORED, weight=0.5), pair("c", **SCORED, weight=0)]
    )
    row = RowCollator("shared_prefix", scores=True)([prepared.train[0], prepared.train[1]])
    assert (row["score_w_B"].tolist(), row["score_l_B"].tolist()) == ([8, 8], [6.5, 6.5])
    assert row["weight_B"].tolist() == [2, 0.5]
    assert (float(row["count_pairs"]), float(row["count_tokens"])) == (2.5, 2.5 * 4)
    assert "1 weigh 0 and are left out" in describe(prepared.counts)
    assert "each pair weighs what its column weight says" in describe(prepared.counts)


def test_other_columns_are_named_and_a_weight_is_ignored_on_demand(run) -> None:
    rows = [{"question": "a", "good": "yes", "bad": "no", "share": 3.0, "stars": 5, "worse": 1}]
    columns = {"prompt": "question", "chosen": "good", "rejected": "bad", "weight": "share"}
    columns |= {"score_chosen": "stars", "score_rejected": "worse"}
    found = run(rows, scores=True, columns=columns).train[0]
    assert (found.weight, found.score_chosen, found.score_rejected) == (3.0, 5.0, 1.0)
    assert run([pair(weight=-1)], weights="ignore").train[0].weight is None
    chat = {"messages": [user("a"), assistant("yes")], "weight": 2}
    assert run([chat], phase="sft").train[0].weight == 2.0


@pytest.mark.parametrize(
    "as_written", [str, "{:e}".format, Decimal, Fraction, np.int64, np.float32, np.float64, np.array]
)
def test_a_number_is_one_however_its_set_writes_it(as_written, monkeypatch) -> None:
    row = pair("a", score_chosen=as_written(3), score_rejected=as_written(2), weight=as_written(4))
    monkeypatch.setattr(files, "read", lambda *_, **__: [row])
    (found,) = load_rows(local(), "preference", "train").read()
    assert pair_row(found).scores == (3.0, 2.0)
    assert row_weight(found, "require") == 4.0


@pytest.mark.parametrize(
    "value", ["much", "nan", "inf", True, "", None, [1.0], np.array([1.0, 2.0]), Decimal("nan")]
)
def test_what_is_no_number_does_not_become_one(value, monkeypatch) -> None:
    monkeypatch.setattr(files, "read", lambda *_, **__: [pair(score_chosen=value, weight=value)])
    (found,) = load_rows(local(), "preference", "train").read()
    assert pair_row(found).scores is None
    assert pair_row(found).unscored == (not isinstance(value, str | None) or bool(value))


def test_a_csv_has_its_numbers_under_any_name(tmp_path) -> None:
    (tmp_path / "rows.csv").write_text("question,chosen,rejected,weight,best,worst\n3,a,b,1.5,7,\n")
    columns = {"prompt": "question", "score_chosen": "best", "score_rejected": "worst"}
    data = local(str(tmp_path / "rows.csv"), columns=columns)
    assert data_errors(data, "preference") == []
    (row,) = load_rows(data, "preference", "train").read()
    assert row == pair("3", "a", "b", weight=1.5, score_chosen=7.0, score_rejected=None)


def test_scores_and_weights_change_no_fingerprint_so_that_the_reference_is_found_again(run) -> None:
    assert run([pair("a")]).fingerprint == run([pair("a", **SCORED, weight=2)]).fingerprint


@pytest.mark.parametrize(
    ("rows", "settings", "words"),
    [
        ([pair(weight=-1)], {}, "row 0: weight is -1, and must be a finite number, at least 0"),
        ([pair(weight=1), pair("b", weight="much")], {}, "row 1: weight is 'much'"),
        ([pair(weight=float("nan"))], {}, "row 0: weight is nan"),
        ([pair(weight=True)], {}, "row 0: weight is True"),
        ([pair()], {"weights": "require"}, "in the column weight; found: prompt, chosen, rejected"),
        ([pair(**SCORED), pair("b")], {"scores": True}, "row 1: no score_chosen and no score_rejected"),
        ([pair(score_chosen=1)], {"scores": True}, "row 0: no score_rejected, which the method asks for"),
    ],
)
def test_what_is_no_weight_or_lacks_is_named_before_anything_loads(rows, settings, words, tmp_path) -> None:
    scores = settings.pop("scores", False) if (settings := dict(settings)) else False
    data = local(write_jsonl(tmp_path / "rows.jsonl", rows), **settings)
    (error,) = data_errors(data, "preference", scores=scores)
    assert words in error


@pytest.mark.parametrize(
    ("rows", "scores", "words"),
    [
        ([pair("a", weight=0), pair("b", weight=0)], False, "none of 2 rows is left after filtering .*2 of weight 0"),
        ([pair("a", weight=1), pair("b")], False, "row 1: it has no weight, the rows before it have one"),
        ([pair("a"), pair("b", weight=1)], False, "row 1: it has a weight, the rows before it have none"),
        ([pair("a", **SCORED), pair("b", score_chosen="x", score_rejected=1)], True,
         "1 of 2 pairs have no number in the column score_chosen, which the method asks for"),
    ],
)  # fmt: skip
def test_what_shows_only_over_all_rows_is_named_too(rows, scores, words, run) -> None:
    with pytest.raises(ValueError, match=words):
        run(rows, scores=scores)


def test_odpo_sees_the_scores_of_the_data(tmp_path: Path) -> None:
    """At step 0 a pair costs ln(1 + (score_w - score_l)): differences 1 and 3, half of the pairs each."""
    examples = [
        replace(e, score_chosen=5.0, score_rejected=4.0 if i % 2 else 2.0)
        for i, e in enumerate(random_examples(8))
    ]
    found = trained(tmp_path, "odpo", examples, steps=1).rows_written[0]["loss"]
    assert found == pytest.approx((np.log(2) + np.log(4)) / 2, rel=1e-5)
