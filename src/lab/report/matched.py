"""Hold an arm against others of the same measure: of as many tokens, of the same E|P|, of the same log(dw/dl).

A row of arms goes along a measure (uniform pilots by their ratio, DPO-Shift by its lambda). An arm is held against the
mixture of two neighbours of the row whose interpolated measure is the arm's own; beyond the row's ends, against the
end. That is a contrast like any other; the mixture's weights are taken as known.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lab.report.cells import Repeats
from lab.report.measures import reader
from sgdpo.drawing.table import Entry, number


@dataclass(frozen=True)
class Match:
    """Hold an arm and its measure, and the mixture {arm: share} of a row that comes nearest, with what it reaches."""

    arm: str
    row: str
    by: str
    value: float
    mixture: Mapping[str, float]
    reached: float

    @property
    def contrast(self) -> str:
        return f"{self.arm} less {self.row} of its {self.by}"

    @property
    def weights(self) -> dict[str, float]:
        return {self.arm: 1.0} | {arm: -share for arm, share in self.mixture.items()}

    def cells(self) -> list[Entry | str]:
        """Return the match as a table shows it."""
        mixed = " + ".join(f"{share:.2f} × {arm}" for arm, share in self.mixture.items())
        return [self.arm, self.by, number(self.value, 3), number(self.reached, 3), mixed]


HEADER = ["arm", "by", "its own", "the mixture's", "mixture"]


def matches(
    own: Mapping[str, Repeats], measures: Mapping[str, str], asked: Mapping[str, Mapping[str, Any]]
) -> Iterator[Match]:
    """Match the arms of one condition, as far as they have run.

    asked: {what the row is called: {row: arms that go along the measure, arms: those to match, by: measures}}.
    """
    for called, rule in asked.items():
        for by in rule["by"]:
            found = {arm: own[arm].estimate(reader(measures[by])) for arm in own}
            at = {arm: estimate.value for arm, estimate in found.items() if estimate}
            row = sorted((at[arm], arm) for arm in rule["row"] if arm in at)
            for arm in rule["arms"]:
                if row and arm in at:
                    yield Match(arm, called, by, at[arm], *_mixture(row, at[arm]))


def _mixture(row: Sequence[tuple[float, str]], value: float) -> tuple[dict[str, float], float]:
    """Return the shares of the neighbours that the value lies between, and what they come to."""
    reached = min(max(value, row[0][0]), row[-1][0])
    upper = next(place for place, (at, _) in enumerate(row) if at >= reached)
    above, second = row[upper]
    if above == reached:
        return {second: 1.0}, reached
    below, first = row[upper - 1]
    share = (reached - below) / (above - below)
    return {first: 1 - share, second: share}, reached
