"""The pilot: a weighted part of a completion whose log-ratio, without gradient, stands in for the rival response.

P = sum over a side's tokens of weight_t d_t. Which tokens weigh is a select (`selects.py`, one function each); how many
is the ratio's business (`size`), how the two sides' draws hang together is `coupling`, when they change is `refresh`.
Draws are keyed by (seed, epoch, side, stream, example, position), so they do not depend on rank count, micro-batch,
order, padding, packing or a resume.

Departures from the authors' code: keyed draws in place of the global random state; floor(r m) in exact decimal
arithmetic (0.7 of 90 is 63, not 62); no loop over pairs and no host synchronisation. `coupling: antithetic` takes, in
odd epochs, the tokens with the largest keys of the epoch before instead of the smallest: of half of the tokens that is
the complement.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from sgdpo import decimals, keyed
from sgdpo.pairs import DrawKey, Pair, Ratios, Side
from sgdpo.values import OneOf, Range

Draw = Literal["shared", "independent"]
CHOSEN, REJECTED = 0, 1
POLICY, REFERENCE = 0, 1

_LAST = torch.iinfo(torch.int64).max
_STEPS = 1 << 40  # where the keys of `refresh: step` begin: no epoch has them


@dataclass(frozen=True)
class Place:
    """Hold what a select may look at: one side of the pairs, how many tokens to take, and the keys to draw by.

    domain_BT: bool, the tokens that may be taken: all of the side's, or its first. size_B: how many to take, at most
    the domain's; int64, or float64 where the size is not rounded. number: CHOSEN or REJECTED. inverted: draw by the
    keys from the largest down.
    """

    side: Side
    domain_BT: Tensor
    size_B: Tensor
    number: int
    key_B: Tensor
    inverted: bool = False

    @property
    def count_B(self) -> Tensor:
        return self.domain_BT.sum(-1)

    @property
    def position_BT(self) -> Tensor:
        """Return each token's place in the domain, from 0, int64."""
        return self.side.position_BT

    @property
    def share_B1(self) -> Tensor:
        """Return k/n, float64."""
        return (self.size_B.double() / self.count_B)[:, None]

    def bits_BT(self) -> Tensor:
        """Return a keyed int64 of each token; those outside the domain come last."""
        bits_BT = keyed.stream(self.key_B, self.position_BT + 1)
        return (~bits_BT if self.inverted else bits_BT).masked_fill_(~self.domain_BT, _LAST)

    def uniform_B(self) -> Tensor:
        """Return a keyed number in (0, 1) of each example, float64."""
        number_B = keyed.uniform(keyed.mix64_(self.key_B.clone()))
        return 1 - number_B if self.inverted else number_B

    def least(self, value_BT: Tensor) -> Tensor:
        """Return the `size` tokens of smallest value, bool BT; of equal ones the earlier."""
        last = torch.inf if value_BT.is_floating_point() else _LAST
        order_BT = value_BT.masked_fill(~self.domain_BT, last).argsort(dim=-1, stable=True)
        return (order_BT.argsort(dim=-1) < self.size_B[:, None]) & self.domain_BT


@dataclass(frozen=True)
class Piece:
    """Hold one side's pilot: P in nats, its tokens' weights and their sum k, and m, which k is held against."""

    value_B: Tensor
    weight_BT: Tensor
    size_B: Tensor
    shorter_B: Tensor


@dataclass(frozen=True)
class Pilot:
    """Hold a bound pilot: the select with its settings, and the keys of conf/pilot/*.yaml, explained there."""

    select: Callable[..., Tensor]
    settings: Mapping[str, Any]
    of: Annotated[str, OneOf("shorter", "own", "found")] = "shorter"
    rounding: Annotated[str, OneOf("floor", "stochastic", "none")] = "floor"
    coupling: Annotated[str, OneOf("independent", "shared", "complement", "antithetic")] = "independent"
    refresh: Annotated[str, OneOf("step", "epoch", "never")] = "epoch"
    draws: Annotated[int, Range("[1, 1000]")] = 1
    through: Annotated[str, OneOf("value", "gradient")] = "value"

    def values(self, pair: Pair, ratios: Ratios, draws: DrawKey, draw: Draw) -> tuple[Piece, Piece]:
        """Return the pilots of the chosen and of the rejected side.

        draw: `shared` takes one subset for policy and reference, `independent` draws the reference's again.
        """

        def piece(number: int, side: Side) -> Piece:
            weight_BT = self._weights(pair, ratios, draws, number, POLICY)
            if draw == "shared":
                value_B = _weighed(side.ratio_BT, weight_BT)
            else:
                other_BT = self._weights(pair, ratios, draws, number, REFERENCE)
                value_B = _weighed(side.logp_BT, weight_BT) - _weighed(side.reference_BT, other_BT)
            value_B = value_B if self.through == "gradient" else value_B.detach()
            return Piece(value_B, weight_BT, weight_BT.sum(-1), pair.shorter_B)

        return piece(CHOSEN, pair.chosen), piece(REJECTED, pair.rejected)

    def _weights(self, pair: Pair, ratios: Ratios, draws: DrawKey, number: int, stream: int) -> Tensor:
        side, ratio = ((pair.chosen, ratios.chosen), (pair.rejected, ratios.rejected))[number]
        tied = self.coupling in ("shared", "complement")
        domain_BT = side.mask_BT & (side.position_BT < pair.shorter_B[:, None]) if tied else side.mask_BT
        if self.coupling == "complement" and number == REJECTED:
            taken_BT = self._weights(pair, ratios, draws, CHOSEN, stream)
            placed_BT = _same_places(taken_BT, pair.chosen, side)
            return domain_BT & ~placed_BT if placed_BT.dtype == torch.bool else domain_BT * (1 - placed_BT)
        if ratio == 0:
            return torch.zeros_like(domain_BT)
        inverted = self.coupling == "antithetic" and draws.epoch % 2 == 1
        when = {"epoch": draws.epoch - inverted, "step": _STEPS + draws.step, "never": 0}[self.refresh]
        of_B, made = side.length_B if self.of == "own" else pair.shorter_B, []
        for again in range(self.draws):
            words = (draws.seed, when, CHOSEN if tied else number, stream + 2 * again)
            key_B = keyed.mix64_(pair.example_id_B + keyed.signed(keyed.fold(*words)))
            size_B = self._size(of_B, ratio, key_B).clamp(max=domain_BT.sum(-1))
            made.append(self.select(Place(side, domain_BT, size_B, number, key_B, inverted), **self.settings))
            if made[-1].shape != domain_BT.shape:
                raise ValueError(
                    f"pilot.function: {self.select.__name__} must return a weight for each token, of the shape "
                    f"{tuple(domain_BT.shape)}, not {tuple(made[-1].shape)}"
                )
        return made[0] if self.draws == 1 else torch.stack(made).double().mean(0)

    def _size(self, of_B: Tensor, ratio: float, key_B: Tensor) -> Tensor:
        if self.rounding == "floor":
            return pilot_size(of_B, ratio)
        exact_B = of_B.double() * ratio
        if self.rounding == "none":
            return exact_B
        # Another number than any token's and than `uniform_B`: the key, mixed twice more.
        return (exact_B + keyed.uniform(keyed.mix64_(keyed.mix64_(key_B.clone())))).floor().long()


def pilot_size(length_B: Tensor, ratio: float) -> Tensor:
    """Return max(floor(ratio * length), 1), tokens, exact as `floor_product` is; 0 for a ratio of 0."""
    return decimals.floor_product(length_B, ratio).clamp(min=1 if ratio else 0)


def _weighed(value_BT: Tensor, weight_BT: Tensor) -> Tensor:
    return (value_BT * weight_BT.to(value_BT.dtype)).sum(-1)


def _same_places(taken_BT: Tensor, taken_of: Side, other: Side) -> Tensor:
    """Return for another side's tokens the weight of the taken side's token in the same place."""
    width = max(taken_BT.shape[1], other.mask_BT.shape[1])
    by_place_BT = taken_BT.new_zeros(taken_BT.shape[0], width + 1)
    # What is not taken goes into a last column that nobody reads.
    by_place_BT.scatter_(1, taken_of.position_BT.masked_fill(taken_BT == 0, width), taken_BT)
    return by_place_BT.gather(1, other.position_BT.clamp(min=0))
