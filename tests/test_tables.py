"""Every table from small fixture records, as golden Markdown, with missing, failed and partial cells.

`SGDPO_WRITE_GOLDEN=1 pytest tests/test_tables.py` writes the golden files anew; read the difference then.
"""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
from functools import partial
from pathlib import Path

import pytest

from lab.benchmarks.verifiable import Verifiable
from lab.report.cells import group, select_ratio
from lab.report.entries import facts
from lab.report.exhibit import find_exhibit
from lab.report.figures import learning_rates, ratio_grid
from lab.report.league import best_values
from lab.report.names import load_paper
from lab.report.samples import samples
from lab.report.tables import mtbench, overhead, step_seconds, table1, table2, table3, table4
from report_fixtures import QUALITY, grid_runs, table3_runs, write_run
from sgdpo.drawing.table import Entry, Table, number
from sgdpo.runs.records import read_runs
from sgdpo.store import write_jsonl

GOLDEN = Path(__file__).parent / "fixtures" / "records"
PAPER = load_paper()


def golden(table: Table) -> None:
    path = GOLDEN / f"{table.name}.md"
    if os.environ.get("SGDPO_WRITE_GOLDEN"):
        path.write_text(table.markdown(), encoding="utf-8")
    assert table.markdown() == path.read_text("utf-8")


def entry(table: Table, *labels: str, column: str) -> Entry:
    row = next(row for row in table.rows if [e.text for e in row[: len(labels)]] == list(labels))
    return row[list(table.header).index(column)]


@pytest.fixture
def outputs(tmp_path):
    table3_runs(tmp_path)
    return tmp_path


def test_table3(outputs):
    golden(table3(read_runs(outputs, "table3")))


def test_table1(tmp_path):
    grid_runs(tmp_path)
    golden(table1(read_runs(tmp_path, "table1")))


def test_table2():
    golden(table2([], **find_exhibit("table2").settings))


def test_table4(outputs):
    golden(table4(read_runs(outputs, "table3")))


def test_mtbench(tmp_path):
    for method, overall in (("dpo", 5.0), ("sgdpo", 5.25)):
        for seed in (42, 43):
            folder = write_run(
                tmp_path, "mt", method, seed=seed, ratio=(0.6, 0.9) if method == "sgdpo" else None
            )
            score = overall + (seed - 42) / 10
            turns = {"turn1": score + 0.5, "turn1_se": 0.1, "turn2": score - 0.5, "turn2_se": 0.1}
            set_eval(folder, {"mt_bench-gpt4": {"overall": score, "overall_se": 0.1, **turns}})
    golden(mtbench(read_runs(tmp_path, "mt")))


def test_the_gain_on_mt_bench_is_over_the_seeds_that_both_have(tmp_path):
    """Seed 43 is two points better for whoever has it: DPO has both seeds, SGDPO one, NCA another one."""
    scores = {("dpo", 42): 4.0, ("dpo", 43): 6.0, ("sgdpo", 42): 5.0, ("nca", 44): 9.0}
    for (method, seed), score in scores.items():
        folder = write_run(tmp_path, "mt", method, seed=seed, ratio=(0.6, 0.9) if method == "sgdpo" else None)
        set_eval(folder, {"mt_bench-gpt4": {"overall": score, "overall_se": 0.1}})
    table = mtbench(read_runs(tmp_path, "mt"))
    gains = [entry(table, "tiny Llama", name, column="over DPO, %") for name in ("DPO", "SGDPO", "NCA")]
    assert [found.text for found in gains] == ["+0.00", "+25.00", "–"]
    assert gains[1].note == "over the seeds that both have: 42"
    assert gains[2].note == "no seed in common with the baseline"


def test_a_mean_and_its_error_are_over_seeds(outputs):
    """DPO's win rates are 52.0 and 52.1: mean 52.05, standard error 0.1 / 2 = 0.05."""
    found = entry(table3(read_runs(outputs, "table3")), "tiny Llama", "DPO", column="win rate, %")
    assert (found.value, found.seeds) == (pytest.approx(52.05), 2)
    assert found.error == pytest.approx(0.05)


def test_one_seed_carries_the_error_over_prompts_and_says_so(tmp_path):
    write_run(tmp_path, "table3", "dpo")
    table = table3(read_runs(tmp_path, "table3"))
    assert entry(table, "tiny Llama", "DPO", column="win rate, %").text == "52.00 ± 1.50"
    assert "over prompts (one seed)" in table.markdown()


def test_no_cell_without_a_number_prints_a_number(outputs):
    table = table3(read_runs(outputs, "table3"))
    assert entry(table, "tiny Llama", "NCA", column="win rate, %").text == "–"
    assert entry(table, "tiny Llama", "BCO", column="win rate, %").text == "failed"
    rows = list(csv.DictReader(io.StringIO(table.csv())))
    empty = [r for r in rows if r["status"] in ("missing", "failed")]
    assert empty
    assert all(r["value"] == "" for r in empty)


def test_a_run_that_is_not_evaluated_is_a_dash_that_says_so(outputs):
    write_run(outputs, "table3", "nca", evaluated=False)
    table = table3(read_runs(outputs, "table3"))
    found = entry(table, "tiny Llama", "NCA", column="win rate, %")
    assert (found.text, found.note) == ("–", "no verifiable-checker: these runs are not evaluated")


def test_a_broken_record_is_named_below_the_table(outputs):
    (outputs / "table3" / "torn").mkdir()
    (outputs / "table3" / "torn" / "record.json").write_text("{")
    assert "unreadable record: table3/torn" in table3(read_runs(outputs, "table3")).markdown()


def test_significance_is_marked_against_dpo_with_holm(outputs):
    """SGDPO wins 32 prompts and DPO 8 of them, so 24 differ, all for SGDPO: p = 2 / 2**24, times 4."""
    table = table3(read_runs(outputs, "table3"))
    assert entry(table, "tiny Llama", "SGDPO", column="win rate, %").mark == "**"
    assert entry(table, "tiny Llama", "DPO", column="win rate, %").mark == ""
    assert entry(table, "tiny Llama", "SamPO", column="win rate, %").mark == ""


def test_runs_of_different_versions_are_refused_with_the_difference(outputs):
    write_run(outputs, "table3", "nca", versions={"python": "3.11.0", "torch": "2.9.0"})
    with pytest.raises(ValueError, match=r"package versions.*torch is 2\.13\.0 there, 2\.9\.0 here"):
        table3(read_runs(outputs, "table3"))


def test_runs_of_different_data_are_refused_with_the_difference(outputs):
    write_run(outputs, "table3", "nca", fingerprint="beef")
    with pytest.raises(ValueError, match=r"different data in one table.*fingerprint is f00d-.*beef-"):
        table3(read_runs(outputs, "table3"))


def test_results_of_fewer_prompts_are_refused_beside_the_others(outputs):
    folder = write_run(outputs, "table3", "nca")
    fewer = json.loads((folder / "record.json").read_text())["eval"]
    fewer["verifiable-checker"]["n"] = 10
    set_eval(folder, fewer)
    with pytest.raises(ValueError, match=r"settings of verifiable-checker.*n is 200 there, 10 here"):
        table3(read_runs(outputs, "table3"))


@pytest.mark.parametrize(
    "show",
    [
        table1,
        ratio_grid,
        partial(learning_rates, methods=("dpo", "sgdpo")),
        partial(best_values, key="seed", metric="verifiable-checker:win_rate"),
    ],
)
def test_results_of_a_changed_checker_are_refused_beside_the_others_by_whatever_shows_them(tmp_path, show):
    grid_runs(tmp_path, seeds=(42,))
    folder = write_run(tmp_path, "table1", "nca")
    found = json.loads((folder / "record.json").read_text())["eval"]
    found["verifiable-checker"]["identity"] = {"settings": Verifiable().settings()}
    set_eval(folder, found)
    with pytest.raises(ValueError, match=r"different settings of verifiable-checker in one table.*code"):
        show(read_runs(tmp_path, "table1"))


def test_two_runs_for_one_cell_are_refused_with_the_setting_that_differs(outputs):
    write_run(outputs, "table3", "dpo", lr=1e-4)
    with pytest.raises(ValueError, match=r"optimizer\.lr is"):
        table3(read_runs(outputs, "table3"))


def test_answers_that_a_judge_preferred_are_shown_with_the_preference(outputs):
    folder = write_run(outputs, "mine", "dpo")
    set_eval(folder, {"alpaca_eval-judge": {"win_rate": 50.0}})
    row = {"prompt_id": "1", "prompt": "Say hi.", "response": "Hi.", "truncated": False, "preference": 0.75}
    write_jsonl(folder / "eval" / "alpaca_eval-judge" / "samples.jsonl", [row])
    table = samples(read_runs(outputs, "mine"), benchmarks=("alpaca_eval",))
    assert [entry.text for entry in table.rows[0]] == ["Say hi.", "DPO", "0.75", "Hi."]


def test_runs_without_evaluation_name_the_command(tmp_path):
    write_run(tmp_path, "table3", "dpo", evaluated=False)
    with pytest.raises(ValueError, match=r"python scripts/evaluate\.py .*benchmark=alpaca_eval"):
        table3(read_runs(tmp_path, "table3"))


def test_the_best_ratio_is_selected_with_its_runner_up(tmp_path):
    """Quality falls by 10 a unit of r1 from 0.6, by 5 a unit of r2 from 0.8: (0.6, 0.8), then (0.6, 0.6)."""
    grid_runs(tmp_path)
    cells = group(
        [run for run in read_runs(tmp_path) if run["method"] == "sgdpo"],
        lambda run: (run["ratio"]["chosen"], run["ratio"]["rejected"]),
    )
    found = select_ratio(cells, "verifiable-checker:win_rate")
    assert (found.best, found.second, found.paired_over) == ((0.6, 0.8), (0.6, 0.6), "seeds and prompts")
    assert found.best_estimate.value == pytest.approx(56.05)
    margins = select_ratio(cells, "eval/rewards/margins")
    assert (margins.best, margins.paired_over) == ((0.6, 0.6), "seeds")
    assert select_ratio(cells, "eval/no_such_metric") is None


def test_a_lucky_seed_selects_nothing_and_what_was_left_out_is_named(tmp_path):
    """The best cell loses a seed to a crash: what is left of it is no mean over the grid's seeds."""
    grid_runs(tmp_path)
    best = next(tmp_path.glob("table1/*r0.6-0.8*s43")) / "record.json"
    best.write_text(json.dumps({**json.loads(best.read_text()), "status": "failed", "error": "loss is NaN"}))
    runs, metric = read_runs(tmp_path, "table1"), "verifiable-checker:win_rate"
    table = table1(runs, metric=metric)
    assert entry(table, "tiny Llama", column="Selected r1, r2").text == "0.6, 0.6"
    assert (
        f"Not ranked, without {metric} on every seed: tiny Llama 0.6, 0.8 (1 of 2 seeds)." in table.markdown()
    )
    (picture,) = ratio_grid(runs, metric=metric)
    assert "left out, not on every seed: 0.6, 0.8 (1 of 2 seeds)" in picture.figure.get_supxlabel()
    assert "56.0" not in " ".join(text.get_text() for text in picture.figure.axes[0].texts)


def test_the_overhead_is_paired_by_step(tmp_path):
    """DPO logs 100 pairs a second and SGDPO 99, at every step: 100 / 99 - 1 = 1.0101 per cent, exactly."""
    write_run(tmp_path, "table4", "dpo")
    write_run(tmp_path, "table4", "sgdpo", ratio=(0.6, 0.9))
    dpo, sgdpo = read_runs(tmp_path, "table4")
    assert sum(step_seconds(dpo).values()) == pytest.approx(20 * 32 / 100)
    cells = group([dpo, sgdpo], lambda run: run["method"])
    found = overhead(cells["dpo"], cells["sgdpo"])
    assert found.percent == pytest.approx(100 * (100 / 99 - 1))
    assert found.steps == 18, "the first two steps warm up"


def test_the_papers_overhead_is_that_of_the_methods_shown(tmp_path):
    """22942 s of DPO and 23047 s of SGDPO; of other methods the paper says nothing."""
    for method in ("dpo", "nca", "sgdpo"):
        write_run(tmp_path, "table4", method, ratio=(0.6, 0.9) if method == "sgdpo" else None)
    runs = read_runs(tmp_path, "table4")
    shown = [
        table4(runs, methods=pair).rows[-1][3].text
        for pair in (("dpo", "nca"), ("sgdpo", "dpo"), ("dpo", "sgdpo"))
    ]
    assert shown == ["–", "−0.46", "+0.46"]


def test_a_number_that_the_judging_did_not_give_is_said_so(outputs):
    """Without a baseline nobody has a win rate, and DPO is not what the others are compared with."""
    for path in (outputs / "table3").glob("*/record.json"):
        found = json.loads(path.read_text())
        set_eval(path.parent, {key: result | {"win_rate": None} for key, result in found["eval"].items()})
    found = entry(table3(read_runs(outputs, "table3")), "tiny Llama", "DPO", column="win rate, %")
    assert (found.text, found.note) == ("–", "no such number: verifiable-checker did not give it")


def test_the_paper_numbers_are_those_of_the_paper():
    """Spot values of facts.md's tables, so that a slip in the YAML shows."""
    assert PAPER.table3["llama31_8b_instruct"]["sgdpo"] == [28.22, 28.96, 444]
    assert PAPER.table3["qwen2_7b_instruct"]["ipo"] == [29.03, 25.68, 411]
    assert all(set(rows) == set(QUALITY) for rows in PAPER.table3.values())
    assert 100 * (PAPER.table4["sgdpo"] / PAPER.table4["dpo"] - 1) == pytest.approx(0.46, abs=0.005)


def test_the_three_forms_are_written_and_latex_is_balanced(outputs, tmp_path):
    paths = table3(read_runs(outputs, "table3")).write(tmp_path / "out")
    assert [path.name for path in paths] == ["table3.md", "table3.tex", "table3.csv", "table3.json"]
    latex = paths[1].read_text()
    assert latex.count("{") == latex.count("}")
    body = [line for line in latex.splitlines() if line.endswith(r"\\")]
    assert len({line.count(" & ") for line in body}) == 1


def test_names_from_records_cannot_break_the_markup():
    table = Table("t", "t", ["name", "x"], [[Entry("a|b<script>"), Entry("1", note="a & b_c")]])
    assert r"a\|b&lt;script>" in table.markdown()
    assert r"a \& b\_c" in table.latex()


def set_eval(folder: Path, value: dict) -> None:
    record = json.loads((folder / "record.json").read_text())
    (folder / "record.json").write_text(json.dumps({**record, "eval": value}))
    shutil.rmtree(folder / "eval", ignore_errors=True)


def test_a_table_is_read_back_from_its_json_and_damage_names_the_file(outputs, tmp_path):
    table = table3(read_runs(outputs, "table3"))
    path = table.write(tmp_path / "out")[-1]
    again = Table.read(path)
    assert (again.markdown(), again.latex(), again.csv()) == (table.markdown(), table.latex(), table.csv())
    for damage in (
        "",
        "{",
        "[]",
        "null",
        '{"rows": [[1]]}',
        path.read_text().replace('"header"', '"haeder"'),
    ):
        path.write_text(damage)
        with pytest.raises(ValueError, match=r"table3\.json is not a table's JSON"):
            Table.read(path)


def test_a_table_on_the_screen_is_as_wide_as_it_is_and_its_text_is_no_markup(monkeypatch):
    monkeypatch.setenv("COLUMNS", "70")
    table = Table("t", "", ["run", "x"], [["[red]name[/red]" * 3, number(-1.25, 1, 0.5)]], facts=["± is one"])
    shown = table.console()
    assert "[red]name[/red]" in shown
    assert "−1.2 ± 0.5" in shown
    assert shown.endswith("± is one")
    assert max(map(len, shown.splitlines())) <= 70


@pytest.mark.parametrize(("columns", "wide"), [("20", 95), ("80", 95), ("100", 100)])
def test_a_narrow_screen_loses_no_digit_and_no_letter(monkeypatch, columns, wide):
    """A name of 8 characters beside each other, a number of 8, six of 9 with their signs, and the frame: 95."""
    monkeypatch.setenv("COLUMNS", columns)
    name, heads = "sgdpo-tiny_llama-verifiable-r0.6-0.9", [f"held-out number {n}" for n in range(7)]
    shown = Table("t", "", ["run", *heads], [[name, *(number(-n / 7, 6, 0.25) for n in range(7))]]).console()
    assert max(map(len, shown.splitlines())) == wide
    assert all(f" −{n / 7:.6f} " in shown for n in range(1, 7))
    cells = [line.split("│")[1].strip() for line in shown.splitlines() if line.startswith("│")]
    assert "".join(cells) == name
    assert "…" not in shown


def test_a_table_without_rows_is_its_heads(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert "score" in Table("t", "", ["run", "score"], []).console()


def test_a_table_says_what_nominal_ratios_came_out_as(tmp_path):
    """Two seeds at (0.6, 0.9) that logged 0.5 and 0.6 of the chosen, 0.8 of the rejected side: means 0.55 and 0.80."""
    for seed, chosen in ((42, 0.5), (43, 0.6)):
        path = write_run(tmp_path, "table3", "sgdpo", seed=seed, ratio=(0.6, 0.9)) / "record.json"
        record = json.loads(path.read_text())
        record["final"]["eval"] |= {"pilot/ratio_chosen": chosen, "pilot/ratio_rejected": 0.8}
        path.write_text(json.dumps(record))
    said = "Ratios as they came out, tokens over the shorter answer's: 0.6 is 0.55, 0.9 is 0.80."
    assert said in facts(read_runs(tmp_path))
