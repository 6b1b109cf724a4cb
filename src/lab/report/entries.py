"""Turn repeats into entries (a number with its error, a dash with the reason, "failed"), and say whose they are."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

from lab.report.cells import Read, Repeats, seeds_of
from lab.report.names import load_paper
from sgdpo.drawing.table import DASH, Entry, number
from sgdpo.runs.records import RunView


def number_entry(repeats: Repeats | None, read: Read, digits: int, seeds: Sequence[int], what: str) -> Entry:
    """Make the entry of one column; `seeds` are those of the whole table, `what` names the number."""
    if repeats is None or not repeats.runs:
        return Entry(note="not run", status="missing")
    estimate = repeats.estimate(read)
    if estimate is None:
        return _without_number(repeats, what)
    having = {run["seed"] for run in repeats.finished if read(run)[0] is not None}
    lacking = [seed for seed in seeds if seed not in having]
    over = " (± over prompts)" if estimate.seeds == 1 and estimate.error is not None else ""
    note = _incomplete(repeats, lacking, len(seeds), what, over) if lacking else None
    status = "partial" if lacking else "finished"
    return number(estimate.value, digits, estimate.error, note=note, seeds=estimate.seeds, status=status)


def _without_number(repeats: Repeats, what: str) -> Entry:
    failed = [run for run in repeats.runs if run.status == "failed"]
    if failed and not repeats.finished:
        return Entry("failed", note="; ".join(map(_reason, failed)), status="failed")
    key = what.partition(":")[0]
    results = [(run["eval"] or {}).get(key) or {} for run in repeats.finished]
    if forms := [form for result in results if (form := result.get("lc_form") or "").startswith("not ")]:
        return Entry(note=forms[0], status="missing")
    if any(results):
        starts = all(run["phase"] == "sft" or run["steps"] == 0 for run in repeats.finished)
        why = "this is what the others are compared with" if starts else f"{key} did not give it"
        return Entry(note=f"no such number: {why}", status="missing")
    if repeats.finished:
        why = f"these runs log no {what}" if "/" in what else f"no {key}: these runs are not evaluated"
        return Entry(note=why, status="missing")
    return Entry(note="; ".join(map(_reason, repeats.runs)), status=repeats.runs[0].status)


def _incomplete(repeats: Repeats, lacking: Sequence[int], total: int, what: str, over: str) -> str:
    runs, reasons = {run["seed"]: run for run in repeats.runs}, []
    for seed in lacking:
        run = runs.get(seed)
        if run is None:
            reasons.append(f"seed {seed} did not run")
        else:
            reasons.append(f"seed {seed} has no {what}" if run.status == "finished" else _reason(run))
    return f"{total - len(lacking)} of {total} seeds{over}: " + ", ".join(reasons)


def _reason(run: RunView) -> str:
    """Say "seed 43 failed (loss is NaN at step 2)" or "seed 43 is running"."""
    if run.status == "failed":
        last = (run.error or "no reason recorded").strip().splitlines()[-1]
        return f"seed {run['seed']} failed ({last[:120]})"
    return f"seed {run['seed']} is {run.status}"


def paper_entry(value: float | None, digits: int, sign: str = "") -> Entry:
    return number(value, digits, sign=sign, status="unknown" if value is None else "paper")


def ratio_text(ratio: Sequence[float] | None) -> str:
    """Write a ratio as "0.6, 0.9"."""
    return DASH if ratio is None else f"{ratio[0]:g}, {ratio[1]:g}"


def facts(runs: Sequence[RunView], judge: str | None = None) -> list[str]:
    """State what every table must: models, data, judge, seeds, commit, and what ± means."""
    counted = [run for run in runs if run.status != "broken"]
    models = ", ".join(load_paper().title(model) for model in _values(counted, "model"))
    parts = [f"Model: {models}", f"data: {', '.join(_values(counted, 'dataset'))}"]
    parts += [f"judge: {judge}"] if judge else []
    parts += [f"seeds: {', '.join(_values(counted, 'seed'))}", f"commit: {', '.join(commits(counted))}"]
    broken = [run for run in runs if run.status == "broken"]
    lost = [f"Left out, unreadable record: {run.experiment}/{run.name} ({run.error})." for run in broken]
    return ["; ".join(parts) + ".", *effective_ratios(counted), *lost]


def effective_ratios(runs: Sequence[RunView]) -> list[str]:
    """Say what the nominal ratios came out as, where the runs have logged it: rounding makes them less."""
    found: dict[float, list[float]] = {}
    for run in runs:
        pilot = (run["settings"] or {}).get("pilot") or {}
        if pilot.get("size", {}).get("of", "shorter") != "shorter":
            continue  # a share of something else
        for side, nominal in (run["ratio"] or {}).items():
            value = ((run["final"] or {}).get("eval") or {}).get(f"pilot/ratio_{side}")
            if value is not None:
                found.setdefault(nominal, []).append(value)
    came_out = [f"{nominal:g} is {fmean(values):.2f}" for nominal, values in sorted(found.items())]
    return (
        [f"Ratios as they came out, tokens over the shorter answer's: {', '.join(came_out)}."]
        if came_out
        else []
    )


def figure_facts(runs: Sequence[RunView], shown: str = "band: range over") -> str:
    """Say what stands below a figure: seeds and what is shown of them, data, commit."""
    asked = [run for run in runs if run["phase"] != "sft"] or list(runs)
    counted = [run for run in asked if run.status != "broken"]
    seeds = seeds_of(counted)
    what = f"{shown} seeds" if len(seeds) > 1 else "one seed"
    left = Counter(run.status for run in asked if run.status != "finished")
    return (
        f"{what} {', '.join(map(str, seeds))}; data {', '.join(_values(counted, 'dataset'))}; "
        f"commit {', '.join(commits(counted))}"
        + (f"\n{left.total()} of {len(asked)} runs are not in it: {_counts(left)}" if left else "")
    )


def _counts(statuses: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {status}" for status, count in sorted(statuses.items()))


def origin(runs: Sequence[RunView]) -> dict[str, Any]:
    """Give seeds and commits of the runs, for whoever reads a table's or a figure's JSON."""
    usable = [run for run in runs if run.status != "broken"]
    return {"seeds": seeds_of(usable), "commits": commits(usable)} if usable else {}


def commits(runs: Sequence[RunView]) -> list[str]:
    """List the short commits that made the runs, marked where the code differed from the commit."""
    return sorted({commit_text(run["git"] or {}) for run in runs}) or ["unknown"]


def commit_text(git: dict[str, Any]) -> str:
    """Write a commit as "0123456789ab", "with changes" behind it where the code differed."""
    return (git.get("commit") or "unknown")[:9] + (" with changes" if git.get("dirty") else "")


def error_fact(runs: Sequence[RunView]) -> str:
    """Say what the error after ± is, by the number of seeds."""
    seeds = len({run["seed"] for run in runs if run.status == "finished"})
    over = f"over {seeds} seeds" if seeds > 1 else "over prompts (one seed)"
    return f"± is one standard error {over}."


def one_seed(counts: Iterable[int]) -> list[str]:
    """Say what a comparison over one seed is worth, if any of these is."""
    return ["One seed speaks of two models, not of the methods that trained them."] if 1 in counts else []


def _values(runs: Sequence[RunView], key: str) -> list[str]:
    return [str(value) for value in sorted({run[key] for run in runs if run[key] is not None})]
