"""A study: arms, linear contrasts over them, and what they say of an expectation that was written down before.

An arm is a name and the settings that its runs have. A contrast is a weighted sum of arms (a difference, a slope, a
curvature, an interaction), taken for each training seed, so that every comparison is paired; a judged score is paired
over prompts too, and the wider interval and the larger p of the two count. Holm's correction is over all contrasts of a
study. A measure with a bound has "no difference" where the interval lies inside it.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import Any, Literal

import numpy as np

from lab.benchmarks.statistics import Interval, compare_over_seeds, holm, t_test, verdict
from lab.report.cells import (
    Repeats,
    by_prompt,
    group,
    measures_of,
    refuse_mixtures,
    refuse_unlike_judgments,
    seeds_of,
)
from lab.report.entries import error_fact, facts, number_entry, one_seed
from lab.report.intervals import Row, interval_chart
from lab.report.matched import HEADER, Match, matches
from lab.report.measures import Cells, Condition, reader
from lab.report.names import load_paper
from sgdpo.drawing.style import Picture
from sgdpo.drawing.table import Entry, Table, number, signed
from sgdpo.runs.records import RunView, flatten
from sgdpo.values import Keys

RULE = Keys(dict.fromkeys(("row", "by", "arms"), list[str]), needed=("row", "by", "arms"))
PROMPTS = ":score_mean"  # a judged score, which every prompt has
MOST_TOLD = 6  # differences of the first contrast; of more the sentence gives the span of each measure


@dataclass(frozen=True)
class Finding:
    """Hold one contrast of one measure under one condition: its interval, and p after Holm's correction."""

    condition: Condition
    contrast: str
    measure: str
    difference: Interval
    p_value: float
    seeds: int

    def verdict(self, bounds: Mapping[str, float]) -> str:
        """Say what can be said."""
        bound = bounds.get(self.measure)
        within = bound is not None and -bound < self.difference.low and self.difference.high < bound
        return verdict(self.difference.value, self.p_value, within, "above 0", "below 0")


def study(
    runs: Sequence[RunView],
    *,
    question: str,
    expected: str,
    arms: dict[str, dict[str, Any]],
    contrasts: dict[str, dict[str, float]],
    measures: dict[str, str],
    tested: tuple[str, ...],
    each: tuple[str, ...] = ("data.name",),
    bounds: dict[str, float] | None = None,
    matched: dict[str, dict[str, Any]] | None = None,
    figure: Literal["", "contrasts", "conditions", "walk"] = "",
    along: str = "",
) -> list[Table | Picture]:
    """Show the arms, test the contrasts, draw them.

    contrasts: {name: {arm: weight}}. measures: {column: metric}, "<benchmark>-<judge>:<field>", "eval/<metric>",
    "end/<metric>" or "mean/<metric>". tested: those of them that are tested. each: the settings that make a condition.
    bounds: {measure: what a difference that counts as none stays below}. matched: further contrasts, in the form that
    `lab.report.matched.matches` takes. figure: none, "contrasts" or "conditions" (what has a row; the other has the
    panels), or "walk": each arm less the last, in order; along: what the arms are steps of.
    Raises ValueError for names of arms and measures that there are not, for an arm that is matched with itself, and for
    results of a condition that were not sampled and judged alike.
    """
    bounds, matched = bounds or {}, matched or {}
    _refuse_matches(matched)
    refuse_unnamed("arms", arms, {
        "contrasts": [arm for weights in contrasts.values() for arm in weights],
        "matched": [arm for rule in matched.values() for arm in (*rule["row"], *rule["arms"])],
    })  # fmt: skip
    refuse_unnamed("measures", measures, {
        "tested": tested, "bounds": bounds, "matched": [by for rule in matched.values() for by in rule["by"]],
    })  # fmt: skip
    measures, cells = measures_of(runs, measures), conditions(runs, arms, each)
    for own, metric in product(cells.values(), measures.values()):
        refuse_unlike_judgments([run for repeats in own.values() for run in repeats.runs], metric)
    pairs = {condition: list(matches(own, measures, matched)) for condition, own in cells.items()}
    findings = findings_of(cells, contrasts, {name: measures[name] for name in tested}, pairs)
    below = [
        f"Question: {question}",
        f"Expected, before the runs: {expected}",
        f"Found: {sentence(findings, bounds)}",
        *([f"A condition: {', '.join(each)}."] if len(each) > 1 else []),
    ]
    works: list[Table | Picture] = [
        findings_table(findings, bounds, [*below, *_how(bounds, findings), *facts(runs)]),
        *([_matched_table(pairs)] if matched else []),
        _arms_table(cells, arms, measures, runs),
    ]
    if figure and (rows := _drawn(cells, findings, arms, measures, tested, bounds, figure)):
        axis = _axis(arms, each, tested, figure)
        works.append(
            replace(
                interval_chart(rows, axis, figure == "walk", along),
                title=question,
                facts=below,
            )
        )
    return works


def _axis(arms: Mapping[str, Any], each: Sequence[str], tested: Sequence[str], figure: str) -> str:
    """Name what a figure's intervals are of and, where they stand in rows of several keys, the keys."""
    if figure == "walk":
        return f"{tested[0]}, less that of {list(arms)[-1]}"
    rows = f" (rows: {', '.join(each)})" if figure == "conditions" and len(each) > 1 else ""
    return ", ".join(tested) + rows


def _refuse_matches(matched: Mapping[str, Any]) -> None:
    for called, rule in matched.items():
        if problem := RULE.problem(rule):
            raise ValueError(f"matched.{called}{problem}")
        if both := [arm for arm in rule["arms"] if arm in rule["row"]]:
            raise ValueError(f"matched.{called} holds {', '.join(both)} against a row that it stands in")


def refuse_unnamed(kind: str, there: Mapping[str, Any], used: Mapping[str, Iterable[str]]) -> None:
    """Raise ValueError for names that settings use and their kind has not: such a contrast would be left out unsaid."""
    errors = [
        f"{setting} names {name!r}, which is none of its {kind}: {', '.join(there)}"
        for setting, names in used.items()
        for name in dict.fromkeys(names)
        if name not in there
    ]
    if errors:
        raise ValueError("\n".join(errors))


def _drawn(
    cells: Cells, findings: Sequence[Finding], arms: Mapping[str, Any], measures: Mapping[str, str],
    tested: Sequence[str], bounds: Mapping[str, float], figure: str,
) -> list[Row]:  # fmt: skip
    if figure == "walk":
        *steps, last = arms
        findings = findings_of(
            cells, {arm: {arm: 1, last: -1} for arm in steps}, {tested[0]: measures[tested[0]]}
        )
    rows = []
    for found in findings:
        label = (
            found.contrast if len(tested) == 1 or figure == "walk" else f"{found.contrast}: {found.measure}"
        )
        pair = (title(found.condition), label)
        places = pair[::-1] if figure == "conditions" else pair
        rows.append(Row(*places, found.difference, bounds.get(found.measure)))
    if figure == "walk":
        rows += [Row(title(condition), last, Interval(0, 0, 0, 0), None) for condition in cells]
    return rows


def conditions(runs: Sequence[RunView], arms: Mapping[str, Any], each: Sequence[str]) -> Cells:
    """Group the runs by condition and arm.

    Raise ValueError for a run of two arms, and for runs of a condition whose data differ though no arm asks for it.
    """
    found: dict[tuple[Condition, str], list[RunView]] = {}
    for run in runs:
        if run.status == "broken":
            continue
        settings = as_typed(run["settings"] or {})
        # An SFT run is what others start from, unless an arm asks for its method.
        mine = [a for a in arms_of(settings, arms) if run["phase"] != "sft" or "method.name" in arms[a]]
        if len(mine) > 1:
            raise ValueError(
                f"{run.experiment}/{run.name} belongs to the arms {' and '.join(mine)}; tell them apart"
            )
        for arm in mine:
            found.setdefault((tuple(settings.get(key) for key in each), arm), []).append(run)
    cells: dict[Condition, dict[str, Repeats]] = {}
    alike: dict[tuple[Condition, str], list[RunView]] = {}
    for (condition, arm), own in found.items():
        data = sorted((key, value) for key, value in arms[arm].items() if key.startswith("data."))
        alike.setdefault((condition, str(data)), []).extend(own)
        cells.setdefault(condition, {}).update(group(own, partial(lambda name, _: name, arm)))
    refuse_mixtures(*alike.values())
    return dict(sorted(cells.items(), key=lambda cell: str(cell[0])))


def as_typed(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return a run's settings by the keys of the command line: data.world.length_bias."""
    return {key.replace("data.settings.", "data."): value for key, value in flatten(settings).items()}


def arms_of(settings: Mapping[str, Any], arms: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the arms whose settings these are."""
    return [arm for arm, asked in arms.items() if all(settings.get(k) == v for k, v in asked.items())]


def findings_of(
    cells: Cells, contrasts: Mapping[str, Mapping[str, float]], tested: Mapping[str, str],
    pairs: Mapping[Condition, Sequence[Match]] | None = None,
) -> list[Finding]:  # fmt: skip
    """Take every contrast that the finished runs allow, and correct their p-values together."""
    found = [
        finding
        for condition, own in cells.items()
        for name, weights in [
            *contrasts.items(),
            *((pair.contrast, pair.weights) for pair in (pairs or {}).get(condition, ())),
        ]
        for measure, metric in tested.items()
        if (finding := _contrast(condition, name, own, weights, measure, metric))
    ]
    corrected = holm([finding.p_value for finding in found]) if found else []
    return [replace(finding, p_value=p) for finding, p in zip(found, corrected, strict=True)]


def _contrast(
    condition: Condition,
    name: str,
    own: Mapping[str, Repeats],
    weights: Mapping[str, float],
    measure: str,
    metric: str,
) -> Finding | None:
    if any(arm not in own for arm in weights):
        return None
    values = [{run["seed"]: _scores(run, metric) for run in own[arm].finished} for arm in weights]
    seeds = sorted(
        seed for seed in set.intersection(*map(set, values)) if all(value[seed] for value in values)
    )
    scored = [set(value[seed]) for value in values for seed in seeds]
    prompts = sorted(set.intersection(*scored)) if scored else []
    if not prompts:
        return None
    total_SP = sum(
        weight * np.array([[value[seed][prompt] for prompt in prompts] for seed in seeds])
        for weight, value in zip(weights.values(), values, strict=True)
    )
    if len(prompts) > 1:
        compared = compare_over_seeds(total_SP, np.zeros_like(total_SP))
        return Finding(condition, name, measure, compared.difference, compared.p_value, len(seeds))
    if len(seeds) < 2:
        return None
    return Finding(condition, name, measure, *t_test(total_SP[:, 0]), len(seeds))


def _scores(run: RunView, metric: str) -> dict[str, float]:
    """Return a run's numbers by prompt, or its one number; none if it has none."""
    if metric.endswith(PROMPTS):
        return by_prompt(run, metric.removesuffix(PROMPTS), "score")
    value, _ = reader(metric)(run)
    return {} if value is None else {"": value}


def title(condition: Condition) -> str:
    """Name a condition for people."""
    words = [f"{value:g}" if isinstance(value, float) else str(value) for value in condition]
    return ", ".join(load_paper().title(word) for word in words)


def sentence(findings: Iterable[Finding], bounds: Mapping[str, float]) -> str:
    """Say what the first contrast came to, under every condition, and what all did; or that there is nothing yet."""
    findings = list(findings)
    told = [f for f in findings if f.contrast == findings[0].contrast]
    parts = [
        f"{title(f.condition)} {f.measure} {_signed(f.difference)} ({f.verdict(bounds)}; "
        f"{f.seeds} {'seed' if f.seeds == 1 else 'seeds'})"
        for f in told
    ]
    if not told:
        return "nothing yet."
    if len(told) > MOST_TOLD:
        parts = list(_in_short(told, bounds))
    verdicts = Counter(f.verdict(bounds) for f in findings)
    whole = "; ".join(f"{count} {verdict}" for verdict, count in verdicts.most_common())
    more = f" Of all {len(findings)} differences: {whole}." if len(findings) > len(told) else ""
    return f"{told[0].contrast}: {'; '.join(parts)}.{more}"


def _in_short(told: Sequence[Finding], bounds: Mapping[str, float]) -> Iterator[str]:
    """Yield for each measure between what its differences lie under all conditions, and what can be said of them."""
    for measure in dict.fromkeys(f.measure for f in told):
        own = [f for f in told if f.measure == measure]
        values = [f.difference.value for f in own]
        low, high = (entry.text for entry in signed(min(values), max(values)))
        counts = Counter(f.verdict(bounds) for f in own)
        said = "; ".join(f"{verdict} under {count}" for verdict, count in counts.most_common())
        yield f"{measure} from {low} to {high} under {len(own)} conditions ({said})"


def _signed(found: Interval) -> str:
    value, low, high = (entry.text for entry in signed(found.value, found.low, found.high))
    return f"{value} [{low}, {high}]"


def findings_table(findings: Sequence[Finding], bounds: Mapping[str, float], below: Sequence[str]) -> Table:
    """Show every contrast with its interval, its p and what can be said."""
    rows = [
        [title(f.condition), f.contrast, f.measure,
         *signed(f.difference.value, f.difference.low, f.difference.high),
         number(f.p_value, 3), str(f.seeds), f.verdict(bounds)]
        for f in findings
    ]  # fmt: skip
    header = ["Condition", "contrast", "of", "difference", "from", "to", "p", "seeds", "verdict"]
    return Table("", "", header, rows, 3, below)


def _arms_table(
    cells: Cells,
    arms: Mapping[str, Any],
    measures: Mapping[str, str],
    runs: Sequence[RunView],
) -> Table:
    seeds = seeds_of(runs)
    rows: list[list[Entry | str]] = [
        [title(condition), arm,
         *(number_entry(own.get(arm), reader(m), 3, seeds, m.partition(":")[0]) for m in measures.values())]
        for condition, own in cells.items()
        for arm in arms
    ]  # fmt: skip
    # A mean that a run logs over its held-out pairs has no error of its own: several seeds give it one.
    bare = len(seeds) == 1 and all("/" in metric for metric in measures.values())
    below = "One seed, and no run logs the spread over its pairs: no ±." if bare else error_fact(runs)
    return Table("-arms", "The arms", ["Condition", "arm", *measures], rows, 2, [below, *facts(runs)])


def _matched_table(pairs: Mapping[Condition, Sequence[Match]]) -> Table:
    rows: list[list[Entry | str]] = [
        [title(condition), *pair.cells()] for condition, own in pairs.items() for pair in own
    ]
    note = "A mixture's measure differs from the arm's own where no arm of the row reaches as far."
    return Table("-matched", "What is held against what", ["Condition", *HEADER], rows, 3, [note])


def _how(bounds: Mapping[str, float], findings: Sequence[Finding]) -> list[str]:
    said = [
        "Differences with 95 % intervals, paired over training seeds (t) and, for scores, over prompts (bootstrap): "
        "the wider counts. p: the larger of both tests, Holm-corrected over all rows."
    ]
    if bounds:
        within = ", ".join(f"±{bound:g} ({measure})" for measure, bound in bounds.items())
        said.append(f"No difference: the interval lies within {within}.")
    return [*said, *one_seed(finding.seeds for finding in findings)]
