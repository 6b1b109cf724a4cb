"""WPO: weighted preference optimisation (Zhou et al., 2024, arXiv 2406.11827, equation 2).

loss of a pair = sg[w_w w_l] (-log sigma(beta h)), w = exp(mean_t(log pi(y_t) - log sum_v pi(v)^2)): an answer that
the policy would write itself weighs about 1, an unlikely one little. At step 0: w_w w_l ln 2.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import logsigmoid

from sgdpo.pairs import Pair, PairLoss, Side, rewards
from sgdpo.values import Above0


def wpo(pair: Pair, *, beta: Above0) -> PairLoss:
    """Weigh DPO's loss by how likely the policy itself would write the pair."""
    margin_B = pair.chosen.ratio_B - pair.rejected.ratio_B
    weight_B = (_aligned(pair.chosen) + _aligned(pair.rejected)).exp().detach()
    return PairLoss(-weight_B * logsigmoid(beta * margin_B), *rewards(pair, beta), {"wpo/weight": weight_B})


def _aligned(side: Side) -> Tensor:
    return side.mean_logp_B - (side.features["log_p2"] * side.mask_BT).sum(-1) / side.length_B
