"""The hinge loss on DPO's margin (SLiC on log-ratios; RSO, Liu et al., 2023, arXiv 2309.06657).

loss of a pair = max(0, margin - beta h). At step 0: the margin.
"""

from __future__ import annotations

import torch

from sgdpo.pairs import Pair, PairLoss, rewards
from sgdpo.values import Above0


def hinge(pair: Pair, *, beta: Above0, margin: Above0) -> PairLoss:
    """Stop pulling once the implicit rewards are `margin` nats apart."""
    gap_B = beta * (pair.chosen.ratio_B - pair.rejected.ratio_B)
    return PairLoss(torch.relu(margin - gap_B), *rewards(pair, beta))
