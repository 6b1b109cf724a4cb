"""What rounds of training on a policy's own answers came to: a number after each round, method by method."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from lab.report.cells import choose_evaluation, group, read_metric, seeds_of
from lab.report.entries import error_fact, facts, number_entry
from lab.report.names import method_colour, method_title
from sgdpo.drawing.style import Picture, styled
from sgdpo.drawing.table import Entry, Table
from sgdpo.runs.records import RunView


def rounds(
    runs: Sequence[RunView],
    *,
    benchmarks: tuple[str, ...],
    metrics: dict[str, str],
) -> list[Table | Picture]:
    """Show each metric at the start and after every round, and draw the first of them.

    metrics: {column: field of the evaluation}.
    """
    key = choose_evaluation(runs, benchmarks)
    trained = [run for run in runs if run["round"]]
    starts = [run for run in runs if not run["round"] and (run["steps"] == 0 or run["phase"] == "sft")]
    broken = [run for run in runs if run.status == "broken"]
    if not trained:
        raise ValueError("none of these runs is a round; make them: python scripts/rounds.py rounds=3 ...")
    cells = group(trained, lambda run: (run["method"], run["round"]["number"]))
    seeds, first = seeds_of(trained), group(starts, lambda run: "start").get("start")
    methods = sorted({method for method, _ in cells})
    last = max(number for _, number in cells)
    rows: list[list[Entry | str]] = []
    for method in methods:
        for number in range(last + 1):
            repeats = cells.get((method, number)) if number else first
            values = [
                number_entry(repeats, read_metric(f"{key}:{m}"), 2, seeds, key) for m in metrics.values()
            ]
            rows.append([method_title(method, trained), str(number) if number else "start", *values])
    below = [error_fact(trained), *facts([*starts, *trained, *broken], key)]
    lines = {m: [row[2] for row in rows if row[0] == method_title(m, trained)] for m in methods}
    picture = _picture(lines, next(iter(metrics)), trained, below)
    return [Table("", "", ["method", "round", *metrics], rows, 2, below), picture]


def _picture(lines: dict[str, list], axis: str, runs: Sequence[RunView], below: Sequence[str]) -> Picture:
    with styled():
        figure = Figure(figsize=(5.6, 3.6), layout="constrained")
        axes = figure.subplots()
        for method, entries in lines.items():
            shown = [(n, e.value, e.error or 0) for n, e in enumerate(entries) if e.value is not None]
            if not shown:  # none of its rounds is judged yet
                continue
            colour = method_colour(method, runs)
            axes.errorbar(*zip(*shown, strict=True), color=colour, marker="o", capsize=3)
            axes.annotate(method_title(method, runs), shown[-1][:2], (6, 0), textcoords="offset points",
                          color=colour, va="center", annotation_clip=False)  # fmt: skip
        axes.set_xticks(range(max(map(len, lines.values()))))
        axes.set_xlabel("round (0: start)")
        axes.set_ylabel(axis)
    return Picture(figure, "rounds-picture", "", below)
