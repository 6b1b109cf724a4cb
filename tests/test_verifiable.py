"""The generated world: a function of its settings, graded, disjoint from its evaluation, with its knobs."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from sgdpo.world.checker import check, grade
from sgdpo.world.tasks import FAMILIES, Task
from sgdpo.world.verifiable import ALPHABET, WorldConfig, held_out_prompts, make_world, world_errors

WORLD = WorldConfig(
    seed=0,
    pairs=600,
    demonstrations=600,
    test_pairs=200,
    prompts=300,
    demonstration_noise=0.4,
    length_bias=0.5,
)


@pytest.fixture(scope="module")
def world():
    return make_world(WORLD)


def task_of(prompt: str) -> Task:
    family, kind = next((n, k) for n, k in FAMILIES.items() if prompt.startswith(k.ask.format("")))
    content = prompt.removeprefix(kind.ask.format(""))
    return Task(family, content, prompt, kind.solve(content))


def prompts_of(rows) -> set[str]:
    return {row["prompt"] if "prompt" in row else row["messages"][0]["content"] for row in rows}


def test_the_same_settings_give_the_same_world_and_another_seed_another(world):
    assert make_world(WORLD) == world
    assert make_world(replace(WORLD, seed=1)).train != world.train


def test_sizes_are_those_asked_for(world):
    assert [len(rows) for rows in (world.train, world.test, world.sft, world.sft_test)] == [
        600,
        200,
        600,
        200,
    ]
    assert len(held_out_prompts(WORLD)) == 300


def test_rows_have_the_schema_of_real_sets(world):
    keys = ["prompt", "chosen", "rejected", "score_chosen", "score_rejected"]
    assert all(list(row) == keys for row in world.train + world.test)
    assert all([m["role"] for m in row["messages"]] == ["user", "assistant"] for row in world.sft)


def test_chosen_scores_higher_and_scores_are_the_checkers(world):
    """A pair is graded by what the best of a side's answers is worth: sides that say two things are few."""
    for row in world.train + world.test:
        task = task_of(row["prompt"])
        assert row["score_chosen"] > row["score_rejected"]
        assert grade(task, row["chosen"]) == row["score_chosen"]
        assert grade(task, row["rejected"]) == row["score_rejected"]
    hedged = [row for row in world.train if check(task_of(row["prompt"]), row["chosen"]).hedging]
    assert len(hedged) < len(world.train) / 100


def test_both_sides_can_be_imperfect(world):
    assert any(row["score_chosen"] < 10 for row in world.train)
    assert sum(row["score_chosen"] == 10 for row in world.train) > 300


def test_evaluation_is_disjoint_from_training_in_prompts_and_in_contents(world):
    """Under another seed, too: what is held out is a matter of the content alone."""
    trained, other = prompts_of(world.train + world.sft), make_world(replace(WORLD, seed=7))
    trained |= prompts_of(other.train + other.sft)
    held_out = {task.prompt for task in held_out_prompts(WORLD)} | prompts_of(world.test + world.sft_test)
    assert not trained & held_out
    assert not {task_of(p).content for p in trained} & {task_of(p).content for p in held_out}


def test_generation_prompts_differ_and_cover_every_family_alike():
    tasks = held_out_prompts(WORLD)
    assert len({task.prompt for task in tasks}) == len({task.task_id for task in tasks}) == 300
    assert Counter(task.family for task in tasks) == dict.fromkeys(FAMILIES, 25)


def test_a_family_that_runs_out_gives_its_place_to_the_others():
    """Addition has 720 contents, about a fifth of them held out; 4,000 prompts want 333 of them."""
    tasks = held_out_prompts(replace(WORLD, prompts=4000))
    counts = Counter(task.family for task in tasks)
    assert len({task.task_id for task in tasks}) == 4000
    assert counts["add"] < 200 < counts["sort"]


def test_demonstrations_are_corrupted_as_often_as_asked():
    for noise in (0.0, 0.4, 1.0):
        rows = make_world(replace(WORLD, pairs=0, test_pairs=0, demonstration_noise=noise)).sft
        wrong = [
            row["messages"][1]["content"] != task_of(row["messages"][0]["content"]).ideal for row in rows
        ]
        # Four standard deviations of 600 draws at 0.4 are 0.08.
        assert sum(wrong) / len(wrong) == pytest.approx(noise, abs=0.08 if noise == 0.4 else 0)


@pytest.mark.parametrize("bias", [0.0, 0.5, 0.8, 1.0])
def test_length_bias_is_the_share_of_longer_chosen_answers(bias):
    rows = make_world(replace(WORLD, demonstrations=0, test_pairs=0, length_bias=bias)).train
    lengths = [(len(row["chosen"]), len(row["rejected"])) for row in rows]
    unequal = [chosen > rejected for chosen, rejected in lengths if chosen != rejected]
    assert len(unequal) > 400
    assert sum(unequal) / len(unequal) == pytest.approx(bias, abs=0.09 if 0 < bias < 1 else 0)


def test_switches_inject_ties_identical_pairs_and_empty_answers():
    rows = make_world(
        replace(WORLD, demonstrations=0, test_pairs=0, ties=0.3, identical=0.2, empty=0.1)
    ).train
    same = [row["chosen"] == row["rejected"] for row in rows]
    tie = [row["score_chosen"] == row["score_rejected"] for row in rows]
    empty = [row["rejected"] == "" for row in rows]
    # An identical pair has equal scores, as in real sets: 0.3 + 0.2.
    shares = [sum(found) / len(rows) for found in (tie, same, empty)]
    assert shares == pytest.approx([0.5, 0.2, 0.1], abs=0.08)
    assert all(row["chosen"] for row in rows)


def test_the_alphabet_holds_every_character_of_the_world(world):
    texts = [
        text for row in world.train + world.test for text in (row["prompt"], row["chosen"], row["rejected"])
    ]
    texts += [message["content"] for row in world.sft + world.sft_test for message in row["messages"]]
    assert set("".join(texts)) <= set(ALPHABET)
    assert len(set(ALPHABET)) == len(ALPHABET)


def test_answers_are_short(world):
    """A tiny model reads and writes them a character at a time."""
    assert max(len(row["prompt"]) for row in world.train) <= 40
    assert max(max(len(row["chosen"]), len(row["rejected"])) for row in world.train) <= 64


def test_settings_out_of_range_come_all_at_once():
    errors = world_errors(replace(WORLD, pairs=-1, length_bias=2.0, ties=0.6, identical=0.6))
    assert len(errors) == 3
    with pytest.raises(ValueError, match=r"data\.world\.pairs"):
        make_world(replace(WORLD, pairs=-1))
