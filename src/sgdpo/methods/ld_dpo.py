"""LD-DPO: length-desensitised DPO (Liu et al., 2024, arXiv 2409.06411).

loss of a pair = -log sigma(beta (sum_t w_t d_w,t - sum_t w_t d_l,t)), w_t = 1 for the first m = min(n_w, n_l) tokens
and a beyond, for policy and reference alike. At step 0: ln 2. a = 1 is DPO.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from sgdpo.pairs import Pair, PairLoss, Side, rewards
from sgdpo.values import Above0, Share


def ld_dpo(pair: Pair, *, beta: Above0, beyond: Share) -> PairLoss:
    """Weigh what only the longer answer has by `beyond`."""
    shorter_B1 = pair.shorter_B[:, None]

    def weighed(side: Side) -> Tensor:
        common_BT = side.position_BT < shorter_B1
        return torch.where(common_BT, side.ratio_BT, beyond * side.ratio_BT).sum(-1)

    return PairLoss(-logsigmoid(beta * (weighed(pair.chosen) - weighed(pair.rejected))), *rewards(pair, beta))
