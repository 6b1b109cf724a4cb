"""The selection step of table 1: the best ratios of a grid by a metric, and whether they beat noise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lab.report.cells import Cell, Estimate, group, last_metric, ratio_of, read_metric
from lab.report.selection import LOWER_IS_BETTER, Selection, paired, select_ratio
from sgdpo.runs.records import RunView, require_runs
from sgdpo.store import write_json, write_whole

NOISE_LEVEL = 0.05
BASELINE = "dpo"  # what the selected ratios are shown beside
Grid = dict[tuple[float, float], Cell]


def best_ratios(outputs: Path, experiment: str, metric: str) -> list[dict[str, Any]]:
    """Return one finding a model: ranking, best, runner-up, their paired difference, and DPO beside.

    metric: "eval/rewards/margins", "eval/rewards/accuracies", or "<benchmark>-<judge>:win_rate".
    Raises ValueError if the experiment has no runs, no ratios, or none of its runs has the metric.
    """
    runs = require_runs(outputs, experiment, f"python src/train.py sweep=ratio_grid experiment={experiment}")
    readable = [run for run in runs if run.status != "broken" and run["phase"] == "preference"]
    findings = []
    for model in sorted({run["model"] for run in readable}):
        own = [run for run in readable if run["model"] == model]
        grid: Grid = group([run for run in own if ratio_of(run)], ratio_of)
        selection = select_ratio(grid, metric)
        if selection is not None:
            dpo = group([run for run in own if run["method"] == BASELINE], lambda run: BASELINE).get(BASELINE)
            findings.append(_finding(model, metric, grid, selection, dpo))
    if not findings:
        raise ValueError(_nothing(readable, experiment, metric))
    return findings


def _finding(model: str, metric: str, grid: Grid, selection: Selection, dpo: Cell | None) -> dict[str, Any]:
    read, sign = read_metric(metric), -1 if metric.rsplit("/", 1)[-1] in LOWER_IS_BETTER else 1
    found = {ratio: cell.estimate(read) for ratio, cell in grid.items()}
    ranked = sorted((r for r, e in found.items() if e), key=lambda ratio: (-sign * found[ratio].value, ratio))
    beside = dpo.estimate(read) if dpo else None
    best = grid[selection.best]
    return {
        "model": model,
        "metric": metric,
        "best": _row(selection.best, found[selection.best]),
        "runner_up": _row(selection.second, selection.second_estimate) if selection.second else None,
        "difference": selection.difference,
        "p_value": selection.p_value,
        "paired_over": selection.paired_over,
        "verdict": _verdict(selection),
        "dpo": _row(None, beside) if beside else None,
        "best_against_dpo": _against(best, dpo, metric) if beside else None,
        "ranking": [_row(ratio, found[ratio]) for ratio in ranked],
        "without_metric": [list(ratio) for ratio in sorted(grid) if found[ratio] is None],
    }


def _row(ratio: tuple[float, float] | None, estimate: Estimate) -> dict[str, Any]:
    chosen, rejected = ratio or (None, None)
    numbers = {"mean": estimate.value, "error": estimate.error, "seeds": estimate.seeds}
    return {"chosen": chosen, "rejected": rejected, **numbers}


def _against(best: Cell, dpo: Cell, metric: str) -> dict[str, Any]:
    difference, p_value, over = paired(best, dpo, metric)
    return {"difference": difference, "p_value": p_value, "paired_over": over}


def _verdict(selection: Selection) -> str:
    """Say whether the best differs from the runner-up beyond noise, and by which test."""
    if selection.second is None:
        return "only one cell has the metric: there is nothing to compare with"
    if selection.p_value is None:
        return "one seed and no scores by prompt: noise cannot be told; run more seeds (seed=0,1,2)"
    test = f"paired over {selection.paired_over}, p = {selection.p_value:.3g}"
    if selection.p_value < NOISE_LEVEL:
        return f"the best differs from the runner-up beyond noise ({test})"
    return f"the best does not differ from the runner-up beyond noise ({test})"


def _nothing(runs: Sequence[RunView], experiment: str, metric: str) -> str:
    """Say why no selection is possible: no ratios at all, or a metric that no run has."""
    if not any(ratio_of(run) for run in runs):
        return f"experiment {experiment!r} has no runs with ratios; make some: python src/train.py sweep=ratio_grid"
    return (
        f"no finished run of {experiment!r} has the metric {metric!r}; "
        f"there are: {', '.join(metrics_of(runs)) or 'none (no run is finished)'}"
    )


def metrics_of(runs: Sequence[RunView]) -> list[str]:
    """Return every metric that one can select by, as it is written on the command line."""
    names = set()
    for run in runs:
        names |= {f"eval/{key}" for key in (run["final"] or {}).get("eval", {})}
        names |= {f"{key}:{field}" for key, fields in (run["eval"] or {}).items() for field in fields}
    names -= {"eval/step", "eval/epoch", "eval/split"}
    return sorted(name for name in names if any(_is_number(run, name) for run in runs))


def _is_number(run: RunView, name: str) -> bool:
    try:
        return last_metric(run, name) is not None
    except TypeError:  # text, such as the judge's name
        return False


def render_best(findings: Sequence[dict[str, Any]]) -> str:
    """Return the findings as Markdown: for each model the ranking, the verdict, DPO beside."""
    return "\n\n".join(_render(finding) for finding in findings) + "\n"


def _render(finding: dict[str, Any]) -> str:
    lines = [f"## {finding['model']}: ratios by {finding['metric']}", ""]
    lines += [
        "| rank | ratio.chosen | ratio.rejected | mean | standard error | seeds |",
        "|---|---|---|---|---|---|",
    ]
    for rank, row in enumerate(finding["ranking"], 1):
        lines.append(f"| {rank} | {row['chosen']} | {row['rejected']} | {_numbers(row)} |")
    if finding["dpo"]:
        lines.append(f"| DPO | – | – | {_numbers(finding['dpo'])} |")
    best = finding["best"]
    lines += [
        "",
        f"Best: ratio.chosen={best['chosen']} ratio.rejected={best['rejected']}; {finding['verdict']}.",
    ]
    if finding["difference"] is not None:
        lines.append(f"Best less runner-up: {finding['difference']:.4g}.")
    against = finding["best_against_dpo"]
    if against and against["difference"] is not None:
        p_value = against["p_value"]
        test = f", paired over {against['paired_over']}, p = {p_value:.3g}" if p_value is not None else ""
        lines.append(
            f"Best less DPO: {against['difference']:.4g}{test}. The best was chosen among "
            f"{len(finding['ranking'])}, which flatters its lead."
        )
    if finding["without_metric"]:
        lines.append(f"Without this metric: {', '.join(str(tuple(r)) for r in finding['without_metric'])}.")
    return "\n".join(lines)


def _numbers(row: dict[str, Any]) -> str:
    error = row["error"]
    return f"{row['mean']:.4g} | {'–' if error is None or math.isnan(error) else f'{error:.2g}'} | {row['seeds']}"


def write_best(findings: Sequence[dict[str, Any]], folder: Path) -> list[Path]:
    """Write best.json and best.md into the folder, and return their paths."""
    write_json(folder / "best.json", findings)
    write_whole(folder / "best.md", render_best(findings))
    return [folder / "best.json", folder / "best.md"]
