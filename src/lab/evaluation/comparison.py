"""Who beats whom beyond noise: evaluated runs compared pair by pair, prompt by prompt.

Every pair of runs is compared by a paired bootstrap over prompts and a sign test; the sign tests are
corrected by Holm over all pairs. One beats the other only if the corrected test and the interval both say so;
else it is not known, which is not the same as equal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from lab.benchmarks.statistics import Comparison, compare, holm
from sgdpo.runs.records import view_run
from sgdpo.store import read_jsonl

LEVEL = 0.05


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

    def sentence(self) -> str:
        """Return the verdict in words."""
        interval = self.comparison.difference
        numbers = (
            f"{interval.value:+.3f} [{interval.low:+.3f}, {interval.high:+.3f}], p = {self.adjusted:.3g}"
        )
        if self.winner is None:
            return f"cannot say: {self.first} and {self.second} ({numbers})"
        loser = self.second if self.winner == self.first else self.first
        return f"{self.winner} beats {loser} ({numbers})"


def compare_runs(runs: Sequence[Path], evaluation: str | None, *, seed: int = 0) -> list[Verdict]:
    """Compare every pair of runs on one evaluation ("verifiable-checker"; None: the only one they share).

    Raises ValueError for fewer than two runs, for runs that were not evaluated, or on other prompts.
    """
    if len(runs) < 2:
        raise ValueError("name at least two runs to compare")
    evaluation = evaluation or _shared(runs)
    scores = {str(run): prompt_scores(run / "eval" / evaluation) for run in runs}
    names = _short(list(scores))
    pairs = list(combinations(scores, 2))
    compared = [compare(*_paired(a, b, scores[a], scores[b]), seed=seed) for a, b in pairs]
    adjusted = holm([comparison.p_value for comparison in compared])
    return [
        Verdict(names[a], names[b], comparison, p)
        for (a, b), comparison, p in zip(pairs, compared, adjusted, strict=True)
    ]


def prompt_scores(folder: Path) -> dict[str, float]:
    """Return each prompt's score: the checker's, the preference, or the mean over the turns of a question.

    The checker's own score is taken before the preference over a baseline: it says more. Unparsable judgments
    are left out. Raises ValueError if the folder holds no judgments.
    """
    file = folder / "judgments.jsonl"
    if not file.is_file():
        raise ValueError(
            f"{folder} holds no judgments: evaluate {folder.parents[1]} first (scripts/evaluate.py)"
        )
    found: dict[str, list[float]] = {}
    for row in read_jsonl(file):
        value = row.get("score", row.get("preference"))
        if value is None or ("question_id" in row and value < 0):
            continue
        found.setdefault(str(row.get("question_id", row["prompt_id"])), []).append(float(value))
    return {prompt: float(np.mean(values)) for prompt, values in found.items()}


def show(verdicts: Sequence[Verdict]) -> tuple[Table, list[str]]:
    """Return the table of all pairs, and a sentence for each."""
    table = Table("pair", "difference [95 %]", "won", "lost", "tied", "p", "p (Holm)")
    for verdict in verdicts:
        c, d = verdict.comparison, verdict.comparison.difference
        pair, span = f"{verdict.first} – {verdict.second}", f"{d.value:+.3f} [{d.low:+.3f}, {d.high:+.3f}]"
        table.add_row(
            pair, span, str(c.wins), str(c.losses), str(c.ties), f"{c.p_value:.3g}", f"{verdict.adjusted:.3g}"
        )
    return table, [verdict.sentence() for verdict in verdicts]


def _shared(runs: Sequence[Path]) -> str:
    common = set.intersection(*[set(view_run(run)["eval"] or {}) for run in runs])
    if len(common) != 1:
        found = ", ".join(sorted(common)) or "none"
        raise ValueError(
            f"the runs share these evaluations: {found}; name one with --evaluation, or evaluate them"
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
