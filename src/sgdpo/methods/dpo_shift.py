"""DPO-Shift (Yang et al., 2025, arXiv 2502.07599).

loss of a pair = -log sigma(beta (R_w - lambda R_l)). At step 0: ln 2. lambda = 1 is DPO; below, the chosen answer's
log-prob falls less.
"""

from __future__ import annotations

from torch.nn.functional import logsigmoid

from sgdpo.pairs import Pair, PairLoss, rewards
from sgdpo.values import Above0, HalfOpenShare


def dpo_shift(pair: Pair, *, beta: Above0, lam: HalfOpenShare) -> PairLoss:
    """Let the rejected side count for less."""
    margin_B = pair.chosen.ratio_B - lam * pair.rejected.ratio_B
    return PairLoss(-logsigmoid(beta * margin_B), *rewards(pair, beta))
