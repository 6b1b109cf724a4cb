"""APO-zero: Anchored Preference Optimization (D'Oosterlinck et al., 2024, arXiv 2408.06266, equation 7).

loss of a pair = 1 - sigma(beta R_w) + sigma(beta R_l): the chosen goes up and the rejected down, each on its own.
At step 0: 1.
"""

from __future__ import annotations

from sgdpo.pairs import Pair, PairLoss, rewards
from sgdpo.values import Above0


def apo_zero(pair: Pair, *, beta: Above0) -> PairLoss:
    """Anchor both sides at the reference: for data better than the model."""
    chosen_B, rejected_B = beta * pair.chosen.ratio_B, beta * pair.rejected.ratio_B
    return PairLoss((-chosen_B).sigmoid() + rejected_B.sigmoid(), *rewards(pair, beta))
