"""ODPO: DPO with an offset (Amini et al., 2024, arXiv 2402.10571).

loss of a pair = -log sigma(beta h - alpha log(score_w - score_l)): the better the chosen answer, the wider the margin
asked for. At step 0: -log sigma(-alpha log(score_w - score_l)).

A pair whose chosen score is not the higher one asks for a margin of minus infinity: it costs nothing
(`odpo/unscored` is the share of such pairs).
"""

from __future__ import annotations

import torch
from torch.nn.functional import logsigmoid

from sgdpo.pairs import Pair, PairLoss, rewards
from sgdpo.values import Above0, AtLeast0


def odpo(pair: Pair, *, beta: Above0, alpha: AtLeast0) -> PairLoss:
    """Ask for a margin that grows with the logarithm of the scores' difference."""
    better_B = pair.score_w_B - pair.score_l_B
    apart_B = better_B > 0
    offset_B = alpha * torch.where(apart_B, better_B, 1.0).log()
    margin_B = beta * (pair.chosen.ratio_B - pair.rejected.ratio_B)
    loss_B = torch.where(apart_B, -logsigmoid(margin_B - offset_B), 0.0)
    return PairLoss(loss_B, *rewards(pair, beta), {"odpo/unscored": ~apart_B})
