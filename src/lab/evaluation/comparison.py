"""Who beats whom beyond noise: evaluated runs compared pair by pair, prompt by prompt.

One test a pair decides both who is better and how surely (`statistics.compare`); Holm's correction is over all
pairs. One beats the other only if the corrected test and the interval both say so; else it is not known, which
is not the same as equal. Results of different identity (sampling, prompts, judge ...) are not compared.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from lab.benchmarks.statistics import LEVEL, TEST_OVER_PROMPTS, Comparison, compare, holm
from sgdpo.drawing.table import Table
from sgdpo.runs.records import RunView, differences, view_run
from sgdpo.store import read_jsonl


@dataclass(frozen=True)
class Verdict:
    """Hold the comparison of two runs; `adjusted` is Holm's p-value over all pairs of the table."""

    first: str
    second: str
    comparison: Comparison
    adjusted: float

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
    scores = {str(view.folder): prompt_scores(view.folder / "eval" / evaluation) for view in views}
    for view in views[1:]:
        refuse_other_identity(views[0], view, evaluation)
    names, pairs = _short(list(scores)), list(combinations(scores, 2))
    compared = [compare(*_paired(a, b, scores[a], scores[b]), seed=seed) for a, b in pairs]
    adjusted = holm([comparison.p_value for comparison in compared])
    found = zip(pairs, compared, adjusted, strict=True)
    return [Verdict(names[a], names[b], comparison, p) for (a, b), comparison, p in found]


def refuse_other_identity(first: RunView, second: RunView, evaluation: str) -> None:
    """Raise ValueError, naming the difference, if two results were not sampled, judged and asked alike."""
    ours, theirs = (((run["eval"] or {}).get(evaluation) or {}).get("identity") for run in (first, second))
    if ours != theirs:
        what = differences(ours or {"identity": "unknown"}, theirs or {"identity": "unknown"})
        raise ValueError(
            f"{first.folder} and {second.folder} have different evaluations named {evaluation} ({what}); evaluate "
            "both with the same settings"
        )


def prompt_scores(folder: Path) -> dict[str, float]:
    """Return each prompt's score: the checker's, the preference, or the mean over the turns of a question.

    The checker's own score is taken before the preference over a baseline: it says more. Unparsable judgments
    are left out. Raises ValueError if the folder holds no judgments, or none of a prompt (lm-eval's).
    """
    file = folder / "judgments.jsonl"
    if not file.is_file():
        raise ValueError(
            f"{folder} holds no judgments: evaluate {folder.parents[1]} first (scripts/evaluate.py)"
        )
    by_prompt: dict[str, list[float]] = {}
    for number, row in enumerate(read_jsonl(file), 1):
        value, prompt = row.get("score", row.get("preference")), row.get("question_id", row.get("prompt_id"))
        if prompt is None or not isinstance(value, int | float | None):
            raise ValueError(f"{file}, line {number}: not a judgment (prompt_id, score or preference)")
        if value is None or ("question_id" in row and value < 0):
            continue
        by_prompt.setdefault(str(prompt), []).append(float(value))
    if not by_prompt:
        raise ValueError(f"{file} scores no prompt: such an evaluation cannot be compared prompt by prompt")
    return {prompt: sum(values) / len(values) for prompt, values in by_prompt.items()}


def show(verdicts: Sequence[Verdict]) -> tuple[Table, list[str]]:
    header = ["pair", "difference [95 %]", "won", "lost", "tied", "p", "p (Holm)"]
    rows = []
    for verdict in verdicts:
        c = verdict.comparison
        counts = [str(count) for count in (c.wins, c.losses, c.ties)]
        p_values = [f"{c.p_value:.3g}", f"{verdict.adjusted:.3g}"]
        rows.append([f"{verdict.first} – {verdict.second}", verdict.numbers, *counts, *p_values])
    table = Table("comparison", "", header, rows, 1, [TEST_OVER_PROMPTS])
    return table, [verdict.sentence() for verdict in verdicts]


def _shared(runs: Sequence[RunView]) -> str:
    common = set.intersection(*[set(run["eval"] or {}) for run in runs])
    if len(common) != 1:
        shared = ", ".join(sorted(common)) or "none"
        raise ValueError(
            f"the runs share these evaluations: {shared}; name one with --evaluation, or evaluate them"
        )
    return common.pop()


def _paired(a: str, b: str, first: Mapping[str, float], second: Mapping[str, float]) -> tuple[list, list]:
    """Return both runs' scores on the prompts that both have; refuse runs of different prompts."""
    common = sorted(set(first) & set(second))
    most = max(len(first), len(second))
    # Unparsable judgments may leave a few prompts out on one side, no more than the benchmarks allow.
    if not common or len(common) < 0.9 * most:
        raise ValueError(f"{a} and {b} answered different prompts: {len(common)} of {most} are the same")
    return [first[key] for key in common], [second[key] for key in common]


def _short(runs: list[str]) -> dict[str, str]:
    """Return names for the runs: the folder's, with the experiment's in front where two would be the same."""
    names: dict[str, Any] = {run: Path(run).name for run in runs}
    if len(set(names.values())) < len(runs):
        names = {run: "/".join(Path(run).parts[-2:]) for run in runs}
    return names
