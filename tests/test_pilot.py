"""Pilots: exact sizes, and draws that are uniform, keyed and independent of everything but their key."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import pytest
import torch
from scipy import stats
from torch import Tensor
from torch.overrides import TorchFunctionMode

from sgdpo.pairs import DrawKey, Pair, Ratios, Side
from sgdpo.pilot import CHOSEN, POLICY, REFERENCE, REJECTED, Pilot, pilot_size
from sgdpo.selects import uniform
from toy_pairs import draw_subset, toy_pair

MASK = (1 << 64) - 1


# ---- sizes ------------------------------------------------------------------------------------------------


def exact_size(length: int, ratio: float) -> int:
    """The rule in words: floor of the decimal that is written, at least one token."""
    return max(math.floor(Fraction(str(ratio)) * length), 1)


def test_sizes_are_exact_for_every_ratio_in_percent_and_every_length_to_300() -> None:
    lengths = torch.arange(1, 301)
    for percent in range(1, 101):
        expected = [exact_size(m, percent / 100) for m in range(1, 301)]
        assert pilot_size(lengths, percent / 100).tolist() == expected, percent


def test_seven_tenths_of_ninety_is_63_where_binary_floating_point_says_62() -> None:
    assert int(90 * 0.7) == 62
    assert pilot_size(torch.tensor([90]), 0.7).tolist() == [63]


@pytest.mark.parametrize(
    "ratio", [1 / 3, 2 / 3, 1 / 65536, 0.1 + 0.2, 1e-5, 1e-300, 0.999999999999999, 1, 1.0]
)
def test_sizes_are_exact_for_ratios_of_many_digits_and_lengths_to_2_32(ratio: float) -> None:
    lengths = [1, 2, 3, 300, 2048, 65535, 65536, 10**6 + 7, 2**31 - 1, 2**32]
    assert pilot_size(torch.tensor(lengths), ratio).tolist() == [exact_size(m, ratio) for m in lengths]


# ---- draws: what they are ---------------------------------------------------------------------------------


def splitmix64(word: int) -> int:
    """The finaliser of Steele et al. (2014) on Python's unbounded integers."""
    word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & MASK
    return word ^ (word >> 31)


def drawn_by_hand(length: int, size: int, example: int, side: int, draws: DrawKey, stream: int) -> set[int]:
    """The rule in plain Python: hash the key's words in turn, then each position; take the smallest keys."""
    golden, state = 0x9E3779B97F4A7C15, 0
    for word in (draws.seed, draws.epoch, side, stream):
        state = splitmix64((state + golden + word) & MASK)
    start = splitmix64((state + example) & MASK)
    keys = [splitmix64((start + (t + 1) * golden) & MASK) for t in range(length)]
    signed = [key - (1 << 64) if key >> 63 else key for key in keys]
    return set(sorted(range(length), key=signed.__getitem__)[:size])


def members(subset_BT: Tensor) -> list[set[int]]:
    return [set(row.nonzero().flatten().tolist()) for row in subset_BT]


@pytest.mark.parametrize("draws", [DrawKey(0), DrawKey(42, 3), DrawKey(-1, 10**6), DrawKey(2**70 + 5)])
@pytest.mark.parametrize(("side", "stream"), list(itertools.product((CHOSEN, REJECTED), (POLICY, REFERENCE))))
def test_a_draw_is_the_one_that_unbounded_integers_give(draws: DrawKey, side: int, stream: int) -> None:
    """64-bit wrapping products and logical shifts, emulated on int64, must agree with Python's integers."""
    ids = [0, 1, -1, 2**63 - 1, -(2**63), 1234567890123456789, -987654321]
    lengths, sizes = [1, 2, 5, 9, 33, 64, 64], [1, 1, 3, 9, 20, 63, 64]
    mask_BT = torch.arange(64) < torch.tensor(lengths)[:, None]
    subset_BT = draw_subset(mask_BT, torch.tensor(sizes), torch.tensor(ids), side, draws, stream)
    expected = [
        drawn_by_hand(n, k, e, side, draws, stream) for n, k, e in zip(lengths, sizes, ids, strict=True)
    ]
    assert members(subset_BT) == expected


def test_every_draw_has_exactly_its_size_and_stays_inside_the_mask() -> None:
    generator = torch.Generator().manual_seed(1)
    length_B = torch.randint(1, 41, (3000,), generator=generator)
    size_B = (torch.rand(3000, generator=generator) * length_B).long() + 1
    mask_BT = torch.arange(40) < length_B[:, None]
    subset_BT = draw_subset(mask_BT, size_B, torch.arange(3000), CHOSEN, DrawKey(5))
    assert torch.equal(subset_BT.sum(-1), size_B)
    assert not (subset_BT & ~mask_BT).any()


def test_a_completion_without_tokens_draws_none_of_its_padding() -> None:
    """Its size is at least 1 by the rule, but padding is never drawn."""
    mask_BT = torch.tensor([[False, False], [True, False]])
    subset_BT = draw_subset(mask_BT, pilot_size(mask_BT.sum(-1), 0.9), torch.arange(2), CHOSEN, DrawKey(1))
    assert torch.equal(subset_BT, mask_BT)


def test_inputs_are_left_as_they_were() -> None:
    mask_BT, size_B, ids_B = torch.ones(2, 5, dtype=torch.bool), torch.tensor([2, 3]), torch.tensor([4, 5])
    before = mask_BT.clone(), size_B.clone(), ids_B.clone()
    draw_subset(mask_BT, size_B, ids_B, CHOSEN, DrawKey(1))
    assert all(map(torch.equal, before, (mask_BT, size_B, ids_B)))


def test_draws_neither_read_nor_move_the_global_random_state() -> None:
    mask_BT, size_B, ids_B = torch.ones(1, 50, dtype=torch.bool), torch.tensor([20]), torch.tensor([3])
    torch.manual_seed(1)
    first, state = draw_subset(mask_BT, size_B, ids_B, CHOSEN, DrawKey(1)), torch.get_rng_state()
    torch.manual_seed(2)
    assert torch.equal(first, draw_subset(mask_BT, size_B, ids_B, CHOSEN, DrawKey(1)))
    torch.manual_seed(1)
    assert torch.equal(state, torch.get_rng_state())


# ---- draws: what they do not depend on ---------------------------------------------------------------------


def batch_of_lengths(lengths: list[int], width: int) -> Tensor:
    return torch.arange(width) < torch.tensor(lengths)[:, None]


def test_padding_on_either_side_and_holes_change_no_draw() -> None:
    """Position t is the t-th *completion token*, wherever it stands in the row."""
    lengths, ids = [7, 12, 3], torch.tensor([11, 22, 33])
    sizes = torch.tensor([3, 8, 1])
    plain_BT = batch_of_lengths(lengths, 12)
    expected = members(draw_subset(plain_BT, sizes, ids, CHOSEN, DrawKey(3)))
    right = torch.nn.functional.pad(plain_BT, (0, 64))
    left = plain_BT.flip(-1)
    holes = torch.stack((plain_BT, torch.zeros_like(plain_BT)), -1).flatten(1)
    for mask_BT in (right, left, holes):
        subset_BT = draw_subset(mask_BT, sizes, ids, CHOSEN, DrawKey(3))
        tokens = [row[mask].tolist() for row, mask in zip(subset_BT, mask_BT, strict=True)]
        assert [{t for t, taken in enumerate(row) if taken} for row in tokens] == expected


def test_batch_order_and_batch_size_change_no_draw() -> None:
    lengths, ids = list(range(5, 25)), torch.arange(100, 120) * 7919
    mask_BT, size_B = batch_of_lengths(lengths, 24), torch.tensor(lengths) // 2
    whole = draw_subset(mask_BT, size_B, ids, REJECTED, DrawKey(8, 2))
    order = torch.randperm(20, generator=torch.Generator().manual_seed(0))
    assert torch.equal(
        draw_subset(mask_BT[order], size_B[order], ids[order], REJECTED, DrawKey(8, 2)), whole[order]
    )
    alone = [
        draw_subset(mask_BT[i : i + 1], size_B[i : i + 1], ids[i : i + 1], REJECTED, DrawKey(8, 2))
        for i in range(20)
    ]
    assert torch.equal(torch.cat(alone), whole)


class Operations(TorchFunctionMode):
    """Note the name of every torch operation that Python asks for inside."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        self.names.append(function.__name__)
        return function(*args, **(kwargs or {}))


def test_a_draw_is_the_same_few_operations_for_any_batch_and_never_reads_a_value_back() -> None:
    """No loop over pairs, and no host synchronisation (on a GPU, item, nonzero and the like wait)."""
    seen = []
    for batch in (1, 64):
        length_B, ids_B = torch.full((batch,), 30), torch.arange(batch)
        mask_BT = torch.ones(batch, 30, dtype=torch.bool)
        with Operations() as operations:
            draw_subset(mask_BT, pilot_size(length_B, 0.7), ids_B, CHOSEN, DrawKey(1))
        seen.append(operations.names)
    assert seen[0] == seen[1]
    assert 10 < len(seen[0]) < 50
    waiting = {
        "item",
        "tolist",
        "numpy",
        "cpu",
        "nonzero",
        "masked_select",
        "__bool__",
        "__int__",
        "__index__",
    }
    assert not waiting & set(seen[0])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_draws_what_the_cpu_draws_bit_for_bit() -> None:
    mask_BT, size_B = batch_of_lengths([7, 300, 511, 512], 512), torch.tensor([3, 200, 511, 1])
    ids_B = torch.tensor([0, -1, 2**63 - 1, -(2**63)])
    for ratio in (0.7, 1 / 3):
        assert torch.equal(pilot_size(size_B.cuda(), ratio).cpu(), pilot_size(size_B, ratio))
    on_cpu = draw_subset(mask_BT, size_B, ids_B, REJECTED, DrawKey(42, 2), REFERENCE)
    on_gpu = draw_subset(mask_BT.cuda(), size_B.cuda(), ids_B.cuda(), REJECTED, DrawKey(42, 2), REFERENCE)
    assert torch.equal(on_gpu.cpu(), on_cpu)


# ---- draws: uniform and independent ------------------------------------------------------------------------

N = 20_000
SEQUENTIAL = torch.arange(N)
HASHED = torch.randint(-(2**63), 2**63 - 1, (N,), generator=torch.Generator().manual_seed(9))
LEAST_P = 1e-4  # keys are fixed, so each p value is too: nothing here is flaky


def many(length: int, size: int, ids: Tensor, side: int, draws: DrawKey, stream: int = POLICY) -> Tensor:
    mask_BT = torch.ones(N, length, dtype=torch.bool)
    return draw_subset(mask_BT, torch.full((N,), size), ids, side, draws, stream)


@pytest.mark.parametrize("ids", [SEQUENTIAL, HASHED], ids=["sequential", "hashed"])
@pytest.mark.parametrize(("length", "size"), [(10, 4), (37, 1), (37, 33)])
def test_every_position_is_taken_equally_often(ids: Tensor, length: int, size: int) -> None:
    """For k of n without replacement, sum (c - Nk/n)^2 / (N k/n (1-k/n)) times (n-1)/n is chi-square, n-1."""
    counts = many(length, size, ids, CHOSEN, DrawKey(42)).sum(0).double()
    share = size / length
    spread = (counts - N * share).square().sum() / (N * share * (1 - share)) * (length - 1) / length
    assert stats.chi2.sf(spread.item(), length - 1) > LEAST_P


@pytest.mark.parametrize("ids", [SEQUENTIAL, HASHED], ids=["sequential", "hashed"])
@pytest.mark.parametrize("side", [CHOSEN, REJECTED])
def test_every_subset_is_drawn_equally_often(ids: Tensor, side: int) -> None:
    """3 of 6 positions: 20 subsets, 1000 draws expected of each."""
    codes = (many(6, 3, ids, side, DrawKey(1, 4)).long() << torch.arange(6)).sum(-1)
    counts = torch.bincount(codes, minlength=64)
    seen = counts[counts > 0]
    assert len(seen) == 20
    assert stats.chisquare(seen.numpy()).pvalue > LEAST_P


BASE = {"ids": SEQUENTIAL, "side": CHOSEN, "draws": DrawKey(42, 0), "stream": POLICY}
OTHERS = {
    "sides": BASE | {"side": REJECTED},
    "streams": BASE | {"stream": REFERENCE},
    "seeds": BASE | {"draws": DrawKey(43, 0)},
    "epochs": BASE | {"draws": DrawKey(42, 1)},
    "seed and epoch exchanged": BASE | {"draws": DrawKey(0, 42)},
    "neighbouring ids": BASE | {"ids": SEQUENTIAL + 1},
    "ids far apart": BASE | {"ids": SEQUENTIAL + 2**62},
}


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS.keys())
def test_draws_under_different_keys_are_independent(other: dict) -> None:
    """The overlap of two independent draws of 5 of 10 is hypergeometric; of two equal ones it is always 5."""
    first, second = (many(10, 5, **key) for key in (BASE, other))
    counts = torch.bincount((first & second).sum(-1), minlength=6).double().numpy()
    expected = N * stats.hypergeom.pmf(range(6), 10, 5, 5)
    expected[1], counts[1] = expected[:2].sum(), counts[:2].sum()
    assert stats.chisquare(counts[1:], expected[1:]).pvalue > LEAST_P


def test_positions_are_drawn_independently_of_their_neighbours() -> None:
    """Position 0 and 1 of 10 are both among 5 with probability (5 4) / (10 9) = 2/9."""
    subset_BT = many(10, 5, HASHED, CHOSEN, DrawKey(6))
    for first, second in itertools.combinations(range(10), 2):
        both = int((subset_BT[:, first] & subset_BT[:, second]).sum())
        assert stats.binomtest(both, N, 2 / 9).pvalue > LEAST_P, (first, second)


def test_the_draw_covers_the_whole_completion_not_its_first_m_tokens() -> None:
    counts = many(100, 10, HASHED, CHOSEN, DrawKey(3)).sum(0)
    assert counts.min() > 0.9 * N / 10


# ---- the sum over a draw ----------------------------------------------------------------------------------


def test_shared_draws_sum_the_log_ratio_over_one_subset_and_independent_ones_over_two() -> None:
    generator = torch.Generator().manual_seed(2)
    logp_BT, reference_BT = torch.randn(2, 6, 9, generator=generator, dtype=torch.float64)
    part = Side(logp_BT, reference_BT, torch.ones(6, 9, dtype=torch.bool))
    pair, pilot, draws = Pair(part, part, torch.arange(6)), Pilot(uniform, {}), DrawKey(42, 1)
    shared_B, apart_B = (
        pilot.values(pair, Ratios(0.5, 0.5), draws, draw)[REJECTED].value_B
        for draw in ("shared", "independent")
    )
    for i in range(6):
        policy = sorted(drawn_by_hand(9, 4, i, REJECTED, draws, POLICY))
        reference = sorted(drawn_by_hand(9, 4, i, REJECTED, draws, REFERENCE))
        torch.testing.assert_close(shared_B[i], (logp_BT - reference_BT)[i, policy].sum())
        torch.testing.assert_close(apart_B[i], logp_BT[i, policy].sum() - reference_BT[i, reference].sum())


@pytest.mark.parametrize("coupling", ["independent", "shared", "complement", "antithetic"])
def test_an_independent_draw_draws_the_references_tokens_again_on_both_sides(coupling: str) -> None:
    """With log-probs of 0 and references of powers of two a pilot's value says which tokens the reference's was."""
    steps_BT, mask_BT = (
        2.0 ** torch.arange(30, dtype=torch.float64)[None],
        torch.ones(1, 30, dtype=torch.bool),
    )
    side = Side(torch.zeros_like(steps_BT), steps_BT, mask_BT)
    pilot, pair = Pilot(uniform, {}, coupling=coupling), Pair(side, side, torch.tensor([7]))
    for draw in ("shared", "independent"):
        for piece in pilot.values(pair, Ratios(0.4, 0.6), DrawKey(3), draw):
            of_policy = -(piece.weight_BT * steps_BT).sum(-1)
            assert torch.equal(piece.value_B, of_policy) == (draw == "shared")


@pytest.mark.parametrize("shape", [(1, 1), (1,)])
def test_a_select_that_does_not_weigh_each_token_is_refused(shape: tuple[int, ...]) -> None:
    pair, pilot = toy_pair(), Pilot(lambda place: torch.ones(shape), {})
    with pytest.raises(ValueError, match="must return a weight for each token, of the shape"):
        pilot.values(pair, Ratios(1, 1), DrawKey(1), "shared")
