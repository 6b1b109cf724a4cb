"""The vocabulary that crosses rooms: what a method sees and what it returns.

Shape suffixes, everywhere in this code:
    B   examples (pairs) of a row         T   completion tokens, padded to the longest of the row
    N   tokens of a packed row            L   completion tokens of a packed row, both sides, flat
    V   vocabulary                        D   hidden width
A tensor `logp_BT` has shape (B, T); `length_B` has shape (B,).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class Side:
    """Hold the per-token log-probs of one completion of every pair: the chosen or the rejected one.

    logp_BT: policy log-probs, nats, float32 or float64, 0 outside the mask; gradient flows through it.
    reference_BT: reference log-probs, nats, same shape, no gradient; None for a method without a reference.
    mask_BT: bool, True on trained completion tokens (the closing end-of-turn token is one).
    features: further numbers of each token, by name, same shape, no gradient; those that the method asks for.
    """

    logp_BT: Tensor
    reference_BT: Tensor | None
    mask_BT: Tensor
    features: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def ratio_BT(self) -> Tensor:
        """Return the per-token log-ratio d_t = log pi - log pi_ref, nats, 0 outside the mask."""
        assert self.reference_BT is not None, "a log-ratio needs the reference's log-probs"
        return (self.logp_BT - self.reference_BT) * self.mask_BT

    @property
    def length_B(self) -> Tensor:
        """Return the number of completion tokens, int64. Lengths come from the mask, never from values."""
        return self.mask_BT.sum(-1)

    @property
    def ratio_B(self) -> Tensor:
        """Return R, the sum of the log-ratio over the whole completion, nats."""
        return self.ratio_BT.sum(-1)

    @property
    def mean_ratio_B(self) -> Tensor:
        """Return R / n, nats a token."""
        return self.ratio_B / self.length_B

    @property
    def logp_B(self) -> Tensor:
        """Return the policy's log-prob of the whole completion, nats."""
        return (self.logp_BT * self.mask_BT).sum(-1)

    @property
    def mean_logp_B(self) -> Tensor:
        """Return the policy's log-prob a token, nats."""
        return self.logp_B / self.length_B

    @property
    def position_BT(self) -> Tensor:
        """Return each completion token's place among them, from 0, int64."""
        return self.mask_BT.cumsum(-1) - 1


@dataclass(frozen=True)
class Pair:
    """Hold one row of preference pairs: both sides and the ids that key the draws.

    rejected is None in the SFT phase, which trains on the chosen conversation alone.
    example_id_B: int64, stable over runs, shuffles and machines.
    score_w_B, score_l_B: the data's scores of the two answers, float32; None unless the method asks for them.
    weight_B: what each pair weighs in the mean of the losses, float32, above 0; None: all the same.
    """

    chosen: Side
    rejected: Side | None
    example_id_B: Tensor
    score_w_B: Tensor | None = None
    score_l_B: Tensor | None = None
    weight_B: Tensor | None = None

    @property
    def shorter_B(self) -> Tensor:
        """Return m, the number of tokens of the shorter completion, int64."""
        return torch.minimum(self.chosen.length_B, self.rejected.length_B)

    def weighted(self, loss_B: Tensor) -> Tensor:
        """Return each pair's loss times its weight."""
        return loss_B if self.weight_B is None else loss_B * self.weight_B


@dataclass(frozen=True)
class PairLoss:
    """Hold what a method returns for a row of pairs.

    loss_B: the loss of each pair, unreduced and unweighted; the trainer weighs it and divides by the global batch's
    count, or sum of weights.
    chosen_reward_B, rejected_reward_B: beta times R over *all* tokens, detached; a method without a reference returns
    its own implicit reward; None in the SFT phase.
    metrics: the method's own per-pair numbers, detached, keys as logged ("pilot/chosen").
    sums: numbers that the method's state wants of a step, by name, flat, detached; each is summed over the step's rows
    and ranks, in float64, and handed to the state's `advance` with how many there were.
    taken: what the method's pilots weigh of each side's tokens, BT, by "chosen" and "rejected", for people to look at.
    """

    loss_B: Tensor
    chosen_reward_B: Tensor | None = None
    rejected_reward_B: Tensor | None = None
    metrics: dict[str, Tensor] = field(default_factory=dict)
    sums: dict[str, Tensor] = field(default_factory=dict)
    taken: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Part:
    """Hold one method of a mixture: its name, what its loss weighs in the sum, and the loss itself."""

    name: str
    weight: float
    method: Callable[[Pair], PairLoss]


@dataclass(frozen=True)
class Ratios:
    """Hold the pilot ratios: chosen (the paper's r1) and rejected (r2), each in [0, 1]; 0 is the empty pilot."""

    chosen: float
    rejected: float


@dataclass(frozen=True)
class DrawKey:
    """Hold what keys a draw beside the example id, the side and the position.

    seed: the run's seed. epoch, step: 0-based; evaluation always uses 0.
    """

    seed: int
    epoch: int = 0
    step: int = 0


def rewards(pair: Pair, beta: float) -> tuple[Tensor, Tensor]:
    """Return the implicit rewards beta * R_w and beta * R_l over all tokens, detached, shape B each."""
    with torch.no_grad():
        return beta * pair.chosen.ratio_B, beta * pair.rejected.ratio_B
