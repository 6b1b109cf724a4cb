"""Theorems 1 to 3: the closed forms against autograd, against numbers worked out by hand, and in their
claims.
"""

from __future__ import annotations

import math

import pytest
import torch

from sgdpo import theory
from sgdpo.pairs import DrawKey
from sgdpo.theory import Point
from toy_pairs import bind, gradients, random_pair

BETAS = (0.05, 0.1, 0.5, 1.0)


def scalar(*values: float) -> list[torch.Tensor]:
    return [torch.tensor(value, dtype=torch.float64) for value in values]


BY_HAND = Point(*scalar(2.0, 3.0, 5.0, 7.0))


@pytest.mark.parametrize("beta", BETAS)
def test_every_closed_form_equals_autograd(beta: float) -> None:
    """Largest relative error over 2000 random points, each ratio from e^-3 to e^3."""
    errors = theory.autograd_errors(theory.random_point(2000, seed=1), beta)
    assert len(errors) == 5
    assert max(errors.values()) < 1e-12, errors


def test_the_objective_is_the_papers() -> None:
    """l = log(X1^b / (X1^b + Y2^b)) + log(Y1^b / (Y1^b + X2^b)), written out."""
    point, b = theory.random_point(500, seed=2), 0.3
    up = torch.log(point.x1**b / (point.x1**b + point.y2**b))
    down = torch.log(point.y1**b / (point.y1**b + point.x2**b))
    torch.testing.assert_close(theory.objective(point, b), up + down, rtol=1e-13, atol=0)


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        (theory.chosen_gradient, 7 / 18),
        (theory.rejected_gradient, -1 / 8),
        (theory.chosen_slope, 1 / 81),
        (theory.rejected_slope, -1 / 64),
        (theory.gradient_ratio, 28 / 9),
    ],
)
def test_closed_forms_by_hand(form, expected: float) -> None:
    """X1, X2, Y1, Y2 = 2, 3, 5, 7 and b = 1, so l = log(2/9) + log(5/8) as sums of X1 + Y2 = 9, Y1 + X2 = 8.

    dl/dX1 = 7 / (2 9); dl/dX2 = -1/8; d|dl/dX1|/dY2 = 1/9^2; d|dl/dX2|/dY1 = -1/8^2.
    p = 5/2, q = 7/3, u = 2/3: f = (7/3) (5/3 + 1) / (2/3 + 7/3) = 56/27; times X2/X1 = 3/2 it is 28/9.
    """
    assert form(BY_HAND, 1.0).item() == pytest.approx(expected, rel=1e-14)


def test_balance_and_its_slope_by_hand() -> None:
    """f(2/3) = 56/27 with p = 5/2, q = 7/3; p q - 1 = 29/6 and u + q = 3, so f' = (7/3)(29/6)/9 = 203/162."""
    p, q, u = scalar(5 / 2, 7 / 3, 2 / 3)
    assert theory.balance(p, q, u).item() == pytest.approx(56 / 27, rel=1e-14)
    assert theory.balance_slope(p, q, u).item() == pytest.approx(203 / 162, rel=1e-14)
    u.requires_grad_()
    (slope,) = torch.autograd.grad(theory.balance(p, q, u), u)
    assert slope.item() == pytest.approx(203 / 162, rel=1e-14)


# ---- the claims ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("beta", BETAS)
def test_theorem_2_the_rivals_pilot_moves_each_gradient_one_way(beta: float) -> None:
    """|dl/dX1| grows with Y2 and |dl/dX2| falls as Y1 grows; neither looks at the other pilot."""
    point = theory.random_point(2000, seed=3)
    more_y1 = Point(point.x1, point.x2, point.y1 * 1.5, point.y2)
    more_y2 = Point(point.x1, point.x2, point.y1, point.y2 * 1.5)
    up, down = theory.chosen_gradient(point, beta), theory.rejected_gradient(point, beta)
    assert (theory.chosen_gradient(more_y2, beta).abs() > up.abs()).all()
    assert (theory.rejected_gradient(more_y1, beta).abs() < down.abs()).all()
    assert torch.equal(theory.chosen_gradient(more_y1, beta), up)
    assert torch.equal(theory.rejected_gradient(more_y2, beta), down)


@pytest.mark.parametrize(
    ("p", "q", "direction"), [(2.0, 2.0, 1), (8.0, 0.2, 1), (0.5, 0.5, -1), (0.1, 6.0, -1)]
)
def test_theorem_3_f_runs_from_1_to_pq_and_one_way(p: float, q: float, direction: int) -> None:
    u = torch.logspace(-6, 6, 400, dtype=torch.float64)
    f = theory.balance(*scalar(p, q), u)
    assert (direction * f.diff() > 0).all()
    assert f[0].item() == pytest.approx(1, abs=1e-4)
    assert f[-1].item() == pytest.approx(p * q, rel=1e-3)


def test_theorem_3_with_pq_of_1_is_dpos_ratio_everywhere() -> None:
    """With Y1 = X1 and Y2 = X2 the ratio of the gradients is DPO's X2/X1, and so it is whenever p q = 1."""
    u = torch.logspace(-6, 6, 100, dtype=torch.float64)
    for q in (0.01, 1.0, 30.0):
        torch.testing.assert_close(
            theory.balance(*scalar(1 / q, q), u), torch.ones_like(u), rtol=1e-13, atol=0
        )
    point = theory.random_point(100, seed=4)
    dpo = Point(point.x1, point.x2, point.x1, point.x2)
    torch.testing.assert_close(theory.gradient_ratio(dpo, 0.1), point.x2 / point.x1, rtol=1e-13, atol=0)


# ---- log f in log space -------------------------------------------------------------------------------


def test_log_balance_is_the_log_of_f() -> None:
    p, q, u = theory.random_point(2000, seed=5).x1, *(theory.random_point(2000, seed=s).x1 for s in (6, 7))
    log_f = theory.log_balance(p.log(), q.log(), u.log())
    torch.testing.assert_close(log_f, theory.balance(p, q, u).log(), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("x", [19.0, 21.0, 25.0, 30.0])
def test_log_balance_keeps_every_digit_where_softplus_would_cut(x: float) -> None:
    """log p = x, log q = log u = 0: log f = log(1 + e^x) - log 2; torch's softplus drops e^-x above 20."""
    found = theory.log_balance(*scalar(x, 0.0, 0.0)).item()
    assert found + math.log(2) - x == pytest.approx(math.log1p(math.exp(-x)), abs=1e-14)


@pytest.mark.parametrize(
    ("log_p", "log_q", "log_u", "expected"),
    [(1e4, 1e4, 1e4, 2e4), (-1e4, -1e4, 1e4, -2e4), (1e4, -1e4, 1e4, 0.0), (1e4, 1e4, -5e4, 0.0)],
)
def test_log_balance_survives_what_overflows(
    log_p: float, log_q: float, log_u: float, expected: float
) -> None:
    """Far out f is p q where u is large and 1 where u is small.

    (1e4, 1e4, 1e4): 1e4 + 2e4 - (1e4 + log 2). (-1e4, -1e4, 1e4): -1e4 + log 2 - 1e4.
    (1e4, -1e4, 1e4): -1e4 + 2e4 - 1e4. (1e4, 1e4, -5e4): 1e4 + 0 - 1e4.
    """
    assert theory.log_balance(*scalar(log_p, log_q, log_u)).item() == pytest.approx(expected, abs=0.7)


# ---- the theorems and the loss are about one thing ----------------------------------------------------


def test_sgdpos_loss_is_minus_half_the_objective_and_its_gradient_theorem_1s() -> None:
    """X = e^R: loss = -l/2, and dloss/dR = -X dl/dX / 2 at every token of a side."""
    pair, beta = random_pair([(6, 9), (9, 4), (5, 5)], seed=8), 0.4
    loss = bind("sgdpo", beta=beta)(pair, DrawKey(3))
    rewards = (loss.chosen_reward_B, loss.rejected_reward_B)
    pilots = (loss.metrics["pilot/chosen"], loss.metrics["pilot/rejected"])
    point = Point(*((reward / beta).exp() for reward in (*rewards, *pilots)))
    torch.testing.assert_close(loss.loss_B.detach(), -theory.objective(point, beta) / 2, rtol=1e-13, atol=0)
    up_BT, down_BT = gradients(loss.loss_B, pair)
    up = -point.x1 * theory.chosen_gradient(point, beta) / 2
    down = -point.x2 * theory.rejected_gradient(point, beta) / 2
    torch.testing.assert_close(up_BT[:, 0], up, rtol=1e-12, atol=0)
    torch.testing.assert_close(down_BT[:, 0], down, rtol=1e-12, atol=0)
    ratio = theory.gradient_ratio(point, beta) * point.x1 / point.x2
    torch.testing.assert_close(loss.metrics["pilot/log_balance"], ratio.log(), rtol=1e-10, atol=1e-12)
