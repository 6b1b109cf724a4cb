"""Check the paper's claim about figure 3, smaller ratios end with larger rewards: a number, an interval."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lab.report.cells import by_model, ratio_of
from lab.report.entries import facts
from lab.report.names import load_paper
from sgdpo.drawing.curves import series
from sgdpo.drawing.table import Table, signed
from sgdpo.runs.records import RunView

RESAMPLES = 2000
LAST_SHARE = 0.1  # of the logged steps: the end of training, less noisy than its last step
REWARDS = ("rewards/chosen", "rewards/rejected")


@dataclass(frozen=True)
class Slope:
    """Hold the change of a reward's magnitude, nats, for a ratio that is larger by one; 95 % interval."""

    reward: str
    ratio: str
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Claim:
    """Hold the check: the slope of |chosen| + |rejected| on the mean ratio, the single slopes, the runs."""

    model: str
    overall: Slope
    single: tuple[Slope, ...]
    runs: Sequence[RunView]

    @property
    def verdict(self) -> str:
        if self.overall.high < 0:
            return "held"
        return "the opposite held" if self.overall.low > 0 else "cannot be said"


def check_claim(runs: Sequence[RunView]) -> list[Claim]:
    claims = []
    for model, own in by_model(runs):
        usable = [run for run in own if run.status == "finished" and ratio_of(run)]
        if len({ratio_of(run) for run in usable}) >= 3:
            claims.append(_check(model, usable))
    return claims


def _check(model: str, runs: Sequence[RunView]) -> Claim:
    magnitude_RK = np.array([[abs(late_mean(run, key)) for key in REWARDS] for run in runs])
    ratio_RK = np.array([ratio_of(run) for run in runs])
    seeds = np.array([run["seed"] for run in runs])
    mean_R1 = ratio_RK.mean(1, keepdims=True)
    (overall,) = _slopes(magnitude_RK.sum(1), mean_R1, seeds, "chosen| + |rejected", ["mean ratio"])
    single: list[Slope] = []
    # On a diagonal (equal ratios) the two effects cannot be told apart.
    if np.linalg.matrix_rank(np.column_stack([np.ones(len(runs)), ratio_RK])) == 3:
        for magnitude_R, key in zip(magnitude_RK.T, REWARDS, strict=True):
            names = ["ratio.chosen", "ratio.rejected"]
            single += _slopes(magnitude_R, ratio_RK, seeds, key.removeprefix("rewards/"), names)
    return Claim(model, overall, tuple(single), runs)


def late_mean(run: RunView, key: str, share: float = LAST_SHARE) -> float:
    """Average a training metric over the last logged steps, this share of them; NaN if none of these has it."""
    _, values = series(run.metrics(), "train", key)
    late = values[-max(1, round(share * len(values))) :]
    known = late[np.isfinite(late)]
    return float(known.mean()) if len(known) else math.nan


def _slopes(
    y_R: NDArray[np.float64], x_RK: NDArray[np.float64], seeds: NDArray, reward: str, names: Sequence[str]
) -> list[Slope]:
    rng = np.random.default_rng(0)
    groups = [np.flatnonzero(seeds == seed) for seed in sorted(set(seeds))]
    fits = []
    for _ in range(RESAMPLES):
        drawn = np.concatenate([rng.choice(group, len(group)) for group in groups])
        fits.append(_fit(y_R[drawn], x_RK[drawn], seeds[drawn]))
    ends_K = np.percentile(fits, [2.5, 97.5], axis=0).T
    slopes = zip(names, _fit(y_R, x_RK, seeds), ends_K, strict=True)
    return [Slope(reward, name, float(value), *map(float, ends)) for name, value, ends in slopes]


def _fit(y_R: NDArray, x_RK: NDArray, seeds: NDArray) -> NDArray[np.float64]:
    """Fit least-squares slopes with an intercept for each seed (both sides centred within the seed)."""
    y_R, x_RK = y_R.copy(), x_RK.copy()
    for seed in set(seeds.tolist()):
        rows = seeds == seed
        y_R[rows] -= y_R[rows].mean()
        x_RK[rows] -= x_RK[rows].mean(0)
    return np.linalg.lstsq(x_RK, y_R, rcond=None)[0]


def claim_table(claims: Sequence[Claim]) -> Table:
    """Show the checks: every slope with its interval, the verdict in words below."""
    rows, verdicts = [], []
    for claim in claims:
        model = load_paper().title(claim.model)
        verdicts.append(f"{model}: {claim.verdict}.")
        for slope in (claim.overall, *claim.single):
            numbers = signed(slope.value, slope.low, slope.high)
            rows.append([model, f"|{slope.reward}|", slope.ratio, *numbers])
    below = [
        "Claim: smaller ratios end with larger rewards (a negative slope of |chosen| + |rejected| on the mean ratio).",
        *(verdicts or ["The claim needs finished runs of three ratios at least."]),
        "Nats for a ratio larger by 1; 95 % interval by bootstrap over runs within seeds.",
        *facts([run for claim in claims for run in claim.runs]),
    ]
    header = ["Model", "reward", "on", "slope", "from", "to"]
    return Table("figure3-claim", "Figure 3: does the claim hold?", header, rows, 3, below)
