"""CPO: Contrastive Preference Optimization (Xu et al., 2024, arXiv 2401.08417).

loss of a pair = -log sigma(beta (l_w - l_l)) - alpha l_w/n_w, l the policy's log-prob. No reference; the rewards are
its own, beta l.
"""

from __future__ import annotations

from torch.nn.functional import logsigmoid

from sgdpo.pairs import Pair, PairLoss
from sgdpo.values import Above0, AtLeast0


def cpo(pair: Pair, *, beta: Above0, alpha: AtLeast0) -> PairLoss:
    """Compare log-probs as under a uniform reference, and keep the chosen answer likely."""
    chosen_B, rejected_B = beta * pair.chosen.logp_B, beta * pair.rejected.logp_B
    loss_B = -logsigmoid(chosen_B - rejected_B) - alpha * pair.chosen.mean_logp_B
    return PairLoss(loss_B, chosen_B.detach(), rejected_B.detach())
