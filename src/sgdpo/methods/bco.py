"""BCO: Binary Classifier Optimization (Jung et al., 2024), without the density-ratio weighting.

loss of a pair = -log sigma(beta R_w - delta) - log sigma(-(beta R_l - delta)). At step 0: 2 ln 2.

Departure from the paper: delta is the cumulative mean, over the training steps *before* this one (0 at the
first), of the global batch's mean over its 2B rewards; so it does not depend on micro-batch or rank count.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch.nn.functional import logsigmoid

from sgdpo.pairs import Pair, PairLoss, rewards
from sgdpo.values import Above0


class RunningDelta:
    """Hold the reward shift: the mean over past optimizer steps of the global batch's mean reward."""

    def __init__(self) -> None:
        self.delta = 0.0
        self.steps = 0

    def advance(self, sums: Mapping[str, tuple[float, int]]) -> None:
        """Take in one optimizer step: `rewards`, the sum over its 2B rewards and their count, over all ranks."""
        reward_sum, count = sums["rewards"]
        assert count > 0, "a step without rewards cannot move the reward shift"
        self.steps += 1
        self.delta += (reward_sum / count - self.delta) / self.steps

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps, JSON-able, exact."""
        return {"delta": self.delta, "steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the state of a checkpoint."""
        self.delta, self.steps = float(state["delta"]), int(state["steps"])


def bco(pair: Pair, *, beta: Above0, delta: Literal["running", "none"], state: RunningDelta) -> PairLoss:
    """Return BCO's two cross-entropies; the shift is a plain number, so no gradient flows through it."""
    shift = state.delta if delta == "running" else 0.0
    chosen_B = beta * pair.chosen.ratio_B - shift
    rejected_B = beta * pair.rejected.ratio_B - shift
    both = rewards(pair, beta)
    loss_B = -logsigmoid(chosen_B) - logsigmoid(-rejected_B)
    return PairLoss(loss_B, *both, sums={"rewards": torch.cat(both)})
