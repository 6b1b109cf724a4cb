"""The paper's tables, from records alone, with the paper's numbers beside ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from lab.benchmarks.statistics import holm
from lab.report.cells import (
    Cell,
    choose_evaluation,
    evaluation_keys,
    group,
    paired_p_value,
    ratio_of,
    read_metric,
    refuse_mixtures,
    refuse_unlike_judgments,
)
from lab.report.entries import error_fact, estimate_text, facts, number_entry, paper_entry, text
from lab.report.paper import Paper
from lab.report.selection import Selection, select_ratio
from sgdpo.config.compose import compose_run, to_run_config
from sgdpo.config.schema import RunConfig
from sgdpo.drawing.style import METHOD_TITLES
from sgdpo.drawing.table import DASH, Entry, Table
from sgdpo.runs.records import RunView

METHODS = tuple(METHOD_TITLES)
ALPHAS = ((0.01, "**"), (0.05, "*"))
Cells = Mapping[tuple[str, str], Cell]


def table1(runs: Sequence[RunView], paper: Paper, metric: str | None = None) -> Table:
    """Return the selected ratios of each model, the runner-up, DPO's value and the authors' ratios.

    metric: "eval/rewards/accuracies" or "verifiable-checker:win_rate"; default: the checker's win rate if the
    runs have one, else the evaluation accuracy.
    """
    refuse_mixtures(runs)
    metric = metric or default_metric(runs)
    grid = group(_of(runs, "sgdpo"), lambda run: (run["model"], ratio_of(run)))
    dpo = group(_of(runs, "dpo"), lambda run: run["model"])
    seeds, rows = _seeds(runs), []
    for model in sorted({model for model, _ in grid}):
        cells = {ratio: cell for (name, ratio), cell in grid.items() if name == model}
        rows.append([text(paper.title(model)), *_selected(select_ratio(cells, metric), metric)])
        rows[-1].append(number_entry(dpo.get(model), read_metric(metric), 3, seeds, metric))
        known = paper.table1.get(paper.beside(model) or "")
        rows[-1].append(text(_ratio(known)) if known else text(DASH, "the authors' values were lost"))
    header = [
        "Model",
        "Selected r1, r2",
        metric,
        "Runner-up",
        "its value",
        "difference",
        "DPO",
        "authors' r1, r2",
    ]
    counted = len({ratio for _, ratio in grid})
    notes = [
        f"Selected among {counted} ratios (chosen r1, rejected r2) by the highest {metric}, mean over seeds. "
        + error_fact(runs),
        f"The authors' default is {_ratio(paper.default_ratio)}; their value for Llama-3.1 base 8B is "
        f"{_ratio(paper.table1['llama31_8b'])}.",
    ]
    return Table(
        "table1",
        "Table 1: ratios selected by grid search",
        header,
        rows,
        1,
        [*facts(runs, paper, None), *notes],
    )


def default_metric(runs: Sequence[RunView]) -> str:
    """Return what table 1 selects by when nothing is asked for."""
    checked = "verifiable-checker" in evaluation_keys(runs)
    return "verifiable-checker:win_rate" if checked else "eval/rewards/accuracies"


def _selected(selection: Selection | None, metric: str) -> list[Entry]:
    if selection is None:
        return [Entry(note=f"no finished run has {metric}", status="missing"), *[Entry()] * 4]
    best = selection.best_estimate
    entries = [
        text(_ratio(selection.best)),
        Entry(
            estimate_text(best, 3), value=best.value, error=best.error, seeds=best.seeds, status="finished"
        ),
    ]
    second = selection.second_estimate
    if second is None:
        return [*entries, Entry(note="only one cell has finished", status="missing"), Entry(), Entry()]
    tested = (
        f"p = {selection.p_value:.2g}, paired over {selection.paired_over}" if selection.paired_over else None
    )
    return [
        *entries,
        text(_ratio(selection.second)),
        Entry(
            estimate_text(second, 3),
            value=second.value,
            error=second.error,
            seeds=second.seeds,
            status="finished",
        ),
        Entry(
            f"{selection.difference:+.3f}", note=tested or "too few seeds to test", value=selection.difference
        )
        if selection.difference is not None
        else Entry(note="the two share no seed", status="missing"),
    ]


def table2(paper: Paper) -> Table:
    """Return the settings of both phases, read from the resolved configs, the paper's beside."""
    shown = {
        "8B and 7B models": ("model=llama31_8b", "model=llama31_8b_instruct"),
        "tiny models": ("model=tiny_llama", "model=tiny_llama"),
    }
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
    for phase, method in (("sft", "sft"), ("preference", "sgdpo")):
        known = paper.table2[phase]
        values = [
            f"{known['lr']:g}",
            *(str(known[k]) for k in ("batch_size", "epochs", "schedule", "warmup_ratio")),
        ]
        ratios = DASH if phase == "sft" else _ratio(paper.default_ratio)
        beta = DASH if phase == "sft" else "0.1"
        rows.append([text(v) for v in (phase, "paper", *values, beta, ratios)])
        for name, (sft_model, preference_model) in shown.items():
            model = sft_model if phase == "sft" else preference_model
            config = to_run_config(compose_run([model, f"method={method}"]))
            rows.append([text(v) for v in (phase, name, *_settings(config))])
    notes = ["Read from the resolved configs (conf/), the same for every method; r1, r2 are SGDPO's alone."]
    return Table("table2", "Table 2: training settings", header, rows, 2, notes)


def _settings(config: RunConfig) -> list[str]:
    chosen, rejected = config.ratio.chosen, config.ratio.rejected
    optimizer = config.optimizer
    return [
        f"{optimizer.lr:g}",
        str(optimizer.batch_size),
        f"{optimizer.epochs:g}",
        optimizer.schedule,
        f"{optimizer.warmup_ratio:g}",
        f"{config.method['beta']:g}" if "beta" in config.method else DASH,
        DASH if chosen is None else _ratio((chosen, rejected)),
    ]


def table3(runs: Sequence[RunView], paper: Paper, evaluation: str | None = None) -> Table:
    """Return the win rates of every method and model, marked where they differ from DPO's beyond noise."""
    refuse_mixtures(runs)
    key = choose_evaluation(runs, evaluation, ("alpaca_eval", "verifiable"))
    refuse_unlike_judgments(runs, key)
    cells = group(runs, lambda run: (run["model"], run["method"]))
    seeds, rows = _seeds(runs), []
    scored = key.startswith("verifiable")
    columns = [("lc_win_rate", 2), ("win_rate", 2), ("tokens_mean", 1)] + [("score_mean", 3)] * scored
    for model in sorted({model for model, _ in cells}):
        marks = significance(cells, model, key)
        known = paper.table3.get(paper.beside(model) or "", {})
        for method in METHODS:
            cell = cells.get((model, method))
            row = [text(paper.title(model)), text(METHOD_TITLES[method])]
            for name, digits in columns:
                row.append(number_entry(cell, read_metric(f"{key}:{name}"), digits, seeds, key))
            row[3] = _marked(row[3], marks.get(method))
            values = known.get(method, [None, None, None])
            rows.append(row + [paper_entry(v, d) for v, d in zip(values, (2, 2, 0), strict=True)])
    header = ["Model", "Method", "LC win rate, %", "win rate, %", "tokens", *["score, 0–10"] * scored]
    header += ["paper: LC, %", "paper: raw, %", "paper: tokens"]
    return Table(
        "table3",
        f"Table 3: {key}",
        header,
        rows,
        2,
        [*facts(runs, paper, key), *_table3_notes(runs, paper, key)],
    )


def _table3_notes(runs: Sequence[RunView], paper: Paper, key: str) -> list[str]:
    named = sorted({run["model"] for run in runs if run["model"]})
    stand_ins = [
        f"{paper.title(m)} beside {paper.title(paper.stands_for[m])}" for m in named if m in paper.stands_for
    ]
    notes = [
        error_fact(runs)
        + " Marks on the win rate: * p < 0.05, ** p < 0.01 against DPO, two-sided sign test paired "
        "over prompts (preferences averaged over seeds), Holm-corrected over the methods of a model.",
        "Paper: AlpacaEval-2, judge GPT-4, no errors given.",
    ]
    if key.startswith("verifiable"):
        notes.insert(1, "Win rates are over the SFT start's answers to the same held-out prompts.")
    if stand_ins:
        notes.append(
            f"Another model, data and judge than the paper's ({', '.join(stand_ins)}): levels do not compare."
        )
    return notes


def significance(cells: Cells, model: str, key: str) -> dict[str, float]:
    """Return each method's Holm-corrected p against DPO, for those that share judged prompts with it."""
    dpo = cells.get((model, "dpo"))
    if dpo is None:
        return {}
    found = {}
    for method in METHODS:
        if method != "dpo" and (model, method) in cells:
            result = paired_p_value(cells[model, method], dpo, key)
            if result:
                found[method] = result[1]
    return dict(zip(found, holm(list(found.values())), strict=True)) if found else {}


def _marked(entry: Entry, p_value: float | None) -> Entry:
    mark = next((mark for level, mark in ALPHAS if p_value is not None and p_value < level), "")
    return Entry(**{**entry.__dict__, "mark": mark})


def mtbench(runs: Sequence[RunView], paper: Paper, evaluation: str | None = None) -> Table:
    """Return MT-Bench scores, 1 to 10: overall and by turn."""
    refuse_mixtures(runs)
    key = choose_evaluation(runs, evaluation, ("mt_bench",))
    refuse_unlike_judgments(runs, key)
    cells = group(runs, lambda run: (run["model"], run["method"]))
    seeds, rows = _seeds(runs), []
    for model in sorted({model for model, _ in cells}):
        dpo = cells[model, "dpo"].estimate(read_metric(f"{key}:overall")) if (model, "dpo") in cells else None
        for method in METHODS:
            cell = cells.get((model, method))
            row = [text(paper.title(model)), text(METHOD_TITLES[method])]
            row += [
                number_entry(cell, read_metric(f"{key}:{n}"), 2, seeds, key)
                for n in ("overall", "turn1", "turn2")
            ]
            gain = None if dpo is None or row[2].value is None else 100 * (row[2].value / dpo.value - 1)
            rows.append(
                [*row, Entry() if gain is None else Entry(f"{gain:+.2f}", value=gain, status="finished")]
            )
    header = ["Model", "Method", "overall", "turn 1", "turn 2", "over DPO, %"]
    low, high = paper.mtbench["gain_low"], paper.mtbench["gain_high"]
    notes = [
        error_fact(runs),
        f"Paper: SGDPO's gain over DPO is {low:g} % to {high:g} % over the models (judge GPT-4).",
    ]
    return Table("mtbench", f"MT-Bench: {key}", header, rows, 2, [*facts(runs, paper, key), *notes])


def write_tables(tables: Sequence[Table], outputs: Path) -> list[Path]:
    """Write every table into outputs/<name>/; return the paths."""
    return [path for table in tables for path in table.write(outputs / table.name)]


def _of(runs: Sequence[RunView], method: str) -> list[RunView]:
    return [run for run in runs if run["method"] == method]


def _seeds(runs: Sequence[RunView]) -> list[int]:
    return sorted({run["seed"] for run in runs if run["seed"] is not None})


def _ratio(ratio: Sequence[float]) -> str:
    return f"{ratio[0]:g}, {ratio[1]:g}"
