"""D2PO: temporal-decay DPO (Shao et al., 2025, arXiv 2502.14340).

loss of a pair = -log sigma(beta (sum_t gamma^t d_w,t - sum_t gamma^t d_l,t)), t from 0. At step 0: ln 2.
gamma = 1 is DPO.

Counting t from 1 instead is the same loss with beta times gamma.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import logsigmoid

from sgdpo.pairs import Pair, PairLoss, Side, rewards
from sgdpo.values import Above0, HalfOpenShare


def d2po(pair: Pair, *, beta: Above0, gamma: HalfOpenShare) -> PairLoss:
    """Weigh earlier tokens more."""

    def decayed(side: Side) -> Tensor:
        return (side.ratio_BT * gamma ** side.position_BT.to(side.logp_BT.dtype)).sum(-1)

    return PairLoss(-logsigmoid(beta * (decayed(pair.chosen) - decayed(pair.rejected))), *rewards(pair, beta))
