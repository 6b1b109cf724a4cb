"""A scorer of one's own: one number an answer, and changed code scores anew."""

from __future__ import annotations

import math
import sys

import pytest

from lab.sampling.scorers import Answered, RewardModel, Scorer, WorldScorer, score, scorer_errors
from sgdpo.console import is_advice
from sgdpo.models.tiny import tiny_tokenizer
from sgdpo.source import load_dotted
from sgdpo.world.verifiable import WorldConfig, make_pairs

RATE = """
from lab.sampling.scorers import Scorer


class Rate(Scorer):
    def scores(self, answers):
        yield from [1.0] * len(answers)
"""


class Counted(Scorer):
    """Give so many scores for each answer, or another thing."""

    def __init__(self, *given):
        self.given = given

    def scores(self, answers):
        return [score for _ in answers for score in self.given]


@pytest.mark.parametrize("kept", [True, False])
def test_scores_that_are_not_one_number_an_answer_are_refused_not_shifted(tmp_path, kept) -> None:
    answers = [Answered({}, ({"role": "user", "content": "Q"},), text) for text in ("a", "b", "c")]
    for given, message in (
        ((1.0, 2.0), "gives more scores for 3 answers"), ((), "gives 0 scores for 3"), (("5",), "'5', which is no"),
    ):  # fmt: skip
        scorer = Counted(*given)
        scorer.kept = kept
        with pytest.raises(ValueError, match=message) as caught:
            score(scorer, answers, tmp_path / str(len(given)))
        assert is_advice(caught.value)
    assert score(Counted(0.5), answers, tmp_path) == [0.5] * 3


def test_a_scorers_changed_code_scores_anew(tmp_path) -> None:
    file = tmp_path / "rate.py"
    found = []
    for text in (RATE, RATE.replace("1.0", "2.0"), RATE):
        file.write_text(text)
        sys.modules.pop("rate", None)
        found.append(load_dotted("rate.Rate", [str(file)])().identity())
    assert found[0] == found[2] != found[1]


def test_a_class_that_derives_from_no_scorer_is_refused(tmp_path) -> None:
    (file := tmp_path / "own.py").write_text(
        RATE.replace("Rate(Scorer)", "Rate").replace("from lab", "# from lab")
    )
    judge = {"name": "checker", "class": "lab.judging.judges.Checker", "label": "checker"}
    (said,) = scorer_errors({"name": "own", "class": "own.Rate"}, judge, [str(file)])
    assert said == "scorer.class: own.Rate must derive from Scorer, as every scorer does"


@pytest.mark.parametrize("answers", ["short", "long"])
def test_the_worlds_scorer_gives_an_answer_of_either_genre_what_its_pair_has(answers) -> None:
    rows = list(make_pairs(WorldConfig(answers=answers, pairs=40, test_pairs=10), held_out=True))
    pairs = [(row, side) for row in rows for side in ("chosen", "rejected")]
    asked = [Answered(row, ({"role": "user", "content": row["prompt"]},), row[side]) for row, side in pairs]
    assert list(WorldScorer().scores(asked)) == [row[f"score_{side}"] for row, side in pairs]
    for prompt in ("What is it?", "Add: apples", "Add step by step: apples"):
        with pytest.raises(ValueError, match="is no task of the generated world"):
            WorldScorer().fits(Answered({}, ({"role": "user", "content": prompt},), ""))


def test_a_reward_model_whose_config_says_no_context_scores_too(tmp_path) -> None:
    from transformers import AutoConfig, AutoModelForSequenceClassification

    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    shape = {"hidden_size": 8, "n_head": 2, "n_layer": 1, "vocab_size": len(tokenizer), "num_labels": 1}
    config = AutoConfig.for_model("bloom", **shape)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path)
    asked = ({"role": "user", "content": "Q"},)
    scores = RewardModel(path=str(tmp_path)).scores([Answered({}, asked, text) for text in ("a", "b b")])
    assert [math.isfinite(score) for score in scores] == [True, True]
