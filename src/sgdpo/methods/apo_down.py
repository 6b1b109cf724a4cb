"""APO-down: Anchored Preference Optimization (D'Oosterlinck et al., 2024, arXiv 2408.06266, equation 8).

loss of a pair = sigma(beta R_w) + 1 - sigma(beta h): both sides go down, the rejected one faster. At step 0: 1.
"""

from __future__ import annotations

from sgdpo.pairs import Pair, PairLoss, rewards
from sgdpo.values import Above0


def apo_down(pair: Pair, *, beta: Above0) -> PairLoss:
    """Push both sides down, the rejected one more: for data worse than the model."""
    margin_B = beta * (pair.chosen.ratio_B - pair.rejected.ratio_B)
    return PairLoss((beta * pair.chosen.ratio_B).sigmoid() + (-margin_B).sigmoid(), *rewards(pair, beta))
