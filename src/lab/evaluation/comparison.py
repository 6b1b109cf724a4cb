"""Who beats whom beyond noise: evaluated runs compared pair by pair, judgment by judgment.

One test a pair decides both who is better and how surely (`statistics.compare`); Holm's correction is over all
pairs. One beats the other only if the corrected test and the interval both say so; else it is not known, which
is not the same as equal. Results of different identity (sampling, prompts, judge ...) are not compared.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from lab.benchmarks.benchmark import number_of
from lab.benchmarks.statistics import LEVEL, TEST_OVER_PROMPTS, Comparison, compare, holm
from sgdpo.drawing.table import Table
from sgdpo.runs.records import RunView, differences, view_run
from sgdpo.store import read_jsonl

# By prompt, or question; by the name of the judgment; and its place among those of one name.
Scores = dict[tuple[str, str, int], float]


@dataclass(frozen=True)
class Verdict:
    """Hold the comparison of two runs.

    adjusted: Holm's p-value over all pairs of the table. alone: judgments that only one of the two runs has.
    """

    first: str
    second: str
    comparison: Comparison
    adjusted: float
    alone: int = 0

    @property
    def winner(self) -> str | None:
        """Return the run that is better beyond noise, or None where that cannot be said."""
        interval = self.comparison.difference
        if self.adjusted >= LEVEL or interval.low <= 0 <= interval.high:
            return None
        return self.first if interval.value > 0 else self.second

    @property
    def numbers(self) -> str:
        interval = self.comparison.difference
        return f"{interval.value:+.3f} [{interval.low:+.3f}, {interval.high:+.3f}]"

    def sentence(self) -> str:
        numbers = f"({self.numbers}, p = {self.adjusted:.3g})"
        if self.winner is None:
            return f"cannot say: {self.first} and {self.second} {numbers}"
        loser = self.second if self.winner == self.first else self.first
        return f"{self.winner} beats {loser} {numbers}"


def compare_runs(runs: Sequence[Path], evaluation: str | None, *, seed: int = 0) -> list[Verdict]:
    """Compare every pair of runs on one evaluation ("verifiable-checker"; None: the only one they share).

    Raises ValueError for fewer than two runs, a run named twice, runs that were not evaluated, or evaluations
    that differ in anything but the run.
    """
    if len(runs) < 2:
        raise ValueError("name at least two runs to compare")
    if len({run.resolve() for run in runs}) < len(runs):
        raise ValueError("a run is named more than once; it differs from itself by nothing")
    views = [view_run(run) for run in runs]
    if broken := [str(view.error) for view in views if view.status == "broken"]:
        raise ValueError("\n".join(broken))
    evaluation = evaluation or _shared(views)
    for view in views:
        # A run that is trained again keeps the files of its earlier evaluations, but not their results.
        if evaluation not in (view["eval"] or {}):
            there = ", ".join(view["eval"] or {}) or "none"
            raise ValueError(
                f"{view.folder} holds no judgments by {evaluation}: evaluate it first (scripts/evaluate.py); it has "
                f"{there}"
            )
    scores = {str(view.folder): judged_scores(view.folder / "eval" / evaluation) for view in views}
    for view in views[1:]:
        refuse_other_identity(views[0], view, evaluation)
    names, pairs = short_names(list(scores)), list(combinations(scores, 2))
    compared = [compare(*_paired(a, b, scores[a], scores[b]), seed=seed) for a, b in pairs]
    adjusted = holm([comparison.p_value for comparison in compared])
    found = zip(pairs, compared, adjusted, strict=True)
    return [
        Verdict(names[a], names[b], comparison, p, len(scores[a].keys() ^ scores[b].keys()))
        for (a, b), comparison, p in found
    ]


def refuse_other_identity(first: RunView, second: RunView, evaluation: str) -> None:
    """Raise ValueError, naming the difference, if two results were not sampled, judged and asked alike."""
    ours, theirs = (((run["eval"] or {}).get(evaluation) or {}).get("identity") for run in (first, second))
    if ours != theirs:
        what = differences(ours or {"identity": "unknown"}, theirs or {"identity": "unknown"})
        raise ValueError(
            f"{first.folder} and {second.folder} have different evaluations named {evaluation} ({what}); evaluate "
            "both with the same settings"
        )


def judged_scores(folder: Path) -> Scores:
    """Return the score of each judgment: the checker's, the preference, or that of a question's turn.

    The checker's own score is taken before the preference over a baseline: it says more. Unparsable judgments
    are left out. Raises ValueError if the folder holds no judgments, or none of a prompt (lm-eval's).
    """
    file = folder / "judgments.jsonl"
    if not file.is_file():
        raise ValueError(
            f"{folder} holds no judgments: evaluate {folder.parents[1]} first (scripts/evaluate.py)"
        )
    scores: Scores = {}
    seen: Counter[str] = Counter()
    for number, row in enumerate(read_jsonl(file), 1):
        value = number_of(row, "score" if "score" in row else "preference")
        prompt = row.get("question_id", row.get("prompt_id"))
        if prompt is None or not isinstance(value, int | float | None):
            raise ValueError(f"{file}, line {number}: not a judgment (prompt_id, score or preference)")
        name = str(row.get("prompt_id", prompt))
        seen[name] += 1
        if value is not None:
            scores[str(prompt), name, seen[name]] = float(value)
    if not scores:
        raise ValueError(f"{file} scores no prompt: such an evaluation cannot be compared prompt by prompt")
    return scores


def prompt_means(scores: Scores, judgments: Iterable[tuple[str, str, int]]) -> dict[str, float]:
    """Return the mean over these judgments of each prompt: both turns of a question are one."""
    values: dict[str, list[float]] = {}
    for judgment in sorted(judgments):
        values.setdefault(judgment[0], []).append(scores[judgment])
    return {prompt: sum(own) / len(own) for prompt, own in values.items()}


def show(verdicts: Sequence[Verdict]) -> tuple[Table, list[str]]:
    header = ["pair", "difference [95 %]", "won", "lost", "tied", "p", "p (Holm)"]
    rows = []
    for verdict in verdicts:
        c = verdict.comparison
        counts = [str(count) for count in (c.wins, c.losses, c.ties)]
        p_values = [f"{c.p_value:.3g}", f"{verdict.adjusted:.3g}"]
        rows.append([f"{verdict.first} – {verdict.second}", verdict.numbers, *counts, *p_values])
    left = [
        f"{v.first} – {v.second}: {v.alone} judgments that only one of them has are left out"
        for v in verdicts
        if v.alone
    ]
    table = Table("comparison", "", header, rows, 1, [TEST_OVER_PROMPTS, *left])
    return table, [verdict.sentence() for verdict in verdicts]


def _shared(runs: Sequence[RunView]) -> str:
    common = set.intersection(*[set(run["eval"] or {}) for run in runs])
    if len(common) != 1:
        shared = ", ".join(sorted(common)) or "none"
        raise ValueError(
            f"the runs share these evaluations: {shared}; name one with --evaluation, or evaluate them"
        )
    return common.pop()


def _paired(a: str, b: str, first: Scores, second: Scores) -> tuple[list, list]:
    """Return both runs' scores of each prompt, over the judgments that both have; refuse runs of different prompts.

    A turn that one judge's reply says nothing of counts on neither side: second turns score lower than first ones.
    """
    common, most = first.keys() & second.keys(), max(len(first), len(second))
    # Unparsable judgments may leave a few out on one side, no more than the benchmarks allow.
    if not common or len(common) < 0.9 * most:
        raise ValueError(f"{a} and {b} answered different prompts: {len(common)} of {most} are the same")
    ours, theirs = (list(prompt_means(scores, common).values()) for scores in (first, second))
    return ours, theirs


def short_names(places: Sequence[str]) -> dict[str, str]:
    """Return names for runs or files: the last part of each path, or as many as tell them all apart."""
    names: dict[str, str] = {}
    for parts in range(1, 1 + max((len(Path(place).parts) for place in places), default=0)):
        names = {place: "/".join(Path(place).parts[-parts:]) for place in places}
        if len(set(names.values())) == len(places):
            break
    return names
