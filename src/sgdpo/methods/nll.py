"""NLL: the chosen answer's likelihood, a token; a term for mixtures, which the rejected answer has no part in.

loss of a pair = -l_w/n_w, l the policy's log-prob. Unlike SFT's, which counts tokens, every pair counts the same: DPO
with alpha of it is RPO.
"""

from __future__ import annotations

from sgdpo.pairs import Pair, PairLoss


def nll(pair: Pair) -> PairLoss:
    """Hold the chosen answer's likelihood up. Its implicit rewards are the log-probs a token."""
    mean_w_B, mean_l_B = pair.chosen.mean_logp_B, pair.rejected.mean_logp_B
    return PairLoss(-mean_w_B, mean_w_B.detach(), mean_l_B.detach())
