"""SPPO: Self-Play Preference Optimization with hard labels (Wu et al., 2024, arXiv 2405.00675, eq. 4.7).

loss of a pair = (R_w - 1/(2 beta))^2 + (R_l + 1/(2 beta))^2. At step 0: 1/(2 beta^2).

Departure from the paper: it estimates the win probability with a reward model on the policy's own answers; here
the preferred answer of a pair wins always.
"""

from __future__ import annotations

from sgdpo.pairs import Pair, PairLoss, rewards
from sgdpo.values import Above0


def sppo(pair: Pair, *, beta: Above0) -> PairLoss:
    """Regress each side's log-ratio on half of the inverse temperature, up or down."""
    target = 1 / (2 * beta)
    loss_B = (pair.chosen.ratio_B - target).square() + (pair.rejected.ratio_B + target).square()
    return PairLoss(loss_B, *rewards(pair, beta))
