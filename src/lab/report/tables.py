"""The paper's tables 1 to 3 and MT-Bench, from records alone, with the paper's numbers beside ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from lab.benchmarks.statistics import Comparison, holm
from lab.report.cells import (
    Repeats,
    choose_evaluation,
    compare_preferences,
    group,
    last_metric,
    ratio_of,
    read_metric,
    refuse_mixtures,
    seeds_of,
)
from lab.report.entries import error_fact, facts, number_entry, paper_entry, ratio_text
from lab.report.names import about, load_paper, method_title, methods_in_order
from lab.report.selection import Selection, default_metric, select_ratio
from sgdpo.config.compose import compose_run, to_run_config
from sgdpo.config.schema import RunConfig
from sgdpo.drawing.table import DASH, Entry, Table, number
from sgdpo.runs.records import RunView

ALPHAS = (0.05, 0.01)
Cells = Mapping[tuple[str, str], Repeats]


def table1(runs: Sequence[RunView], *, baseline: str = "dpo", metric: str | None = None) -> Table:
    """Table 1: the selected ratios of each model, the runner-up, the baseline's value and the authors' ratios.

    metric: "eval/rewards/accuracies" or "verifiable-checker:win_rate"; None: what says most of the runs.
    """
    refuse_mixtures(runs)
    paper, metric = load_paper(), metric or default_metric(runs)
    grid = group([run for run in runs if ratio_of(run)], lambda run: (run["model"], ratio_of(run)))
    beside = group([run for run in runs if run["method"] == baseline], lambda run: run["model"])
    seeds, rows = seeds_of(runs), []
    for model in sorted({model for model, _ in grid}):
        cells = {ratio: repeats for (name, ratio), repeats in grid.items() if name == model}
        known = paper.table1.get(paper.beside(model) or "")
        rows.append(
            [
                paper.title(model),
                *_selected(select_ratio(cells, metric), metric),
                number_entry(beside.get(model), read_metric(metric), 3, seeds, metric),
                ratio_text(known) if known else Entry(note="the authors' values were lost"),
            ]
        )
    title = method_title(baseline, runs)
    header = ["Model", "Selected r1, r2", metric, "Runner-up", "its value", "difference", title]
    notes = [
        f"Selected among {len({ratio for _, ratio in grid})} ratios (chosen r1, rejected r2) by the highest "
        f"{metric}, mean over seeds. {error_fact(runs)}",
        f"The authors' default is {ratio_text(paper.default_ratio)}; their value for Llama-3.1 base 8B is "
        f"{ratio_text(paper.table1['llama31_8b'])}.",
    ]
    header.append("authors' r1, r2")
    return Table("table1", "Table 1: ratios selected by grid search", header, rows, 1, [*facts(runs), *notes])


def _selected(selection: Selection | None, metric: str) -> list[Entry | str]:
    if selection is None:
        return [Entry(note=f"no finished run has {metric}", status="missing"), *[Entry()] * 4]
    best, second = selection.best_estimate, selection.second_estimate
    entries = [ratio_text(selection.best), number(best.value, 3, best.error, seeds=best.seeds)]
    if second is None:
        return [*entries, Entry(note="only one cell has finished", status="missing"), Entry(), Entry()]
    tested = (
        f"p = {selection.p_value:.2g}, paired over {selection.paired_over}" if selection.paired_over else ""
    )
    note = "the two share no seed" if selection.difference is None else tested or "too few seeds to test"
    return [
        *entries,
        ratio_text(selection.second),
        number(second.value, 3, second.error, seeds=second.seeds),
        number(selection.difference, 3, sign="+", note=note),
    ]


def table2(runs: Sequence[RunView], *, models_shown: dict[str, list[str]]) -> Table:
    """Table 2: the settings of both phases, read from the resolved configs, the paper's beside.

    models_shown: how a group of models is called, and its model of the SFT and of the preference phase.
    """
    paper = load_paper()
    header = [
        "Phase",
        "Models",
        "learning rate",
        "batch size",
        "epochs",
        "schedule",
        "warm-up",
        "beta",
        "r1, r2",
    ]
    rows = []
    for index, (phase, method) in enumerate((("sft", "sft"), ("preference", "sgdpo"))):
        known = paper.table2[phase]
        shown = [
            f"{known['lr']:g}",
            *(str(known[k]) for k in ("batch_size", "epochs", "schedule", "warmup_ratio")),
        ]
        shown += [DASH, DASH] if phase == "sft" else [f"{known['beta']:g}", ratio_text(paper.default_ratio)]
        rows.append([phase, "paper", *shown])
        for name, pair in models_shown.items():
            config = to_run_config(compose_run([f"model={pair[index]}", f"method={method}"]))
            rows.append([phase, name, *_settings(config)])
    notes = ["Read from the resolved configs (conf/), the same for every method; r1, r2 are SGDPO's alone."]
    return Table("table2", "Table 2: training settings", header, rows, 2, notes)


def _settings(config: RunConfig) -> list[str]:
    optimizer, chosen = config.optimizer, config.ratio.chosen
    return [
        f"{optimizer.lr:g}",
        str(optimizer.batch_size),
        f"{optimizer.epochs:g}",
        optimizer.schedule,
        f"{optimizer.warmup_ratio:g}",
        f"{config.method['beta']:g}" if "beta" in config.method else DASH,
        ratio_text(None if chosen is None else (chosen, config.ratio.rejected)),
    ]


def table3(
    runs: Sequence[RunView],
    *,
    benchmarks: tuple[str, ...] = ("alpaca_eval", "verifiable"),
    baseline: str = "dpo",
    evaluation: str | None = None,
) -> Table:
    """Table 3: the win rates of every method and model, marked where they differ from the baseline beyond noise."""
    refuse_mixtures(runs)
    paper, key = load_paper(), choose_evaluation(runs, evaluation, benchmarks)
    cells = group(runs, lambda run: (run["model"], run["method"]))
    seeds, rows, tests = seeds_of(runs), [], set()
    scored = any(last_metric(run, f"{key}:score_mean") is not None for run in runs)
    columns = [("lc_win_rate", 2), ("win_rate", 2), ("tokens_mean", 1)] + [("score_mean", 3)] * scored
    for model in sorted({model for model, _ in cells}):
        against = compared(cells, model, key, baseline)
        tests |= {comparison.test for comparison, _ in against.values()}
        known = paper.table3.get(paper.beside(model) or "", {})
        for method in methods_in_order([run for run in runs if run["model"] == model], paper.methods):
            row = [paper.title(model), method_title(method, runs)]
            for name, digits in columns:
                row.append(
                    number_entry(cells.get((model, method)), read_metric(f"{key}:{name}"), digits, seeds, key)
                )
            row[3] = replace(row[3], mark=_mark(*against[method]) if method in against else "")
            beside = zip(known.get(method, [None, None, None]), (2, 2, 0), strict=True)
            rows.append([*row, *(paper_entry(value, digits) for value, digits in beside)])
    header = ["Model", "Method", "LC win rate, %", "win rate, %", "tokens", *["score, 0–10"] * scored]
    header += ["paper: LC, %", "paper: raw, %", "paper: tokens"]
    below = [*facts(runs, key), *_table3_notes(runs, key, method_title(baseline, runs), sorted(tests))]
    return Table("table3", f"Table 3: {key}", header, rows, 2, below)


def _table3_notes(runs: Sequence[RunView], key: str, baseline: str, tests: Sequence[str]) -> list[str]:
    paper = load_paper()
    named = sorted({run["model"] for run in runs if run["model"]} & paper.stands_for.keys())
    stand_ins = [f"{paper.title(model)} beside {paper.title(paper.stands_for[model])}" for model in named]
    notes = [
        f"{error_fact(runs)} Marks on the win rate: * better, † worse than {baseline} with p < 0.05, doubled with "
        "p < 0.01; Holm-corrected over the methods of a model, two seeds at least.",
        *(f"Test: {test}." for test in tests),
        *([about(key)] if about(key) else []),
        "Paper: AlpacaEval-2, judge GPT-4, no errors given.",
    ]
    if stand_ins:
        notes.append(
            f"Another model, data and judge than the paper's ({', '.join(stand_ins)}): levels do not compare."
        )
    return notes


def compared(cells: Cells, model: str, key: str, baseline: str) -> dict[str, tuple[Comparison, float]]:
    """Compare each method with the baseline, with Holm's corrected p, where they share judged prompts and seeds."""
    ours = {
        method: repeats for (name, method), repeats in cells.items() if name == model and method != baseline
    }
    theirs = cells.get((model, baseline), Repeats())
    found = {method: compare_preferences(repeats, theirs, key) for method, repeats in sorted(ours.items())}
    tested = {method: comparison for method, comparison in found.items() if comparison}
    corrected = holm([comparison.p_value for comparison in tested.values()]) if tested else []
    return {method: (tested[method], p) for method, p in zip(tested, corrected, strict=True)}


def _mark(comparison: Comparison, p_value: float) -> str:
    """Give one sign for p < 0.05, two for p < 0.01: * better, † worse; none where one seed speaks of two models."""
    count = 0 if comparison.seeds < 2 else sum(p_value < level for level in ALPHAS)
    return count * ("*" if comparison.difference.value > 0 else "†")


def mtbench(
    runs: Sequence[RunView],
    *,
    benchmarks: tuple[str, ...] = ("mt_bench",),
    baseline: str = "dpo",
    evaluation: str | None = None,
) -> Table:
    """Show MT-Bench scores, 1 to 10: overall and by turn."""
    refuse_mixtures(runs)
    paper, key = load_paper(), choose_evaluation(runs, evaluation, benchmarks)
    cells = group(runs, lambda run: (run["model"], run["method"]))
    seeds, rows = seeds_of(runs), []
    for model in sorted({model for model, _ in cells}):
        beside = cells.get((model, baseline), Repeats()).estimate(read_metric(f"{key}:overall"))
        for method in methods_in_order([run for run in runs if run["model"] == model], paper.methods):
            repeats = cells.get((model, method))
            row = [paper.title(model), method_title(method, runs)]
            for name in ("overall", "turn1", "turn2"):
                row.append(number_entry(repeats, read_metric(f"{key}:{name}"), 2, seeds, key))
            unknown = beside is None or row[2].value is None
            rows.append(
                [*row, number(None if unknown else 100 * (row[2].value / beside.value - 1), 2, sign="+")]
            )
    low, high = paper.mtbench["gain_low"], paper.mtbench["gain_high"]
    notes = [
        error_fact(runs),
        f"Paper: SGDPO's gain over DPO is {low:g} % to {high:g} % over the models (judge GPT-4).",
    ]
    header = ["Model", "Method", "overall", "turn 1", "turn 2", f"over {method_title(baseline, runs)}, %"]
    return Table("mtbench-table", f"MT-Bench: {key}", header, rows, 2, [*facts(runs, key), *notes])
