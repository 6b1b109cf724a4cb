"""Check the paper's claim about figure 3, smaller ratios end with larger rewards: a number, an interval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lab.report.cells import ratio_of
from sgdpo.drawing.curves import series
from sgdpo.runs.records import RunView
from sgdpo.store import write_json, write_whole

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
    runs: int
    seeds: int

    @property
    def verdict(self) -> str:
        """Return "held", "the opposite held" or "cannot be said"."""
        if self.overall.high < 0:
            return "held"
        return "the opposite held" if self.overall.low > 0 else "cannot be said"

    def text(self) -> str:
        """Return the check in words, with every number."""
        slope = self.overall
        lines = [
            f"Claim: smaller ratios end with larger rewards. Here ({self.model}): {self.verdict}.",
            f"|chosen| + |rejected| at the end changes by {_signed(slope)} nats for a mean ratio larger by 1 "
            f"(95 % interval by bootstrap over runs within seeds; {self.runs} runs, {self.seeds} seeds).",
        ]
        lines += [f"  |{s.reward}| on {s.ratio}: {_signed(s)}" for s in self.single]
        return "\n".join(lines)


def check_claim(runs: Sequence[RunView]) -> list[Claim]:
    """Return the check of every model with finished runs of at least three ratios."""
    claims = []
    usable = [run for run in runs if run.status == "finished" and ratio_of(run)]
    for model in sorted({run["model"] for run in usable}):
        own = [run for run in usable if run["model"] == model]
        if len({ratio_of(run) for run in own}) >= 3:
            claims.append(_check(model, own))
    return claims


def _check(model: str, runs: Sequence[RunView]) -> Claim:
    magnitude_RK = np.array([[abs(final_reward(run, key)) for key in REWARDS] for run in runs])
    ratio_RK = np.array([ratio_of(run) for run in runs])
    seeds = np.array([run["seed"] for run in runs])
    mean_R1 = ratio_RK.mean(1, keepdims=True)
    overall = _slopes(magnitude_RK.sum(1), mean_R1, seeds, "chosen| + |rejected", ["mean ratio"])[0]
    single: list[Slope] = []
    # On a diagonal (equal ratios) the two effects cannot be told apart.
    if np.linalg.matrix_rank(np.column_stack([np.ones(len(runs)), ratio_RK])) == 3:
        for k, key in enumerate(REWARDS):
            names = ["ratio.chosen", "ratio.rejected"]
            single += _slopes(magnitude_RK[:, k], ratio_RK, seeds, key.removeprefix("rewards/"), names)
    return Claim(model, overall, tuple(single), len(runs), len(set(seeds)))


def final_reward(run: RunView, key: str) -> float:
    """Return a training reward's mean over the last tenth of the logged steps, nats."""
    _, values = series(run.metrics(), "train", key)
    return float(np.nanmean(values[-max(1, round(LAST_SHARE * len(values))) :]))


def _slopes(
    y_R: NDArray[np.float64], x_RK: NDArray[np.float64], seeds: NDArray, reward: str, names: Sequence[str]
) -> list[Slope]:
    rng = np.random.default_rng(0)
    groups = [np.flatnonzero(seeds == seed) for seed in sorted(set(seeds))]
    fits = []
    for _ in range(RESAMPLES):
        drawn = np.concatenate([rng.choice(group, len(group)) for group in groups])
        fits.append(_fit(y_R[drawn], x_RK[drawn], seeds[drawn]))
    low_K, high_K = np.percentile(fits, [2.5, 97.5], axis=0)
    value_K = _fit(y_R, x_RK, seeds)
    return [
        Slope(reward, name, *map(float, ends))
        for name, *ends in zip(names, value_K, low_K, high_K, strict=True)
    ]


def _fit(y_R: NDArray, x_RK: NDArray, seeds: NDArray) -> NDArray[np.float64]:
    """Return least-squares slopes with an intercept for each seed (both sides centred within the seed)."""
    y_R, x_RK = y_R.copy(), x_RK.copy()
    for seed in set(seeds.tolist()):
        rows = seeds == seed
        y_R[rows] -= y_R[rows].mean()
        x_RK[rows] -= x_RK[rows].mean(0)
    return np.linalg.lstsq(x_RK, y_R, rcond=None)[0]


def write_claims(claims: Sequence[Claim], folder: Path) -> list[Path]:
    """Write claim.json and claim.md into the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "claim.json", [{**asdict(claim), "verdict": claim.verdict} for claim in claims])
    write_whole(folder / "claim.md", "\n\n".join(claim.text() for claim in claims) + "\n")
    return [folder / "claim.json", folder / "claim.md"]


def _signed(slope: Slope) -> str:
    return f"{slope.value:+.3f} ({slope.low:+.3f} to {slope.high:+.3f})".replace("-", "−")
