"""alpha-DPO: SimPO with a margin of each pair's own (Wu et al., 2024, arXiv 2410.10148).

loss of a pair = -log sigma(beta (l_w/n_w - l_l/n_l) - sg[gamma + alpha z]), l the policy's log-prob, z the pair's
(R_w/n_w - R_l/n_l), less its running mean, over its running deviation; 0, which is SimPO, until the policy has moved.

Departure from the authors' code: mean and deviation are of the global batches *before* this step, each a moving average
(0.9) that is corrected for its start at nothing; theirs begin at 0 and include the step itself, which would depend on
how the batch is cut. There alpha and gamma stand inside beta's bracket. Steps at which the policy is the reference (the
first, and the second if the warm-up begins at 0) are left out: their deviation is rounding's, and the first real gaps
would stand a million of it away.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch.nn.functional import logsigmoid

from sgdpo.pairs import Pair, PairLoss, rewards
from sgdpo.values import Above0, AtLeast0

DECAY = 0.9
ROUNDING = 1e-5  # gaps below it, nats a token, are float32's rounding over the packed rows


class RunningGap:
    """Hold mean and deviation of the pairs' gaps: moving averages over past steps, over all ranks."""

    def __init__(self) -> None:
        self.mean = self.deviation = self.weight = 0.0

    def advance(self, sums: Mapping[str, tuple[float, int]]) -> None:
        """Take in one optimizer step: the sums of its gaps and of their squares."""
        (total, count), (squares, _) = sums["gap"], sums["gap squared"]
        if squares < count * ROUNDING**2:
            return
        mean = total / count
        variance = max(0.0, squares - count * mean**2) / max(1, count - 1)
        self.mean = DECAY * self.mean + (1 - DECAY) * mean
        self.deviation = DECAY * self.deviation + (1 - DECAY) * variance**0.5
        self.weight = DECAY * self.weight + (1 - DECAY)

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps, JSON-able, exact."""
        return dict(vars(self))

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take the state of a checkpoint."""
        vars(self).update({key: float(state[key]) for key in vars(self)})


def alpha_dpo(pair: Pair, *, beta: Above0, gamma: AtLeast0, alpha: AtLeast0, state: RunningGap) -> PairLoss:
    """Ask more of a pair whose gap to the reference is wide already."""
    gap_B = (pair.chosen.mean_ratio_B - pair.rejected.mean_ratio_B).detach()
    # Nothing is known before the policy has moved, and nothing tells pairs apart whose gaps are all the same.
    z_B = (
        (gap_B - state.mean / state.weight) * (state.weight / state.deviation)
        if state.deviation
        else 0 * gap_B
    )
    margin_B = beta * (pair.chosen.mean_logp_B - pair.rejected.mean_logp_B) - (gamma + alpha * z_B)
    sums = {"gap": gap_B, "gap squared": gap_B.double().square()}
    return PairLoss(-logsigmoid(margin_B), *rewards(pair, beta), {"alpha_dpo/z": z_B}, sums)
