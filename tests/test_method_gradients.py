"""Where the gradient flows, and where it must not: finite differences, stop-gradients, extremes.

Central differences of step 1e-6 in float64 are good to about 1e-9 of a loss of size 1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from sgdpo.pairs import DrawKey, Pair
from sgdpo.pilot import CHOSEN, REJECTED, pilot_size
from toy_pairs import METHODS, bind, draw_subset, gradients, random_pair, side

DRAWS = DrawKey(42)
LENGTHS = [(6, 9), (9, 4), (5, 5)]
STEP = 1e-6


def run(name: str, pair: Pair, **hyper) -> Tensor:
    method = bind(name, **hyper)
    return method(pair, DRAWS, method.new_state()).loss_B


def finite_differences(loss: Callable[[Pair], Tensor], pair: Pair) -> tuple[Tensor, Tensor]:
    """Return the central differences of the summed loss by every chosen and every rejected log-prob."""
    found = []
    for name in ("chosen", "rejected"):
        part = getattr(pair, name)
        slope_BT = torch.zeros_like(part.logp_BT)
        for b, t in part.mask_BT.nonzero().tolist():
            ends = []
            for sign in (1, -1):
                logp_BT = part.logp_BT.detach().clone()
                logp_BT[b, t] += sign * STEP
                ends.append(loss(replace(pair, **{name: replace(part, logp_BT=logp_BT)})).sum().item())
            slope_BT[b, t] = (ends[0] - ends[1]) / (2 * STEP)
        found.append(slope_BT)
    return found[0], found[1]


def pilots(pair: Pair, ratio: tuple[float, float]) -> tuple[Tensor, Tensor]:
    """Return P_w and P_l as constants, from the log-probs as they are now."""
    m_B = torch.minimum(pair.chosen.length_B, pair.rejected.length_B)
    sums = []
    for part, number, share in ((pair.chosen, CHOSEN, ratio[0]), (pair.rejected, REJECTED, ratio[1])):
        subset_BT = draw_subset(part.mask_BT, pilot_size(m_B, share), pair.example_id_B, number, DRAWS)
        sums.append((part.ratio_BT * subset_BT).sum(-1).detach())
    return sums[0], sums[1]


def sgdpo_with_constants(pair: Pair, constants: tuple[Tensor, Tensor], beta: float) -> Tensor:
    """SGDPO's formula with P_w and P_l given as numbers."""
    up = logsigmoid(beta * (pair.chosen.ratio_B - constants[1]))
    return -(up + logsigmoid(beta * (constants[0] - pair.rejected.ratio_B))) / 2


# ---- finite differences -----------------------------------------------------------------------------------


# These stop a gradient on purpose, so that differences do not match: SGDPO's pilots (below), WPO's weight.
DETACHED = ("sgdpo", "wpo")


@pytest.mark.parametrize(
    ("name", "hyper"),
    [
        *((name, {}) for name in METHODS if name not in DETACHED),
        ("ipo", {"length_average": False}),
        ("sampo", {"draw": "independent"}),
    ],
)
def test_the_gradient_is_that_of_finite_differences(name: str, hyper: dict) -> None:
    pair = random_pair(LENGTHS)
    exact = gradients(run(name, pair, **hyper), pair)
    for mine, measured in zip(exact, finite_differences(lambda p: run(name, p, **hyper), pair), strict=True):
        torch.testing.assert_close(mine, measured, rtol=1e-6, atol=2e-8)


@pytest.mark.parametrize("ratio", [(0.6, 0.9), (0.2, 0.4), (1.0, 1.0)])
def test_sgdpos_gradient_is_that_of_finite_differences_with_the_pilots_held(
    ratio: tuple[float, float],
) -> None:
    """Identity 4, and the trap: differences of the loss itself, whose pilots move along, do *not* match."""
    pair = random_pair(LENGTHS, spread=4.0)
    constants = pilots(pair, ratio)
    exact = gradients(run("sgdpo", pair, ratio=ratio), pair)
    held = finite_differences(lambda p: sgdpo_with_constants(p, constants, 0.1), pair)
    naive = finite_differences(lambda p: run("sgdpo", p, ratio=ratio), pair)
    for mine, right, wrong in zip(exact, held, naive, strict=True):
        torch.testing.assert_close(mine, right, rtol=1e-6, atol=2e-8)
        assert (mine - wrong).abs().max() > 1e-2


@pytest.mark.parametrize("ratio", [(0.6, 0.9), (0.2, 0.4), (1.0, 1.0)])
def test_sgdpo_is_the_formula_with_constants_in_value_and_gradient(ratio: tuple[float, float]) -> None:
    """Identity 4, to the last digits."""
    pair = random_pair(LENGTHS)
    ours, formula = run("sgdpo", pair, ratio=ratio), sgdpo_with_constants(pair, pilots(pair, ratio), 0.1)
    torch.testing.assert_close(ours, formula, rtol=1e-14, atol=0)
    for mine, theirs in zip(gradients(ours, pair), gradients(formula, pair), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-14, atol=0)


@pytest.mark.parametrize("draw", ["shared", "independent"])
def test_sgdpos_gradient_is_the_same_for_all_tokens_in_and_outside_the_pilot(draw: str) -> None:
    """dloss/dlogp_t = dloss/dR: raise chosen tokens, lower rejected ones, each side by one number."""
    pair = random_pair(LENGTHS)
    up_BT, down_BT = gradients(run("sgdpo", pair, draw=draw), pair)
    for grad_BT, mask_BT, sign in ((up_BT, pair.chosen.mask_BT, -1), (down_BT, pair.rejected.mask_BT, 1)):
        assert torch.equal(grad_BT, torch.where(mask_BT, grad_BT[:, :1], 0.0))
        assert (sign * grad_BT[:, 0] > 0).all()


def test_sampos_gradient_flows_through_the_drawn_tokens_alone() -> None:
    pair = random_pair(LENGTHS)
    m_B = torch.minimum(pair.chosen.length_B, pair.rejected.length_B)
    parts = ((pair.chosen, CHOSEN), (pair.rejected, REJECTED))
    for (part, number), grad_BT in zip(parts, gradients(run("sampo", pair), pair), strict=True):
        subset_BT = draw_subset(part.mask_BT, m_B, pair.example_id_B, number, DRAWS)
        assert torch.equal(grad_BT != 0, subset_BT)


@pytest.mark.parametrize("name", ["dpo", "ipo", "nca", "bco", "sampo", "sgdpo"])
def test_at_step_0_every_method_raises_chosen_and_lowers_rejected(name: str) -> None:
    """NCA's chosen slope at 0 is -1/2 + 1/4 < 0; the others' are plainly negative."""
    pair = random_pair(LENGTHS)
    parts = [
        replace(part, logp_BT=part.reference_BT.clone().requires_grad_())
        for part in (pair.chosen, pair.rejected)
    ]
    start = Pair(*parts, pair.example_id_B)
    up_BT, down_BT = gradients(run(name, start), start)
    assert (up_BT.sum(-1) < 0).all()
    assert (down_BT.sum(-1) > 0).all()


# ---- extremes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("where", ["chosen", "rejected", "both"])
def test_a_margin_of_ten_thousand_keeps_loss_gradient_and_metrics_finite(
    name: str, sign: int, where: str
) -> None:
    """Identity 6, in float32: one token's log-ratio of 1e5 on the side(s) named, between log-probs of at most 0."""

    def far(ratio: float) -> tuple[float, float]:
        return min(ratio, 0.0), min(-ratio, 0.0)

    big = sign * 1e5
    (logp_w, ref_w), (logp_l, ref_l) = (
        far(r if where in (s, "both") else -1.0) for r, s in ((big, "chosen"), (-big, "rejected"))
    )
    chosen, rejected = (
        side([[logp_w, -0.5]], [[ref_w, -0.25]]),
        side([[logp_l, -0.5, -2.0]], [[ref_l, -0.25, -1.0]]),
    )
    parts = [
        replace(
            p,
            logp_BT=p.logp_BT.detach().float().requires_grad_(),
            reference_BT=p.reference_BT.float(),
            features={key: value_BT.float() for key, value_BT in p.features.items()},
        )
        for p in (chosen, rejected)
    ]
    pair = Pair(*parts, torch.tensor([5]), torch.tensor([8.0]), torch.tensor([6.0]))
    method = bind(name)
    loss = method(pair, DRAWS, method.new_state())
    assert loss.loss_B.dtype == torch.float32
    for number in (loss.loss_B, *gradients(loss.loss_B, pair), *loss.metrics.values()):
        assert torch.isfinite(number).all()


def test_far_out_dpo_is_linear_on_the_wrong_side_and_flat_on_the_right_one() -> None:
    """L(-1e4) = 1e4 with slope -beta; L(1e4) = 0 with slope 0."""
    for reward, expected, slope in ((-1e5, 1e4, -0.1), (1e5, 0.0, 0.0)):
        pair = Pair(side([[reward]], [[0.0]]), side([[0.0]], [[0.0]]), torch.tensor([1]))
        loss_B = run("dpo", pair)
        assert loss_B.item() == expected
        assert gradients(loss_B, pair)[0].item() == pytest.approx(slope, abs=1e-15)
