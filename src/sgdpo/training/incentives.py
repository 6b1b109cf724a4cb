"""The two scalars that a preference loss comes down to: its pull on the chosen answer and its push on the rejected one.

For any method, from the gradient of its loss with respect to the log-probs of a pair's tokens (autograd through the
method alone, not through the model):
    dw = -dL/dR_w,  dl = +dL/dR_l
where dL/dR of a side is the mean of its token gradients: they are all equal unless the method weighs tokens.
log(dw/dl) is 0 for DPO, exactly, and Theorem 3's log f for SGDPO. Direct objectives share their directions and differ
in these two numbers (arXiv 2604.18239).
"""

import torch
from torch import Tensor

from sgdpo.pairs import Pair, PairLoss, Side

Sums = dict[str, tuple[Tensor, Tensor]]


def incentive_sums(pair: Pair, result: PairLoss) -> Sums:
    """Return (sum, count) of each metric, float64 scalars; leaves the loss's graph as it is.

    `incentive/chosen`, `incentive/rejected`: dw and dl, 1/nat. `incentive/log_ratio`: log(dw/dl), over the pairs where
    both have one sign. `incentive/tokens_*`: the sum over a side's tokens of their absolute gradients. `displaced`: the
    share of pairs whose chosen reward is below 0, if there is a reference to be below.
    """
    sides = (pair.chosen, pair.rejected)
    with torch.enable_grad():  # held-out pairs come without
        total = result.loss_B.sum()
    logps = [side.logp_BT for side in sides]
    gradients = torch.autograd.grad(
        total, logps, retain_graph=True, allow_unused=True, materialize_grads=True
    )
    up_B, down_B = -_mean(gradients[0], pair.chosen), _mean(gradients[1], pair.rejected)
    one_sign_B = up_B * down_B > 0
    log_ratio_B = torch.where(one_sign_B, (up_B / down_B).abs().log(), 0.0)
    count = torch.full_like(up_B[0], up_B.numel())
    values = {
        "incentive/chosen": up_B,
        "incentive/rejected": down_B,
        "incentive/tokens_chosen": gradients[0].double().abs().sum(-1),
        "incentive/tokens_rejected": gradients[1].double().abs().sum(-1),
    }
    if pair.chosen.reference_BT is not None:
        values["displaced"] = (result.chosen_reward_B < 0).double()
    sums = {key: (value_B.sum(), count) for key, value_B in values.items()}
    return sums | {"incentive/log_ratio": (log_ratio_B.sum(), one_sign_B.double().sum())}


def _mean(gradient_BT: Tensor, side: Side) -> Tensor:
    """Return the mean over a side's tokens. In float64 the mean of equal float32 numbers is that number."""
    return (gradient_BT.double() * side.mask_BT).sum(-1) / side.length_B
