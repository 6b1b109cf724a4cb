"""Comparing runs: who beats whom, where it cannot be said, and what is refused."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from lab.evaluation.comparison import compare_runs, judged_scores, prompt_means, show
from lab.report.cells import by_prompt
from sgdpo.runs.records import RunView
from sgdpo.store import write_jsonl


def run_with(folder: Path, scores: list[float], key: str = "verifiable-checker") -> Path:
    """Write a run with an evaluation of these scores, as scripts/evaluate.py leaves it."""
    rows = [{"prompt_id": f"p{n}", "judge": "checker", "score": score} for n, score in enumerate(scores)]
    write_jsonl(folder / "eval" / key / "judgments.jsonl", rows)
    record = {"format": 1, "status": "finished", "eval": {key: {}}}
    (folder / "record.json").write_text(json.dumps(record))
    return folder


@pytest.fixture
def runs(tmp_path) -> list[Path]:
    """Write a good, a bad and a middling run; the last two differ by noise alone."""
    draws = random.Random(0)
    base = [draws.uniform(0, 8) for _ in range(60)]
    good = [score + 1 + draws.gauss(0, 0.3) for score in base]
    middling = [score + draws.gauss(0, 0.3) for score in base]
    return [
        run_with(tmp_path / "exp" / n, s) for n, s in (("good", good), ("bad", base), ("middling", middling))
    ]


def test_a_difference_beyond_noise_is_named_and_noise_is_not(runs):
    verdicts = {(v.first, v.second): v for v in compare_runs(runs, None)}
    assert verdicts["good", "bad"].winner == "good"
    assert verdicts["good", "middling"].winner == "good"
    assert verdicts["bad", "middling"].winner is None
    table, sentences = show(list(verdicts.values()))
    assert len(table.rows) == 3
    assert sentences[0].startswith("good beats bad (+0.9")
    assert sentences[2].startswith("cannot say: bad and middling")


def test_the_tests_are_corrected_for_the_number_of_pairs(runs):
    """Holm multiplies the smallest of three p-values by three."""
    verdicts = compare_runs(runs, None)
    smallest = min(verdicts, key=lambda verdict: verdict.comparison.p_value)
    assert smallest.adjusted == pytest.approx(3 * smallest.comparison.p_value)


def test_many_equal_methods_are_rarely_told_apart(tmp_path):
    """Six runs of pure noise make 15 pairs; at a family-wise level of 5 %, 8 such families rarely give one error."""
    draws, errors = random.Random(1), 0
    for family in range(8):
        runs = [
            run_with(tmp_path / str(family) / str(n), [draws.random() for _ in range(40)]) for n in range(6)
        ]
        errors += any(verdict.winner for verdict in compare_runs(runs, None))
    assert errors <= 2


def test_order_does_not_change_the_winner(runs):
    forward, backward = compare_runs(runs[:2], None)[0], compare_runs(runs[1::-1], None)[0]
    assert forward.winner == backward.winner == "good"
    assert forward.comparison.p_value == backward.comparison.p_value


def test_a_question_of_two_turns_is_one_prompt_and_unparsable_turns_are_left_out(tmp_path):
    rows = [
        {"prompt_id": "1-1", "question_id": 1, "turn": 1, "score": 8},
        {"prompt_id": "1-2", "question_id": 1, "turn": 2, "score": 4},
        {"prompt_id": "2-1", "question_id": 2, "turn": 1, "score": 7},
        {"prompt_id": "2-2", "question_id": 2, "turn": 2, "score": -1},
    ]
    write_jsonl(tmp_path / "judgments.jsonl", rows)
    scores = judged_scores(tmp_path)
    assert prompt_means(scores, scores) == {"1": 6.0, "2": 7.0}
    write_jsonl(tmp_path / "eval" / "mt_bench-j" / "judgments.jsonl", rows)
    run = RunView(tmp_path, {"eval": {"mt_bench-j": {}}}, "finished")
    assert by_prompt(run, "mt_bench-j", "score") == {"1-1": 8.0, "1-2": 4.0, "2-1": 7.0}, (
        "nor by a table's test"
    )


def test_a_turn_that_one_judgment_says_nothing_of_counts_on_neither_side(tmp_path):
    """First turns score 9, second ones 3, of both runs alike; of one run eight second turns are unparsable."""
    runs = [run_with(tmp_path / "exp" / name, [], "mt_bench-j") for name in ("whole", "lacking")]
    for run, lost in zip(runs, (0, 8), strict=True):
        rows = [
            {"prompt_id": f"{n}-{turn}", "question_id": n, "turn": turn, "score": 15 - 6 * turn}
            for n in range(80)
            for turn in (1, 2)
        ]
        gone = [
            {**row, "score": -1} if row["turn"] == 2 and row["question_id"] < lost else row for row in rows
        ]
        write_jsonl(run / "eval" / "mt_bench-j" / "judgments.jsonl", gone)
    (verdict,) = compare_runs(runs, None)
    assert (verdict.winner, verdict.comparison.difference.value, verdict.comparison.ties) == (None, 0.0, 80)
    assert "whole – lacking: 8 judgments that only one of them has are left out" in show([verdict])[0].facts


def test_preferences_are_the_scores_of_a_pairwise_benchmark(tmp_path):
    rows = [{"prompt_id": "a", "preference": 0.75}, {"prompt_id": "b", "preference": None}]
    write_jsonl(tmp_path / "judgments.jsonl", rows)
    scores = judged_scores(tmp_path)
    assert prompt_means(scores, scores) == {"a": 0.75}


def test_runs_of_one_name_are_told_apart_by_their_experiment(tmp_path):
    runs = [run_with(tmp_path / name / "dpo", [1.0, 2.0]) for name in ("one", "two")]
    assert (compare_runs(runs, None)[0].first, compare_runs(runs, None)[0].second) == ("one/dpo", "two/dpo")


def test_what_cannot_be_compared_is_refused(runs, tmp_path):
    other = run_with(tmp_path / "exp" / "other", [1.0] * 5)
    with pytest.raises(ValueError, match="at least two runs"):
        compare_runs(runs[:1], None)
    with pytest.raises(ValueError, match=r"^\S+nowhere is not a run: it holds no record.json; give outputs/"):
        compare_runs([runs[0], tmp_path / "nowhere"], None)
    with pytest.raises(ValueError, match=r"answered different prompts: 5 of 60"):
        compare_runs([runs[0], other], None)
    whole = [run_with(tmp_path / "exp" / name, [], "lm_eval-harness") for name in ("c", "d")]
    with pytest.raises(ValueError, match=r"judgments\.jsonl scores no prompt"):
        compare_runs(whole, None)
    with pytest.raises(
        ValueError, match=r"holds no judgments by mt_bench-j: evaluate.*it has verifiable-checker"
    ):
        compare_runs(runs, "mt_bench-j")
    with pytest.raises(ValueError, match="share these evaluations: none"):
        compare_runs([runs[0], run_with(tmp_path / "exp" / "alpaca", [1.0], "alpaca_eval-j")], None)


def test_judgments_of_weights_that_were_trained_again_are_not_compared(runs):
    for run in runs[:2]:
        (run / "record.json").write_text(json.dumps({"format": 1, "status": "finished", "eval": {}}))
    with pytest.raises(ValueError, match="good holds no judgments by verifiable-checker"):
        compare_runs(runs[:2], "verifiable-checker")
