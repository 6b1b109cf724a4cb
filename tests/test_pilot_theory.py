"""The theory of pilots: what it predicts of dw/dl is what autograd gives, and randomness is no part of it."""

from __future__ import annotations

from math import exp, log

import pytest
import torch

from lab.report.exhibit import find_exhibit
from lab.report.pilot_theory import log_ratio, pilot_theory
from sgdpo.places import CONF


@pytest.fixture(scope="module")
def shown() -> dict[str, dict[str, float]]:
    table = pilot_theory([], **{**find_exhibit("pilot_theory").settings, "draws": 500})
    return {
        row[0].text: dict(zip(table.header[1:], [entry.value for entry in row[1:]], strict=True))
        for row in table.rows
    }


def test_every_pilot_has_its_row_and_the_weights_that_its_mean_predicts(shown) -> None:
    assert list(shown) == sorted(path.stem for path in (CONF / "pilot").glob("*.yaml"))
    for row in shown.values():
        assert row["log(dw/dl), measured"] == pytest.approx(row["log(dw/dl), predicted"], abs=0.01)


def test_the_empty_and_the_mean_pilot_by_hand(shown) -> None:
    """R_w = -0.3, R_l = -0.9: empty sigma(0.3) / sigma(-0.9); mean at 18.5 of 41 and of 37 tokens."""

    def log_sigma(x: float) -> float:
        return -log(1 + exp(-x))

    assert shown["none"]["log(dw/dl), measured"] == pytest.approx(log_sigma(0.3) - log_sigma(-0.9))
    pilot_w, pilot_l = -0.3 * 18.5 / 41, -0.9 * 0.5
    expected = log_sigma(pilot_l + 0.3) - log_sigma(-0.9 - pilot_w)
    assert shown["mean"]["log(dw/dl), measured"] == pytest.approx(expected)


def test_the_mean_the_noise_and_the_draw_of_one_size_have_the_same_weights(shown) -> None:
    """18 of 18.5 tokens are what floor leaves; the draws' deviation is above a tenth, the weights' is not."""
    values = [shown[name]["log(dw/dl), measured"] for name in ("mean", "noise", "bernoulli", "uniform")]
    assert max(values) - min(values) < 0.03
    assert min(shown[name]["deviation, chosen"] for name in ("noise", "bernoulli", "uniform")) > 0.1


def test_the_pull_exceeds_the_push_exactly_where_the_rewards_sum_below_0_and_more_for_smaller_shares() -> (
    None
):
    """P = t R on both sides: log(dw/dl) has the sign of -(R_w + R_l), is 0 at t = 1 and falls in size with t."""
    for reward_w, reward_l in ((-0.3, -0.9), (0.4, -0.9), (0.9, -0.2), (-0.5, 0.5)):
        shares = [torch.tensor(t, dtype=torch.float64) for t in (0.0, 0.3, 0.6, 1.0)]
        values = [log_ratio(t * reward_w, t * reward_l, reward_w, reward_l) for t in shares]
        total = reward_w + reward_l
        assert values[-1] == pytest.approx(0, abs=1e-12)
        assert all(value * total < 0 for value in values[:-1]) or total == 0
        assert [abs(value) for value in values] == sorted((abs(value) for value in values), reverse=True)
