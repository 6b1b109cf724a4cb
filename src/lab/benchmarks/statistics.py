"""Errors, intervals and comparisons of evaluations, paired by prompt; nothing assumes normal scores of prompts.

Win rates are in per cent, as AlpacaEval prints them; a preference of one prompt is 1 (won), 0 (lost) or 0.5
(tied). A comparison has one test of the mean difference: it decides both who is better and how surely.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

RESAMPLES = 9999
NORMAL_95 = 1.959964
# A p-value below it is beyond noise.
LEVEL = 0.05
# Up to so many prompts that differ every sign is tried, beyond it random ones.
MOST_EXACT = 14
_BATCH = 1000


@dataclass(frozen=True)
class Interval:
    """Hold an estimate, its standard error, and the ends of its 95 % interval."""

    value: float
    error: float
    low: float
    high: float

    def fields(self, name: str, mean: str = "") -> dict[str, float]:
        """Give the interval as a result's fields; mean: what the estimate is called, if not by the name."""
        ends = {f"{name}_low": self.low, f"{name}_high": self.high}
        return {mean or name: self.value, f"{name}_se": self.error, **ends}


@dataclass(frozen=True)
class Comparison:
    """Hold what a paired comparison of `a` with `b` says.

    difference: mean of a - b with its interval; its sign and p_value (two-sided) belong to one test, which `test`
    names in a sentence. wins, losses, ties: prompts, their scores averaged over the seeds.
    """

    difference: Interval
    wins: int
    losses: int
    ties: int
    p_value: float
    seeds: int = 1

    @property
    def test(self) -> str:
        """Name the test, and what its claim is about."""
        return TEST_OVER_SEEDS if self.seeds > 1 else TEST_OVER_PROMPTS


TEST_OVER_PROMPTS = (
    "two-sided sign-flip test of the mean difference, paired over prompts: with one training seed each it speaks "
    "of these two models, not of the methods that trained them"
)
TEST_OVER_SEEDS = (
    "two-sided tests of the mean difference, paired over training seeds (t test) and over prompts (sign-flip test); "
    "the larger p counts, so that neither the noise of training nor the choice of prompts makes a mark alone"
)


def mean_error(values: ArrayLike) -> tuple[float, float]:
    """Return the mean and its standard error (sample deviation over the root of n); 0 error for one value."""
    values_B = _checked(values)
    error = values_B.std(ddof=1) / np.sqrt(len(values_B)) if len(values_B) > 1 else 0.0
    return float(values_B.mean()), float(error)


def bootstrap(
    values: ArrayLike, counts: ArrayLike | None = None, *, seed: int = 0, resamples: int = RESAMPLES
) -> Interval:
    """Return the mean with a 95 % percentile bootstrap over the values, drawn with the seed.

    One value says nothing of others: its error is NaN, its interval has no ends.
    counts: values are then sums of so many judgments each, which stay together (both turns of a question).
    """
    values_B = _checked(values)
    counts_B = np.ones(len(values_B)) if counts is None else np.asarray(counts, dtype=float)
    mean = float(values_B.sum() / counts_B.sum())
    if len(values_B) == 1:
        return Interval(mean, math.nan, -math.inf, math.inf)
    if np.ptp(values_B / counts_B) == 0:
        return Interval(mean, 0.0, mean, mean)
    draws, means = np.random.default_rng(seed), []
    for start in range(0, resamples, _BATCH):
        drawn = draws.integers(0, len(values_B), (min(_BATCH, resamples - start), len(values_B)))
        means.append(values_B[drawn].sum(1) / counts_B[drawn].sum(1))
    found = np.concatenate(means)
    low, high = np.quantile(found, [0.025, 0.975])
    return Interval(mean, float(found.std(ddof=1)), float(low), float(high))


def preferences(ours: ArrayLike, theirs: ArrayLike) -> NDArray[np.float64]:
    """Return who won each prompt by score: 1, 0, or 0.5 for equal scores; both cover the same prompts."""
    ours_B, theirs_B = _pair(ours, theirs)
    return (np.sign(ours_B - theirs_B) + 1) / 2


def share(values: ArrayLike) -> Interval:
    """Return the mean of values from 0 to 1 in per cent (a win rate, ties counted half), with error and interval.

    The interval is Agresti and Coull's (1998), Wilson's made simple and open to values between: two of 1 and two of 0
    join them. So it has a width also where every prompt was won. The error of one value is NaN.
    """
    values_B = _checked(values)
    value, error = mean_error(values_B)
    error = error if len(values_B) > 1 else math.nan
    with_four = np.concatenate([values_B, [0, 0, 1, 1]])
    middle, half = with_four.mean(), NORMAL_95 * with_four.std() / np.sqrt(len(with_four))
    low, high = max(0.0, middle - half), min(1.0, middle + half)
    return Interval(100 * value, 100 * error, 100 * float(low), 100 * float(high))


def discrete_win_rate(preferences_B: ArrayLike) -> float:
    """Return the win rate in per cent when every preference counts as won, lost or tied."""
    return 100 * float(((np.sign(_checked(preferences_B) - 0.5) + 1) / 2).mean())


def verdict(value: float, p_value: float, same: bool, above: str, below: str) -> str:
    """Say in words what a test of a difference says; same: whether one beyond the bound is ruled out."""
    if p_value < LEVEL:
        return (above if value > 0 else below) + ", within the bound" * same
    return "no difference" if same else "cannot be said"


def compare(ours: ArrayLike, theirs: ArrayLike, *, seed: int = 0) -> Comparison:
    """Compare two models prompt by prompt: a bootstrap over prompts, and a sign-flip test of the mean.

    Where every prompt is won, lost or tied by as much, the test is the sign test.
    """
    ours_B, theirs_B = _pair(ours, theirs)
    difference_B = ours_B - theirs_B
    wins, losses = int((difference_B > 0).sum()), int((difference_B < 0).sum())
    ties = len(difference_B) - wins - losses
    return Comparison(bootstrap(difference_B, seed=seed), wins, losses, ties, _sign_flip(difference_B, seed))


def compare_over_seeds(ours_SP: ArrayLike, theirs_SP: ArrayLike, *, seed: int = 0) -> Comparison:
    """Compare two methods by runs of the same training seeds, shape (seeds, prompts); NaN: no judgment.

    With one seed it is `compare`. Prompts that any run has no judgment of are left out. The interval is the wider
    one of seeds and prompts.
    """
    difference_SP = np.asarray(ours_SP, dtype=float) - np.asarray(theirs_SP, dtype=float)
    if difference_SP.ndim != 2 or not difference_SP.size:
        raise ValueError(f"expected scores of shape (seeds, prompts), got {difference_SP.shape}")
    difference_SP = difference_SP[:, np.isfinite(difference_SP).all(0)]
    over_prompts = compare(difference_SP.mean(0), np.zeros(difference_SP.shape[1]), seed=seed)
    if len(difference_SP) == 1:
        return over_prompts
    over_seeds, p_value = t_test(difference_SP.mean(1))
    interval = max(over_seeds, over_prompts.difference, key=lambda found: found.high - found.low)
    counts = (over_prompts.wins, over_prompts.losses, over_prompts.ties)
    return Comparison(interval, *counts, max(p_value, over_prompts.p_value), len(difference_SP))


def equivalence(ours_SP: ArrayLike, theirs_SP: ArrayLike, bound: float) -> float:
    """Return p of two one-sided t tests (TOST): small where the mean difference surely lies within +- bound.

    Shape (seeds, prompts), paired by both; the larger p of seeds and prompts counts, as in `compare_over_seeds`. 1 for
    a single seed: two models say nothing of their methods.
    """
    from scipy.special import stdtr

    difference_SP = np.asarray(ours_SP, dtype=float) - np.asarray(theirs_SP, dtype=float)
    if len(difference_SP) < 2:
        return 1.0
    found = []
    for values in (difference_SP.mean(1), difference_SP.mean(0)):
        mean, error = mean_error(values)
        if error == 0:
            found.append(float(abs(mean) >= bound))
        else:
            found.append(float(stdtr(len(values) - 1, (abs(mean) - bound) / error)))
    return max(found)


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


def _sign_flip(difference_B: NDArray, seed: int) -> float:
    """Return the two-sided p of the mean under random signs: every sign of up to MOST_EXACT prompts, else draws."""
    moved = difference_B[difference_B != 0]
    found = abs(moved.sum()) * (1 - 1e-12)  # sums in another order differ in their last bits
    if len(moved) <= MOST_EXACT:
        bits = np.arange(2 ** len(moved))[:, None] >> np.arange(len(moved)) & 1
        return float(np.mean(abs((2 * bits - 1) @ moved) >= found))
    draws, as_far = np.random.default_rng(seed), 1
    for start in range(0, RESAMPLES, _BATCH):
        shape = (min(_BATCH, RESAMPLES - start), len(moved))
        flips = 2 * draws.integers(0, 2, shape, dtype=np.int8) - 1
        as_far += int((abs(flips @ moved) >= found).sum())
    return as_far / (RESAMPLES + 1)


def t_test(values: NDArray) -> tuple[Interval, float]:
    """Return mean, t interval and two-sided p against 0; equal values other than 0 leave no doubt."""
    from scipy.special import stdtr, stdtrit  # heavy; needed where seeds are tested only

    mean, error = mean_error(values)
    if error == 0:
        return Interval(mean, 0.0, mean, mean), float(mean == 0)
    freedom = len(values) - 1
    half = float(stdtrit(freedom, 0.975)) * error
    p_value = 2 * float(stdtr(freedom, -abs(mean) / error))
    return Interval(mean, error, mean - half, mean + half), p_value


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
