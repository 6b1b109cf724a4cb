"""A scorer of one's own: one number an answer, and changed code scores anew."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

import pytest

from evaluation_fixtures import finished_run
from lab.sampling.sample import prompt_errors, sample
from lab.sampling.scorers import Answered, RewardModel, Scorer, WorldScorer, score, scorer_errors
from lab.sampling.settings import compose_sample
from sgdpo.console import is_advice
from sgdpo.models.tiny import tiny_tokenizer
from sgdpo.source import load_dotted
from sgdpo.store import read_json, read_jsonl, write_jsonl
from sgdpo.world.verifiable import WorldConfig, make_pairs

RATE = """
from lab.sampling.scorers import Scorer


class Rate(Scorer):
    def scores(self, answers):
        yield from [1.0] * len(answers)
"""

# A template that knows no system turn.
REFUSES = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system turn') }}{% endif %}"
    "{{ m.content }}<|end|>{% endfor %}"
)


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


@pytest.mark.parametrize("pads", [True, False])
def test_a_reward_model_that_knows_no_context_or_padding_scores_as_each_answer_alone(tmp_path, pads) -> None:
    from transformers import AutoConfig, AutoModelForSequenceClassification

    tokenizer = tiny_tokenizer()
    if not pads:
        tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path)
    # Wide, so that two answers have two scores.
    shape = {"hidden_size": 8, "n_head": 2, "n_layer": 1, "num_labels": 1, "initializer_range": 0.5}
    config = AutoConfig.for_model("bloom", **shape, vocab_size=len(tokenizer))
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path)
    asked = ({"role": "user", "content": "Q"},)
    model = RewardModel(path=str(tmp_path))
    answers = [Answered({}, asked, text) for text in ("a", "b b")]
    together, alone = list(model.scores(answers)), [score for a in answers for score in model.scores([a])]
    assert together == pytest.approx(alone, abs=1e-5)
    assert together[0] != pytest.approx(together[1], abs=1e-5)


# ---- a reward model, through the real sampling ------------------------------------------------------------


@pytest.fixture(scope="module")
def policy(tmp_path_factory) -> Path:
    return finished_run(tmp_path_factory.mktemp("policy") / "outputs" / "exp" / "start")


@pytest.fixture
def prompts(tmp_path) -> Path:
    file = tmp_path / "prompts.jsonl"
    write_jsonl(file, [{"prompt": f"Sort: {word}"} for word in ("ab", "ba", "cab", "abc", "ba")])
    return file


@pytest.fixture(scope="module")
def reward(policy, tmp_path_factory) -> Path:
    from transformers import AutoConfig, AutoModelForSequenceClassification

    place = shutil.copytree(policy / "model", tmp_path_factory.mktemp("reward") / "reward")
    config = AutoConfig.from_pretrained(place, num_labels=1)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(place)
    return place


def scored(tmp_path: Path, policy: Path, reward: Path, prompts: Path, *more: str):
    where = [f"outputs='{tmp_path / 'outputs'}'", f"policy='{policy}'", f"data.train='{prompts}'"]
    asked = ["data=local", "answers=3", "max_new_tokens=12", "device=cpu", "scorer=reward_model"]
    return compose_sample([*asked, *where, f"scorer.path='{reward}'", *more])


def test_a_reward_model_scores_any_prompts_and_keeps_its_scores(policy, reward, prompts, tmp_path) -> None:
    place = shutil.copytree(reward, tmp_path / "reward")
    folder = sample(scored(tmp_path, policy, place, prompts))
    assert read_json(folder / "pairs.json")["splits"]["train"]["prompts"] == 4, "one prompt came twice"
    (scores,) = (tmp_path / "outputs" / "cache" / "scores").glob("*.jsonl")
    kept = read_jsonl(scores)
    again = scored(tmp_path, policy, place, prompts, f"into='{tmp_path / 'again'}'", "margin=0.0001")
    sample(again)
    assert read_jsonl(scores) == kept
    (place / "chat_template.jinja").write_text("{{ messages[-1]['content'] }}<|end|>")
    with pytest.raises(ValueError, match=r"pairs of another sampling .*scorer"):
        sample(again)
    rows = read_jsonl(prompts)
    write_jsonl(prompts, [*({**row, "reference": "what a scorer may look at"} for row in rows)])
    with pytest.raises(ValueError, match=r"pairs of another sampling .*prompts\.train"):
        sample(again)


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("chat_template.jinja", None, "has no chat template, which puts a conversation to a reward model"),
        ("tokenizer.json", "{", "the tokenizer of .*/reward cannot be loaded: "),
    ],
)
def test_what_a_reward_model_lacks_is_said_before_anything_is_answered(
    policy, reward, prompts, tmp_path, file, content, said
) -> None:
    place = shutil.copytree(reward, tmp_path / "reward")
    (place / file).unlink()
    if content is not None:
        (place / file).write_text(content)
    config = scored(tmp_path, policy, place, prompts)
    (error,) = prompt_errors(config)
    assert re.search(said, error), error
    with pytest.raises(ValueError, match=said):
        sample(config)
    assert not list((tmp_path / "outputs").rglob("generations/*.jsonl"))


def test_damaged_weights_of_a_reward_model_are_one_line(policy, reward, prompts, tmp_path) -> None:
    place = shutil.copytree(reward, tmp_path / "reward")
    (place / "model.safetensors").write_bytes(b"rubbish")
    with pytest.raises(ValueError, match=r"the reward model of .*/reward cannot be loaded: ") as caught:
        sample(scored(tmp_path, policy, place, prompts))
    assert is_advice(caught.value)


@pytest.mark.parametrize("whose", ["policy", "reward"])
def test_a_row_that_a_template_refuses_follows_data_refused_as_in_training(
    policy, reward, tmp_path, whose, caplog
) -> None:
    """And a prompt that is longer than the policy's context is counted and said."""
    turns = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Sort: ab"}]
    rows = [turns, turns[1:], [{"role": "user", "content": "Sort: " + "ab " * 600}]]
    write_jsonl(tmp_path / "rows.jsonl", [{"messages": row} for row in rows])
    places = {"policy": policy / "model", "reward": reward}
    places[whose] = shutil.copytree(places[whose], tmp_path / whose)
    (places[whose] / "chat_template.jinja").write_text(REFUSES)
    config = scored(tmp_path, places["policy"], places["reward"], tmp_path / "rows.jsonl")
    counts = read_json(sample(config) / "pairs.json")["splits"]["train"]
    assert (counts["prompts"], counts["prompts_cut"]) == (2, 1)
    said = "\n".join(caplog.messages)
    assert re.search(
        r"1 rows are left out; the first: row 0: .*refuses the conversation: no system turn", said
    )
    assert "3 of 6 prompts pass the model's context and lost their beginning" in said
    config.data.refused = "error"
    with pytest.raises(
        ValueError, match=r"row 0: .*no system turn; leave such rows out with data.refused=drop"
    ):
        sample(config)


def test_a_model_that_would_score_at_random_scores_nothing(policy, prompts, tmp_path) -> None:
    """Of a language model the head of one number would be drawn anew in every process; of two it is none."""
    config = json.loads((policy / "model" / "config.json").read_text())
    for labels, message in ((1, r"lacks 1 tensors of the model: score\.weight"), (2, "gives 2 numbers")):
        place = shutil.copytree(policy / "model", tmp_path / str(labels))
        names = {str(n): f"L{n}" for n in range(labels)}
        (place / "config.json").write_text(json.dumps({**config, "id2label": names}))
        with pytest.raises(ValueError, match=message):
            sample(scored(tmp_path, policy, place, prompts))
    assert not list((tmp_path / "outputs" / "cache").rglob("scores/*.jsonl")) or not any(
        read_jsonl(file) for file in (tmp_path / "outputs" / "cache" / "scores").glob("*.jsonl")
    )
