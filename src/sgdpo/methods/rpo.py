"""RPO: DPO with the chosen answer's likelihood (Pang et al., 2024, arXiv 2404.19733 v3).

loss of a pair = -log sigma(beta h) - alpha l_w/n_w, l the policy's log-prob: alpha sits on the length-normalised
likelihood. At step 0: ln 2 - alpha l_w/n_w.
"""

from __future__ import annotations

from torch.nn.functional import logsigmoid

from sgdpo.pairs import Pair, PairLoss, rewards
from sgdpo.values import Above0, AtLeast0


def rpo(pair: Pair, *, beta: Above0, alpha: AtLeast0) -> PairLoss:
    """Hold the chosen answer's likelihood up while the margin grows."""
    margin_B = pair.chosen.ratio_B - pair.rejected.ratio_B
    loss_B = -logsigmoid(beta * margin_B) - alpha * pair.chosen.mean_logp_B
    return PairLoss(loss_B, *rewards(pair, beta))
