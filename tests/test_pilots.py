"""The family of pilots: what every member promises, and what each one is."""

from __future__ import annotations

from dataclasses import replace
from itertools import compress, pairwise, product
from math import log, sqrt
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from torch import Tensor

from sgdpo.data.example import Example
from sgdpo.data.overlap import OverlapCollator
from sgdpo.data.packing import pair_of
from sgdpo.method import bind_method, method_errors
from sgdpo.overlap import common
from sgdpo.pairs import DrawKey, Pair, Ratios, Side
from sgdpo.pilot import REFERENCE, Pilot, pilot_size
from test_methods import changed
from toy_pairs import CONF, at_step_0, bind, draw_subset, gradients, method_yaml, pilot_yaml, random_pair

PILOTS = sorted(path.stem for path in (CONF / "pilot").glob("*.yaml"))
LENGTHS = [(20, 33), (33, 20), (24, 24), (9, 61)]
FOUND = [name for name in PILOTS if pilot_yaml(name)["size"]["of"] == "found"]
RATIOS, KEY = Ratios(0.6, 0.9), DrawKey(3)
# (name, changes): every select as it stands, and the other keys on the paper's pilot.
FAMILY = [(name, {}) for name in PILOTS] + [
    ("uniform", {"size": {"of": "own"}}), ("uniform", {"size": {"rounding": "stochastic"}}),
    ("mean", {"size": {"of": "own"}}), ("uniform", {"coupling": "shared"}), ("uniform", {"coupling": "antithetic"}),
    ("uniform", {"refresh": "never"}), ("uniform", {"refresh": "step"}), ("uniform", {"draws": 3}),
]  # fmt: skip


def pilot_of(name: str, **changes) -> Pilot:
    config = method_yaml("sgdpo")
    ratio = {"chosen": 1.0, "rejected": 1.0} if name in FOUND else {"chosen": 0.6, "rejected": 0.4}
    return bind_method(config, ratio, pilot=pilot_yaml(name, **changes)).pilot


def sgdpo(pair: Pair, name: str, ratio: tuple[float, float] = (0.6, 0.9), key: DrawKey = KEY, **changes):
    given = dict(zip(("chosen", "rejected"), (1.0, 1.0) if name in FOUND else ratio, strict=True))
    return bind_method(method_yaml("sgdpo"), given, pilot=pilot_yaml(name, **changes))(pair, key)


def pieces(name: str, pair: Pair, ratios: Ratios = RATIOS, key: DrawKey = KEY, **changes):
    return pilot_of(name, **changes).values(pair, ratios, key, "shared")


# ---- promises of every member -----------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "changes"), FAMILY, ids=str)
def test_at_step_0_the_loss_is_ln_2(name: str, changes: dict) -> None:
    loss_B = sgdpo(at_step_0(random_pair(LENGTHS)), name, **changes).loss_B
    torch.testing.assert_close(loss_B, torch.full((4,), log(2), dtype=torch.float64), rtol=1e-12, atol=0)


@pytest.mark.parametrize(("name", "changes"), FAMILY, ids=str)
@pytest.mark.parametrize("edges", [(0, 16), (16, 0)], ids=["right", "left"])
def test_padding_and_order_change_nothing(name: str, changes: dict, edges: tuple[int, int]) -> None:
    pair = random_pair(LENGTHS)
    order = torch.tensor([2, 0, 3, 1])
    padded = changed(pair, lambda x, fill: torch.nn.functional.pad(x, edges, value=fill)[order])
    padded = replace(padded, example_id_B=pair.example_id_B[order])
    ours, other = sgdpo(pair, name, **changes).loss_B, sgdpo(padded, name, **changes).loss_B
    torch.testing.assert_close(other, ours[order], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("name", "changes"), FAMILY, ids=str)
def test_no_gradient_flows_through_a_value_and_all_tokens_of_a_side_get_the_same(
    name: str, changes: dict
) -> None:
    pair = random_pair(LENGTHS)
    for grad_BT, side in zip(
        gradients(sgdpo(pair, name, **changes).loss_B, pair), (pair.chosen, pair.rejected), strict=True
    ):
        first_B1 = (grad_BT * side.mask_BT).sum(-1, keepdim=True) / side.length_B[:, None]
        torch.testing.assert_close(grad_BT, first_B1 * side.mask_BT, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("name", PILOTS)
def test_weights_lie_on_completion_tokens_and_add_up_to_k(name: str) -> None:
    """Of 20 shorter tokens: 12 of the chosen side at r = 0.6, 18 of the rejected at 0.9; Bernoulli's on average."""
    for piece, side, ratio in zip(
        pieces(name, pair := random_pair(LENGTHS)), (pair.chosen, pair.rejected), (0.6, 0.9), strict=True
    ):
        assert not piece.weight_BT[~side.mask_BT].any()
        asked_B = torch.tensor([ratio * m for m in (20, 20, 24, 9)], dtype=torch.float64)
        if name == "none":
            assert piece.size_B.sum() == 0
        elif name == "bernoulli" or name in FOUND:
            assert (piece.size_B <= side.length_B).all()
        elif piece.weight_BT.dtype == torch.bool:
            assert piece.size_B.tolist() == [int(x + 1e-9) for x in asked_B.tolist()]
        else:
            torch.testing.assert_close(piece.size_B, asked_B, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["uniform", "bernoulli", "stride", "block", "noise", "mean"])
def test_the_expectation_over_seeds_is_k_over_n_of_the_whole(name: str) -> None:
    """4,000 keys at once, as so many examples of one pair; the mean lies within four standard errors."""
    one, many = random_pair([(12, 17)], seed=5), 4000
    pair = Pair(
        *(
            Side(*(x.detach().expand(many, -1) for x in (side.logp_BT, side.reference_BT, side.mask_BT)))
            for side in (one.chosen, one.rejected)
        ),
        torch.arange(many),
    )
    for piece, side in zip(pieces(name, pair, Ratios(0.5, 0.75)), (pair.chosen, pair.rejected), strict=True):
        share = 6 / 12 if side is pair.chosen else 9 / 17
        whole = share * side.ratio_B[0]
        error = piece.value_B.std() / sqrt(many)
        assert (piece.value_B.mean() - whole).abs() <= 4 * error + 1e-12


def test_uniform_and_noise_have_the_variance_of_a_draw_without_replacement() -> None:
    """Var P = k (1 - k/n) S^2."""
    one, many = random_pair([(12, 17)], seed=5), 20000
    side = one.chosen
    chosen = Side(*(x.detach().expand(many, -1) for x in (side.logp_BT, side.reference_BT, side.mask_BT)))
    pair = Pair(chosen, chosen, torch.arange(many))
    expected = 6 * (1 - 6 / 12) * side.ratio_BT.detach().var()
    for name in ("uniform", "noise"):
        found = pieces(name, pair, Ratios(0.5, 0.5))[0].value_B.var()
        assert found.item() == pytest.approx(expected.item(), rel=0.05)


# ---- who they are -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("draw", ["shared", "independent"])
def test_uniform_is_the_papers_pilot_bit_for_bit(draw: str) -> None:
    """The sums over the k tokens of smallest keys, the side's and the stream's own."""
    pair, key = random_pair(LENGTHS), DrawKey(9, 2)
    shorter_B = torch.minimum(pair.chosen.length_B, pair.rejected.length_B)
    for piece, side, number, ratio in zip(
        pilot_of("uniform").values(pair, RATIOS, key, draw),
        (pair.chosen, pair.rejected),
        (0, 1),
        (0.6, 0.9),
        strict=True,
    ):
        given = (side.mask_BT, pilot_size(shorter_B, ratio), pair.example_id_B, number, key)
        expected_B = (side.ratio_BT * draw_subset(*given)).sum(-1)
        if draw == "independent":
            apart_B = (side.reference_BT * draw_subset(*given, REFERENCE)).sum(-1)
            expected_B = (side.logp_BT * draw_subset(*given)).sum(-1) - apart_B
        assert torch.equal(piece.value_B, expected_B.detach())


@pytest.mark.parametrize("ratio", [(0.0, 0.0), (0.6, 0.9)])
def test_the_empty_pilot_is_half_of_bco_without_shift(ratio: tuple[float, float]) -> None:
    pair = random_pair(LENGTHS)
    name = "uniform" if ratio == (0.0, 0.0) else "none"
    bco_B = bind("bco", delta="none")(pair, DrawKey(0), bind("bco").new_state()).loss_B
    ours_B = sgdpo(pair, name, ratio).loss_B
    torch.testing.assert_close(ours_B, bco_B / 2, rtol=1e-13, atol=0)
    for mine, theirs in zip(gradients(ours_B, pair), gradients(bco_B, pair), strict=True):
        torch.testing.assert_close(mine, theirs / 2, rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", ["mean", "uniform", "stratified", "stride", "block", "prefix", "decay"])
def test_the_whole_of_equal_lengths_is_dpo_at_half_the_gradient(name: str) -> None:
    pair = random_pair([(7, 7), (12, 12)])
    changes = {"gamma": 1.0} if name == "decay" else {}
    ours_B, dpo_B = sgdpo(pair, name, (1.0, 1.0), **changes).loss_B, bind("dpo")(pair, DrawKey(0)).loss_B
    torch.testing.assert_close(ours_B, dpo_B, rtol=1e-12, atol=0)
    for mine, theirs in zip(gradients(ours_B, pair), gradients(dpo_B, pair), strict=True):
        torch.testing.assert_close(mine, theirs / 2, rtol=1e-11, atol=0)


def taken(name: str, pair: Pair, ratio: float = 0.5, number: int = 0, **changes) -> list[int]:
    """Return the positions that the first pair's pilot takes."""
    piece = pieces(name, pair, Ratios(ratio, ratio), **changes)[number]
    return piece.weight_BT[0].nonzero()[:, 0].tolist()


def toy(logp_w: list[float], reference_w: list[float]) -> Pair:
    chosen = Side(
        torch.tensor([logp_w], requires_grad=True), torch.tensor([reference_w]),
        torch.ones(1, len(logp_w), dtype=torch.bool), {"entropy": torch.tensor([[0.1, 2.0, 1.0, 3.0]])},
    )  # fmt: skip
    return Pair(chosen, chosen, torch.tensor([11]))


def test_those_that_look_at_numbers_take_what_they_say() -> None:
    """d = (0.5, -2, 1, 0.25); reference -(1, 2, 3, 4) most likely first; policy (-0.5, -4, -2, -3.75)."""
    pair = toy([-0.5, -4.0, -2.0, -3.75], [-1.0, -2.0, -3.0, -4.0])
    assert taken("confident", pair) == [0, 1]
    assert taken("surprising", pair) == [2, 3]
    assert taken("unsure", pair) == [1, 3]
    assert taken("large", pair) == [1, 2]
    assert taken("helpful", pair) == [0, 2]
    assert taken("helpful", pair, number=1) == [1, 3]
    assert taken("entropy", pair) == [1, 3]
    assert taken("prefix", pair) == [0, 1]
    assert taken("suffix", pair) == [2, 3]


def test_shared_and_differing_part_a_completion() -> None:
    """ids 1 2 3 4 5 against 1 3 9 5: in common 1 3 5; the row says so in the order of its targets."""
    ids = [np.array(each, np.int32) for each in ([7, 8], [1, 2, 3, 4, 5], [1, 3, 9, 5])]
    row = OverlapCollator("shared_prefix")([Example(1, *ids, np.ones(5, bool))])
    assert row["shared"].tolist() == [1, 0, 1, 0, 1, 1, 1, 0, 1]
    zeros_L, shared = torch.zeros(9), {"shared": row["shared"]}
    pair = pair_of(row, (zeros_L, shared), zeros_L)
    for name, expected in (("shared", [[0, 2, 4], [0, 1, 3]]), ("differing", [[1, 3], [2]])):
        assert [taken(name, pair, number=number) for number in (0, 1)] == expected


def test_the_longest_common_subsequence_is_one_and_no_shorter_than_by_the_table() -> None:
    random = Random(0)
    for _ in range(300):
        one, other = ([random.randrange(4) for _ in range(random.randrange(12))] for _ in range(2))
        table = [[0] * (len(other) + 1) for _ in range(len(one) + 1)]
        for i, j in product(range(len(one)), range(len(other))):
            same = one[i] == other[j]
            table[i + 1][j + 1] = table[i][j] + 1 if same else max(table[i][j + 1], table[i + 1][j])
        inside = [list(compress(*side)) for side in zip((one, other), common(one, other), strict=True)]
        assert inside[0] == inside[1]
        assert len(inside[0]) == table[-1][-1]


def test_decay_by_hand() -> None:
    """gamma 1/2 over 4 tokens: (1, 1/2, 1/4, 1/8) sum to 15/8; two tokens' worth: times 16/15."""
    piece = pieces("decay", toy([-1.0] * 4, [-2.0] * 4), Ratios(0.5, 0.5), gamma=0.5)[0]
    torch.testing.assert_close(
        piece.weight_BT[0], torch.tensor([1, 1 / 2, 1 / 4, 1 / 8], dtype=torch.float64) * 16 / 15
    )


def test_blocks_and_strides_are_what_they_are_called() -> None:
    for seed in range(30):
        pair = random_pair([(20, 20)], seed=seed)
        steps = taken("stride", pair)
        gaps = {b - a for a, b in pairwise(steps)}
        assert gaps == {2}
        positions = taken("block", pair)
        starts = [p for p in positions if (p - 1) % 20 not in positions]
        assert (len(positions), len(starts)) == (10, 1)
        strata = [p // 2 for p in taken("stratified", pair)]
        assert strata == list(range(10))


# ---- coupling, refresh, draws, size -----------------------------------------------------------------------


def both(pair: Pair, ratio: tuple[float, float], **changes) -> tuple[set[int], set[int]]:
    found = pieces("uniform", pair, Ratios(*ratio), **changes)
    return tuple(set(piece.weight_BT[0].nonzero()[:, 0].tolist()) for piece in found)


def test_shared_draws_are_nested_among_the_first_m_positions() -> None:
    chosen, rejected = both(random_pair([(10, 30)]), (0.3, 0.8), coupling="shared")
    assert (len(chosen), len(rejected)) == (3, 8)
    assert chosen < rejected <= set(range(10))


@pytest.mark.parametrize("draws", [1, 3])
@pytest.mark.parametrize("name", sorted(set(PILOTS) - set(FOUND)))
def test_complements_of_any_weights_add_up_to_one(name, draws) -> None:
    found = pieces(
        name, random_pair([(30, 11), (9, 20)]), Ratios(0.3, 0.7), coupling="complement", draws=draws
    )
    sums = sum(piece.weight_BT[:, :9].double() for piece in found)
    assert torch.allclose(sums, torch.ones_like(sums))


def test_antithetic_halves_of_two_epochs_are_complements() -> None:
    pair = random_pair([(10, 10)])
    even, odd = (
        set(pieces("uniform", pair, Ratios(0.5, 0.5), DrawKey(3, epoch), coupling="antithetic")[0].weight_BT[0]
            .nonzero()[:, 0].tolist()) for epoch in (4, 5)
    )  # fmt: skip
    assert even | odd == set(range(10))
    assert not even & odd


def weights(name: str, key: DrawKey, **changes) -> Tensor:
    return pieces(name, random_pair([(40, 40)]), Ratios(0.5, 0.5), key, **changes)[0].weight_BT


def test_refresh_says_when_a_draw_changes() -> None:
    first = DrawKey(1, 0, 0)
    for word, key, same in (
        ("epoch", DrawKey(1, 0, 7), True), ("epoch", DrawKey(1, 1, 0), False), ("never", DrawKey(1, 5, 9), True),
        ("step", DrawKey(1, 0, 1), False), ("step", DrawKey(1, 3, 0), True), ("never", DrawKey(2, 0, 0), False),
    ):  # fmt: skip
        assert (
            torch.equal(weights("uniform", first, refresh=word), weights("uniform", key, refresh=word))
            == same
        )


def test_many_draws_tend_to_the_mean() -> None:
    far = weights("uniform", DrawKey(1), draws=1).double()
    near = weights("uniform", DrawKey(1), draws=1000)
    assert (far - 0.5).abs().mean() == 0.5
    assert (near - 0.5).abs().max() < 0.08


def test_sizes_of_own_and_stochastic_rounding() -> None:
    """r = 0.5 of own 5 and 9: floor 2 and 4; stochastic: 2 or 3 of 5, 2.5 on average."""
    pair = random_pair([(5, 9)])
    found = pieces("uniform", pair, Ratios(0.5, 0.5), size={"of": "own"})
    assert [piece.size_B.item() for piece in found] == [2, 4]
    sizes = [
        pieces("uniform", pair, Ratios(0.5, 0.5), DrawKey(seed), size={"rounding": "stochastic"})[
            0
        ].size_B.item()
        for seed in range(400)
    ]
    assert set(sizes) == {2, 3}
    assert sum(sizes) / 400 == pytest.approx(2.5, abs=0.1)


def test_effective_ratios_are_logged_beside_the_sizes() -> None:
    """floor(0.6 x 5) = 3 of 5; floor(0.9 x 5) = 4 of 5."""
    metrics = sgdpo(random_pair([(5, 9)]), "uniform").metrics
    assert (metrics["pilot/ratio_chosen"].item(), metrics["pilot/ratio_rejected"].item()) == pytest.approx(
        (0.6, 0.8)
    )


def test_through_gradient_the_pilots_tokens_get_more() -> None:
    """SamPO's way: a chosen token inside the pilot gets the rejected term's slope as well."""
    pair = random_pair([(20, 20)])
    inside_BT = pieces("uniform", pair)[0].weight_BT
    grad_BT = gradients(sgdpo(pair, "uniform", through="gradient").loss_B, pair)[0]
    assert grad_BT[inside_BT].max() < grad_BT[~inside_BT].min() < 0


# ---- bad input --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "ratio", "expected"),
    [
        ({"function": "sgdpo.selects.nowhere"}, (0.6, 0.9), "pilot.function"),
        (
            {"coupling": "tied"},
            (0.6, 0.9),
            "pilot.coupling must be one of independent, shared, complement, antithetic",
        ),
        ({"coupling": "complement"}, (0.6, 0.9), "ratios that add up to 1, not 0.6 and 0.9"),
        ({"coupling": "antithetic", "refresh": "step"}, (0.6, 0.9), "its draws must outlast a step"),
        ({"refresh": "daily"}, (0.6, 0.9), "pilot.refresh must be one of step, epoch, never"),
        ({"through": "both"}, (0.6, 0.9), "pilot.through must be one of value, gradient"),
        ({"draws": 0}, (0.6, 0.9), "pilot.draws must be at least 1"),
        ({"size": {"of": "found"}}, (0.6, 0.9), "the ratios must both be 1, not 0.6 and 0.9; say ratio=full"),
        ({"size": {"of": "found"}}, (0.0, 0.0), "the ratios must both be 1, not 0.0 and 0.0; say ratio=full"),
        ({"size": {"of": "longer"}}, (0.6, 0.9), "pilot.size.of must be one of shorter, own, found"),
        ({"size": {"rounding": "none"}}, (0.6, 0.9), "floor or stochastic"),
        ({"features": ["mood"]}, (0.6, 0.9), "pilot.features must be a list of"),
        ({"function": "sgdpo.selects.entropy"}, (0.6, 0.9), "pilot.features lacks ['entropy']"),
        ({"gamma": 0.5}, (0.6, 0.9), "pilot.gamma is not a setting"),
        ({}, (1.5, 0.9), "ratio.chosen must lie in [0, 1], not 1.5"),
        ({}, (0.6, -0.1), "ratio.rejected must lie in [0, 1], not -0.1"),
    ],
)
def test_one_mistake_is_one_error(changes: dict, ratio: tuple[float, float], expected: str) -> None:
    given = dict(zip(("chosen", "rejected"), ratio, strict=True))
    errors = method_errors(method_yaml("sgdpo"), given, pilot=pilot_yaml("uniform") | changes
                           | {"size": {**pilot_yaml("uniform")["size"], **changes.get("size", {})}})  # fmt: skip
    assert len(errors) == 1
    assert expected in errors[0]


def test_a_ratio_of_0_is_the_empty_pilot_and_says_so() -> None:
    method = bind_method(method_yaml("sgdpo"), {"chosen": 0.0, "rejected": 0.9}, pilot=pilot_yaml("uniform"))
    assert method.notes == ["ratio.chosen=0: the chosen pilot is empty; with both empty SGDPO is half of BCO"]


def test_a_pilot_where_none_is_taken_and_none_where_one_is_needed() -> None:
    assert method_errors(method_yaml("dpo"), {}, pilot=pilot_yaml("mean")) == [
        "method 'dpo' takes no pilot, but pilot=mean is set; leave it out"
    ]
    ratio = {"chosen": 0.6, "rejected": 0.9}
    assert method_errors(method_yaml("sgdpo"), ratio) == [
        "method 'sgdpo' needs a pilot; pilot=uniform is the paper's"
    ]


def test_a_pilot_of_ones_own_is_one_function_and_one_yaml(tmp_path: Path) -> None:
    file = tmp_path / "my_pilot.py"
    file.write_text(
        "def odd(place, *, start: int):\n    return (place.position_BT % 2 == start) & place.domain_BT\n"
    )
    config = pilot_yaml("uniform") | {"name": "odd", "function": "my_pilot.odd", "start": 1}
    ratio = {"chosen": 0.6, "rejected": 0.9}
    method = bind_method(method_yaml("sgdpo"), ratio, [str(file)], pilot=config)
    assert method(random_pair([(5, 6)]), DrawKey(0)).metrics["pilot/size_chosen"].tolist() == [2]
