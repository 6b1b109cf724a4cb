"""DPO on log-ratios averaged over tokens (Lambert et al., 2024, Tulu 3, arXiv 2411.15124).

loss of a pair = -log sigma(beta (R_w/n_w - R_l/n_l)). At step 0: ln 2.
"""

from __future__ import annotations

from torch.nn.functional import logsigmoid

from sgdpo.pairs import Pair, PairLoss, rewards
from sgdpo.values import Above0


def dpo_norm(pair: Pair, *, beta: Above0) -> PairLoss:
    """Compare means over tokens, so that length alone moves nothing."""
    margin_B = pair.chosen.mean_ratio_B - pair.rejected.mean_ratio_B
    return PairLoss(-logsigmoid(beta * margin_B), *rewards(pair, beta))
