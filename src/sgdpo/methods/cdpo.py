"""cDPO: conservative DPO, that is label smoothing (Mitchell, 2023, a note on DPO with noisy preferences).

loss of a pair = -(1 - e) log sigma(beta h) - e log sigma(-beta h). At step 0: ln 2. Its optimum is a finite
margin, beta h = log((1 - e)/e).
"""

from __future__ import annotations

from torch.nn.functional import logsigmoid

from sgdpo.pairs import Pair, PairLoss, rewards
from sgdpo.values import Above0, BelowHalf


def cdpo(pair: Pair, *, beta: Above0, smoothing: BelowHalf) -> PairLoss:
    """Take each label to be wrong with probability `smoothing`."""
    margin_B = beta * (pair.chosen.ratio_B - pair.rejected.ratio_B)
    loss_B = -(1 - smoothing) * logsigmoid(margin_B) - smoothing * logsigmoid(-margin_B)
    return PairLoss(loss_B, *rewards(pair, beta))
