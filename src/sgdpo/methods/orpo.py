"""ORPO: Odds Ratio Preference Optimization (Hong et al., 2024, arXiv 2403.07691).

loss of a pair = -l_w/n_w - lambda log sigma(o_w - o_l), o = log(p / (1 - p)) with log p = l/n. No reference; the
rewards are lambda l/n.

Departure from the equation: log(1 - p) is log1mexp, and p stays below 1 by one rounding step, or the odds are
infinite.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from sgdpo.pairs import Pair, PairLoss
from sgdpo.values import Above0


def orpo(pair: Pair, *, lam: Above0) -> PairLoss:
    """Learn the chosen answer and set its odds above the rejected one's, in one phase."""
    chosen_B, rejected_B = pair.chosen.mean_logp_B, pair.rejected.mean_logp_B
    loss_B = -chosen_B - lam * logsigmoid(_log_odds(chosen_B) - _log_odds(rejected_B))
    return PairLoss(loss_B, lam * chosen_B.detach(), lam * rejected_B.detach())


def _log_odds(logp_B: Tensor) -> Tensor:
    logp_B = logp_B.clamp(max=-torch.finfo(logp_B.dtype).eps)
    # Both branches of log1mexp are finite where the other is taken, so that no gradient is 0 times infinity.
    near_B = torch.log(-torch.expm1(logp_B))
    far_B = torch.log1p(-torch.exp(logp_B.clamp(max=-math.log(2))))
    return logp_B - torch.where(logp_B > -math.log(2), near_B, far_B)
