"""R-DPO: length-regularised DPO (Park et al., 2024, arXiv 2403.19159).

loss of a pair = -log sigma(beta h + alpha (n_w - n_l)). At step 0: -log sigma(alpha (n_w - n_l)).

The sign, on which public codes disagree, follows from the penalised reward: the policy that maximises
E[r - alpha |y|] less beta KL has r = beta log pi/pi_ref + alpha |y| + const. Bradley-Terry's sigma(r_w - r_l) then has
a *plus*: a longer chosen answer is explained by its length in part, and needs less likelihood gain.
"""

from __future__ import annotations

from torch.nn.functional import logsigmoid

from sgdpo.pairs import Pair, PairLoss, rewards
from sgdpo.values import Above0, AtLeast0


def rdpo(pair: Pair, *, beta: Above0, alpha: AtLeast0) -> PairLoss:
    """Explain part of a preference by length, so that the policy need not."""
    longer_B = pair.chosen.length_B - pair.rejected.length_B
    margin_B = beta * (pair.chosen.ratio_B - pair.rejected.ratio_B)
    return PairLoss(-logsigmoid(margin_B + alpha * longer_B.to(margin_B.dtype)), *rewards(pair, beta))
