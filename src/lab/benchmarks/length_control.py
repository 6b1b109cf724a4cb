"""The length-controlled win rate of AlpacaEval 2 (Dubois et al., 2024), as a small model of our own.

A logistic regression predicts each preference from tanh(standardised length difference, theirs less ours), the
instruction's difficulty and a constant; the length-controlled win rate is its mean prediction with the length
difference set to zero. L1 penalty, strength chosen by 5-fold cross-validation over 10 values, as alpaca-eval
0.6.6 does.

Two forms, and every result says which:
- `regularised`: the published `length_controlled_v1`. Annotations of two gamed baselines (the Hub's
  `df_gamed.csv`) join the fit with a total weight of 0.2 of ours, their constant set apart.
- `plain`: without that file (the package's `noreg`; without difficulties its `minimal`).

Departures: where no difficulty is known the prediction is one number, and AlpacaEval's standard error (of the
predictions over prompts) would be zero; the error of that number stands in for it.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold

STRENGTHS = np.logspace(-4, 4, 10)
FOLDS = 5
GAMED_WEIGHT = 0.2
# Two gamed baselines share that weight.
GAMED_BASELINES = 2
FEWEST_PROMPTS = 10
# Wins and losses, counted in shares, that a fit of two or three coefficients needs of each kind.
FEWEST_OF_A_KIND = 5


@dataclass(frozen=True)
class LengthControlled:
    """Hold the length-controlled win rate and its standard error, per cent, and the form of the fit.

    value and error are None where the data cannot say; form then says why.
    """

    value: float | None = None
    error: float | None = None
    form: str | None = None

    def fields(self) -> dict[str, float | str | None]:
        return {"lc_win_rate": self.value, "lc_win_rate_se": self.error, "lc_form": self.form}


def length_controlled(
    preference_B: ArrayLike,
    length_B: ArrayLike,
    baseline_length_B: ArrayLike,
    *,
    difficulty_B: ArrayLike | None = None,
    gamed: pd.DataFrame | None = None,
) -> LengthControlled:
    """Return the length-controlled win rate of answers over a baseline's, or why there is none.

    preference_B: in [0, 1], 1 where ours won, NaN where the judge said nothing (left out of the fit).
    length_B, baseline_length_B: characters. difficulty_B: the published difficulty of each instruction.
    gamed: columns preference, std_delta_len (theirs less ours), instruction_difficulty, not_gamed_baseline.
    Raises ValueError if gamed annotations come without difficulties.
    """
    target_B = np.asarray(preference_B, dtype=float)
    if gamed is not None and difficulty_B is None:
        raise ValueError(
            "the regularised form needs the instructions' difficulties too: set benchmark.difficulties"
        )
    known_B = np.isfinite(target_B)
    if missing := _missing(target_B[known_B]):
        return LengthControlled(None, None, f"not identifiable: {missing}")
    # Theirs less ours, as `std_delta_len` of the gamed rows is: with the other sign those rows, which share this
    # coefficient, would pull it the wrong way.
    features = _features(np.asarray(baseline_length_B, float) - np.asarray(length_B, float), difficulty_B)
    level = features.copy()
    level[:, 0] = 0.0
    rows, targets, weights = _with_gamed(features[known_B], target_B[known_B], gamed)
    strength = _choose_strength(rows, targets, weights)
    predicted_B = _predict(_fit(rows, targets, weights, strength), level)
    error = 100 * float(np.std(predicted_B, ddof=1) / np.sqrt(len(predicted_B)))
    if difficulty_B is None:
        error = _level_error(features[known_B], target_B[known_B])
    form = "plain" if gamed is None else "regularised"
    return LengthControlled(100 * float(predicted_B.mean()), error, form)


def _missing(target_B: NDArray) -> str:
    """Say what the fit would lack; without it a penalty alone would make the number (50 % where all is lost)."""
    if len(target_B) < FEWEST_PROMPTS:
        return f"{len(target_B)} judged prompts, fewer than {FEWEST_PROMPTS}"
    won = float(target_B.sum())
    for what, count in (("won", won), ("lost", len(target_B) - won)):
        if count < FEWEST_OF_A_KIND:
            return f"{count:.1f} of {len(target_B)} prompts are {what}, fewer than {FEWEST_OF_A_KIND}"
    return ""


def _features(difference_B: NDArray, difficulty_B: ArrayLike | None) -> NDArray:
    """Return tanh(length difference / its deviation), the difficulty if known, and 1; shape (B, 2 or 3)."""
    spread = difference_B.std(ddof=1)
    length_B = np.tanh(difference_B / spread) if spread > 0 else np.zeros_like(difference_B)
    difficulties = [] if difficulty_B is None else [np.asarray(difficulty_B, float)]
    return np.column_stack([length_B, *difficulties, np.ones_like(difference_B)])


def _with_gamed(features: NDArray, target_B: NDArray, gamed: pd.DataFrame | None):
    """Put the gamed baselines' rows before ours; their constant is 0, so that ours measures quality alone."""
    if gamed is None:
        return features, target_B, np.ones(len(target_B))
    constant = gamed["not_gamed_baseline"].astype(float).to_numpy()
    length = np.tanh(gamed["std_delta_len"].to_numpy(float))
    theirs = np.column_stack([length, gamed["instruction_difficulty"].to_numpy(float), constant])
    weights = np.where(constant > 0, 1.0, GAMED_WEIGHT / GAMED_BASELINES)
    return (
        np.vstack([theirs, features]),
        np.concatenate([gamed["preference"].to_numpy(float), target_B]),
        np.concatenate([weights, np.ones(len(target_B))]),
    )


def _choose_strength(rows: NDArray, targets: NDArray, weights: NDArray) -> float:
    """Return the inverse penalty with the least cross-validated log-loss."""
    # Both copies of a row (see _fit) belong to one fold; the package numbers them so.
    folds = list(GroupKFold(FOLDS).split(np.tile(rows, (2, 1)), groups=np.tile(np.arange(len(rows)), 2)))
    losses = [np.mean([_fold_loss(rows, targets, weights, c, *fold) for fold in folds]) for c in STRENGTHS]
    return float(STRENGTHS[int(np.argmin(losses))])


def _fold_loss(rows, targets, weights, strength: float, train: NDArray, test: NDArray) -> float:
    n = len(rows)
    train, test = train[train < n], test[test < n]
    probability = _predict(_fit(rows[train], targets[train], weights[train], strength), rows[test])
    probability = np.clip(probability, 1e-15, 1 - 1e-15)
    likelihood = targets[test] * np.log(probability) + (1 - targets[test]) * np.log(1 - probability)
    return float(-np.mean(weights[test] * likelihood))


def _fit(rows: NDArray, targets: NDArray, weights: NDArray, strength: float) -> LogisticRegression:
    """Fit probabilities: each row counts once as won with weight p and once as lost with weight 1 - p."""
    n = len(rows)
    model = LogisticRegression(
        C=strength, l1_ratio=1.0, solver="liblinear", fit_intercept=False, random_state=123, tol=1e-7,
        max_iter=2000,
    )  # fmt: skip
    both = np.concatenate([weights * targets, weights * (1 - targets)])
    return model.fit(np.vstack([rows, rows]), np.repeat([1, 0], n), sample_weight=both)


def _predict(model: LogisticRegression, rows: NDArray) -> NDArray:
    return model.predict_proba(rows)[:, 1]


def _level_error(features: NDArray, target_B: NDArray) -> float:
    """Return the standard error of the prediction at equal length, per cent: the delta method, errors as they are.

    Fitted without a penalty worth the name: one strong enough to shrink the level to a half would hide the
    noise.
    """
    model = _fit(features, target_B, np.ones(len(target_B)), float(STRENGTHS[-1]))
    probability_B = _predict(model, features)
    level = float(_predict(model, np.array([[0.0, 1.0]]))[0])
    bread = np.linalg.pinv(features.T @ (features * (probability_B * (1 - probability_B))[:, None]))
    filling = features.T @ (features * ((target_B - probability_B) ** 2)[:, None])
    return 100 * level * (1 - level) * float(np.sqrt((bread @ filling @ bread)[-1, -1]))
