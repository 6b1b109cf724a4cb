"""chi-squared Preference Optimization (Huang et al., 2024, arXiv 2407.13399).

loss of a pair = -log sigma(clip(beta (phi(R_w) - phi(R_l)), -2 c, 2 c)), phi(z) = z + exp(z): the exponential is
the chi-squared divergence's part of the implicit reward, c the largest reward that is believed. At step 0: ln 2.

Departure from the equation: exp(z) stops growing at z = 80, where float32 is near its end; clipping comes far earlier.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import logsigmoid

from sgdpo.pairs import Pair, PairLoss, rewards
from sgdpo.values import Above0


def chipo(pair: Pair, *, beta: Above0, largest: Above0) -> PairLoss:
    """Regularise by chi-squared divergence beside KL: optimism about rare answers is punished harder."""
    margin_B = beta * (_link(pair.chosen.ratio_B) - _link(pair.rejected.ratio_B))
    return PairLoss(-logsigmoid(margin_B.clamp(-2 * largest, 2 * largest)), *rewards(pair, beta))


def _link(ratio_B: Tensor) -> Tensor:
    return ratio_B + ratio_B.clamp(max=80.0).exp()
