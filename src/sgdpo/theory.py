"""The closed forms of the paper's Theorems 1 to 3, and their check against autograd, in float64.

X1 = pi(y_w)/pi_ref(y_w), X2 = pi(y_l)/pi_ref(y_l); Y1, Y2 are the same ratios over the chosen and the
rejected pilot; b = beta. The paper maximises
    l = log(X1^b / (X1^b + Y2^b)) + log(Y1^b / (Y1^b + X2^b))
with Y1 and Y2 held constant; SGDPO's loss is -l/2. With p = (Y1/X1)^b, q = (Y2/X2)^b and u = (X1/X2)^b, the
ratio of the two gradients' sizes is (X2/X1) f(u), and f is 1 everywhere for DPO.

Departure: the appendix's text lost its formulas; Theorems 2 and 3 are derived again, and fit what is left.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


@dataclass(frozen=True)
class Point:
    """Hold the four ratios of one pair or many: X1, X2, Y1, Y2, all positive, float64, any one shape."""

    x1: Tensor
    x2: Tensor
    y1: Tensor
    y2: Tensor


def objective(point: Point, beta: float) -> Tensor:
    """Return l, the maximised objective, as a sum of log sigma, so that autograd does not cancel."""
    up = logsigmoid(beta * (point.x1.log() - point.y2.log()))
    return up + logsigmoid(beta * (point.y1.log() - point.x2.log()))


def chosen_gradient(point: Point, beta: float) -> Tensor:
    """Return dl/dX1 = b Y2^b / (X1 (X1^b + Y2^b)) (Theorem 1)."""
    return beta * point.y2**beta / (point.x1 * (point.x1**beta + point.y2**beta))


def rejected_gradient(point: Point, beta: float) -> Tensor:
    """Return dl/dX2 = -b X2^(b-1) / (Y1^b + X2^b) (Theorem 1)."""
    return -beta * point.x2 ** (beta - 1) / (point.y1**beta + point.x2**beta)


def chosen_slope(point: Point, beta: float) -> Tensor:
    """Return d|dl/dX1| / dY2 = b^2 (X1 Y2)^(b-1) / (X1^b + Y2^b)^2, above 0 (Theorem 2)."""
    product = point.x1 * point.y2
    return beta**2 * product ** (beta - 1) / (point.x1**beta + point.y2**beta) ** 2


def rejected_slope(point: Point, beta: float) -> Tensor:
    """Return d|dl/dX2| / dY1 = -b^2 (X2 Y1)^(b-1) / (Y1^b + X2^b)^2, below 0 (Theorem 2)."""
    product = point.x2 * point.y1
    return -(beta**2) * product ** (beta - 1) / (point.y1**beta + point.x2**beta) ** 2


def gradient_ratio(point: Point, beta: float) -> Tensor:
    """Return |dl/dX1| / |dl/dX2| = (X2/X1) f(u) (Theorem 3)."""
    log_p, log_q, log_u = log_coordinates(point, beta)
    return point.x2 / point.x1 * log_balance(log_p, log_q, log_u).exp()


def balance(p: Tensor, q: Tensor, u: Tensor) -> Tensor:
    """Return f(u) = q (p u + 1) / (u + q): it grows with u if p q > 1, falls if p q < 1, is 1 if p q = 1."""
    return q * (p * u + 1) / (u + q)


def balance_slope(p: Tensor, q: Tensor, u: Tensor) -> Tensor:
    """Return df/du = q (p q - 1) / (u + q)^2; its sign is that of log(p q) (Theorem 3)."""
    return q * (p * q - 1) / (u + q) ** 2


def log_balance(log_p: Tensor, log_q: Tensor, log_u: Tensor) -> Tensor:
    """Return log f in log space, as p u may leave any float's range; 0 is DPO's balance of the gradients.

    log f = log q + log(1 + p u) - log(u + q). The second term is -logsigmoid, as torch's softplus drops 2e-9.
    """
    return log_q - logsigmoid(-(log_p + log_u)) - torch.logaddexp(log_u, log_q)


def log_coordinates(point: Point, beta: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return log p, log q and log u of a point."""
    log_p = beta * (point.y1.log() - point.x1.log())
    log_q = beta * (point.y2.log() - point.x2.log())
    return log_p, log_q, beta * (point.x1.log() - point.x2.log())


def autograd_errors(point: Point, beta: float) -> dict[str, float]:
    """Return the largest relative error of each closed form against autograd through `objective`, by name."""
    x1, x2, y1, y2 = (v.double().clone().requires_grad_() for v in (point.x1, point.x2, point.y1, point.y2))
    total = objective(Point(x1, x2, y1, y2), beta).sum()
    d_x1, d_x2 = torch.autograd.grad(total, (x1, x2), create_graph=True)
    (slope_1,) = torch.autograd.grad(d_x1.abs().sum(), y2, retain_graph=True)
    (slope_2,) = torch.autograd.grad(d_x2.abs().sum(), y1, retain_graph=True)
    forms = {
        "Theorem 1: dl/dX1": (chosen_gradient(point, beta), d_x1),
        "Theorem 1: dl/dX2": (rejected_gradient(point, beta), d_x2),
        "Theorem 2: d|dl/dX1|/dY2": (chosen_slope(point, beta), slope_1),
        "Theorem 2: d|dl/dX2|/dY1": (rejected_slope(point, beta), slope_2),
        "Theorem 3: |dl/dX1| / |dl/dX2|": (gradient_ratio(point, beta), (d_x1 / d_x2).abs()),
    }
    return {name: _relative_error(form, auto.detach()) for name, (form, auto) in forms.items()}


def random_point(count: int, seed: int, spread: float = 3.0) -> Point:
    """Draw `count` points, log-uniform over exp(-spread) to exp(spread), from a generator of their own."""
    generator = torch.Generator().manual_seed(seed)
    logs = spread * (2 * torch.rand(4, count, generator=generator, dtype=torch.float64) - 1)
    return Point(*logs.exp())


def _relative_error(form: Tensor, truth: Tensor) -> float:
    return ((form - truth).abs() / truth.abs()).max().item()
