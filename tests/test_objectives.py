"""The objectives that the field compares with: by hand, at step 0, by identities, and by TRL where it has the loss.

By hand on the toy pair (`toy_pairs.toy_pair`): d_w = (0.4, 0.3, -0.1), d_l = (-0.5, 0.3), so R_w = 0.6, R_l = -0.2 and
h = 0.8; log-probs (-1, -0.5, -0.7) and (-2, -1), so l_w = -2.2 with mean -11/15 and l_l = -3 with mean -1.5; n_w = 3,
n_l = 2, m = 2; scores 8 and 6. Below L(x) = -log sigma(x) = ln(1 + e^-x) and s(x) = 1/(1 + e^-x).
"""

from __future__ import annotations

from dataclasses import replace
from math import exp, log, log1p, sqrt

import pytest
import torch

from sgdpo.config.compose import compose_run, to_run_config
from sgdpo.pairs import DrawKey, Pair
from sgdpo.training.incentives import incentive_sums
from sgdpo.training.metrics import pair_metrics
from test_methods import of
from toy_pairs import PREFERENCE, REFERENCED, at_step_0, bind, gradients, method_yaml, random_pair, toy_pair

LENGTHS = [(5, 9), (9, 5), (7, 7), (1, 4), (12, 1), (1, 1)]


def cost(x: float) -> float:
    return log1p(exp(-x))


def share(x: float) -> float:
    return 1 / (1 + exp(-x))


def odds(mean: float) -> float:
    return mean - log(1 - exp(mean))


# name, settings, value by hand, how
BY_HAND = [
    ("hinge", {"beta": 0.5, "margin": 1.0}, 0.6, "1 - 0.4"),
    ("hinge", {"beta": 2.0, "margin": 1.0}, 0.0, "1 - 1.6 < 0"),
    ("cdpo", {"beta": 0.5, "smoothing": 0.2}, 0.593015252363, "0.8 L(0.4) + 0.2 L(-0.4)"),
    ("robust", {"beta": 0.5, "flips": 0.2}, 0.379681919030, "[0.8 L(0.4) - 0.2 L(-0.4)] / 0.6"),
    ("exo", {"beta": 0.5, "smoothing": 0.1},
     share(0.4) * log(share(0.4) / 0.9) + share(-0.4) * log(share(-0.4) / 0.1), "s = s(0.4)"),
    ("sppo", {"beta": 0.5}, 0.8, "(0.6 - 1)^2 + (-0.2 + 1)^2"),
    ("apo_zero", {"beta": 0.5}, 1 - share(0.3) + share(-0.1), "1 - s(0.3) + s(-0.1)"),
    ("apo_down", {"beta": 0.5}, share(0.3) + 1 - share(0.4), "s(0.3) + 1 - s(0.4)"),
    ("discopop", {"beta": 0.5, "tau": 0.4}, (1 - share(1)) * cost(0.4) + share(1) * exp(-0.4), "g = s(1)"),
    ("dpo_norm", {"beta": 5.0}, cost(1.5), "5 (0.2 + 0.1) = 1.5"),
    ("rpo", {"beta": 0.5, "alpha": 0.3}, cost(0.4) + 0.22, "L(0.4) + 0.3 x 11/15"),
    ("dpop", {"beta": 0.5, "lam": 50.0}, cost(0.4), "R_w > 0: DPO"),
    ("rdpo", {"beta": 0.5, "alpha": 0.2}, cost(0.6), "0.4 + 0.2 (3 - 2)"),
    ("ld_dpo", {"beta": 0.5, "beyond": 0.5}, cost(0.425), "R_w' = 0.7 - 0.05 = 0.65; (0.65 + 0.2)/2"),
    ("d2po", {"beta": 0.5, "gamma": 0.5}, cost(0.4375), "0.4 + 0.15 - 0.025 = 0.525; -0.5 + 0.15 = -0.35; 0.875/2"),
    ("dpo_shift", {"beta": 0.5, "lam": 0.5}, cost(0.35), "(0.6 + 0.1)/2"),
    ("minor_dpo", {"beta": 0.5}, cost(0.3), "R_l < 0 counts as 0: 0.6/2"),
    ("chipo", {"beta": 0.5, "largest": 10.0}, cost(0.4 + (exp(0.6) - exp(-0.2)) / 2), "(0.8 + e^0.6 - e^-0.2)/2"),
    ("chipo", {"beta": 0.5, "largest": 0.25}, cost(0.5), "0.9017 is clipped at 2 x 0.25"),
    ("simpo", {"beta": 2.0, "gamma": 1.0}, cost(8 / 15), "2 (-11/15 + 3/2) - 1 = 23/15 - 1"),
    ("cpo", {"beta": 0.5, "alpha": 0.3}, cost(0.4) + 0.22, "(-2.2 + 3)/2 = 0.4"),
    ("slic", {"delta": 1.0, "lam": 0.1}, 0.42, "1 - 0.8 + 0.22"),
    ("slic", {"delta": 0.5, "lam": 0.1}, 0.22, "the margin of 0.8 is wide enough"),
    ("orpo", {"lam": 0.1}, 11 / 15 + 0.1 * cost(odds(-11 / 15) - odds(-1.5)), "o = l - ln(1 - e^l)"),
    ("simper", {}, exp(-1.5) - exp(-11 / 15), "e^-1.5 - e^(-11/15)"),
    ("wpo", {"beta": 0.5}, exp(-0.1 * (11 / 15 + 1.5)) * cost(0.4), "log p2 = 0.9 log p: w = e^(0.1 mean)"),
    ("nll", {}, 11 / 15, "2.2/3"),
    ("alpha_dpo", {"beta": 2.0, "gamma": 1.0, "alpha": 0.5}, cost(8 / 15), "SimPO's before the first step"),
    ("odpo", {"beta": 0.5, "alpha": 0.5}, cost(0.4 - 0.5 * log(2)), "scores 2 apart"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "hyper", "value", "how"), BY_HAND)
def test_by_hand(name: str, hyper: dict, value: float, how: str) -> None:
    assert of(name, toy_pair(), **hyper).loss_B.item() == pytest.approx(value, abs=1e-9), how


@pytest.mark.parametrize(
    "name", sorted(set(PREFERENCE) - {"dpo", "ipo", "nca", "bco", "sampo", "sgdpo", "mix"})
)
def test_every_preference_method_beside_the_papers_is_worked_out_by_hand(name: str) -> None:
    if name not in {worked for worked, *_ in BY_HAND}:
        pytest.skip(f"{name} is yours: BY_HAND has no number for it yet")


# The values of the papers' own hyper-parameters where policy and reference are one; None: it depends on the pair.
STEP_0 = {
    "hinge": 1.0, "cdpo": log(2), "robust": log(2), "exo": -log(2) - (log(0.999) + log(0.001)) / 2,
    "sppo": 1 / (2 * 0.001**2), "apo_zero": 1.0, "apo_down": 1.0, "discopop": (log(2) + 1) / 2, "dpo_norm": log(2),
    "dpop": log(2), "ld_dpo": log(2), "d2po": log(2), "dpo_shift": log(2), "minor_dpo": log(2), "chipo": log(2),
    "odpo": cost(-log(2)),
}  # fmt: skip


@pytest.mark.parametrize(("name", "expected"), STEP_0.items())
def test_at_step_0(name: str, expected: float) -> None:
    loss = of(name, at_step_0(random_pair(LENGTHS)))
    torch.testing.assert_close(
        loss.loss_B, torch.full((6,), expected, dtype=torch.float64), rtol=1e-13, atol=1e-13
    )
    assert (loss.chosen_reward_B - loss.rejected_reward_B).abs().max() == 0


def test_at_step_0_a_likelihood_term_a_length_term_and_weights_remain() -> None:
    pair = at_step_0(random_pair([(5, 9)]))
    mean_w = pair.chosen.logp_BT.mean().item()
    assert of("rpo", pair).loss_B.item() == pytest.approx(log(2) - mean_w, abs=1e-12)
    assert of("rdpo", pair).loss_B.item() == pytest.approx(cost(0.01 * -4), abs=1e-12)
    mean_l = pair.rejected.logp_BT.mean().item()
    assert of("wpo", pair).loss_B.item() == pytest.approx(exp(0.1 * (mean_w + mean_l)) * log(2), abs=1e-12)


SAME_AS_DPO = [
    ("cdpo", {"smoothing": 0.0}), ("robust", {"flips": 0.0}), ("rpo", {"alpha": 0.0}), ("dpop", {"lam": 0.0}),
    ("rdpo", {"alpha": 0.0}), ("ld_dpo", {"beyond": 1.0}), ("d2po", {"gamma": 1.0}), ("dpo_shift", {"lam": 1.0}),
    ("odpo", {"alpha": 0.0}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "hyper"), SAME_AS_DPO)
def test_without_its_own_term_it_is_dpo(name: str, hyper: dict) -> None:
    pair = random_pair(LENGTHS)
    ours, dpo = of(name, pair, beta=0.1, **hyper).loss_B, of("dpo", pair).loss_B
    torch.testing.assert_close(ours, dpo, rtol=1e-13, atol=0)
    for mine, theirs in zip(gradients(ours, pair), gradients(dpo, pair), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=0)


def test_ld_dpo_with_equal_lengths_is_dpo() -> None:
    pair = random_pair([(4, 4), (1, 1)])
    torch.testing.assert_close(of("ld_dpo", pair).loss_B, of("dpo", pair).loss_B, rtol=1e-14, atol=0)


def test_robust_is_unbiased_under_flipped_labels() -> None:
    """(1 - e) loss(pair) + e loss(flipped pair) is DPO's loss, whatever e."""
    pair = random_pair(LENGTHS)
    flipped = Pair(pair.rejected, pair.chosen, pair.example_id_B)
    noisy = 0.7 * of("robust", pair, flips=0.3).loss_B + 0.3 * of("robust", flipped, flips=0.3).loss_B
    torch.testing.assert_close(noisy, of("dpo", pair).loss_B, rtol=1e-12, atol=0)


def test_exo_is_a_kl_divergence_never_negative_and_zero_at_the_smoothed_label() -> None:
    """s(beta h) = 1 - e at h = log((1 - e)/e)/beta."""
    assert (of("exo", random_pair(LENGTHS, spread=40.0)).loss_B >= -1e-12).all()
    pair = toy_pair()
    beta = log(0.9 / 0.1) / 0.8
    assert of("exo", pair, beta=beta, smoothing=0.1).loss_B.item() == pytest.approx(0, abs=1e-12)


def test_r_dpo_asks_less_of_a_longer_chosen_answer() -> None:
    """Exchange the lengths of two otherwise equal pairs: the longer chosen one costs less and is pulled less."""
    longer, shorter = at_step_0(random_pair([(9, 5)])), at_step_0(random_pair([(5, 9)]))
    loss_long, loss_short = of("rdpo", longer, alpha=0.1).loss_B, of("rdpo", shorter, alpha=0.1).loss_B
    assert loss_long.item() < loss_short.item()
    pull = [
        gradients(loss, pair)[0].abs().max() for loss, pair in ((loss_long, longer), (loss_short, shorter))
    ]
    assert pull[0] < pull[1]


def test_dpop_charges_a_fallen_chosen_answer_and_minor_dpo_spares_a_fallen_rejected_one() -> None:
    """Exchanged sides: R_w = -0.2, R_l = 0.6: L((-0.8 - 50 x 0.2)/2) and L((-0.2 - 0.6)/2). R_l < 0: no push."""
    pair = toy_pair()
    swapped = Pair(pair.rejected, pair.chosen, pair.example_id_B)
    assert of("dpop", swapped, beta=0.5).loss_B.item() == pytest.approx(cost(-5.4), abs=1e-12)
    assert of("minor_dpo", swapped, beta=0.5).loss_B.item() == pytest.approx(cost(-0.4), abs=1e-12)
    assert gradients(of("minor_dpo", pair).loss_B, pair)[1].abs().max() == 0


def test_an_odpo_pair_whose_scores_do_not_part_costs_nothing_and_is_counted() -> None:
    pair = random_pair([(3, 4), (4, 3)])
    pair.score_w_B[0] = pair.score_l_B[0]
    result = of("odpo", pair)
    assert result.loss_B[0] == 0
    assert result.loss_B[1] > 0
    assert result.metrics["odpo/unscored"].tolist() == [True, False]
    assert all(torch.isfinite(grad_BT).all() for grad_BT in gradients(result.loss_B, pair))


def test_alpha_dpos_margin_is_standardised_by_past_steps_over_the_global_batch() -> None:
    """Gaps 0.1 and 0.5, then 0.3 and 0.3: means 0.3, 0.3; deviations 0.4/sqrt(2), 0.

    The averages weigh the second step 0.1 of 0.19: mean 0.3, deviation (0.09 x 0.4/sqrt(2))/0.19. The toy pair's gap of
    0.3 then stands at z = 0, a gap of 0.5 at 0.2 x 0.19 sqrt(2)/(0.09 x 0.4).
    """
    method, state = bind("alpha_dpo", beta=2.0, gamma=1.0, alpha=0.5), bind("alpha_dpo").new_state()
    for gaps in ((0.1, 0.5), (0.3, 0.3)):
        state.advance({"gap": (sum(gaps), 2), "gap squared": (sum(gap**2 for gap in gaps), 2)})
    fresh = bind("alpha_dpo").new_state()
    fresh.load_state_dict(state.state_dict())
    assert method(toy_pair(), DrawKey(0), fresh).metrics["alpha_dpo/z"].item() == pytest.approx(0, abs=1e-9)
    pair = toy_pair()
    wider = replace(pair, rejected=replace(pair.rejected, reference_BT=pair.rejected.reference_BT + 0.2))
    found = method(wider, DrawKey(0), fresh)
    z = 0.2 * 0.19 * sqrt(2) / (0.09 * 0.4)
    assert found.metrics["alpha_dpo/z"].item() == pytest.approx(z, rel=1e-9)
    assert found.loss_B.item() == pytest.approx(cost(8 / 15 - 0.5 * z), rel=1e-9)
    assert found.sums["gap"].item() == pytest.approx(0.5)


@pytest.mark.parametrize("name", [name for name in PREFERENCE if method_yaml(name)["needs"]["state"]])
def test_a_state_takes_nothing_from_the_rounding_of_steps_before_the_policy_has_moved(name: str) -> None:
    """At step 0, and at step 1 where the warm-up begins at rate 0, log-ratios are rounding: 1e-7 of a token."""
    method, pair = bind(name), random_pair(LENGTHS)
    state = method.new_state()
    for step in range(2):
        still = at_step_0(random_pair(LENGTHS, seed=step))
        noise_BT = 1e-7 * torch.randn(
            still.chosen.logp_BT.shape, generator=torch.Generator().manual_seed(step)
        )
        still = replace(still, chosen=replace(still.chosen, logp_BT=still.chosen.logp_BT + noise_BT))
        sums = method(still, DrawKey(0), state).sums
        state.advance({key: (value.sum().item(), value.numel()) for key, value in sums.items()})
    moved, fresh = (method(pair, DrawKey(0), each).loss_B for each in (state, method.new_state()))
    torch.testing.assert_close(moved, fresh, rtol=1e-6, atol=0)


def test_orpos_odds_are_exact_near_both_ends() -> None:
    """log(1 - e^l) at l = -1e-9 is ln(1e-9), at l = -50 about -e^-50; at l = 0 the odds stay finite."""
    from sgdpo.methods.orpo import _log_odds

    found = _log_odds(torch.tensor([-1e-9, -50.0, 0.0], dtype=torch.float64))
    assert found[0].item() == pytest.approx(-log(1e-9), rel=1e-9)
    assert found[1].item() == pytest.approx(-50.0, rel=1e-15)
    assert torch.isfinite(found[2])


@pytest.mark.parametrize("name", [name for name in PREFERENCE if name not in REFERENCED])
def test_a_method_without_a_reference_does_not_look_at_one(name: str) -> None:
    pair = random_pair(LENGTHS)
    bare = Pair(
        *(replace(side, reference_BT=None) for side in (pair.chosen, pair.rejected)), pair.example_id_B
    )
    assert torch.equal(of(name, bare).loss_B, of(name, pair).loss_B)


# ---- incentives -------------------------------------------------------------------------------------------


def means(name: str, pair: Pair, **hyper) -> dict[str, float]:
    return {
        key: (total / count).item()
        for key, (total, count) in incentive_sums(pair, of(name, pair, **hyper)).items()
    }


def test_incentives_of_dpo_by_hand_and_its_log_ratio_is_exactly_0() -> None:
    """dw = dl = beta s(-beta h) = 0.5 s(-0.4); tokens: three and two times that. R_w > 0: not displaced."""
    found = means("dpo", toy_pair(), beta=0.5)
    pull = 0.5 * share(-0.4)
    assert found["incentive/chosen"] == pytest.approx(pull, rel=1e-14)
    assert found["incentive/rejected"] == pytest.approx(pull, rel=1e-14)
    assert found["incentive/log_ratio"] == 0
    assert found["incentive/tokens_chosen"] == pytest.approx(3 * pull, rel=1e-14)
    assert found["incentive/tokens_rejected"] == pytest.approx(2 * pull, rel=1e-14)
    assert found["displaced"] == 0


def test_dpos_log_ratio_is_exactly_0_in_float32_over_any_lengths() -> None:
    pair = random_pair([(7, 3), (1, 900), (333, 41)], spread=5.0)
    sides = [
        replace(s, logp_BT=s.logp_BT.detach().float().requires_grad_(), reference_BT=s.reference_BT.float())
        for s in (pair.chosen, pair.rejected)
    ]
    assert means("dpo", Pair(*sides, pair.example_id_B))["incentive/log_ratio"] == 0


def test_sgdpos_log_ratio_is_theorem_3s() -> None:
    pair = random_pair([(8, 11), (20, 8), (5, 5)], seed=3)
    result = of("sgdpo", pair)
    total, count = incentive_sums(pair, result)["incentive/log_ratio"]
    assert (total / count).item() == pytest.approx(
        result.metrics["pilot/log_balance"].mean().item(), rel=1e-10
    )


def test_sides_pulled_in_unlike_directions_have_no_ratio_and_leave_the_mean() -> None:
    """APO-down pushes both sides: at step 0 the chosen slope is beta/4 - beta/4 = 0."""
    sums = incentive_sums(pair := at_step_0(random_pair(LENGTHS)), of("apo_down", pair))
    assert sums["incentive/log_ratio"][1] == 0
    assert sums["incentive/chosen"][1] == 6


@pytest.mark.parametrize("name", PREFERENCE)
def test_incentives_are_finite_for_every_method(name: str) -> None:
    pair = random_pair(LENGTHS)
    assert all(torch.isfinite(total) for total, _ in incentive_sums(pair, of(name, pair)).values())


# ---- TRL as an oracle -------------------------------------------------------------------------------------

TRL = {
    "hinge": ("hinge", {}), "robust": ("robust", {"label_smoothing": 0.1}),
    "exo": ("exo_pair", {"label_smoothing": 0.001}),
    "sppo": ("sppo_hard", {}), "apo_zero": ("apo_zero", {}), "apo_down": ("apo_down", {}),
    "discopop": ("discopop", {"discopop_tau": 0.05}), "dpo_norm": ("sigmoid_norm", {}),
}  # fmt: skip


@pytest.mark.parametrize("name", TRL)
def test_trl_gives_the_same_loss(name: str, tmp_path) -> None:
    """Through DPOTrainer's own loss, on a one-layer model: its log-probs go to both."""
    trl = pytest.importorskip("trl", reason="TRL is an optional oracle: pip install trl==1.16.0")
    from trl_oracle import trl_loss

    loss_type, settings = TRL[name]
    beta = method_yaml(name)["beta"]
    pair, theirs = trl_loss(trl, loss_type, beta, settings, tmp_path)
    method = bind(name)
    ours = method(pair, DrawKey(0), None).loss_B.mean().item()
    assert ours == pytest.approx(theirs, rel=2e-5, abs=1e-6 * max(1, 1 / sqrt(beta)))


def test_log_ratios_and_features_are_means_over_tokens() -> None:
    """0.6 over 3 tokens and -0.2 over 2; the toy pair's entropy is half of -log p: (1.1/3, 1.5/2)."""
    sums = pair_metrics(pair := toy_pair(), of("dpo", pair), torch.tensor(1))
    found = {key: (total / count).item() for key, (total, count) in sums.items()}
    assert found["log_ratio/chosen"] == pytest.approx(0.2, abs=1e-12)
    assert found["log_ratio/rejected"] == pytest.approx(-0.1, abs=1e-12)
    assert found["entropy/chosen"] == pytest.approx(1.1 / 3, abs=1e-12)
    assert found["entropy/rejected"] == pytest.approx(0.75, abs=1e-12)


def test_entropy_is_logged_where_it_is_asked_for() -> None:
    from sgdpo.runs.validate import logged_metrics

    for asked in ("true", "false"):
        config = to_run_config(compose_run(["method=dpo", f"trainer.entropy={asked}"]))
        assert ("eval/entropy/chosen" in logged_metrics(config)) == (asked == "true")
