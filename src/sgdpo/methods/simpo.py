"""SimPO: Simple Preference Optimization (Meng et al., 2024, arXiv 2405.14734, equation 6).

loss of a pair = -log sigma(beta (l_w/n_w - l_l/n_l) - gamma), l the policy's log-prob. No reference; the rewards are
its own, beta l/n.
"""

from __future__ import annotations

from torch.nn.functional import logsigmoid

from sgdpo.pairs import Pair, PairLoss
from sgdpo.values import Above0, AtLeast0


def simpo(pair: Pair, *, beta: Above0, gamma: AtLeast0) -> PairLoss:
    """Compare mean log-probs and ask for a margin."""
    chosen_B, rejected_B = beta * pair.chosen.mean_logp_B, beta * pair.rejected.mean_logp_B
    return PairLoss(-logsigmoid(chosen_B - rejected_B - gamma), chosen_B.detach(), rejected_B.detach())
