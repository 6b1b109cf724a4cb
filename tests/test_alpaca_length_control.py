"""The length-controlled win rate: what it must find in made-up data, and alpaca-eval itself as the oracle."""

from __future__ import annotations

import importlib.util
import json
import math
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from lab.benchmarks.length_control import length_controlled

needs_oracle = pytest.mark.skipif(
    importlib.util.find_spec("alpaca_eval") is None,
    reason="alpaca-eval==0.6.6 is not installed (an oracle only)",
)


FIXTURE = Path(__file__).parent / "fixtures" / "alpaca_eval_length_control.json"
FORMS = ["length_controlled_v1", "length_controlled_noreg", "length_controlled_minimal"]


def made_up(seed: int = 0, n: int = 805, quality: float = -1.0, bias: float = 0.8):
    """Return preferences of a judge with a bias for length, both lengths, and difficulties.

    RandomState's stream is frozen, so that the committed numbers of the package belong to these rows for good.
    """
    draws = np.random.RandomState(seed)
    theirs = draws.randint(200, 3000, n)
    ours = (theirs * draws.uniform(0.3, 1.6, n)).astype(int)
    difference = (ours - theirs) / (ours - theirs).std(ddof=1)
    difficulty = draws.normal(0, 1.5, n)
    logit = quality + bias * np.tanh(difference) + 0.4 * difficulty
    return 1 / (1 + np.exp(-logit)), ours, theirs, difficulty


def made_up_gamed(difficulty: np.ndarray, bias: float = 2.0) -> pd.DataFrame:
    """Return rows of two gamed baselines whose longer answers win; std_delta_len is theirs less the gamed one's."""
    draws, n = np.random.RandomState(9), 2 * len(difficulty)
    std_delta_len = draws.normal(0, 1.5, n)
    won = 1 / (1 + np.exp(bias * np.tanh(std_delta_len) + draws.normal(0, 0.5, n)))
    return pd.DataFrame(
        {
            "index": np.tile(np.arange(len(difficulty)), 2),
            "model": "gamed",
            "preference": won,
            "instruction_difficulty": np.tile(difficulty, 2),
            "std_delta_len": std_delta_len,
            "not_gamed_baseline": False,
        }
    )


def ours_in(form: str, seed: int):
    """Return our value on the made-up rows in one of the package's forms."""
    won, ours, theirs, difficulty = made_up(seed)
    return length_controlled(
        won,
        ours,
        theirs,
        difficulty_B=None if form.endswith("minimal") else difficulty,
        gamed=made_up_gamed(difficulty) if form.endswith("v1") else None,
    )


def packages_number(form: str, seed: int, gamed_file: Path, monkeypatch) -> dict[str, float]:
    """Return alpaca-eval's own numbers on the same rows."""
    from alpaca_eval.metrics import glm_winrate

    won, ours, theirs, difficulty = made_up(seed)
    made_up_gamed(difficulty).to_csv(gamed_file, index=False)
    monkeypatch.setattr(glm_winrate, "hf_hub_download", lambda **kwargs: str(gamed_file))
    rows = pd.DataFrame(
        {
            "preference": 1 + won,
            "output_1": ["x" * length for length in theirs],
            "output_2": ["x" * length for length in ours],
            "generator_1": "baseline",
            "generator_2": "ours",
            "annotator": "judge",
        }
    )
    return glm_winrate.get_length_controlled_winrate(rows, glm_name=form, save_weights_dir=None)


def test_a_longer_answer_that_wins_loses_by_the_control():
    """By hand: the gamed rows say that length alone wins, by up to 2 in logits; quality is worth -1.5.

    Ours is 500 or 1,500 characters longer; the deviation is 500, so the difference is worth 2 tanh(1) = 1.52 or
    2 tanh(3) = 1.99. It wins sigmoid(0.02) = 51 % and sigmoid(0.49) = 62 %. At equal length sigmoid(-1.5) = 18 %
    are left. With the sign turned the gamed rows would give it more than it had, not less.
    """
    n = 400
    theirs = np.full(n, 1000)
    ours = theirs + np.tile([500, 1500], n // 2)
    gamed = made_up_gamed(np.zeros(n))
    spread = (theirs - ours).std(ddof=1)
    won = 1 / (1 + np.exp(1.5 + 2 * np.tanh((theirs - ours) / spread)))
    assert won.mean() > 0.55
    found = length_controlled(won, ours, theirs, difficulty_B=np.zeros(n), gamed=gamed)
    assert found.form == "regularised"
    assert found.value < 40 < 100 * won.mean()
    shorter = length_controlled(1 - won, theirs, ours, difficulty_B=np.zeros(n), gamed=gamed)
    assert shorter.value > 60 > 100 * (1 - won).mean(), "and a shorter one that loses gains"


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("form", FORMS)
def test_the_packages_numbers_are_met_without_the_package(form, seed):
    """The fixture is alpaca-eval 0.6.6's own output on the made-up rows; the test below makes it again."""
    theirs = json.loads(FIXTURE.read_text())[f"{form}/{seed}"]
    found = ours_in(form, seed)
    assert found.value == pytest.approx(theirs["length_controlled_winrate"], abs=0.1)
    if not form.endswith("minimal"):
        assert found.error == pytest.approx(theirs["lc_standard_error"], abs=0.01)


@needs_oracle
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("form", FORMS)
def test_the_fixture_is_what_the_package_says(form, seed, tmp_path, monkeypatch):
    theirs = packages_number(form, seed, tmp_path / "df_gamed.csv", monkeypatch)
    for key, value in json.loads(FIXTURE.read_text())[f"{form}/{seed}"].items():
        assert theirs[key] == pytest.approx(value, abs=0.02), key


def test_a_bias_for_length_is_taken_out():
    """Preferences are sigmoid(0 + 2 tanh(length difference)): of equal length, both win half of the time."""
    _, ours, theirs, _ = made_up()
    ours = ours + 700
    difference = (ours - theirs) / (ours - theirs).std(ddof=1)
    won = 1 / (1 + np.exp(-2 * np.tanh(difference)))
    assert 100 * won.mean() > 60
    assert length_controlled(won, ours, theirs).value == pytest.approx(50, abs=1)


def test_without_a_bias_the_raw_rate_stays():
    won, ours, theirs, difficulty = made_up(bias=0.0)
    found = length_controlled(won, ours, theirs, difficulty_B=difficulty)
    assert found.value == pytest.approx(100 * won.mean(), abs=0.3)
    assert found.form == "plain"


def test_the_prediction_is_the_mean_over_difficulties_at_equal_length():
    """The truth is known: the mean of sigmoid(-1 + 0.4 difficulty), whatever the lengths."""
    won, ours, theirs, difficulty = made_up()
    truth = 100 * np.mean(1 / (1 + np.exp(1.0 - 0.4 * difficulty)))
    assert length_controlled(won, ours, theirs, difficulty_B=difficulty).value == pytest.approx(
        truth, abs=0.3
    )


def test_answers_of_equal_length_leave_nothing_to_control():
    won = (np.arange(100) % 4 == 0).astype(float)
    assert length_controlled(won, [50] * 100, [50] * 100).value == pytest.approx(25, abs=1)


def test_the_bootstrap_error_without_difficulties_is_that_of_a_share():
    """900 fair coins at random lengths: the error of the level is near 100 * 0.5 / sqrt(900) = 1.67 points."""
    draws = np.random.default_rng(1)
    won = draws.integers(0, 2, 900).astype(float)
    found = length_controlled(won, draws.integers(1, 100, 900), draws.integers(1, 100, 900))
    assert found.error == pytest.approx(100 * 0.5 / math.sqrt(900), rel=0.2)


def test_missing_preferences_are_left_out_of_the_fit():
    won, ours, theirs, difficulty = made_up()
    whole = length_controlled(won, ours, theirs, difficulty_B=difficulty).value
    won[::40] = np.nan
    assert length_controlled(won, ours, theirs, difficulty_B=difficulty).value == pytest.approx(
        whole, abs=0.5
    )


def test_too_few_prompts_give_no_number_rather_than_a_wild_one():
    found = length_controlled([1.0] * 9, [1] * 9, [2] * 9)
    assert (found.value, found.error) == (None, None)
    assert "9 judged prompts" in found.form


@pytest.mark.parametrize("won", [0, 1, 804, 805])
@pytest.mark.parametrize("known", [True, False], ids=["difficulties", "plain"])
def test_all_won_or_lost_is_not_identifiable_and_quickly_said(won, known):
    """A penalty would make 50 % of all lost; one win of 805 gave 20.8 +- 47 after minutes."""
    _, ours, theirs, difficulty = made_up()
    started = time.monotonic()
    found = length_controlled(
        np.arange(805) < won, ours, theirs, difficulty_B=difficulty if known else None,
        gamed=made_up_gamed(difficulty) if known else None,
    )  # fmt: skip
    assert (found.value, found.error) == (None, None)
    assert found.form.startswith("not identifiable: ")
    assert f"{min(won, 805 - won)}.0 of 805" in found.form
    assert time.monotonic() - started < 5


def test_gamed_annotations_without_difficulties_are_refused():
    won, ours, theirs, difficulty = made_up(n=50)
    with pytest.raises(ValueError, match=r"benchmark\.difficulties"):
        length_controlled(won, ours, theirs, gamed=made_up_gamed(difficulty))
