"""What came out of an experiment: what was swept against the metrics that matter, seeds folded, best first."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lab.benchmarks.statistics import LEVEL
from lab.report.cells import Estimate, Repeats, evaluation_keys, last_metric, paired, read_metric
from lab.report.entries import origin
from lab.report.exhibit import find_exhibit
from lab.report.figures import ratio_grid
from lab.report.names import headline, lower_is_better, metric_title, metrics_in_order
from lab.sweeps.status import read_roster
from sgdpo.drawing.table import Entry, Table, number
from sgdpo.runs.records import RunView, flatten, require_runs
from sgdpo.runs.tracking import choose_mode, start_or_offline
from sgdpo.store import write_json, write_whole

# The name of a group stands for all that it sets, so it is told first.
NAMES = {"method.name": "method", "model.name": "model", "data.name": "data"}
# Seeds are folded; an SFT start has the seed in it.
NOT_SWEPT = ("seed", "start")
MAKE = "python src/train.py sweep=ratio_grid experiment={}"


@dataclass(frozen=True)
class Row:
    """Hold one setting: the values of what was swept, and its runs, one a seed."""

    setting: Mapping[str, Any]
    runs: Repeats

    def estimate(self, metric: str) -> Estimate | None:
        return self.runs.estimate(read_metric(metric))


@dataclass(frozen=True)
class Results:
    """Hold an experiment's settings and the metrics to show, the rows best first by the first metric.

    keys: what was swept beside the seed, as few as tell the settings apart. broken: runs whose record cannot be read.
    """

    keys: Sequence[str]
    metrics: Sequence[str]
    rows: Sequence[Row]
    broken: Sequence[str] = ()

    def table(self) -> Table:
        digits = {metric: self._digits(metric) for metric in self.metrics}
        body = []
        for row in self.rows:
            entries = [_entry(row, metric, digits[metric]) for metric in self.metrics]
            labels = [Entry(_text(row.setting[key])) for key in self.keys] or [Entry("all runs")]
            body.append([*labels, *entries, Entry(str(len(row.runs.finished)))])
        first = metric_title(self.metrics[0]) if self.metrics else "setting"
        counts = {len(row.runs.finished) for row in self.rows if row.runs.finished}
        facts = [
            f"Best first by {first}{', those on fewer seeds below' if len(counts) > 1 else ''}. "
            "± is the standard error: over seeds, or over prompts if there is one seed."
        ]
        left = sum(len(row.runs.runs) - len(row.runs.finished) for row in self.rows)
        facts += [f"{left} runs are not finished and count for nothing."] if left else []
        facts += [f"The record of {name} cannot be read: it is left out." for name in self.broken]
        header = [*(self.keys or [""]), *map(metric_title, self.metrics), "seeds"]
        return Table("results", "", header, body, labels=max(1, len(self.keys)), facts=facts)

    def _digits(self, metric: str) -> int:
        """Give the decimals that show four significant digits of the largest value."""
        sizes = [abs(found.value) for row in self.rows if (found := row.estimate(metric))]
        return min(6, max(0, 3 - math.floor(math.log10(max(sizes))))) if any(sizes) else 2


def _entry(row: Row, metric: str, digits: int) -> Entry:
    found = row.estimate(metric)
    if found is None:
        states = sorted({run.status for run in row.runs.runs})
        return Entry(status=states[0] if len(states) == 1 and states != ["finished"] else "missing")
    finished = len(row.runs.finished)
    note = f"{found.seeds} of its {finished} seeds have it" if found.seeds < finished else None
    return number(found.value, digits, found.error, seeds=found.seeds, note=note)


def _text(value: Any) -> str:
    return "–" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def experiment_results(outputs: Path, experiment: str, metric: str | None = None) -> Results:
    runs = require_runs(outputs, experiment, MAKE.format(experiment))
    roster = read_roster(Path(outputs) / experiment)
    # The SFT starts that a sweep trained on its way are no settings of it, unless it swept over them.
    starts = {run["start"] for run in runs} - set(roster.cells if roster else ())
    return read_results([run for run in runs if run.name not in starts], metric)


def read_results(runs: Sequence[RunView], metric: str | None = None) -> Results:
    """Fold runs by what differs between them; a metric that is asked for comes first and sorts."""
    readable = [run for run in runs if run.status != "broken"]
    metrics = _metrics_to_show(readable)
    if metric is not None:
        refuse_unknown(readable, metric)
        metrics = [metric, *(name for name in metrics if name != metric)]
    keys, values = swept_keys(readable)
    folded: dict[str, list[RunView]] = {}  # by what a setting looks like: a list is no key, and 1 is not 1.0
    for run in readable:
        folded.setdefault(repr([values[run.folder].get(key) for key in keys]), []).append(run)
    rows = [
        Row({key: values[own[0].folder].get(key) for key in keys}, Repeats(tuple(own)))
        for own in folded.values()
    ]
    ranked = sorted(rows, key=lambda row: _rank(row, metrics[0] if metrics else None))
    return Results(keys, metrics, ranked, [run.name for run in runs if run.status == "broken"])


def _rank(row: Row, metric: str | None) -> tuple[int, float, str]:
    """Order rows best first, those with fewer seeds below: the seeds that a setting is left with may be lucky ones.

    Equal values by their setting, so that the order of the files decides nothing.
    """
    found, setting = row.estimate(metric) if metric else None, str([*map(_text, row.setting.values())])
    sign = 1.0 if metric and lower_is_better(metric) else -1.0
    return (-found.seeds, sign * found.value, setting) if found else (0, math.inf, setting)


def swept_keys(runs: Sequence[RunView]) -> tuple[list[str], dict[Path, dict[str, Any]]]:
    """Return the keys, as few as tell the settings of runs apart, and every run's values by its folder.

    Where a run of the same settings read something else, the content that differs is a key.
    """
    values = {}
    for run in runs:
        flat = flatten(run["settings"] or {})
        values[run.folder] = {NAMES.get(k, k): v for k, v in flat.items() if k not in NOT_SWEPT}
        values[run.folder] |= {f"content of {k}": v[:8] for k, v in (run["contents"] or {}).items()}
    every = dict.fromkeys(key for flat in values.values() for key in flat)
    first = [*NAMES.values(), *(key for key in every if key.startswith("ratio."))]
    keys, told_apart = [], 1
    for key in dict.fromkeys([*first, *every]):
        settings = {tuple(repr(flat.get(each)) for each in (*keys, key)) for flat in values.values()}
        if len(settings) > told_apart:
            keys, told_apart = [*keys, key], len(settings)
    return keys, values


def _metrics_to_show(runs: Sequence[RunView]) -> list[str]:
    """List what the runs have of the metrics that matter: what says most of each evaluation comes first."""
    scores = [f"{key}:{headline(key)}" for key in evaluation_keys(runs)]
    return [name for name in [*scores, *metrics_in_order()] if any(_has(run, name) for run in runs)]


def metrics_of(runs: Sequence[RunView]) -> list[str]:
    names = set()
    for run in runs:
        names |= {f"eval/{key}" for key in (run["final"] or {}).get("eval", {})}
        names |= {f"{key}:{field}" for key, fields in (run["eval"] or {}).items() for field in fields}
    names -= {"eval/step", "eval/epoch", "eval/split"}
    return sorted(name for name in names if any(_has(run, name) for run in runs))


def _has(run: RunView, name: str) -> bool:
    return last_metric(run, name) is not None


def refuse_unknown(runs: Sequence[RunView], metric: str) -> None:
    """Raise ValueError if no finished run has the metric; name those that there are."""
    if not any(_has(run, metric) for run in runs):
        there = ", ".join(metrics_of(runs)) or "none (no run is finished)"
        raise ValueError(f"no finished run has the metric {metric!r}; there are: {there}")


def find_best(outputs: Path, experiment: str, metric: str, keys: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Select by a metric: for every setting of the other swept keys one finding.

    keys: what is selected; by default all that was swept beside model, data and method, or else the method.
    A finding ranks the settings that have the keys and the metric on as many seeds as any of them, says whether the
    best differs from the runner-up beyond noise, and holds the best against the settings that lack the keys (DPO has no
    ratios). Raises ValueError if there are no runs, no such keys, or none of the runs has the metric.
    """
    results = experiment_results(outputs, experiment, metric)
    chosen = list(keys) or [key for key in results.keys if key not in NAMES.values()] or ["method"]
    if unknown := [key for key in chosen if key not in results.keys]:
        swept = ", ".join(results.keys) or "nothing but seeds"
        raise ValueError(f"{experiment!r} was not swept over {', '.join(unknown)}; it was over {swept}")
    others = [key for key in results.keys if key not in chosen]
    groups: dict[str, list[Row]] = {}
    for row in results.rows:
        groups.setdefault(repr([row.setting[key] for key in others]), []).append(row)
    # Where some of a group have values, null is one of them; where none has, the keys are not there.
    lacking = [
        name
        for name, rows in groups.items()
        if all(row.setting[key] is None for row in rows for key in chosen)
    ]
    beside = [row for name in lacking for row in groups.pop(name)]
    return [
        _finding({key: rows[0].setting[key] for key in others}, chosen, metric, rows, beside)
        for rows in groups.values()
        if any(row.estimate(metric) for row in rows)
    ]


def _finding(
    where: dict[str, Any], keys: Sequence[str], metric: str, rows: Sequence[Row], beside: Sequence[Row]
) -> dict[str, Any]:
    having = [
        row for row in rows if row.estimate(metric)
    ]  # they come best first, those with most seeds before
    best, shared = having[0], {key: value for key, value in where.items() if key != "method"}

    def told(row: Row, against: Row | None = None) -> dict[str, Any]:
        found = row.estimate(metric)
        numbers = {"mean": found.value, "error": found.error, "seeds": found.seeds}
        tested = paired(against.runs, row.runs, metric) if against else ()
        names = ("difference", "p_value", "paired_over")
        return {"setting": dict(row.setting), **numbers, **dict(zip(names, tested, strict=False))}

    seeds = told(best)["seeds"]
    ranked = [row for row in having if told(row)["seeds"] == seeds]
    runner_up = told(ranked[1], best) if len(ranked) > 1 else None
    return {
        "where": where,
        "keys": list(keys),
        "metric": metric,
        "best": told(best),
        "runner_up": runner_up,
        "verdict": _verdict(runner_up, seeds),
        "beside": [
            told(row, best)
            for row in beside
            if row.estimate(metric) and shared.items() <= row.setting.items()
        ],
        "ranking": [told(row) for row in ranked],
        "on_fewer_seeds": [told(row) for row in having if row not in ranked],
        "without_metric": [dict(row.setting) for row in rows if row not in having],
    }


def _verdict(runner_up: Mapping[str, Any] | None, seeds: int) -> str:
    """Say whether the best differs from the runner-up beyond noise, and by which test."""
    if runner_up is None:
        on = f" on {seeds} seeds" if seeds > 1 else ""
        return f"only one setting has the metric{on}: there is nothing to compare with"
    p_value = runner_up["p_value"]
    if p_value is None:
        shared = "no seed in common" if runner_up["difference"] is None else "one seed"
        return f"{shared} and no scores by prompt: noise cannot be told; run more seeds (seed=0,1,2)"
    says = "differs" if p_value < LEVEL else "does not differ"
    test = f"paired over {runner_up['paired_over']}, p = {p_value:.3g}"
    return f"the best {says} from the runner-up beyond noise ({test})"


def render_best(findings: Sequence[dict[str, Any]]) -> str:
    """Return the findings as Markdown: for each a ranking, the verdict, what stands beside."""
    return "\n\n".join("\n".join(_render(finding)) for finding in findings) + "\n"


def _render(finding: dict[str, Any]) -> Iterator[str]:
    where, keys = " ".join(f"{key}={value}" for key, value in finding["where"].items()), finding["keys"]
    yield f"## {where + ': ' if where else ''}{', '.join(keys)} by {finding['metric']}\n"
    ranked = [(str(rank), row) for rank, row in enumerate(finding["ranking"], 1)]
    beside = [(str(row["setting"].get("method", "")), row) for row in finding["beside"]]
    body = []
    for first, row in [*ranked, *beside]:
        setting = [_text(row["setting"][key]) for key in keys]
        body.append([first, *setting, _four(row["mean"]), _four(row["error"]), str(row["seeds"])])
    header = ["rank", *keys, "mean", "standard error", "seeds"]
    yield Table("best", "", header, body, labels=1 + len(keys)).markdown()
    best = " ".join(f"{key}={_text(finding['best']['setting'][key])}" for key in keys)
    yield f"Best: {best}; {finding['verdict']}."
    for name, other in [("runner-up", finding["runner_up"]), *beside]:
        if other and other["difference"] is not None:
            p_value = other["p_value"]
            test = "" if p_value is None else f", paired over {other['paired_over']}, p = {p_value:.3g}"
            yield f"Best less {name}: {_four(other['difference'])}{test}."
    if finding["beside"]:
        yield f"The best was chosen among {len(finding['ranking'])}, which flatters its lead."
    if fewer := finding["on_fewer_seeds"]:
        told = (f"{_values(row['setting'], keys)} ({row['seeds']}: {_four(row['mean'])})" for row in fewer)
        yield f"Not ranked, on fewer than {finding['best']['seeds']} seeds: {'; '.join(told)}."
    if finding["without_metric"]:
        lacking = (_values(setting, keys) for setting in finding["without_metric"])
        yield f"Without this metric: {'; '.join(lacking)}."


def _values(setting: Mapping[str, Any], keys: Sequence[str]) -> str:
    return " ".join(_text(setting[key]) for key in keys)


def _four(value: float | None) -> str:
    return "–" if value is None or math.isnan(value) else f"{value:.4g}"


def write_best(findings: Sequence[dict[str, Any]], folder: Path) -> list[Path]:
    write_json(folder / "best.json", findings)
    write_whole(folder / "best.md", render_best(findings))
    return [folder / "best.json", folder / "best.md"]


def draw_experiment(outputs: Path, experiment: str, metric: str) -> list[Path]:
    """Draw one heat map a model into the experiment's folder, DPO's value on the scale.

    Raises ValueError if there are no runs, or none with ratios has the metric.
    """
    runs, name = require_runs(outputs, experiment, MAKE.format(experiment)), "ratio_grid"
    refuse_unknown(runs, metric)
    # Under a name of its own: an experiment may be called as the exhibit is, whose files lie in such a folder too.
    pictures = [replace(each, name=each.name.replace(name, "heatmap"), origin=origin(runs))
                for each in ratio_grid(runs, **find_exhibit(name).settings | {"metric": metric})]  # fmt: skip
    return [path for picture in pictures for path in picture.write(outputs / experiment)]


def send_pictures(pictures: Sequence[Path], experiment: str, metric: str) -> str:
    """Log the png pictures as one W&B run of the experiment's group; return the mode it was written in."""
    mode = choose_mode("auto")
    if mode == "disabled":
        return mode
    import wandb

    settings = wandb.Settings(console="off", silent=True, init_timeout=20.0)
    about = {"project": "sgdpo", "group": experiment, "job_type": "heatmap", "name": f"{experiment}-heatmap"}
    where = {"dir": str(pictures[0].parent), "reinit": "create_new", "settings": settings}
    run, mode = start_or_offline(lambda mode: wandb.init(mode=mode, **about, **where), mode)
    run.log({f"heatmap/{metric}/{p.stem}": wandb.Image(str(p)) for p in pictures if p.suffix == ".png"})
    run.finish()
    return mode
