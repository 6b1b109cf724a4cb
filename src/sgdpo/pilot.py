"""Draw pilots: sub-sequences of a completion, keyed, without state, in one vectorised operation.

Completion position t of example e gets a 64-bit key, a hash of (seed, epoch, side, stream, e, t); the k
positions with the smallest keys are the subset. So a draw does not depend on rank count, micro-batch, order,
padding, packing or a resume. Within an example keys are a bijection of t (splitmix64), so two never tie.

Departures from the authors' code: keyed draws in place of the global random state; floor(r m) in exact
decimal arithmetic (0.7 of 90 is 63, not 62); no loop over pairs and no host synchronisation.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from decimal import Decimal
from typing import Literal

import torch
from torch import Tensor

from sgdpo import keyed
from sgdpo.pairs import DrawKey, Side

Draw = Literal["shared", "independent"]
CHOSEN, REJECTED = 0, 1
POLICY, REFERENCE = 0, 1

_watcher: ContextVar[dict[int, Tensor] | None] = ContextVar("watcher", default=None)

_LIMB_DIGITS = 9
_LAST = torch.iinfo(torch.int64).max


def pilot_size(length_B: Tensor, ratio: float) -> Tensor:
    """Return max(floor(ratio * length), 1), tokens, exact for the decimal that `ratio` prints as.

    length_B: int64, tokens, at most 2**32. ratio: in (0, 1], the paper's r1 or r2.
    The decimals are multiplied nine at a time, from the right, so that no product leaves 64 bits.
    """
    decimal = Decimal(str(ratio))
    count = max(-(-max(-decimal.as_tuple().exponent, 0) // _LIMB_DIGITS), 1)
    left = int(decimal.scaleb(count * _LIMB_DIGITS))
    carry_B = torch.zeros_like(length_B)
    for _ in range(count):
        left, limb = divmod(left, 10**_LIMB_DIGITS)
        carry_B = (length_B * limb + carry_B) // 10**_LIMB_DIGITS
    return (length_B * left + carry_B).clamp(min=1)


def draw_subset(
    mask_BT: Tensor, size_B: Tensor, example_id_B: Tensor, side: int, draws: DrawKey, stream: int = POLICY
) -> Tensor:
    """Draw `size_B` completion tokens of each example, uniformly without replacement; return them as bool BT.

    mask_BT: bool, the completion tokens; the j-th of them has position j wherever it lies in the row.
    size_B: int64, at least 1 and at most the number of completion tokens. example_id_B: int64.
    side: CHOSEN or REJECTED. stream: POLICY, or REFERENCE for the reference's own draw (`draw: independent`).
    """
    key_B = keyed.mix64_(example_id_B + keyed.signed(keyed.fold(draws.seed, draws.epoch, side, stream)))
    key_BT = keyed.stream(key_B, mask_BT.cumsum(-1))  # t + 1 at position t
    key_BT.masked_fill_(~mask_BT, _LAST)
    smallest_BT = key_BT.sort(-1).values
    kth_B1 = smallest_BT.gather(-1, (size_B - 1)[:, None])
    subset_BT = (key_BT <= kth_B1) & mask_BT
    if stream == POLICY and (watcher := _watcher.get()) is not None:
        watcher[side] = subset_BT
    return subset_BT


@contextmanager
def watch_draws() -> Iterator[dict[int, Tensor]]:
    """Yield a mapping that gets the policy's subset of each side, bool BT, as a method draws it inside the block."""
    drawn: dict[int, Tensor] = {}
    token = _watcher.set(drawn)
    try:
        yield drawn
    finally:
        _watcher.reset(token)


def subset_ratio(
    part: Side, size_B: Tensor, example_id_B: Tensor, side: int, draws: DrawKey, draw: Draw
) -> Tensor:
    """Return R[S], the log-ratio summed over `size_B` drawn tokens, nats, shape B; gradient flows through it.

    draw: `shared` takes one subset for policy and reference, `independent` draws the reference's again.
    """
    subset_BT = draw_subset(part.mask_BT, size_B, example_id_B, side, draws)
    if draw == "shared":
        return (part.ratio_BT * subset_BT).sum(-1)
    other_BT = draw_subset(part.mask_BT, size_B, example_id_B, side, draws, REFERENCE)
    return (part.logp_BT * subset_BT).sum(-1) - (part.reference_BT * other_BT).sum(-1)
