"""NCA: Noise Contrastive Alignment (Chen et al., 2024), the form for pairs.

loss of a pair = -log sigma(beta R_w) - 1/2 log sigma(-beta R_w) - 1/2 log sigma(-beta R_l); 2 ln 2 at step 0.
It weighs absolute rewards, not the margin, so it may rise while the margin grows.
"""

from __future__ import annotations

from torch.nn.functional import logsigmoid

from sgdpo.pairs import Pair, PairLoss, rewards
from sgdpo.values import Above0


def nca(pair: Pair, *, beta: Above0) -> PairLoss:
    """Return NCA's loss; gradient flows through all tokens of both sides."""
    chosen_B, rejected_B = beta * pair.chosen.ratio_B, beta * pair.rejected.ratio_B
    noise_B = logsigmoid(-chosen_B) + logsigmoid(-rejected_B)
    return PairLoss(-logsigmoid(chosen_B) - 0.5 * noise_B, *rewards(pair, beta))
