"""DPO: Direct Preference Optimization (Rafailov et al., 2023, equation 7).

loss of a pair = -log sigma(beta (R_w - R_l)). At step 0: ln 2.
"""

from __future__ import annotations

from torch.nn.functional import logsigmoid

from sgdpo.pairs import Pair, PairLoss, rewards
from sgdpo.values import Above0


def dpo(pair: Pair, *, beta: Above0) -> PairLoss:
    """Return DPO's loss; gradient flows through all tokens of both sides."""
    margin_B = pair.chosen.ratio_B - pair.rejected.ratio_B
    return PairLoss(-logsigmoid(beta * margin_B), *rewards(pair, beta))
