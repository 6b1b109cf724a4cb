"""DiscoPOP: a loss discovered by a language model (Lu et al., 2024, arXiv 2406.08414, equation 5).

loss of a pair = (1 - g) (-log sigma(beta h)) + g exp(-beta h), g = sigma(beta h / tau), not detached. At step 0:
(ln 2 + 1)/2.

Departure from the equation: the product g exp(-beta h) is one exponential of log g - beta h, or a margin of -1e4
would be 0 times infinity.
"""

from __future__ import annotations

from torch.nn.functional import logsigmoid

from sgdpo.pairs import Pair, PairLoss, rewards
from sgdpo.values import Above0


def discopop(pair: Pair, *, beta: Above0, tau: Above0) -> PairLoss:
    """Blend the logistic loss with the exponential one by the margin's sign."""
    margin_B = beta * (pair.chosen.ratio_B - pair.rejected.ratio_B)
    logistic_B = (-margin_B / tau).sigmoid() * -logsigmoid(margin_B)
    return PairLoss(logistic_B + (logsigmoid(margin_B / tau) - margin_B).exp(), *rewards(pair, beta))
