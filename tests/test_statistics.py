"""Errors, intervals and tests, held to values derived by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lab.benchmarks.statistics import bootstrap, compare, holm, mean_error, preferences, win_rate


def test_mean_and_standard_error_by_hand():
    """1, 2, 3, 4: mean 2.5, squared deviations sum to 5, deviation sqrt(5 / 3), error sqrt(5 / 3) / 2."""
    assert mean_error([1, 2, 3, 4]) == pytest.approx((2.5, math.sqrt(5 / 3) / 2))
    assert mean_error([7.0]) == (7.0, 0.0)


def test_preferences_count_equal_scores_half():
    assert preferences([3, 1, 2], [1, 3, 2]).tolist() == [1.0, 0.0, 0.5]


def test_win_rate_by_hand():
    """Won, lost, tied, won: (100 + 0 + 50 + 100) / 4 = 62.5; squared deviations sum to 6875, n - 1 = 3."""
    rate = win_rate([1, 0, 0.5, 1])
    assert rate.value == 62.5
    assert rate.error == pytest.approx(math.sqrt(6875 / 3) / 2)
    assert 0 <= rate.low < 62.5 < rate.high <= 100


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


def test_the_sign_test_by_hand():
    """8 wins, 2 losses, 1 tie: two-sided 2 * (C(10,0) + C(10,1) + C(10,2)) / 2^10 = 112 / 1024."""
    ours, theirs = [1] * 8 + [0] * 2 + [1], [0] * 8 + [1] * 2 + [1]
    found = compare(ours, theirs)
    assert (found.wins, found.losses, found.ties) == (8, 2, 1)
    assert found.p_value == pytest.approx(112 / 1024)
    assert found.difference.value == pytest.approx(6 / 11)


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
