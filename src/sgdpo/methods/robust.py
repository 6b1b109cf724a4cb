"""Robust DPO (Chowdhury et al., 2024, arXiv 2403.00409, equation 9).

loss of a pair = [-(1 - e) log sigma(beta h) + e log sigma(-beta h)] / (1 - 2e). At step 0: ln 2. Under labels
flipped with probability e its expectation is DPO's loss on clean labels; that is why the second term has the other
sign than cDPO's.
"""

from __future__ import annotations

from torch.nn.functional import logsigmoid

from sgdpo.pairs import Pair, PairLoss, rewards
from sgdpo.values import Above0, BelowHalf


def robust(pair: Pair, *, beta: Above0, flips: BelowHalf) -> PairLoss:
    """Undo the bias that labels flipped with probability `flips` put into DPO's loss."""
    margin_B = beta * (pair.chosen.ratio_B - pair.rejected.ratio_B)
    biased_B = -(1 - flips) * logsigmoid(margin_B) + flips * logsigmoid(-margin_B)
    return PairLoss(biased_B / (1 - 2 * flips), *rewards(pair, beta))
