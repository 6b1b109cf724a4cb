"""Rows of a step: even, within the budget, as many for every rank, and without influence on what is trained."""

from __future__ import annotations

import logging
from itertools import chain

import numpy as np
import pytest

from sgdpo.data.batching import (
    RowSampler,
    StepSampler,
    epoch_order,
    even_rows,
    rows_per_step,
    tokens_of,
)


def some_lengths(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 60, (count, 3))


def steps_of(sampler: StepSampler, rows: int) -> list[list[list[int]]]:
    found = list(sampler)
    return [found[start : start + rows] for start in range(0, len(found), rows)]


def test_tokens_of_a_pair_in_both_layouts() -> None:
    """Prompt 10, chosen 3, rejected 4: 17 with one prompt, 27 with two; without a rejected side 13."""
    lengths = np.array([[10, 3, 4], [10, 3, 0]])
    assert tokens_of(lengths, "shared_prefix").tolist() == [17, 13]
    assert tokens_of(lengths, "separate").tolist() == [27, 13]


def test_the_longest_go_first_to_the_emptiest_row() -> None:
    """9 | 7 | then 6 beside 7, 5 beside 9, 2 beside 13: loads 14 and 15."""
    assert even_rows(np.array([2, 9, 7, 5, 6]), 2) == [[1, 3], [0, 2, 4]]


def test_every_step_is_one_batch_of_the_epochs_permutation() -> None:
    lengths = some_lengths(50)
    sampler = StepSampler(lengths, batch_size=8, rows=3, world_size=1, seed=5, layout="shared_prefix")
    steps = steps_of(sampler, 3)
    assert (len(sampler), len(steps), sampler.steps) == (18, 6, 6)
    order = epoch_order(50, 5, 0)
    for number, step in enumerate(steps):
        assert sorted(chain(*step)) == sorted(order[8 * number : 8 * number + 8])


@pytest.mark.parametrize("layout", ["shared_prefix", "separate"])
def test_no_row_exceeds_the_budget_and_rows_are_even(layout) -> None:
    lengths = some_lengths(400)
    rows = rows_per_step(lengths, 32, 1, 500, layout, seed=3, steps=24)
    sampler = StepSampler(lengths, 32, rows, 1, 3, layout)
    tokens = tokens_of(lengths, layout)
    for epoch in range(2):
        sampler.set_epoch(epoch)
        for step in steps_of(sampler, rows):
            loads = [tokens[row].sum() for row in step]
            assert max(loads) <= 500
            assert max(loads) - min(loads) <= tokens.max()


def test_every_epoch_that_the_steps_reach_is_looked_at() -> None:
    """Five steps an epoch, of which the longest of the first just fits a row; a later one does not."""
    lengths = some_lengths(40)
    sampler = StepSampler(lengths, 8, 1, 1, 0, "shared_prefix")
    budget = max(int(tokens_of(lengths, "shared_prefix")[step].sum()) for step in sampler)
    found = [rows_per_step(lengths, 8, 1, budget, "shared_prefix", seed=0, steps=n) for n in (5, 6, 15)]
    assert found[0] == 1
    assert found[-1] == 2
    assert found == sorted(found)


def test_rows_are_as_few_as_fit() -> None:
    """Every pair takes 30 tokens: 8 pairs in rows of at most 100 make 3 rows; on 2 ranks 2 each."""
    lengths = np.tile([10, 10, 10], (16, 1))
    assert rows_per_step(lengths, 8, 1, 100, "shared_prefix", seed=0, steps=1) == 3
    assert rows_per_step(lengths, 8, 2, 100, "shared_prefix", seed=0, steps=1) == 2


@pytest.mark.parametrize(("rows", "world"), [(1, 1), (4, 1), (2, 2), (1, 4)])
def test_what_a_step_trains_depends_on_neither_rows_nor_ranks(rows, world) -> None:
    lengths = some_lengths(64)
    sampler = StepSampler(lengths, 16, rows, world, seed=9, layout="shared_prefix")
    found = [sorted(chain(*step)) for step in steps_of(sampler, rows * world)]
    alone = StepSampler(lengths, 16, 1, 1, seed=9, layout="shared_prefix")
    assert found == [sorted(row) for row in alone]
    assert all(row for row in sampler), "no rank idles: every row has an example"


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    """Seed s's second epoch is not seed s + 1's first, as it is where epoch e uses seed + e."""
    orders = [tuple(epoch_order(100, seed, epoch)) for seed in (0, 1, 2) for epoch in (0, 1, 2)]
    assert len(set(orders)) == 9
    assert tuple(epoch_order(100, 1, 2)) == orders[5]
    assert all(sorted(order) == list(range(100)) for order in orders)


def test_the_order_is_pinned_for_ever() -> None:
    """A resumed run, another machine or another numpy must not see other steps."""
    assert epoch_order(8, seed=42, epoch=1).tolist() == [0, 1, 6, 5, 3, 7, 4, 2]


def test_a_negative_or_huge_seed_works() -> None:
    assert len(epoch_order(5, -1, 0)) == len(epoch_order(5, 2**70, 0)) == 5


def test_every_example_is_evaluated_once_on_any_number_of_ranks() -> None:
    lengths = some_lengths(37)
    for world in (1, 2, 4):
        sampler = RowSampler(lengths, 300, world, "shared_prefix")
        assert len(sampler) % world == 0
        assert sorted(chain(*sampler)) == list(range(37))
        assert all(tokens_of(lengths, "shared_prefix")[row].sum() <= 300 for row in sampler)


def test_a_pair_beyond_the_budget_gets_a_row_of_its_own_and_a_note(caplog) -> None:
    """Three pairs of 30 tokens and one of 90, budget 60: the long one alone, at most 90 in a row."""
    lengths = np.array([[10, 10, 10]] * 3 + [[30, 30, 30]])
    with caplog.at_level(logging.WARNING):
        rows = list(RowSampler(lengths, 60, 1, "shared_prefix"))
    assert [3] in rows
    assert "1 of 4 examples exceed trainer.max_tokens_per_row=60 (the longest takes 90 tokens)" in caplog.text


def test_a_budget_below_every_pair_is_an_error() -> None:
    with pytest.raises(
        ValueError, match=r"max_tokens_per_row=20 is too small for any example: the shortest takes 30"
    ):
        rows_per_step(np.array([[10, 10, 10]] * 4), 2, 1, 20, "shared_prefix", seed=0, steps=1)


def test_a_batch_smaller_than_the_ranks_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"batch_size=2 leaves some of 4 processes without an example"):
        rows_per_step(some_lengths(9), 2, 4, 500, "shared_prefix", seed=0, steps=1)


def test_a_batch_larger_than_the_data_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"batch_size=10 is more than the 9 training examples"):
        StepSampler(some_lengths(9), 10, 1, 1, 0, "shared_prefix")


def test_fewer_examples_than_ranks_or_none_is_an_error() -> None:
    with pytest.raises(ValueError, match="2 examples cannot be dealt to 4 processes"):
        RowSampler(some_lengths(2), 500, 4, "shared_prefix")
    with pytest.raises(ValueError, match="there is no example to put into rows"):
        rows_per_step(np.zeros((0, 3), int), 1, 1, 500, "shared_prefix", seed=0, steps=1)
