"""DPOP: DPO-Positive (Pal et al., 2024, arXiv 2402.13228, equation 3).

loss of a pair = -log sigma(beta (h - lambda max(0, -R_w))): a chosen answer less likely than under the reference costs
margin. At step 0: ln 2.
"""

from __future__ import annotations

import torch
from torch.nn.functional import logsigmoid

from sgdpo.pairs import Pair, PairLoss, rewards
from sgdpo.values import Above0, AtLeast0


def dpop(pair: Pair, *, beta: Above0, lam: AtLeast0) -> PairLoss:
    """Charge the margin for a chosen answer that falls below the reference."""
    fallen_B = torch.relu(-pair.chosen.ratio_B)
    margin_B = pair.chosen.ratio_B - pair.rejected.ratio_B - lam * fallen_B
    return PairLoss(-logsigmoid(beta * margin_B), *rewards(pair, beta))
