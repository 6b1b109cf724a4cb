"""Errors, intervals and comparisons of evaluations, paired by prompt; nothing assumes normal scores.

Win rates are in per cent, as AlpacaEval prints them; a preference of one prompt is 1 (won), 0 (lost) or 0.5
(tied).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

RESAMPLES = 9999


@dataclass(frozen=True)
class Interval:
    """Hold an estimate, its standard error, and the ends of its 95 % interval."""

    value: float
    error: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """Hold what a paired comparison of `a` with `b` says.

    difference: mean of a - b with its bootstrap interval. wins, losses, ties: prompts. p_value: two-sided
    sign test over the prompts that differ.
    """

    difference: Interval
    wins: int
    losses: int
    ties: int
    p_value: float


def mean_error(values: ArrayLike) -> tuple[float, float]:
    """Return the mean and its standard error (sample deviation over the root of n); 0 error for one value."""
    values_B = _checked(values)
    return float(values_B.mean()), float(stats.sem(values_B)) if len(values_B) > 1 else 0.0


def bootstrap(values: ArrayLike, *, seed: int = 0, resamples: int = RESAMPLES) -> Interval:
    """Return the mean with a 95 % percentile bootstrap over the values, drawn with the seed."""
    values_B = _checked(values)
    mean = float(values_B.mean())
    if np.ptp(values_B) == 0:
        return Interval(mean, 0.0, mean, mean)
    result = stats.bootstrap(
        (values_B,),
        np.mean,
        n_resamples=resamples,
        method="percentile",
        rng=np.random.default_rng(seed),
        batch=1000,
    )
    low, high = result.confidence_interval
    return Interval(mean, float(result.standard_error), float(low), float(high))


def preferences(ours: ArrayLike, theirs: ArrayLike) -> NDArray[np.float64]:
    """Return who won each prompt by score: 1, 0, or 0.5 for equal scores; both cover the same prompts."""
    ours_B, theirs_B = _pair(ours, theirs)
    return (np.sign(ours_B - theirs_B) + 1) / 2


def win_rate(preferences_B: ArrayLike, *, seed: int = 0) -> Interval:
    """Return the win rate in per cent, ties counted half: standard error of the mean, bootstrap interval."""
    percent_B = 100 * _checked(preferences_B)
    spread = bootstrap(percent_B, seed=seed)
    return Interval(spread.value, mean_error(percent_B)[1], spread.low, spread.high)


def compare(ours: ArrayLike, theirs: ArrayLike, *, seed: int = 0) -> Comparison:
    """Compare two methods prompt by prompt: bootstrap over prompts, and the sign test."""
    ours_B, theirs_B = _pair(ours, theirs)
    difference_B = ours_B - theirs_B
    wins, losses = int((difference_B > 0).sum()), int((difference_B < 0).sum())
    p_value = stats.binomtest(wins, wins + losses).pvalue if wins + losses else 1.0
    ties = len(difference_B) - wins - losses
    return Comparison(bootstrap(difference_B, seed=seed), wins, losses, ties, float(p_value))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return Holm's adjusted p-values, in the order given.

    The k-th smallest of m is multiplied by m - k + 1, never falls below the one before it, and stops at 1
    (Holm 1979): below a level they reject together at that family-wise level, under any dependence.
    """
    order = np.argsort(p_values, kind="stable")
    scaled = np.asarray(p_values, dtype=float)[order] * np.arange(len(order), 0, -1)
    adjusted = np.empty(len(order))
    adjusted[order] = np.minimum(np.maximum.accumulate(scaled), 1.0)
    return adjusted.tolist()


def _pair(ours: ArrayLike, theirs: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    ours_B, theirs_B = _checked(ours), _checked(theirs)
    if len(ours_B) != len(theirs_B):
        raise ValueError(
            f"a paired comparison needs the same prompts: {len(ours_B)} scores against {len(theirs_B)}"
        )
    return ours_B, theirs_B


def _checked(values: ArrayLike) -> NDArray[np.float64]:
    values_B = np.asarray(values, dtype=np.float64)
    if values_B.ndim != 1 or not len(values_B):
        raise ValueError(f"expected at least one score in a row, got the shape {values_B.shape}")
    if not np.isfinite(values_B).all():
        raise ValueError(
            f"{int((~np.isfinite(values_B)).sum())} of {len(values_B)} scores are not finite numbers"
        )
    return values_B
