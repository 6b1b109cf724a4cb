"""The objectives: values worked out by hand, step 0, identities between methods, and what must not matter.

By hand, beta = 0.5 throughout, on the toy pair (`toy_pairs.toy_pair`): d_w = (0.4, 0.3, -0.1) and
d_l = (-0.5, 0.3), so R_w = 0.6, R_l = -0.2, h = 0.8, n_w = 3, n_l = 2, m = 2. Below,
L(x) = -log sigma(x) = ln(1 + e^-x).
"""

from __future__ import annotations

import json
from dataclasses import replace
from math import exp, log, log1p

import pytest
import torch

from sgdpo.methods.bco import RunningDelta
from sgdpo.pairs import DrawKey, Pair, PairLoss, Side
from toy_pairs import METHODS, REFERENCED, at_step_0, bind, gradients, method_yaml, random_pair, toy_pair

DRAWS = DrawKey(42)
BETA = 0.5
LENGTHS = [(5, 9), (9, 5), (7, 7), (1, 4), (12, 1), (1, 1)]
EQUAL = [(n, n) for n in (1, 2, 5, 8, 13)]


def cost(x: float) -> float:
    """L(x) = -log sigma(x), by the school's formula."""
    return log1p(exp(-x))


def of(
    name: str, pair: Pair, draws: DrawKey = DRAWS, ratio: tuple[float, float] = (0.6, 0.9), **hyper
) -> PairLoss:
    """Run a bound method, BCO with a fresh state."""
    method = bind(name, ratio, **hyper)
    return method(pair, draws, method.new_state())


def value(name: str, **hyper) -> float:
    return of(name, toy_pair(), beta=BETA, **hyper).loss_B.item()


def values_over_draws(name: str, pair: Pair, ratio: tuple[float, float] = (0.6, 0.9), **hyper) -> list[float]:
    """Return the distinct losses that 100 epochs' draws give, sorted."""
    method = bind(name, ratio, **hyper)
    losses = {method(pair, DrawKey(1, epoch)).loss_B.item() for epoch in range(100)}
    return sorted({round(loss, 12) for loss in losses})


def swapped(pair: Pair) -> Pair:
    return Pair(pair.rejected, pair.chosen, pair.example_id_B)


# ---- values worked out by hand ------------------------------------------------------------------------


def test_sft_is_the_sum_over_chosen_tokens() -> None:
    """1.0 + 0.5 + 0.7 = 2.2; no rewards, as there is no reference, and the rejected side is not looked at."""
    pair = toy_pair()
    loss = of("sft", Pair(replace(pair.chosen, reference_BT=None), None, pair.example_id_B))
    assert loss.loss_B.item() == pytest.approx(2.2, abs=1e-12)
    assert loss.chosen_reward_B is None
    assert loss.rejected_reward_B is None


def test_sft_leaves_out_tokens_that_are_not_trained() -> None:
    """Without the middle token: 1.0 + 0.7 = 1.7."""
    pair = toy_pair()
    chosen = replace(pair.chosen, mask_BT=torch.tensor([[True, False, True]]))
    assert of("sft", Pair(chosen, None, pair.example_id_B)).loss_B.item() == pytest.approx(1.7, abs=1e-12)


def test_dpo_by_hand() -> None:
    """beta h = 0.4; L(0.4) = ln(1 + 0.670320046) = 0.513015252. Exchanged sides: L(-0.4) = 0.913015252."""
    assert value("dpo") == pytest.approx(0.5130152524, abs=1e-10)
    assert of("dpo", swapped(toy_pair()), beta=BETA).loss_B.item() == pytest.approx(0.9130152524, abs=1e-10)


def test_ipo_by_hand() -> None:
    """Means: (0.6/3 - (-0.2)/2 - 1/(2 0.5))^2 = (0.2 + 0.1 - 1)^2 = 0.49. Sums: (0.8 - 1)^2 = 0.04."""
    assert value("ipo") == pytest.approx(0.49, abs=1e-12)
    assert value("ipo", length_average=False) == pytest.approx(0.04, abs=1e-12)


def test_ipo_counts_tokens_whose_log_ratio_is_zero() -> None:
    """d_w = (0.4, 0, 0), d_l = (-0.5, 0.3): (0.4/3 + 0.2/2 - 1)^2 = (23/30)^2; counting non-zeros gives
    0.25.
    """
    pair = toy_pair()
    reference_BT = pair.chosen.reference_BT.clone()
    reference_BT[0, 1:] = pair.chosen.logp_BT[0, 1:].detach()
    pair = replace(pair, chosen=replace(pair.chosen, reference_BT=reference_BT))
    assert of("ipo", pair, beta=BETA).loss_B.item() == pytest.approx((23 / 30) ** 2, abs=1e-12)


def test_nca_by_hand() -> None:
    """beta R_w = 0.3, beta R_l = -0.1: L(0.3) + L(-0.3)/2 + L(0.1)/2 = 1.303731197."""
    assert value("nca") == pytest.approx(1.3037311967, abs=1e-10)


def test_bco_by_hand_without_and_with_a_shift() -> None:
    """Rewards 0.3, -0.1. Shift 0: L(0.3) + L(0.1) = 1.198751905. Shift 0.5: L(-0.2) + L(0.6) =
    1.235626820.
    """
    state = RunningDelta()
    state.delta = 0.5
    for delta, expected in (("none", 1.1987519045), ("running", 1.2356268199)):
        loss = bind("bco", beta=BETA, delta=delta)(toy_pair(), DRAWS, state)
        assert loss.loss_B.item() == pytest.approx(expected, abs=1e-10)


def test_bco_shift_is_the_mean_over_past_steps_of_batch_means_and_survives_json() -> None:
    """Steps with sums 2.0 of 4, -3.0 of 2, 8.0 of 8: means 0.5, -1.5, 1.0; shifts 0, 0.5, -0.5, then 0."""
    state, seen = RunningDelta(), []
    for reward_sum, count in ((2.0, 4), (-3.0, 2), (8.0, 8)):
        seen.append(state.delta)
        state.advance({"rewards": (reward_sum, count)})
        restored = RunningDelta()
        restored.load_state_dict(json.loads(json.dumps(state.state_dict())))
        assert vars(restored) == vars(state)
        state = restored
    assert [*seen, state.delta] == pytest.approx([0, 0.5, -0.5, 0], abs=1e-15)


def test_sampo_by_hand_keeps_two_of_the_three_chosen_tokens() -> None:
    """Two of (0.4, 0.3, -0.1) sum to 0.7, 0.3 or 0.2; R_l = -0.2 whole: L(0.45), L(0.25), L(0.2)."""
    expected = [0.493248945997, 0.575939419879, 0.598138869382]
    assert values_over_draws("sampo", toy_pair(), beta=BETA) == pytest.approx(expected, abs=1e-11)


def test_sampo_by_hand_keeps_two_of_three_rejected_tokens() -> None:
    """Sides exchanged, the rejected side is cut: the margins turn their sign, L(-0.45), L(-0.25), L(-0.2)."""
    expected = sorted(cost(-x) for x in (0.45, 0.25, 0.2))
    assert values_over_draws("sampo", swapped(toy_pair()), beta=BETA) == pytest.approx(expected, abs=1e-11)


def test_sampo_with_independent_draws_by_hand() -> None:
    """Policy sums of two chosen tokens are -1.5, -1.7, -1.2, reference sums -2.2, -2.0, -1.4; each with
    each.
    """
    sums = {a - b for a in (-1.5, -1.7, -1.2) for b in (-2.2, -2.0, -1.4)}
    expected = sorted({round(cost(BETA * (s + 0.2)), 12) for s in sums})
    assert len(expected) == 8
    found = values_over_draws("sampo", toy_pair(), beta=BETA, draw="independent")
    assert found == pytest.approx(expected, abs=1e-11)


def test_sgdpo_by_hand_with_a_chosen_pilot_of_one_token() -> None:
    """r = (0.5, 1): |S_w| = 1, |S_l| = 2; P_l = -0.2, P_w is 0.4, 0.3 or -0.1: L(0.4)/2 + L((P_w +
    0.2)/2)/2.
    """
    expected = [0.533685248434, 0.544477336139, 0.590737450207]
    assert values_over_draws("sgdpo", toy_pair(), (0.5, 1.0), beta=BETA) == pytest.approx(expected, abs=1e-11)


def test_sgdpo_by_hand_with_a_rejected_pilot_of_one_token() -> None:
    """r = (1, 0.5): P_w is 0.7, 0.3 or 0.2, P_l is -0.5 or 0.3: L((0.6 - P_l)/2)/2 + L((P_w + 0.2)/2)/2."""
    pilots = [(w, l) for w in (0.7, 0.3, 0.2) for l in (-0.5, 0.3)]
    expected = sorted(cost((0.6 - l) / 2) / 2 + cost((w + 0.2) / 2) / 2 for w, l in pilots)
    assert expected[0] == pytest.approx(0.474370713730, abs=1e-11)
    assert values_over_draws("sgdpo", toy_pair(), (1.0, 0.5), beta=BETA) == pytest.approx(expected, abs=1e-11)


def test_sgdpo_with_independent_draws_by_hand() -> None:
    """r = (0.5, 1): P_l = -0.2 as before; P_w is one of (-1, -0.5, -0.7) minus one of (-1.4, -0.8, -0.6)."""
    pilots = {a - b for a in (-1.0, -0.5, -0.7) for b in (-1.4, -0.8, -0.6)}
    expected = sorted({round(cost(0.4) / 2 + cost((w + 0.2) / 2) / 2, 12) for w in pilots})
    found = values_over_draws("sgdpo", toy_pair(), (0.5, 1.0), beta=BETA, draw="independent")
    assert found == pytest.approx(expected, abs=1e-11)


def test_sgdpo_logs_its_pilots_their_sizes_and_the_balance_of_theorem_3() -> None:
    """m = 8, r = (0.6, 0.9): floor(4.8) = 4 and floor(7.2) = 7. f is the ratio of the two sides'
    gradients.
    """
    pair = random_pair([(8, 11), (20, 8)], seed=3)
    loss = of("sgdpo", pair, beta=BETA)
    metrics, grads = loss.metrics, gradients(loss.loss_B, pair)
    assert metrics["pilot/size_chosen"].tolist() == [4, 4]
    assert metrics["pilot/size_rejected"].tolist() == [7, 7]
    ratio_B = (grads[0][:, 0] / grads[1][:, 0]).abs()
    torch.testing.assert_close(metrics["pilot/log_balance"].exp(), ratio_B, rtol=1e-12, atol=0)
    slope_w, slope_l = BETA * 0.5 / -grads[0][:, 0], BETA * 0.5 / grads[1][:, 0]
    pilot_l = loss.chosen_reward_B - (slope_w - 1).log()
    pilot_w = loss.rejected_reward_B + (slope_l - 1).log()
    torch.testing.assert_close(metrics["pilot/chosen"], pilot_w, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(metrics["pilot/rejected"], pilot_l, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", [name for name in REFERENCED if "beta" in method_yaml(name)])
def test_rewards_are_beta_times_the_whole_log_ratio_for_every_method(name: str) -> None:
    """beta R_w = 0.3 and beta R_l = -0.1, whatever a method samples or averages; no gradient hangs on
    them.
    """
    loss = of(name, toy_pair(), beta=BETA)
    assert loss.chosen_reward_B.item() == pytest.approx(0.3, abs=1e-12)
    assert loss.rejected_reward_B.item() == pytest.approx(-0.1, abs=1e-12)
    logged = [loss.chosen_reward_B, loss.rejected_reward_B, *loss.metrics.values()]
    assert not any(number.requires_grad for number in logged)


# ---- identities -------------------------------------------------------------------------------------------

STEP_0 = {"dpo": log(2), "ipo": 25.0, "nca": 2 * log(2), "bco": 2 * log(2), "sampo": log(2), "sgdpo": log(2)}


@pytest.mark.parametrize(("name", "expected"), STEP_0.items())
def test_at_step_0_every_method_has_the_tables_value_and_margins_are_zero(name: str, expected: float) -> None:
    """Identity 1, at beta = 0.1: IPO's 1/(4 beta^2) is 25."""
    loss = of(name, at_step_0(random_pair(LENGTHS)))
    torch.testing.assert_close(
        loss.loss_B, torch.full((6,), expected, dtype=torch.float64), rtol=1e-14, atol=0
    )
    assert (loss.chosen_reward_B - loss.rejected_reward_B).abs().max() == 0


@pytest.mark.parametrize("name", ["sampo", "sgdpo"])
def test_with_independent_draws_step_0_is_not_ln_2(name: str) -> None:
    loss = of(name, at_step_0(random_pair([(5, 9)])), draw="independent")
    assert abs(loss.loss_B.item() - log(2)) > 1e-3


def test_sgdpo_with_full_pilots_and_equal_lengths_is_dpo_at_half_the_gradient() -> None:
    """Identity 2."""
    pair = random_pair(EQUAL)
    ours, dpo = of("sgdpo", pair, ratio=(1.0, 1.0)).loss_B, of("dpo", pair).loss_B
    torch.testing.assert_close(ours, dpo, rtol=1e-14, atol=0)
    for half, whole in zip(gradients(ours, pair), gradients(dpo, pair), strict=True):
        torch.testing.assert_close(half, whole / 2, rtol=1e-13, atol=0)


@pytest.mark.parametrize("draw", ["shared", "independent"])
def test_sampo_with_equal_lengths_is_dpo(draw: str) -> None:
    """Identity 3; all tokens are kept, so a second draw changes nothing."""
    pair = random_pair(EQUAL)
    ours, dpo = of("sampo", pair, draw=draw).loss_B, of("dpo", pair).loss_B
    torch.testing.assert_close(ours, dpo, rtol=1e-13, atol=0)
    for mine, theirs in zip(gradients(ours, pair), gradients(dpo, pair), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", ["sampo", "sgdpo"])
def test_a_draw_follows_the_seed_the_epoch_and_nothing_else(name: str) -> None:
    pair = random_pair([(30, 50)])
    first = of(name, pair, DrawKey(1, 0)).loss_B
    assert torch.equal(first, of(name, pair, DrawKey(1, 0)).loss_B)
    assert not torch.equal(first, of(name, pair, DrawKey(2, 0)).loss_B)
    assert not torch.equal(first, of(name, pair, DrawKey(1, 1)).loss_B)


# ---- what must not matter ---------------------------------------------------------------------------------


def changed(pair: Pair, change) -> Pair:
    """Apply a change to every BT tensor of both sides; logp becomes a leaf again."""

    def side(part: Side) -> Side:
        logp_BT = change(part.logp_BT.detach(), 7.0).requires_grad_()
        features = {key: change(value_BT, 5.0) for key, value_BT in part.features.items()}
        return Side(logp_BT, change(part.reference_BT, -3.0), change(part.mask_BT, False), features)

    return replace(pair, chosen=side(pair.chosen), rejected=side(pair.rejected))


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("edges", [(0, 64), (64, 0)], ids=["right", "left"])
def test_padding_changes_neither_loss_nor_gradient_whatever_it_holds(
    name: str, edges: tuple[int, int]
) -> None:
    """Identity 5: 64 columns more, filled with 7 and -3, on either side."""
    pair = random_pair(LENGTHS)
    padded = changed(pair, lambda x, fill: torch.nn.functional.pad(x, edges, value=fill))
    plain, other = of(name, pair), of(name, padded)
    torch.testing.assert_close(other.loss_B, plain.loss_B, rtol=1e-13, atol=0)
    for mine, theirs in zip(gradients(other.loss_B, padded), gradients(plain.loss_B, pair), strict=True):
        inner = mine[:, edges[0] : edges[0] + theirs.shape[1]]
        torch.testing.assert_close(inner, theirs, rtol=1e-12, atol=0)
        assert mine.abs().sum().item() == pytest.approx(theirs.abs().sum().item(), rel=1e-12)
    for key, expected in plain.metrics.items():
        torch.testing.assert_close(other.metrics[key], expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", METHODS)
def test_the_order_of_pairs_changes_nothing(name: str) -> None:
    """Identity 5."""
    pair = random_pair(LENGTHS)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    mixed = replace(changed(pair, lambda x, _: x[order]), example_id_B=pair.example_id_B[order])
    plain, other = of(name, pair).loss_B, of(name, mixed).loss_B
    torch.testing.assert_close(other, plain[order], rtol=1e-14, atol=0)
    for mine, theirs in zip(gradients(other, mixed), gradients(plain, pair), strict=True):
        torch.testing.assert_close(mine, theirs[order], rtol=1e-13, atol=0)
