"""The studies: each composes and binds; contrasts, correction, verdicts and sentences against numbers made by hand."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest

from lab.benchmarks.statistics import Interval
from lab.report.exhibit import exhibit_names, find_exhibit
from lab.report.explained import explained
from lab.report.intervals import Row, interval_chart
from lab.report.measures import reader
from lab.report.studies import Finding, arms_of, as_typed, conditions, findings_of, sentence, study
from lab.reproduce import Options, call_python, reproduce, train_command
from sgdpo.drawing.table import Table
from sgdpo.runs.records import read_runs
from sweep_fixtures import cells_of

STUDIES = sorted(name for name in exhibit_names() if name.startswith("study"))
SCORES = "verifiable-checker:score_mean"


def composed(name: str) -> dict[tuple, list[str]]:
    """Return the arms of the cells of a study's sweep, of one seed, by condition."""
    settings, found = find_exhibit(name).settings, {}
    for cell in cells_of(f"sweep={name}", "seed=42"):
        typed = as_typed(cell.run.identity.settings)
        mine = arms_of(typed, settings["arms"])
        assert len(mine) == 1, f"{cell.name} belongs to {mine}"
        found.setdefault(tuple(typed[key] for key in settings.get("each", ["data.name"])), []).append(mine[0])
    return found


@pytest.mark.proof
@pytest.mark.parametrize("name", STUDIES)
def test_every_cell_of_a_study_is_one_arm_and_every_arm_has_cells(name: str) -> None:
    """Both worlds: what the sweep trains is what the report shows, in every condition."""
    found, arms = composed(name), find_exhibit(name).settings["arms"]
    assert {condition[0] for condition in found} == {"verifiable", "verifiable_long"}
    assert all(sorted(own) == sorted(arms) for own in found.values())


@pytest.mark.parametrize(("name", "arms"), [("study2", 7)])
def test_a_miniature_of_a_study_composes(name: str, arms: int) -> None:
    assert {condition: len(own) for condition, own in composed(name).items()} == {
        (world,): arms for world in ("verifiable", "verifiable_long")
    }


@pytest.mark.parametrize("name", STUDIES)
def test_a_study_says_what_is_expected_and_tests_what_it_has(name: str) -> None:
    settings = find_exhibit(name).settings
    assert len(settings["expected"]) > 60
    assert settings["question"].endswith(("?", "."))
    assert {arm for weights in settings["contrasts"].values() for arm in weights} <= set(settings["arms"])
    assert set(settings["tested"]) <= set(settings["measures"])
    for contrast, weights in settings["contrasts"].items():
        assert sum(weights.values()) == pytest.approx(0, abs=2e-3), f"{name}: {contrast} moves with the level"


def test_a_study_trains_five_seeds_and_its_own_models_unless_more_are_asked_for() -> None:
    command = train_command(find_exhibit("study2"), Options("study2"))
    assert "seed=42,43,44,45,46" in command
    assert not any(word.startswith("model=") for word in command)
    assert f"seed={','.join(map(str, range(42, 49)))}" in train_command(
        find_exhibit("study2"), Options("study2", seeds=7)
    )


# ---- numbers --------------------------------------------------------------------------------------------------


def write_run(outputs: Path, seed: int, ratio: float, scores: list[float], world: str = "verifiable") -> None:
    """Write a finished run with one score a prompt; its rewards end at plus and minus ten times the ratio."""
    folder = outputs / "study" / f"sgdpo-{world}-r{ratio}-s{seed}"
    (folder / "eval" / "verifiable-checker").mkdir(parents=True)
    rows = [{"prompt_id": str(n), "score": score} for n, score in enumerate(scores)]
    (folder / "eval" / "verifiable-checker" / "judgments.jsonl").write_text(
        "\n".join(map(json.dumps, rows)) + "\n"
    )
    last = {"step": 1, "split": "train", "rewards/chosen": 10 * ratio, "rewards/rejected": -10 * ratio}
    (folder / "metrics.jsonl").write_text(json.dumps(last) + "\n")
    record = {
        "format": 1, "status": "finished", "phase": "preference", "seed": seed, "model": "m", "dataset": world,
        "method": "sgdpo",
        "settings": {"method": {"name": "sgdpo"}, "data": {"name": world}, "ratio": {"chosen": ratio}},
        "eval": {"verifiable-checker": {"score_mean": sum(scores) / len(scores)}}, "final": {"train": last},
    }  # fmt: skip
    (folder / "record.json").write_text(json.dumps(record))


@pytest.fixture
def runs(tmp_path: Path):
    """Three seeds, two worlds: low scores 2 + wiggle more than high; in the long world as much as it."""
    for seed, world in product((1, 2, 3), ("verifiable", "verifiable_long")):
        wiggle = [0.01 * ((seed + n) % 3 - 1) for n in range(40)]
        gain = 2 if world == "verifiable" else 0
        write_run(tmp_path, seed, 0.2, [5 + seed + gain + w for w in wiggle], world)
        write_run(tmp_path, seed, 1.0, [5.0 + seed] * 40, world)
    return read_runs(tmp_path, "study")


ARMS = {"low": {"ratio.chosen": 0.2}, "high": {"ratio.chosen": 1.0}}


def test_contrasts_are_paired_corrected_and_told(runs) -> None:
    cells = conditions(runs, ARMS, ["data.name"])
    short, long = findings_of(cells, {"low less high": {"low": 1, "high": -1}}, {"score": SCORES})
    assert short.difference.value == pytest.approx(2, abs=0.02)
    assert long.difference.value == pytest.approx(0, abs=0.02)
    near = {"score": 0.1}
    assert tuple(each.verdict(bounds) for each, bounds in ((short, near), (long, near), (long, {}))) == (
        "above 0",
        "no difference",
        "cannot be said",
    )
    told = sentence([short, long], {"score": 0.1})
    assert told.startswith("low less high: verifiable score +2.0")
    assert told.endswith("(no difference; 3 seeds).")
    other = replace(long, contrast="another")
    assert sentence([short, long, other], {"score": 0.1}).endswith(
        "Of all 3 differences: 2 no difference; 1 above 0."
    )
    many = sentence([short, long] * 4, {"score": 0.1})
    assert re.fullmatch(
        r"low less high: score from .0\.0\d\d to \+2\.0\d\d under 8 conditions "
        r"\(above 0 under 4; no difference under 4\)\.",
        many,
    ), many


def test_panels_that_are_too_many_for_a_row_stand_in_rows_of_three() -> None:
    rows = [Row(str(panel), "all", Interval(0.2, 0.1, 0.1, 0.3), None) for panel in range(5)]
    figure = interval_chart(rows, "score", walk=False).figure
    assert [axes.get_visible() for axes in figure.axes] == [True] * 5 + [False]
    assert figure.axes[3].get_position().y1 < figure.axes[0].get_position().y0


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"contrasts": {"a": {"low": 1, "hgih": -1}}}, "contrasts names 'hgih', which is none of its arms: low, high"),
        ({"matched": {"m": {"row": ["lwo"], "arms": ["low"], "by": ["size"]}}}, "matched names 'lwo'"),
        ({"matched": {"m": {"row": ["low"], "arms": ["high"], "by": ["size"]}}}, "matched names 'size'"),
        ({"matched": {"m": {"row": ["low"], "by": []}}}, "matched.m lacks arms"),
        ({"matched": {"m": {"row": ["low", "high"], "arms": ["low"], "by": ["score"]}}},
         "matched.m holds low against a row that it stands in"),
        ({"matched": {"m": {"row": "low", "arms": [], "by": []}}}, "matched.m.row='low' does not fit"),
        ({"tested": ("scor",)}, "tested names 'scor', which is none of its measures: score"),
        ({"bounds": {"scor": 1}}, "bounds names 'scor'"),
    ],
)  # fmt: skip
def test_a_name_that_a_study_does_not_have_is_refused_and_not_left_out(changes: dict, said: str) -> None:
    whole = {"question": "?", "expected": "!", "arms": ARMS, "contrasts": {}, "tested": ("score",)}
    with pytest.raises(ValueError, match=said):
        study([], **{**whole, "measures": {"score": SCORES}, **changes})


def test_the_end_of_training_and_sums_of_magnitudes_are_measures(runs) -> None:
    run = next(run for run in runs if run["settings"]["ratio"]["chosen"] == 0.2)
    assert reader("end/rewards/chosen")(run)[0] == pytest.approx(2)
    assert reader("end/rewards/chosen + end/rewards/rejected")(run)[0] == pytest.approx(0)
    assert reader("|end/rewards/chosen| + |end/rewards/rejected|")(run)[0] == pytest.approx(4)
    assert reader("mean/rewards/chosen")(run)[0] == pytest.approx(2)
    assert reader("eval/loss + eval/loss")(run) == (None, None)
    assert reader("end/never/logged")(run) == (None, None)


def amend(outputs: Path, ratio: float, **fields) -> None:
    """Change the records of an arm's runs."""
    for path in outputs.glob(f"study/*-r{ratio}-*/record.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))


SAID = {"question": "Which?", "expected": "High.", "arms": ARMS, "tested": ("score",),
        "contrasts": {"low less high": {"low": 1, "high": -1}}, "measures": {"score": SCORES}}  # fmt: skip
OTHER = {"method": {"name": "sgdpo"}, "data": {"name": "verifiable", "limit": 9}, "ratio": {"chosen": 1.0}}


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"versions": {"torch": "1"}}, "different package versions"),
        ({"settings": OTHER}, "different data settings"),
        ({"data": {"fingerprint": "x"}}, "different data in one table"),
        ({"eval": {"verifiable-checker": {"score_mean": 6.0, "n": 7}}}, "different settings of verifiable-checker"),
    ],
)  # fmt: skip
def test_arms_that_differ_in_more_than_their_settings_are_not_held_against_each_other(
    tmp_path: Path, fields: dict, said: str
) -> None:
    """Packages, data and judging; what an arm asks of its data is meant, and a start has read no data."""
    for ratio in (0.2, 1.0):
        write_run(tmp_path, 1, ratio, [5.0, 6.0])
    amend(tmp_path, 1.0, **fields)
    runs = read_runs(tmp_path, "study")
    with pytest.raises(ValueError, match=said):
        study(runs, **SAID)
    if "settings" in fields:
        meant = {"low": ARMS["low"], "high": ARMS["high"] | {"data.limit": 9}}
        assert len(study(runs, **{**SAID, "arms": meant})[0].rows) == 1
        amend(tmp_path, 1.0, steps=0)
        assert len(study(read_runs(tmp_path, "study"), **SAID)[0].rows) == 1


def test_what_an_arm_has_not_is_a_dash_and_no_difference(runs, tmp_path: Path) -> None:
    """Results of an earlier training, prompts that the others have not, a metric that no run logs."""
    measures = {"score": SCORES, "x": "end/never/logged"}
    amend(tmp_path, 1.0, eval={})
    findings, arms = study(
        read_runs(tmp_path, "study"), **{**SAID, "measures": measures, "tested": ("score", "x")}
    )
    assert findings.rows == []
    texts = [[entry.text for entry in row[1:]] for row in arms.rows[:2]]
    assert texts == [["low", "9.000 ± 0.577", "–"], ["high", "–", "–"]]
    amend(tmp_path, 1.0, eval={"verifiable-checker": {"score_mean": 6.0}})
    for path in tmp_path.glob("study/*-r1.0-*/eval/*/judgments.jsonl"):
        path.write_text(path.read_text().replace('"prompt_id": "', '"prompt_id": "other'))
    assert study(read_runs(tmp_path, "study"), **SAID)[0].rows == []


def test_one_seed_is_said_to_speak_of_two_models_and_its_error_to_be_over_prompts(tmp_path: Path) -> None:
    for ratio in (0.2, 1.0):
        write_run(tmp_path, 1, ratio, [5 + ratio, 6 + ratio])
    findings, arms = study(read_runs(tmp_path, "study"), **SAID)
    assert "One seed speaks of two models, not of the methods that trained them." in findings.facts
    assert any(fact.endswith("; 1 seed).") for fact in findings.facts)
    assert "± is one standard error over prompts (one seed)." in arms.facts
    logged = {**SAID, "measures": {"reward": "eval/rewards/margins"}, "tested": ["reward"]}
    _, bare = study(read_runs(tmp_path, "study"), **logged)
    assert bare.facts[0] == "One seed, and no run logs the spread over its pairs: no ±."


def test_what_is_the_same_for_all_arms_has_no_rank_correlation(tmp_path: Path) -> None:
    arms = {f"r{n}": {"ratio.chosen": n / 10} for n in range(4)}
    for n in range(4):
        write_run(tmp_path, 1, n / 10, [5.0, 5.0])
    measures = {"score": SCORES, "end": "end/rewards/chosen"}
    said = SAID | {"arms": arms, "contrasts": {}, "measures": measures}
    (row,) = explained(read_runs(tmp_path, "study"), **said, predictors=("end",))[0].rows
    assert [entry.text for entry in row[2:]] == ["–", "–", "–", "4"]


def test_a_study_makes_two_tables_and_a_picture_and_says_what_is_missing(runs, tmp_path: Path) -> None:
    said = {"question": "Which?", "expected": "High.", "arms": {**ARMS, "none": {"ratio.chosen": 0.0}},
            "bounds": {"score": 0.1},
            "contrasts": {"low less high": {"low": 1, "high": -1}, "none less low": {"none": 1, "low": -1}},
            "measures": {"score": SCORES, "end": "end/rewards/chosen"}, "tested": ("score",)}  # fmt: skip
    for figure in ("contrasts", "conditions", "walk"):
        order = dict(reversed(said["arms"].items())) if figure == "walk" else said["arms"]
        findings, arms, picture = study(runs, **{**said, "arms": order}, figure=figure)
        assert picture.write(tmp_path / figure)[0].stat().st_size > 5000
    assert len(findings.rows) == 2
    assert "Expected, before the runs: High." in findings.facts
    missing = [row for row in arms.rows if row[1].text == "none"]
    assert [entry.text for entry in missing[0][2:]] == ["–", "–"] if missing else False
    tables = explained(runs, **said, predictors=("end",))
    assert tables[0].rows == []
    assert "nothing yet" in tables[0].facts[0]


def test_an_arm_is_held_against_the_mixture_of_its_measure_and_beyond_the_row_against_the_end(
    runs, tmp_path: Path
) -> None:
    """The ends are at 2 and 10: an arm at 4 is 3/4 of the low and 1/4 of the high one, one at 12 the high one."""
    for seed, (ratio, score) in product((1, 2, 3), ((0.4, 6.5), (1.2, 5.5))):
        write_run(tmp_path, seed, ratio, [score + seed] * 40)
    arms = ARMS | {"inside": {"ratio.chosen": 0.4}, "outside": {"ratio.chosen": 1.2}}
    rule = {"ladder": {"row": list(ARMS), "by": ["end"], "arms": ["inside", "outside"]}}
    measures = {"score": SCORES, "end": "end/rewards/chosen", "all": "mean/rewards/chosen"}
    findings, matched, _ = study(
        read_runs(tmp_path, "study"), question="", expected="", arms=arms, contrasts={}, measures=measures,
        tested=("score",), matched=rule,
    )  # fmt: skip
    assert [row[1].text for row in findings.rows] == [
        f"{arm} less ladder of its end" for arm in rule["ladder"]["arms"]
    ]
    assert [row[3].value for row in findings.rows] == pytest.approx(
        [6.5 - (0.75 * 7 + 0.25 * 5), 0.5], abs=0.02
    )
    assert [[entry.text for entry in row[1:]] for row in matched.rows] == [
        ["inside", "end", "4.000", "4.000", "0.75 × low + 0.25 × high"],
        ["outside", "end", "12.000", "10.000", "1.00 × high"],
    ]


def test_a_run_of_two_arms_is_one_error(runs) -> None:
    with pytest.raises(ValueError, match="belongs to the arms low and any; tell them apart"):
        conditions(runs, {"low": ARMS["low"], "any": {}}, ["data.name"])


def test_verdicts() -> None:
    def finding(low: float, high: float, p_value: float) -> Finding:
        return Finding((), "a", "score", Interval((low + high) / 2, 0.1, low, high), p_value, 5)

    assert finding(0.1, 0.3, 0.01).verdict({"score": 0.2}) == "above 0"
    assert finding(0.01, 0.1, 0.01).verdict({"score": 0.2}) == "above 0, within the bound"
    assert finding(-0.1, 0.1, 0.9).verdict({"score": 0.2}) == "no difference"
    assert finding(-0.3, 0.1, 0.9).verdict({"score": 0.2}) == "cannot be said"


@pytest.mark.proof
def test_a_miniature_of_a_study_is_trained_judged_and_shown_and_continues(tmp_path: Path) -> None:
    """The real road: study 4 in two steps a cell and two seeds; the same command again trains and judges nothing."""
    small = ("optimizer.max_steps=2", "data.world.prompts=6", "data.world.pairs=64", "data.world.test_pairs=8",
             "data.world.demonstrations=64", "optimizer.sft.max_steps=2", "model.tiny.hidden_size=32",
             "model.tiny.num_hidden_layers=1", "tracking=off", "seed=42,43", "data.test_limit=8")  # fmt: skip
    said = []

    def call(command: list[str]) -> int:
        said.append(command[0])
        return call_python(command)

    options = Options("study4", outputs=str(tmp_path), arguments=small)
    assert reproduce(options, call) == 0
    table = Table.read(tmp_path / "study4" / "study4.json")
    assert {row[0].text for row in table.rows} == {"verifiable", "verifiable_long"}
    assert len(table.rows) == 2 * 3 * 3
    assert all(row[7].text == "2" for row in table.rows)
    assert (tmp_path / "study4" / "study4-intervals.svg").is_file()
    assert reproduce(options, call) == 0
    assert said == [
        "src/train.py",
        "scripts/evaluate.py",
        "scripts/exhibit.py",
        "src/train.py",
        "scripts/exhibit.py",
    ]
