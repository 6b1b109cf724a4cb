"""The paper's tables 1 to 4 and MT-Bench, from records alone, with the paper's numbers beside ours.

Table 4 pairs step by step: both methods see the same pairs in the same order under one seed, so what a step's lengths
cost cancels, and what is left is the method and the machine's noise. Times are those of the steps in metrics.jsonl
(pairs over pairs per second), without start-up and evaluation.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

from lab.benchmarks.statistics import Comparison, holm
from lab.report.cells import (
    Read,
    Repeats,
    Selection,
    choose_evaluation,
    comparable,
    compare_preferences,
    default_metric,
    group,
    last_metric,
    ratio_of,
    read_metric,
    refuse_mixtures,
    refuse_unlike_judgments,
    seeds_of,
    select_ratio,
)
from lab.report.entries import error_fact, facts, number_entry, paper_entry, ratio_text
from lab.report.names import (
    about,
    load_paper,
    lower_is_better,
    method_title,
    methods_in_order,
    score_title,
)
from sgdpo.config.compose import compose_run, to_run_config
from sgdpo.config.schema import RunConfig
from sgdpo.drawing.table import DASH, Entry, Table, number
from sgdpo.runs.records import RunView

ALPHAS = (0.05, 0.01)
RESAMPLES = 4000
WARM_UP = 2  # first logged steps: caches and allocators fill
Cells = Mapping[tuple[str, str], Repeats]


def table1(runs: Sequence[RunView], *, baseline: str = "dpo", metric: str | None = None) -> Table:
    """Table 1: the selected ratios of each model, the runner-up, the baseline's value and the authors' ratios.

    metric: "eval/rewards/accuracies" or "verifiable-checker:win_rate"; None: what says most of the runs.
    """
    refuse_mixtures(runs)
    if metric and all(last_metric(run, metric) is None for run in runs):
        raise ValueError(f"no finished run has the metric {metric!r}")
    paper, metric = load_paper(), metric or default_metric(runs)
    refuse_unlike_judgments(runs, metric)
    grid = group([run for run in runs if ratio_of(run)], lambda run: (run["model"], ratio_of(run)))
    beside = group([run for run in runs if run["method"] == baseline], lambda run: run["model"])
    seeds, rows, left_out = seeds_of(runs), [], []
    for model in sorted({model for model, _ in grid}):
        cells = {ratio: repeats for (name, ratio), repeats in grid.items() if name == model}
        known = paper.table1.get(paper.beside(model) or "")
        selected = _selected(select_ratio(cells, metric), metric)
        lacking = comparable(cells, metric)[1].items()
        left_out += [f"{paper.title(model)} {ratio_text(ratio)} ({count})" for ratio, count in lacking]
        base = number_entry(beside.get(model), read_metric(metric), 3, seeds, metric)
        authors = ratio_text(known) if known else Entry(note="the authors' values were lost")
        rows.append([paper.title(model), *selected, base, authors])
    header = ["Model", "Selected r1, r2", metric, "Runner-up", "its value", "difference"]
    header += [method_title(baseline, runs), "authors' r1, r2"]
    notes = [
        f"Selected among {len({ratio for _, ratio in grid})} ratios (chosen r1, rejected r2) by the "
        f"{'lowest' if lower_is_better(metric) else 'highest'} {metric}, mean over seeds. {error_fact(runs)}",
        f"The authors' default is {ratio_text(paper.default_ratio)}; their value for Llama-3.1 base 8B is "
        f"{ratio_text(paper.table1['llama31_8b'])}.",
    ]
    notes += [f"Not ranked, without {metric} on every seed: {'; '.join(left_out)}."] if left_out else []
    return Table("table1", "Table 1: ratios selected by grid search", header, rows, 1, [*facts(runs), *notes])


def _selected(selection: Selection | None, metric: str) -> list[Entry | str]:
    if selection is None:
        return [Entry(note=f"no ratio has {metric} on every seed", status="missing"), *[Entry()] * 4]
    best, second = selection.best_estimate, selection.second_estimate
    entries = [ratio_text(selection.best), number(best.value, 3, best.error, seeds=best.seeds)]
    if second is None:
        return [
            *entries,
            Entry(note="no other ratio has it on every seed", status="missing"),
            Entry(),
            Entry(),
        ]
    if selection.difference is None:
        note = "the two share no seed"
    elif selection.paired_over is None:
        note = "too few seeds to test"
    else:
        note = f"p = {selection.p_value:.2g}, paired over {selection.paired_over}"
    entries += [ratio_text(selection.second), number(second.value, 3, second.error, seeds=second.seeds)]
    return [*entries, number(selection.difference, 3, sign="+", note=note)]


def table2(runs: Sequence[RunView], *, models_shown: dict[str, list[str]]) -> Table:
    """Table 2: the settings of both phases, read from the resolved configs, the paper's beside.

    models_shown: how a group of models is called, and its model of the SFT and of the preference phase.
    """
    paper, rows = load_paper(), []
    for index, (phase, method) in enumerate((("sft", "sft"), ("preference", "sgdpo"))):
        known = paper.table2[phase]
        numbers = [
            f"{known['lr']:g}",
            *(str(known[k]) for k in ("batch_size", "epochs", "schedule", "warmup_ratio")),
        ]
        own = [DASH, DASH] if phase == "sft" else [f"{known['beta']:g}", ratio_text(paper.default_ratio)]
        rows.append([phase, "paper", *numbers, *own])
        for name, pair in models_shown.items():
            config = to_run_config(compose_run([f"model={pair[index]}", f"method={method}"]))
            rows.append([phase, name, *_settings(config)])
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
    notes = ["Read from the resolved configs (conf/), the same for every method; r1, r2 are SGDPO's alone."]
    return Table("table2", "Table 2: training settings", header, rows, 2, notes)


def _settings(config: RunConfig) -> list[str]:
    optimizer, chosen = config.optimizer, config.ratio.chosen
    beta = f"{config.method['beta']:g}" if "beta" in config.method else DASH
    ratio = ratio_text(None if chosen is None else (chosen, config.ratio.rejected))
    sizes = [f"{optimizer.lr:g}", str(optimizer.batch_size), f"{optimizer.epochs:g}"]
    return [*sizes, optimizer.schedule, f"{optimizer.warmup_ratio:g}", beta, ratio]


def table3(
    runs: Sequence[RunView],
    *,
    benchmarks: tuple[str, ...] = ("alpaca_eval", "verifiable"),
    baseline: str = "dpo",
) -> Table:
    """Table 3: the win rates of every method and model, marked where they differ from the baseline beyond noise."""
    refuse_mixtures(runs)
    paper, key = load_paper(), choose_evaluation(runs, benchmarks)
    cells = group(runs, lambda run: (run["model"], run["method"]))
    seeds, rows = seeds_of(runs), []
    against = {model: compared(cells, model, key, baseline) for model in {model for model, _ in cells}}
    tests = {comparison.test for of_model in against.values() for comparison, _ in of_model.values()}
    scored = any(last_metric(run, f"{key}:score_mean") is not None for run in runs)
    columns = [("lc_win_rate", 2), ("win_rate", 2), ("tokens_mean", 1)] + [("score_mean", 3)] * scored
    for model, method in _lines(runs, cells):
        row = [paper.title(model), method_title(method, runs)]
        for name, digits in columns:
            read = read_metric(f"{key}:{name}")
            row.append(number_entry(cells.get((model, method)), read, digits, seeds, key))
        if method in against[model]:
            row[3] = replace(row[3], mark=_mark(*against[model][method]))
        known = paper.table3.get(paper.beside(model) or "", {}).get(method, [None, None, None])
        rows.append(
            [*row, *(paper_entry(value, digits) for value, digits in zip(known, (2, 2, 0), strict=True))]
        )
    header = ["Model", "Method", "LC win rate, %", "win rate, %", "tokens", *[score_title(key)] * scored]
    header += ["paper: LC, %", "paper: raw, %", "paper: tokens"]
    below = [*facts(runs, key), *_table3_notes(runs, key, method_title(baseline, runs), sorted(tests))]
    return Table("table3", f"Table 3: {key}", header, rows, 2, below)


def _lines(runs: Sequence[RunView], cells: Cells) -> list[tuple[str, str]]:
    """List (model, method) of a table's rows: of each model the paper's methods, then the others that ran."""
    return [
        (model, method)
        for model in sorted({model for model, _ in cells})
        for method in methods_in_order([run for run in runs if run["model"] == model], load_paper().methods)
    ]


def _table3_notes(runs: Sequence[RunView], key: str, baseline: str, tests: Sequence[str]) -> list[str]:
    paper = load_paper()
    named = sorted({run["model"] for run in runs if run["model"]} & paper.stands_for.keys())
    stand_ins = [f"{paper.title(model)} beside {paper.title(paper.stands_for[model])}" for model in named]
    other = f"Another model, data and judge than the paper's ({', '.join(stand_ins)}): levels do not compare."
    return [
        f"{error_fact(runs)} Marks on the win rate: * better, † worse than {baseline} with p < 0.05, doubled with "
        "p < 0.01; Holm-corrected over the methods of a model, two seeds at least.",
        *(f"Test: {test}." for test in tests),
        *([about(key)] if about(key) else []),
        "Paper: AlpacaEval-2, judge GPT-4, no errors given.",
        *([other] if stand_ins else []),
    ]


def compared(cells: Cells, model: str, key: str, baseline: str) -> dict[str, tuple[Comparison, float]]:
    """Compare each method with the baseline, with Holm's corrected p, where they share judged prompts and seeds."""
    theirs, tested = cells.get((model, baseline), Repeats()), {}
    for (name, method), repeats in sorted(cells.items()):
        if name == model and method != baseline and (found := compare_preferences(repeats, theirs, key)):
            tested[method] = found
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
) -> Table:
    refuse_mixtures(runs)
    paper, key = load_paper(), choose_evaluation(runs, benchmarks)
    cells = group(runs, lambda run: (run["model"], run["method"]))
    seeds, rows = seeds_of(runs), []
    for model, method in _lines(runs, cells):
        readers = [read_metric(f"{key}:{name}") for name in ("overall", "turn1", "turn2")]
        scores = [number_entry(cells.get((model, method)), read, 2, seeds, key) for read in readers]
        both = [cells.get((model, name), Repeats()) for name in (baseline, method)]
        rows.append([paper.title(model), method_title(method, runs), *scores, _gain(*both, readers[0])])
    low, high = paper.mtbench["gain_low"], paper.mtbench["gain_high"]
    notes = [
        error_fact(runs),
        f"Paper: SGDPO's gain over DPO is {low:g} % to {high:g} % over the models (judge GPT-4).",
    ]
    header = ["Model", "Method", "overall", "turn 1", "turn 2", f"over {method_title(baseline, runs)}, %"]
    return Table("mtbench-table", f"MT-Bench: {key}", header, rows, 2, [*facts(runs, key), *notes])


def _gain(base: Repeats, ours: Repeats, read: Read) -> Entry:
    """Give ours over the baseline, per cent, of the seeds that both have: another seed is another start."""
    values = [
        {run["seed"]: value for run in side.finished if (value := read(run)[0]) is not None}
        for side in (base, ours)
    ]
    shared = sorted(set.intersection(*map(set, values)))
    if not shared:
        return Entry(note="no seed in common with the baseline" if all(values) else None, status="missing")
    theirs, mine = (np.mean([side[seed] for seed in shared]) for side in values)
    left_out = len(set.union(*map(set, values))) > len(shared)
    note = f"over the seeds that both have: {', '.join(map(str, shared))}" if left_out else None
    return number(float(100 * (mine / theirs - 1)), 2, sign="+", note=note)


@dataclass(frozen=True)
class Overhead:
    """Hold the extra time of a method over another, per cent: estimate, 95 % interval, steps it rests on."""

    percent: float
    low: float
    high: float
    steps: int


def step_seconds(run: RunView) -> dict[int, float]:
    """Give the seconds of each logged interval by its last step."""
    batch = run["settings"]["optimizer"]["batch_size"]
    seconds, before = {}, 0
    for row in run.metrics():
        if row["split"] == "train" and row.get("pairs_per_second"):
            seconds[row["step"]] = batch * (row["step"] - before) / row["pairs_per_second"]
            before = row["step"]
    return seconds


def training_seconds(run: RunView) -> tuple[float | None, float | None]:
    """Give the run's seconds in training steps and no error; (None, None) if it logged no speed."""
    seconds = step_seconds(run)
    return (sum(seconds.values()), None) if seconds else (None, None)


def overhead(base: Repeats, ours: Repeats) -> Overhead | None:
    """Estimate the overhead over the seeds that both finished, with a bootstrap over paired steps.

    The estimate is the trimmed mean (10 %) of the steps' ratios, so that a pause of the machine in one step
    does not decide it.
    """
    base_seconds = {run["seed"]: step_seconds(run) for run in base.finished}
    ratios = []
    for run in ours.finished:
        seconds, other = step_seconds(run), base_seconds.get(run["seed"], {})
        ratios += [seconds[step] / other[step] for step in sorted(seconds.keys() & other.keys())[WARM_UP:]]
    if len(ratios) < 3:
        return None
    drawn_RS = np.random.default_rng(0).choice(ratios, (RESAMPLES, len(ratios)))
    ends = np.percentile(stats.trim_mean(drawn_RS, 0.1, axis=1), [2.5, 97.5])
    return Overhead(*(100 * (value - 1) for value in (stats.trim_mean(ratios, 0.1), *ends)), len(ratios))


def table4(runs: Sequence[RunView], *, methods: tuple[str, str] = ("dpo", "sgdpo")) -> Table:
    """Table 4: training times of two methods and the overhead of the second, the paper's beside."""
    refuse_mixtures(runs)
    timed, paper = [run for run in runs if run["method"] in methods], load_paper()
    cells = group(timed, lambda run: (run["model"], run["method"]))
    seeds, rows = seeds_of(timed), []
    for model in sorted({model for model, _ in cells}):
        both = [cells.get((model, method), Repeats()) for method in methods]
        times = [number_entry(repeats, training_seconds, 1, seeds, "pairs_per_second") for repeats in both]
        rows.append([paper.title(model), *times, *_overhead_entries(overhead(*both))])
    known = [paper.table4.get(method) for method in methods]
    gain = 100 * (known[1] / known[0] - 1) if known[0] and known[1] else None
    rows.append(["paper (8B, 4 x A800)", *map(_clock, known), paper_entry(gain, 2, "+"), Entry()])
    base, ours = (method_title(method, runs) for method in methods)
    spread = f"{error_fact(timed)} " if len(seeds) > 1 else ""
    notes = [
        f"{spread}Overhead: trimmed mean (10 %) of {ours}'s time over {base}'s, step by step on the "
        "same pairs; interval by bootstrap over the steps. Steps only, without start-up and evaluation."
    ]
    header = ["Model", f"{base}, s", f"{ours}, s", "overhead, %", "95 % interval"]
    return Table("table4", "Table 4: training time", header, rows, 1, [*facts(timed), *notes])


def _overhead_entries(found: Overhead | None) -> list[Entry]:
    if found is None:
        return [Entry(note="needs finished runs of both methods and one seed", status="missing"), Entry()]
    low, high = (number(value, 2, sign="+").text for value in (found.low, found.high))
    note = f"over {found.steps} paired steps"
    return [number(found.percent, 2, sign="+", note=note), Entry(f"{low} to {high}")]


def _clock(seconds: float | None) -> Entry:
    if seconds is None:
        return Entry(status="unknown")
    hours, rest = divmod(int(seconds), 3600)
    return Entry(f"{hours}h{rest // 60:02d}m{rest % 60:02d}s", value=seconds, status="paper")
