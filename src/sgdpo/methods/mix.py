"""A weighted sum of methods: a term more, a smoothed label, a likelihood beside a margin, without a method for each.

loss of a pair = sum_i weight_i loss_i. The rewards are the first part's. One part of weight 1 is that part, to the bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from operator import add

from torch import Tensor

from sgdpo.pairs import Pair, PairLoss, Part


def mix(pair: Pair, *, parts: Sequence[Part]) -> PairLoss:
    """Add the parts' losses. metrics: each part's own, and its loss before the weight, `mix/NAME`."""
    results = [part.method(pair) for part in parts]
    loss_B = reduce(add, [part.weight * result.loss_B for part, result in zip(parts, results, strict=True)])
    metrics: dict[str, Tensor] = {}
    sums: dict[str, Tensor] = {}
    taken: dict[str, Tensor] = {}
    for place, (part, result) in enumerate(zip(parts, results, strict=True)):
        named = {f"mix/{part.name}": result.loss_B.detach(), **result.metrics}
        # Two parts of one method are told apart by their places.
        metrics |= {f"{key}/{place}" if key in metrics else key: value for key, value in named.items()}
        sums |= {f"{place}/{key}": value for key, value in result.sums.items()}
        taken |= result.taken
    return PairLoss(loss_B, results[0].chosen_reward_B, results[0].rejected_reward_B, metrics, sums, taken)
