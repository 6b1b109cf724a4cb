"""EXO: Efficient Exact Optimization, the form for pairs (Ji et al., 2024, arXiv 2402.00856, equation 16).

loss of a pair = s (log s - log(1 - e)) + (1 - s) (log(1 - s) - log e), s = sigma(beta h): the reverse KL divergence
of the policy's preference from a label that is right with probability 1 - e. At step 0:
-ln 2 - (ln(1 - e) + ln e)/2.
"""

from __future__ import annotations

import math

from torch.nn.functional import logsigmoid

from sgdpo.pairs import Pair, PairLoss, rewards
from sgdpo.values import Above0, OpenHalf


def exo(pair: Pair, *, beta: Above0, smoothing: OpenHalf) -> PairLoss:
    """Match the smoothed label by reverse KL, where DPO's is forward."""
    margin_B = beta * (pair.chosen.ratio_B - pair.rejected.ratio_B)
    win_B = margin_B.sigmoid() * (logsigmoid(margin_B) - math.log1p(-smoothing))
    lose_B = (-margin_B).sigmoid() * (logsigmoid(-margin_B) - math.log(smoothing))
    return PairLoss(win_B + lose_B, *rewards(pair, beta))
