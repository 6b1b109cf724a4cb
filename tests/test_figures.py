"""Figures come from records alone and name what is missing; the claim about ratios has an interval."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from PIL import Image

from lab.evaluation.variance import keep, spread
from lab.report.cells import Repeats, group
from lab.report.claim import check_claim, claim_table
from lab.report.figures import (
    balance,
    figure1,
    figure2,
    figure3,
    learning_rates,
    ratio_grid,
    reward_curves,
    six_ratios,
)
from lab.report.panels import band
from report_fixtures import grid_runs, table3_runs, write_run
from sgdpo.drawing.curves import draw_reward_curves, method_curves, series
from sgdpo.drawing.style import Picture, save, smooth
from sgdpo.runs.records import read_runs


def written(pictures, folder) -> list:
    """Write pictures, a list or one; return the paths of each one's png and svg, tables left out."""
    pictures = pictures if isinstance(pictures, list) else [pictures]
    return [path for found in pictures if isinstance(found, Picture) for path in found.write(folder)[:2]]


def words(path) -> str:
    """Return the text of an SVG, which keeps its letters as text."""
    return " ".join(
        "".join(node.itertext()) for node in ET.parse(path).iter("{http://www.w3.org/2000/svg}text")
    )


def is_drawn(path) -> bool:
    """Tell whether a PNG holds more than one colour."""
    return np.ptp(np.asarray(Image.open(path).convert("L"))) > 100


def test_figure2_has_six_panels_and_says_why_one_is_empty(tmp_path):
    table3_runs(tmp_path)
    (tmp_path / "table3" / "torn").mkdir()
    (tmp_path / "table3" / "torn" / "record.json").write_text("{")
    png, svg, *other = written(figure2(read_runs(tmp_path, "table3")), tmp_path / "out")
    text = words(svg)
    assert all(title in text for title in ("DPO", "SGDPO", "NCA", "BCO", "IPO", "SamPO"))
    assert "not run" in text
    assert "failed" in text
    assert "seeds 42, 43" in text
    assert "commit 012345678 4 of 11 runs are not in it: 1 broken, 3 failed" in text
    assert text.count("rejected") == 4, "labels stand beside the four curves that exist"
    assert is_drawn(png)
    assert other[0].name == "figure2-tiny_qwen2.png"


def test_the_same_curves_of_other_methods_are_an_exhibit_of_their_own(tmp_path):
    """Its file has the exhibit's name, or one would lie over the other among what is published."""
    table3_runs(tmp_path)
    first, other = reward_curves(read_runs(tmp_path, "table3"), methods=("nca", "dpo"), title="Mine: rewards")
    assert (first.name, other.name) == ("", "-tiny_qwen2")
    save(first.figure, tmp_path / "two.svg")
    text = words(tmp_path / "two.svg")
    assert "Mine: rewards of 2 methods" in text
    assert ("SGDPO" in text, text.index("NCA") < text.index("DPO")) == (False, True)


def test_figure3_shows_the_diagonal_and_dpo(tmp_path):
    grid_runs(tmp_path, (0.6, 0.7, 0.8, 0.9, 1.0), seeds=(42,))
    _, svg = written(figure3(read_runs(tmp_path, "table1")), tmp_path / "out")
    text = words(svg)
    assert "SGDPO, r1 0.6, r2 0.6" in text
    assert "r1 1.0, r2 1.0" in text
    assert "DPO" in text


def test_five_ratios_are_chosen_from_any_grid():
    assert six_ratios([(0.9, 0.9), (0.6, 0.6)]) == [(0.6, 0.6), (0.9, 0.9)]
    grid = [(c, r) for c in (0.5, 0.75, 1.0) for r in (0.5, 0.75, 1.0)]
    assert six_ratios(grid)[0] == (0.5, 0.5)
    assert six_ratios(grid)[-1] == (1.0, 1.0)
    assert len(six_ratios(grid)) == 5


def test_the_heat_map_marks_dpo_on_its_scale(tmp_path):
    grid_runs(tmp_path)
    metric = "verifiable-checker:win_rate"
    png, svg = written(ratio_grid(read_runs(tmp_path, "table1"), metric=metric), tmp_path / "out")
    text = words(svg)
    for part in (
        "DPO 52",
        "56.050 ± 0.050",
        "1.0",
        "mean ± standard error over seeds 42, 43",
        "commit 012345678",
    ):
        assert part in text, part
    assert is_drawn(png)
    with pytest.raises(ValueError, match="eval/typo"):
        ratio_grid(read_runs(tmp_path, "table1"), metric="eval/typo")


def test_balance_and_learning_rate_are_drawn_with_their_references(tmp_path):
    for lr in (1e-5, 1e-4):
        for method, ratio in (("dpo", None), ("sgdpo", (0.6, 0.9))):
            for seed in (42, 43):
                write_run(tmp_path, "lr", method, seed=seed, lr=lr, ratio=ratio)
    start = write_run(tmp_path, "elsewhere", "sft")
    for run in read_runs(tmp_path, "lr"):
        (run.folder / "record.json").write_text(json.dumps({**run.record, "start": start.name}))
    write_run(tmp_path, "table1", "sgdpo", ratio=(0.6, 0.9))
    _, svg = written(
        learning_rates(read_runs(tmp_path, "lr"), methods=("dpo", "sgdpo"), field="score_mean"), tmp_path
    )
    assert {"SGDPO", "DPO"} <= set(words(svg).split())
    assert "SFT start" in words(svg)
    # A benchmark that gives no such number: its headline.
    (picture,) = learning_rates(read_runs(tmp_path, "lr"), methods=("dpo",), field="no_such_number")
    assert picture.figure.axes[0].get_ylabel() == "win rate over the SFT start, %"
    _, svg = written(balance(read_runs(tmp_path, "table1")), tmp_path)
    assert "DPO (f = 1)" in words(svg)
    with pytest.raises(ValueError, match="pilot/log_balance"):
        balance([run for run in read_runs(tmp_path, "lr") if run["method"] == "dpo"])


def test_figure1_tells_the_two_benchmarks_apart(tmp_path):
    data = tmp_path / "judge_variance.json"
    keep(data, "mt_bench-judge", spread([[1, 5, 9, 4, 6], [1, 5, 9, 5, 5]], None), scale=9.0, judge="judge")
    keep(data, "alpaca_eval-judge", spread([[0.4, 0.9, 0.2, 0.0], [0.9, 0.4, 0.3, 0.0]], 0.5), judge="gpt")
    scales = {"mt_bench": 9.0, "alpaca_eval": 1.0, "other": 1.0}
    _, svg = written(figure1([], data=str(data), benchmarks=scales), tmp_path)
    assert "correlation 0.97" in words(svg)
    assert "flipped 50 %" in words(svg)
    assert "not judged twice yet" in words(svg), "a benchmark that the figure needs and has not"
    assert "judge gpt, 4 pairs of judgments" in words(svg)
    assert "this judge cannot vary" not in words(svg)
    keep(data, "mt_bench-judge", spread([[1, 5], [1, 5]], None), scale=9.0)
    _, svg = written(figure1([], data=str(data), benchmarks=scales), tmp_path)
    assert "this judge cannot vary" in words(svg)
    with pytest.raises(ValueError, match=r"scripts/judge_variance\.py"):
        figure1([], data=str(tmp_path / "none.json"), benchmarks=scales)
    data.write_text("{}")
    with pytest.raises(ValueError, match="no differences"):
        figure1([], data=str(data), benchmarks=scales)


def test_the_claim_is_a_slope_with_its_interval(tmp_path):
    """The fixtures' rewards at step s are (0.02 + 0.05) s (2 - mean ratio): the slope on it is negative.

    The last tenth of 20 steps are steps 19 and 20, so |chosen| + |rejected| has slope -0.07 * 19.5.
    """
    grid_runs(tmp_path)
    (claim,) = check_claim(read_runs(tmp_path, "table1"))
    assert claim.verdict == "held"
    assert claim.overall.value == pytest.approx(-1.365)
    assert [slope.value for slope in claim.single] == pytest.approx(
        [-0.195, -0.195, -0.4875, -0.4875], abs=2e-3
    )
    text = claim_table([claim]).markdown()
    assert "tiny Llama: held." in text
    assert "−1.365" in text


def test_the_claim_cannot_be_said_where_ratios_do_not_matter(tmp_path):
    """Rewards that depend on the run's number alone: the interval must hold 0."""
    for seed in (42, 43, 44):
        for k, ratio in enumerate((0.6, 0.8, 1.0)):
            folder = write_run(tmp_path, "flat", "sgdpo", seed=seed, ratio=(ratio, ratio))
            value = 1.0 + 0.1 * ((seed + 2 * k) % 3)
            row = {"step": 1, "split": "train", "rewards/chosen": value, "rewards/rejected": -value}
            (folder / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    (claim,) = check_claim(read_runs(tmp_path, "flat"))
    assert claim.verdict == "cannot be said"
    assert claim.overall.low < 0 < claim.overall.high
    assert claim.single == (), "equal ratios: the two effects cannot be told apart"


def test_the_claim_needs_three_ratios(tmp_path):
    write_run(tmp_path, "few", "sgdpo", ratio=(0.6, 0.9))
    assert check_claim(read_runs(tmp_path, "few")) == []


def test_a_band_spans_the_seeds(tmp_path):
    for seed in (42, 43, 44):
        write_run(tmp_path, "seeds", "dpo", seed=seed)
    (cell,) = group(read_runs(tmp_path, "seeds"), lambda run: run["method"]).values()
    found = band(cell, "rewards/chosen")
    assert found.low[-1] < found.mean[-1] < found.high[-1]
    assert (found.low <= found.mean).all()
    assert (found.mean <= found.high).all()
    assert band(Repeats(), "rewards/chosen") is None


def test_smoothing_keeps_a_constant_and_leaves_gaps_out():
    assert smooth([2.0, 2.0, 2.0, 2.0], 3).tolist() == [2.0] * 4
    assert smooth([1.0, float("nan"), 3.0], 3).tolist() == [1.0, 2.0, 3.0]
    assert smooth([1.0, 2.0, 6.0], 3).tolist() == [1.5, 3.0, 4.0], "shorter at the ends"


def test_a_run_is_drawn_with_rewards_or_its_loss_or_nothing(tmp_path):
    write_run(tmp_path, "one", "dpo")
    write_run(tmp_path, "one", "sft")
    dpo, sft = read_runs(tmp_path, "one")
    for number, rows in enumerate((dpo.metrics(), sft.metrics(), [])):
        draw_reward_curves(rows, tmp_path / f"{number}.png", "a run")
        assert is_drawn(tmp_path / f"{number}.png")
    for rows, rings in (
        (dpo.metrics(), "ring: held-out pairs"),
        (sft.metrics(), "ring: held-out demonstrations"),
    ):
        draw_reward_curves(rows, tmp_path / "run.svg", "a run")
        assert rings in (tmp_path / "run.svg").read_text()
    save(method_curves({"DPO": dpo.metrics(), "again": dpo.metrics()}), tmp_path / "two.png")
    assert is_drawn(tmp_path / "two.png")


def test_a_metric_that_some_rows_lack_is_read_where_it_is():
    rows = [{"step": 1, "split": "train"}, {"step": 2, "split": "train", "x": None}]
    rows += [{"step": 3, "split": "train", "x": 5.0}, {"step": 3, "split": "eval", "x": 6.0}]
    steps, values = series(rows, "train", "x")
    assert steps.tolist() == [2.0, 3.0]
    assert np.isnan(values[0])
    assert values[1] == 5.0


def test_the_same_records_give_the_same_file(tmp_path):
    grid_runs(tmp_path, seeds=(42,))
    runs, metric = read_runs(tmp_path, "table1"), "eval/rewards/margins"
    first, again = (
        [path.read_bytes() for path in ratio_grid(runs, metric=metric)[0].write(tmp_path / name)]
        for name in "ab"
    )
    assert first == again
    assert len(first) == 4, "png, svg, pdf, and what they show as JSON"
