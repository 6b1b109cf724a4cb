"""MinorDPO: the rejected answer is pushed no further than below the reference (Xie et al., 2024, arXiv 2408.09834).

loss of a pair = -log sigma(beta (R_w - max(0, R_l))). At step 0: ln 2 (and there a rejected answer has no gradient).
"""

from __future__ import annotations

import torch
from torch.nn.functional import logsigmoid

from sgdpo.pairs import Pair, PairLoss, rewards
from sgdpo.values import Above0


def minor_dpo(pair: Pair, *, beta: Above0) -> PairLoss:
    """Stop pushing a rejected answer once the reference likes it better than the policy."""
    margin_B = pair.chosen.ratio_B - torch.relu(pair.rejected.ratio_B)
    return PairLoss(-logsigmoid(beta * margin_B), *rewards(pair, beta))
