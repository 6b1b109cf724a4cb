"""Put the answers to one prompt together as a pair: the best against the worst; say why where there is none."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

SAME, CLOSE, FEW = "same_score", "below_margin", "too_few_answers"
REASONS = {
    SAME: "whose answers all have one score",
    CLOSE: "whose best and worst differ by less than the margin",
    FEW: "with fewer than two different scored answers",
}


@dataclass(frozen=True)
class Candidate:
    """Hold an answer and its score, None where there is none; problem: why a server's answer cannot be used."""

    text: str
    score: float | None
    problem: str = ""


def make_pair(
    candidates: Sequence[Candidate], margin: float, counts: Counter[str]
) -> tuple[Candidate, Candidate] | None:
    """Return the best against the worst answer; None, counted under its reason, where they do not differ enough.

    Left out and counted: unusable and empty answers, those without a score, and any that says what an earlier one
    did. Of equal scores the first drawn stands: the draws know no order. margin: in the scorer's unit.
    """
    different: dict[str, Candidate] = {}
    for candidate in candidates:
        text = candidate.text.strip()
        reason = (
            "unusable" if candidate.problem
            else "empty" if not text
            else "unscored" if candidate.score is None
            else "duplicates" if text in different
            else ""
        )  # fmt: skip
        counts[reason or "candidates"] += 1
        if not reason:
            different[text] = candidate
    found = list(different.values())
    if len(found) < 2:
        counts[FEW] += 1
        return None
    best, worst = max(found, key=_score), min(found, key=_score)
    if _score(best) == _score(worst) or _score(best) - _score(worst) < margin:
        counts[SAME if _score(best) == _score(worst) else CLOSE] += 1
        return None
    counts["pairs"] += 1
    return best, worst


def _score(candidate: Candidate) -> float:
    assert candidate.score is not None, "one without a score is left out"
    return candidate.score
