"""Check on a run's first batch that the policy is the reference, and refuse to train when it is not.

A policy that differs at step 0 (another dtype, dropout, another chat template, a stale cache) trains on wrong
log-ratios without any other sign. The check knows no method: it compares the method's loss with the loss it
gives when the reference is replaced by the policy itself.
"""

from dataclasses import replace
from typing import Any

import torch

from sgdpo.config.precision import PRECISIONS
from sgdpo.method import Method
from sgdpo.pairs import DrawKey, Pair, PairLoss, Side


def check_step0(
    method: Method, pair: Pair, result: PairLoss, draws: DrawKey, precision: str, state: Any = None
) -> None:
    """Raise ValueError, saying what differs, unless the step-0 identities hold on this row."""
    if not method.reference:
        return
    limit = PRECISIONS[precision].ratio_limit
    sides = {"chosen": pair.chosen, "rejected": pair.rejected}
    found = {name: _mean_ratio(side) for name, side in sides.items()}
    ideal = method(
        replace(pair, chosen=_as_reference(pair.chosen), rejected=_as_reference(pair.rejected)), draws, state
    )
    loss, expected = (x.loss_B.detach().double().mean().item() for x in (result, ideal))
    if max(found.values()) <= limit:
        return
    raise ValueError(
        "the policy is not the reference at step 0: "
        + ", ".join(f"mean |log-ratio| of a {name} token is {value:.2e}" for name, value in found.items())
        + f" (limit {limit:.0e} in {precision}); loss {loss:.6f}, expected {expected:.6f}. "
        "Look for dropout, another dtype, another chat template or other reference weights; "
        "`python scripts/cache.py` lists the reference caches and can prune a stale one."
    )


def _mean_ratio(side: Side) -> float:
    """Return the mean absolute log-ratio of a side's tokens, nats; NaN counts as infinite."""
    ratio = side.ratio_BT.detach().double().abs()
    return torch.nan_to_num(ratio, nan=float("inf")).sum().item() / max(int(side.mask_BT.sum()), 1)


def _as_reference(side: Side) -> Side:
    return replace(side, logp_BT=side.reference_BT.detach())
