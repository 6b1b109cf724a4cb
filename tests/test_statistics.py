"""Errors, intervals and tests, held to values derived by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lab.benchmarks.statistics import (
    bootstrap,
    compare,
    compare_over_seeds,
    discrete_win_rate,
    holm,
    mean_error,
    preferences,
    share,
)


def test_mean_and_standard_error_by_hand():
    """1, 2, 3, 4: mean 2.5, squared deviations sum to 5, deviation sqrt(5 / 3), error sqrt(5 / 3) / 2."""
    assert mean_error([1, 2, 3, 4]) == pytest.approx((2.5, math.sqrt(5 / 3) / 2))
    assert mean_error([7.0]) == (7.0, 0.0)


def test_preferences_count_equal_scores_half():
    assert preferences([3, 1, 2], [1, 3, 2]).tolist() == [1.0, 0.0, 0.5]


def test_win_rate_by_hand():
    """Won, lost, tied, won: (100 + 0 + 50 + 100) / 4 = 62.5; squared deviations sum to 6875, n - 1 = 3."""
    rate = share([1, 0, 0.5, 1])
    assert rate.value == 62.5
    assert rate.error == pytest.approx(math.sqrt(6875 / 3) / 2)
    assert 0 <= rate.low < 62.5 < rate.high <= 100


def test_an_interval_has_a_width_where_every_prompt_is_won_or_lost():
    """12 of 12 won: with two wins and two losses 14 of 16 = 87.5 %, deviation sqrt(0.875 * 0.125), over 16."""
    rate, lost = share([1.0] * 12), share([0.0] * 12)
    half = 100 * 1.959964 * math.sqrt(0.875 * 0.125 / 16)
    assert (rate.value, rate.low, rate.high) == (100.0, pytest.approx(87.5 - half), 100.0)
    assert (lost.value, lost.low, lost.high) == (0.0, 0.0, pytest.approx(12.5 + half))


@pytest.mark.parametrize("truth", [0.02, 0.3, 0.9])
def test_the_interval_of_a_win_rate_covers_the_truth_as_often_as_it_says(truth):
    """1,000 samples of 40 prompts: a bootstrap of 40 prompts won at 2 % would miss more than half the time."""
    draws = np.random.default_rng(5)
    rates = [share(draws.random(40) < truth) for _ in range(1000)]
    assert 0.93 <= sum(rate.low <= 100 * truth <= rate.high for rate in rates) / 1000 <= 1.0


def test_a_discrete_win_rate_counts_every_preference_whole():
    """0.9 and 0.51 are won, 0.2 is lost, 0.5 is tied: (1 + 1 + 0 + 0.5) / 4."""
    assert discrete_win_rate([0.9, 0.51, 0.2, 0.5]) == 62.5


def test_the_bootstrap_interval_is_the_normal_one_for_many_normal_values():
    """Over 2,000 normal values the percentile interval is the mean +- 1.96 errors, to a tenth of an error."""
    values = np.random.default_rng(0).normal(3.0, 2.0, 2000)
    mean, error = mean_error(values)
    interval = bootstrap(values, seed=1)
    assert interval.value == pytest.approx(mean)
    assert interval.error == pytest.approx(error, rel=0.05)
    assert interval.low == pytest.approx(mean - 1.96 * error, abs=0.1 * error)
    assert interval.high == pytest.approx(mean + 1.96 * error, abs=0.1 * error)


def test_the_bootstrap_covers_the_truth_as_often_as_it_says():
    """200 samples of 60 exponential values: a 95 % interval misses the mean of 1 about 10 times, not over 24."""
    draws = np.random.default_rng(2)
    intervals = [bootstrap(draws.exponential(1.0, 60), seed=n, resamples=500) for n in range(200)]
    missed = sum(not interval.low <= 1.0 <= interval.high for interval in intervals)
    assert 2 <= missed <= 24


def test_the_bootstrap_depends_on_its_seed_alone():
    values = np.random.default_rng(0).random(30)
    np.random.seed(1)
    first = bootstrap(values, seed=5)
    np.random.seed(2)
    assert bootstrap(values, seed=5) == first != bootstrap(values, seed=6)


def test_equal_values_have_no_spread():
    interval = bootstrap([0.5] * 20)
    assert (interval.value, interval.error, interval.low, interval.high) == (0.5, 0.0, 0.5, 0.5)


def test_one_value_says_nothing_of_others():
    """Its interval has no ends, and no error stands behind it; one prompt won lies between nearly none and all."""
    alone, won, against = bootstrap([7.0], [2]), share([1.0]), compare([2.0], [1.0])
    assert (alone.value, alone.low, alone.high) == (3.5, -math.inf, math.inf)
    assert math.isnan(alone.error)
    assert math.isnan(won.error)
    assert 0 < won.low < 50 < won.high == 100
    assert (against.p_value, against.difference.low, against.difference.high) == (1.0, -math.inf, math.inf)


def test_the_sign_test_by_hand():
    """8 wins, 2 losses, 1 tie: two-sided 2 * (C(10,0) + C(10,1) + C(10,2)) / 2^10 = 112 / 1024."""
    ours, theirs = [1] * 8 + [0] * 2 + [1], [0] * 8 + [1] * 2 + [1]
    found = compare(ours, theirs)
    assert (found.wins, found.losses, found.ties) == (8, 2, 1)
    assert found.p_value == pytest.approx(112 / 1024)
    assert found.difference.value == pytest.approx(6 / 11)


def test_the_test_and_the_winner_are_of_one_kind():
    """Ours wins 10 prompts by a hair and loses 2 by much: the mean is theirs, and no test says ours is better."""
    ours, theirs = [1.01] * 10 + [0.0] * 2, [1.0] * 10 + [9.0] * 2
    found = compare(ours, theirs)
    assert (found.wins, found.losses) == (10, 2)
    assert found.difference.value < 0
    # Of all signs, those as far out have both large ones on one side: half of them, all but a few.
    assert found.p_value == pytest.approx(0.5, abs=0.01)


def test_few_and_many_prompts_are_tested_alike():
    """14 differences are tried in full, 15 by drawing: one more near zero changes the p-value little."""
    differences = [0.9, 0.4, -0.3, 0.8, 0.2, 0.7, -0.5, 0.6, 0.3, 0.35, -0.1, 0.45, 0.15, 0.25]
    few, many = compare(differences, [0] * 14), compare([*differences, 1e-9], [0] * 15)
    assert few.p_value == pytest.approx(many.p_value, abs=0.005)
    assert 0.001 < few.p_value < 0.05


@pytest.mark.proof
def test_the_noise_of_training_makes_no_stars():
    """Tables of six methods against DPO, three seeds each, 150 prompts won or lost; no method differs from another.

    Runs differ by 0.4 in logits, ten points of a win rate. About 5 % of such tables may show a star; tested over
    prompts alone, as if one run were the method, more than 30 % do.
    """
    draws, tables, starred, naive = np.random.default_rng(7), 80, 0, 0
    for _ in range(tables):
        logits = draws.normal(0, 0.8, 150) + draws.normal(0, 0.4, (7, 3, 1))
        won = (draws.random((7, 3, 150)) < 1 / (1 + np.exp(-logits))).astype(float)
        found = [compare_over_seeds(won[n], won[0]).p_value for n in range(1, 7)]
        alone = [compare(won[n].mean(0), won[0].mean(0)).p_value for n in range(1, 7)]
        starred, naive = starred + (min(holm(found)) < 0.05), naive + (min(holm(alone)) < 0.05)
    assert starred / tables <= 0.10
    assert naive / tables > 0.30


def test_a_real_difference_is_found_over_seeds():
    """Ours wins 15 points more in each of five seeds, which differ by 2."""
    draws = np.random.default_rng(8)
    ours = (draws.random((5, 300)) < 0.65 + draws.normal(0, 0.02, (5, 1))).astype(float)
    theirs = (draws.random((5, 300)) < 0.5 + draws.normal(0, 0.02, (5, 1))).astype(float)
    found = compare_over_seeds(ours, theirs)
    assert found.p_value < 0.01
    assert 0.05 < found.difference.low < 0.15 < found.difference.high < 0.25
    assert "training seeds" in found.test


def test_the_test_over_seeds_by_hand():
    """Three seeds with differences 0.1, 0.2, 0.3 on every prompt: t = 0.2 / (0.1 / sqrt(3)), 2 degrees.

    P(|t| > 2 sqrt(3)) with 2 degrees of freedom is 1 - t / sqrt(2 + t^2) = 1 - sqrt(12 / 14).
    """
    ours = np.repeat([[0.1], [0.2], [0.3]], 40, axis=1)
    found = compare_over_seeds(ours, np.zeros((3, 40)))
    assert found.p_value == pytest.approx(1 - math.sqrt(12 / 14))
    assert found.difference.value == pytest.approx(0.2)


def test_one_seed_is_tested_over_prompts_and_says_so():
    ours, theirs = [[1, 0, 1, 1]], [[0, 0, 0, 0]]
    assert compare_over_seeds(ours, theirs) == compare(ours[0], theirs[0])
    assert "not of the methods" in compare_over_seeds(ours, theirs).test


def test_prompts_without_a_judgment_are_left_out():
    ours = [[1, 1, np.nan, 0], [1, 1, 1, 0]]
    assert compare_over_seeds(ours, np.zeros((2, 4))).ties == 1
    assert compare_over_seeds(ours, np.zeros((2, 4))).wins == 2


def test_identical_methods_differ_by_nothing():
    found = compare([1, 2, 3], [1, 2, 3])
    assert (found.p_value, found.difference.low, found.difference.high) == (1.0, 0.0, 0.0)


def test_pairing_finds_what_unpaired_errors_hide():
    """Scores vary by 10 between prompts; ours is better by 0.5 on each: paired, the interval excludes 0."""
    base = np.random.default_rng(3).normal(0, 10, 50)
    found = compare(base + 0.5 + np.random.default_rng(4).normal(0, 0.1, 50), base)
    assert 0.4 < found.difference.low < 0.5 < found.difference.high < 0.6
    assert mean_error(base)[1] > 1


def test_holm_by_hand():
    """Sorted 0.01, 0.03, 0.04, 0.6 times 4, 3, 2, 1: 0.04, 0.09, 0.08 raised to 0.09, 0.6; back in order."""
    assert holm([0.04, 0.01, 0.6, 0.03]) == pytest.approx([0.09, 0.04, 0.6, 0.09])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: mean_error([]), "at least one score"),
        (lambda: mean_error([1.0, float("nan")]), "1 of 2 scores are not finite"),
        (lambda: compare([1, 2], [1]), "2 scores against 1"),
    ],
)
def test_scores_that_would_mislead_are_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call()
