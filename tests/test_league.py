"""The league: the same tuning for every method, fresh seeds, prompts that nothing was chosen by, corrected tests."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import yaml
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser

from lab.benchmarks.statistics import equivalence
from lab.benchmarks.verifiable import Verifiable
from lab.report.exhibit import find_exhibit
from lab.report.league import TUNING, best_values, incentives, league
from lab.reproduce import Options, reproduce
from lab.sweeps.cells import expand
from report_fixtures import write_run
from sgdpo.places import CONF, ROOT
from sgdpo.runs.records import read_runs
from sgdpo.world.verifiable import WorldConfig, held_out_prompts
from toy_pairs import PREFERENCE

SCORE = "verifiable_tuning-checker:score_mean"
SETTINGS = find_exhibit("league").settings
# How much better than DPO a method's answers are, points; the runs differ by seed, the answers by prompt.
BETTER = {"dpo": 0.0, "bco": 1.0, "ipo": -1.0, "nca": 0.0}


def tuning_runs(outputs: Path) -> None:
    """Write three rates and two seeds: DPO is best at 2e-4, IPO at the end of the range, NCA fails at 4e-4 once."""
    for method, best in (("dpo", 2e-4), ("ipo", 4e-4), ("nca", 1e-4)):
        for seed in (7, 8):
            for rate in (1e-4, 2e-4, 4e-4):
                died = (method, seed, rate) == ("nca", 7, 4e-4)
                quality = 90.0 if method == "nca" and rate == 4e-4 else 60.0 if rate == best else 55.0
                folder = write_run(
                    outputs, f"{TUNING}league", method, seed=seed, lr=rate, quality=quality,
                    status="failed" if died else "finished", error="loss is NaN" if died else None,
                    evaluated=(method, seed, rate) != ("dpo", 7, 1e-4),
                )  # fmt: skip
                record = json.loads((folder / "record.json").read_text())
                record["eval"] = dict(
                    zip(["verifiable_tuning-checker"], record["eval"].values(), strict=False)
                )
                (folder / "record.json").write_text(json.dumps(record))


def final_runs(outputs: Path, seeds: int = 5) -> None:
    """Write runs whose prompts' scores differ from DPO's by BETTER, and log(dw/dl) that grows with it."""
    random = np.random.default_rng(0)
    for method, better in BETTER.items():
        for seed in range(42, 42 + seeds):
            rate = 4e-4 if method == "bco" else 2e-4
            folder = write_run(outputs, "league", method, seed=seed, lr=rate, quality=50.0)
            score_P = 5 + better + 0.05 * random.standard_normal(200)
            rows = [{"prompt_id": str(i), "judge": "checker", "score": s} for i, s in enumerate(score_P)]
            path = folder / "eval" / "verifiable-checker" / "judgments.jsonl"
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
            record = json.loads((folder / "record.json").read_text())
            record["eval"]["verifiable-checker"]["score_mean"] = float(score_P.mean())
            if method != "ipo":
                record["final"]["eval"] |= {"incentive/log_ratio": better, "displaced": 0.25}
            (folder / "record.json").write_text(json.dumps(record))


def test_each_method_takes_its_best_rate_over_the_tuning_seeds(tmp_path: Path) -> None:
    tuning_runs(tmp_path)
    runs = read_runs(tmp_path, f"{TUNING}league")
    assert best_values(runs, "optimizer.lr", SCORE) == {"dpo": 2e-4, "ipo": 4e-4, "nca": 1e-4}


def test_tuning_comes_first_and_what_it_chose_is_trained_on_fresh_seeds(tmp_path: Path) -> None:
    tuning_runs(tmp_path)
    ran: list[list[str]] = []
    options = Options(
        "league",
        outputs=str(tmp_path),
        arguments=("method=dpo,ipo,nca", "optimizer.lr=1e-4,2e-4", "tracking=off"),
    )
    reproduce(options, lambda command: ran.append(command) or 0)
    trial, judged, final = ran[0], ran[1], ran[2]
    assert {"sweep=league", f"experiment={TUNING}league", "seed=7", "method=dpo,ipo,nca"} <= set(trial)
    assert "benchmark=verifiable_tuning" in judged
    assert {"experiment=league", "seed=42,43,44,45,46", "tracking=off"} <= set(final)
    assert "hydra.sweeper.params={method: 'nca', optimizer.lr: '0.0001'}" in final
    assert (
        "hydra.sweeper.also=[{method: 'dpo', optimizer.lr: '0.0002'},{method: 'ipo', optimizer.lr: '0.0004'}]"
        in final
    )
    assert not [word for word in final if word.startswith(("method=", "optimizer.lr="))]


def test_a_tuning_of_which_only_the_start_is_left_is_an_error_not_a_success(tmp_path: Path) -> None:
    folder = write_run(tmp_path, f"{TUNING}league", "sft", seed=7)
    record = json.loads((folder / "record.json").read_text())
    record["eval"] = {"verifiable_tuning-checker": next(iter(record["eval"].values()))}
    (folder / "record.json").write_text(json.dumps(record))
    write_run(tmp_path, f"{TUNING}league", "dpo", seed=7, status="failed", error="loss is NaN")
    with pytest.raises(ValueError, match="no tuning run of tuning-league was trained and judged"):
        reproduce(Options("league", outputs=str(tmp_path)), lambda command: 0)


@pytest.mark.parametrize("target", ["table3", "league"])
def test_what_the_training_refuses_is_not_answered_with_older_runs(tmp_path, target):
    """The class: bad input for the sweep, of a table or of a tuning; what stands there is of other settings."""
    write_run(tmp_path, target, "dpo", seed=7)
    ran = []
    with pytest.raises(ValueError, match="nothing was trained, judged or made"):
        reproduce(Options(target, outputs=str(tmp_path)), lambda command: ran.append(command[0]) or 2)
    assert ran == ["src/train.py"]


def test_a_tuning_that_was_not_judged_to_its_end_chooses_nothing(tmp_path):
    ran = []
    write_run(tmp_path, f"{TUNING}league", "dpo", seed=7, evaluated=False)
    options = Options("league", outputs=str(tmp_path))
    assert reproduce(options, lambda command: ran.append(command[0]) or int("evaluate" in command[0])) == 1
    assert ran == ["src/train.py", "scripts/evaluate.py"]


def test_the_grid_is_every_direct_objective_at_five_rates_a_factor_of_2_apart() -> None:
    params = yaml.safe_load((CONF / "sweep" / "league.yaml").read_text())["hydra"]["sweeper"]["params"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
        cells = [overrides for _, overrides in expand(params, [], [], parser)]
    assert {method for method, *_ in cells} == {f"method={name}" for name in set(PREFERENCE) - {"mix"}}
    rates = sorted({float(rate.partition("=")[2]) for _, rate, *_ in cells})
    assert [round(b / a, 6) for a, b in pairwise(rates)] == [2.0] * 4
    assert len(cells) == len({method for method, *_ in cells}) * 5


def test_the_table_ranks_and_says_better_worse_none_and_what_it_cost(tmp_path: Path) -> None:
    tuning_runs(tmp_path)
    final_runs(tmp_path)
    table, picture = league(read_runs(tmp_path, "league"), **SETTINGS)
    verdicts = {row[1].text: row[list(table.header).index("verdict")].text for row in table.rows}
    assert verdicts == {"BCO": "better", "NCA": "no difference", "DPO": "baseline", "IPO": "worse"}
    assert (table.rows[0][1].text, table.rows[-1][1].text) == ("BCO", "IPO")
    below = "\n".join(table.facts)
    assert SETTINGS["question"] in below
    assert "Found, against DPO: 1 better (BCO); 1 no difference (NCA); 1 worse (IPO)." in below
    assert "18 tuning runs (seeds 7, 8, 1 of them failed and were no candidates), 20 runs" in below
    assert table.rows[-1][-1].note == "these runs log no eval/displaced"  # IPO's
    assert "Best at an end of the rates tried, so that a better one may lie beyond: 0.0004: BCO." in below
    drawn = {text.get_text() for text in picture.figure.axes[0].texts}
    assert drawn == {"BCO", "NCA", "DPO"}
    assert "no log(dw/dl): IPO" in picture.figure._supxlabel.get_text()


def test_a_method_that_is_left_with_fewer_seeds_stands_below_the_others(tmp_path: Path) -> None:
    final_runs(tmp_path)
    for seed in (42, 43, 44, 45):
        (lost,) = (tmp_path / "league").glob(f"bco-*-s{seed}")
        record = json.loads((lost / "record.json").read_text())
        (lost / "record.json").write_text(json.dumps({**record, "status": "failed", "error": "loss is NaN"}))
    table, _ = league(read_runs(tmp_path, "league"), **SETTINGS)
    assert table.rows[-1][1].text == "BCO"


def test_the_incentives_of_each_method_are_drawn_over_training(tmp_path: Path) -> None:
    for method in ("dpo", "bco"):
        folder = write_run(tmp_path, "incentives", method)
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        rows = [{**row, "incentive/log_ratio": 0.0, "displaced": 0.1 * row["step"]} for row in rows]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    picture = incentives(read_runs(tmp_path, "incentives"), **find_exhibit("incentives").settings)
    labels = [{text.get_text().strip() for text in axes.texts} for axes in picture.figure.axes]
    assert labels == [{"DPO", "BCO"}] * 2 + [{"no such metric"}] * 2


def test_one_seed_says_nothing_of_methods(tmp_path: Path) -> None:
    final_runs(tmp_path, seeds=1)
    table, _ = league(read_runs(tmp_path, "league"), **SETTINGS)
    assert all(row[list(table.header).index("p of none")].value in (None, 1.0) for row in table.rows)
    verdicts = [row[list(table.header).index("verdict")].text for row in table.rows]
    assert sorted(verdicts) == ["baseline", *["cannot be said"] * 3]
    below = "\n".join(table.facts)
    assert "± is one standard error over prompts (one seed)." in below
    assert "One seed speaks of two models" in below


def test_what_cannot_be_read_is_named_and_nothing_else_stands_for_a_baseline_that_is_lost(
    tmp_path: Path,
) -> None:
    """Unreadable records of the tuning and of the league, and DPO failed on every seed."""
    tuning_runs(tmp_path)
    final_runs(tmp_path, seeds=2)
    for experiment in (f"{TUNING}league", "league"):
        next((tmp_path / experiment).glob("nca-*")).joinpath("record.json").write_text("{")
    for path in tmp_path.glob("league/dpo-*/record.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"status": "failed", "eval": {}}))
    table, picture = league(read_runs(tmp_path, "league"), **SETTINGS)
    verdicts = {row[1].text: row[list(table.header).index("verdict")] for row in table.rows}
    assert {entry.text for entry in verdicts.values()} == {"–"}
    assert verdicts["BCO"].note == "no judged seed in common with the baseline"
    assert "Left out, unreadable record: league/nca-" in "\n".join(table.facts)
    assert "1 broken, 2 failed" in picture.figure.get_supxlabel()


def test_equivalence_by_hand() -> None:
    """Differences of seeds 0.1 and -0.1 and 0: mean 0, error 0.1/sqrt(3); bound 0.2: t = -2 sqrt(3), 2 degrees.

    p = 1/2 - t/(2 sqrt(t^2 + 2)) with t = 2 sqrt(3): 0.0370899. Prompts differ by nothing: their p is 0.
    """
    ours = np.array([[0.1] * 4, [-0.1] * 4, [0.0] * 4])
    assert equivalence(ours, 0 * ours, 0.2) == pytest.approx(0.5 - 12**0.5 / (2 * 14**0.5), rel=1e-9)
    assert equivalence(ours + 0.5, 0 * ours, 0.2) > 0.95
    assert equivalence(ours[:1], 0 * ours[:1], 0.2) == 1.0


def test_the_halves_of_the_prompts_share_none_and_are_all() -> None:
    world = WorldConfig(prompts=11)
    ids = {}
    for part in ("all", "tuning", "test"):
        benchmark = Verifiable(part=part)
        benchmark.__dict__["world"] = world
        ids[part] = [task.task_id for task in benchmark.tasks]
    assert ids["tuning"] + ids["test"] == ids["all"] == [task.task_id for task in held_out_prompts(world)]


@pytest.mark.proof
def test_a_league_of_four_runs_from_its_command_and_after_a_kill_trains_only_what_is_missing(
    tmp_path: Path,
) -> None:
    arguments = (
        "method=dpo,bco,simpo,sgdpo optimizer.lr=1e-4,1e-3 optimizer.max_steps=4 optimizer.batch_size=8 "
        "optimizer.sft.max_steps=4 optimizer.sft.batch_size=8 data.world.pairs=40 data.world.demonstrations=40 "
        "data.world.test_pairs=16 data.world.prompts=12 model.tiny.hidden_size=32 model.tiny.intermediate_size=32 "
        "model.tiny.num_hidden_layers=1 tracking=off benchmark.max_new_tokens=8"
    )
    script = [sys.executable, str(ROOT / "scripts" / "reproduce.py"), "--outputs", str(tmp_path), "league"]
    first = subprocess.run([*script, *shlex.split(arguments)], capture_output=True, text=True, check=False)
    assert first.returncode == 0, first.stdout[-2000:] + first.stderr[-2000:]
    table = json.loads((tmp_path / "league" / "league.json").read_text())
    assert len(table["rows"]) == 4
    assert (tmp_path / "league" / "league-incentives.svg").is_file()
    gone = next(path for path in (tmp_path / "league").glob("bco-*-s44-*"))
    (gone / "record.json").unlink()
    again = subprocess.run([*script, *shlex.split(arguments)], capture_output=True, text=True, check=False)
    assert again.returncode == 0
    assert "20 cells are valid; 19 are finished already" in again.stdout
