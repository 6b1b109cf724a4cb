"""The long genre: answers of 20 to 100 tokens, checked, graded, disjoint from its evaluation, with the same knobs."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from random import Random
from statistics import mean, median

import pytest

from sgdpo.config.compose import compose_run, to_run_config
from sgdpo.models.tiny import tiny_tokenizer
from sgdpo.world.long import FAMILIES, LONG, check, draw
from sgdpo.world.tasks import Task
from sgdpo.world.verifiable import ALPHABET, WorldConfig, corrupt, held_out_prompts, make_world, world_of

WORLD = WorldConfig(
    answers="long", pairs=500, demonstrations=300, test_pairs=100, prompts=120, demonstration_noise=0.4
)


@pytest.fixture(scope="module")
def world():
    return make_world(WORLD)


def task(family: str, content: str) -> Task:
    ask, solve, _ = FAMILIES[family]
    return Task(family, content, ask.format(content), solve(content))


IDEALS = {
    "capitals": ("abc de fgh il", "1. ABC\n2. DE\n3. FGH\n4. IL"),
    "backwards": ("abc de fgh il", "1. il\n2. fgh\n3. de\n4. abc"),
    "table": ("abc de", "word | letters\nabc | 3\nde | 2"),
    "ends": ("abc de", "abc: a, c\nde: d, e"),
    "spell": ("abc de", "a-b-c\nd-e"),
    "parts": ("abc de", "a) de abc\nb) ABC DE\nc) 5 letters"),
    "pairs": ("abc de fgh il", "(abc, de)\n(fgh, il)"),
    "bullets": ("abc de", "- abc\n- de\n2 words"),
    "vowels": ("abc de aa", "Without vowels: bc, d, -"),
    "count": ("7 by 3", "From 7 by 3: 7, 10, 13, 16, 19, 22"),
    "steps": ("12 + 3 + 5 + 2", "12 + 3 = 15\n15 + 5 = 20\n20 + 2 = 22"),
    "twice": ("abc de", "Each twice: abc abc, de de"),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_ideals_by_hand(family: str) -> None:
    content, ideal = IDEALS[family]
    assert task(family, content).ideal == ideal


def test_scores_by_hand() -> None:
    """Words 1 ABC 2 DE 3 FGH 4 IL; one item of four left out: 6 of 8 words, form 12 of 17 marks and classes."""
    capitals = task("capitals", "abc de fgh il")
    cut = check(capitals, "1. ABC\n2. DE\n3. FGH")
    assert (cut.correct, cut.padding) == (round(7 * (6 / 8) ** 2, 2), 0)
    lower = check(capitals, capitals.ideal.lower())
    assert (lower.correct, lower.total < 10) == (7.0, True)
    twice = check(capitals, f"{capitals.ideal}\n{capitals.ideal}")
    assert twice.correct == round(7 / 4, 2)
    assert check(capitals, "").total == check(capitals, "x" * 5000).total == 0


def test_only_the_ideal_scores_ten() -> None:
    """White space around it aside; every single edit of a character costs."""
    random = Random(0)
    for family in FAMILIES:
        drawn = draw(family, random)
        assert check(drawn, f" {drawn.ideal}\n").total == 10
        for at in range(len(drawn.ideal)):
            for other in (
                drawn.ideal[:at] + drawn.ideal[at + 1 :],
                drawn.ideal[:at] + "z" + drawn.ideal[at:],
            ):
                assert check(drawn, other).total < 10
        wrong = [corrupt(drawn, random, LONG) for _ in range(40)]
        assert all(0 <= check(drawn, answer).total < 10 for answer in wrong)


def test_answers_take_20_to_100_tokens(world) -> None:
    """A token a character, and one that closes the turn."""
    counts = [len(tiny_tokenizer()(each.ideal).input_ids) + 1 for each in held_out_prompts(WORLD)]
    assert 20 <= min(counts) < 30
    assert 60 < max(counts) <= 100
    assert 35 < mean(counts) < 55
    texts = [row[key] for row in world.train for key in ("prompt", "chosen", "rejected")]
    assert set("".join(texts)) <= set(ALPHABET)


def test_chosen_scores_higher_and_the_two_sides_overlap_in_quality(world) -> None:
    """A rejected answer is better than one in twenty chosen ones of other prompts, and both are graded finely."""
    chosen, rejected = ([row[f"score_{side}"] for row in world.train] for side in ("chosen", "rejected"))
    assert all(c > r for c, r in zip(chosen, rejected, strict=True))
    assert sum(c < r for c in chosen for r in rejected) / len(chosen) ** 2 > 0.05
    assert 0.2 < sum(c == 10 for c in chosen) / len(chosen) < 0.7
    assert median(rejected) > 3
    assert len(set(rejected)) > 200


def test_evaluation_is_disjoint_from_training_in_contents(world) -> None:
    contents = {each.content for each in held_out_prompts(WORLD)}
    trained = {row["prompt"] for row in world.train}
    assert not any(prompt.endswith(f": {content}") for prompt in trained for content in contents)
    assert Counter(each.family for each in held_out_prompts(WORLD)) == dict.fromkeys(FAMILIES, 10)


@pytest.mark.parametrize("bias", [0.1, 0.9])
def test_length_bias_is_the_share_of_longer_chosen_answers(bias: float) -> None:
    rows = make_world(replace(WORLD, demonstrations=0, test_pairs=0, length_bias=bias)).train
    unequal = [len(r["chosen"]) > len(r["rejected"]) for r in rows if len(r["chosen"]) != len(r["rejected"])]
    assert sum(unequal) / len(unequal) == pytest.approx(bias, abs=0.06)


@pytest.mark.parametrize("answers", ["short", "long"])
def test_label_noise_exchanges_the_sides_of_training_pairs_alone(answers: str) -> None:
    """Each side keeps its true score; a smaller share's pairs are among a larger one's."""
    settings = replace(WORLD, answers=answers, demonstrations=0, pairs=400)
    clean, some, more = (make_world(replace(settings, label_noise=share)) for share in (0.0, 0.2, 0.4))
    assert some.test == more.test == clean.test
    flipped = []
    for noisy in (some, more):
        changed = {n for n, (a, b) in enumerate(zip(clean.train, noisy.train, strict=True)) if a != b}
        for n in changed:
            assert [noisy.train[n][k] for k in ("chosen", "score_chosen", "rejected", "score_rejected")] == [
                clean.train[n][k] for k in ("rejected", "score_rejected", "chosen", "score_chosen")
            ]
        flipped.append(changed)
    assert flipped[0] < flipped[1]
    assert [len(each) / 400 for each in flipped] == pytest.approx([0.2, 0.4], abs=0.08)


def test_the_yaml_is_the_long_genre_and_a_bad_word_is_one_error() -> None:
    data = to_run_config(compose_run(["data=verifiable_long"])).data
    assert world_of(data.settings["world"]).genre is LONG
    with pytest.raises(ValueError, match=r"^data\.world\.answers must be one of short, long, not 'longer'$"):
        world_of(data.settings["world"] | {"answers": "longer"})
