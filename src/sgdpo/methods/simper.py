"""SimPER: inverse perplexities, without hyper-parameters (Xiao et al., 2025, arXiv 2502.00883).

loss of a pair = -exp(l_w/n_w) + exp(l_l/n_l), l the policy's log-prob. No reference; the rewards are its own,
exp(l/n).
"""

from __future__ import annotations

from sgdpo.pairs import Pair, PairLoss


def simper(pair: Pair) -> PairLoss:
    """Raise the chosen answer's inverse perplexity, lower the rejected one's."""
    chosen_B, rejected_B = pair.chosen.mean_logp_B.exp(), pair.rejected.mean_logp_B.exp()
    return PairLoss(rejected_B - chosen_B, chosen_B.detach(), rejected_B.detach())
