"""Which turns and which words are trained: by message, by column, by span; from the row to the loss.

The tokenizer's ids are ASCII codes, 129 closes a turn; ChatML as in test_data_prepare.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from data_helpers import CHATML, LLAMA31, assistant, character_tokenizer, local, pair, user, write_jsonl
from packed_rows import ExampleList
from sgdpo.data.packing import RowCollator, model_inputs, pair_of
from sgdpo.data.prepare import prepare
from sgdpo.data.sources import data_errors
from sgdpo.reference import Work, reference_table
from tiny_training import random_examples, taught_model, tiny_config, tiny_trainer

CHAT = [user("a"), assistant("one"), user("b"), assistant("two")]


def said(message: dict, train: object) -> dict:
    return {**message, "train": train}


@pytest.fixture
def run(tmp_path: Path):
    """Return a function that prepares one row and reads it back, with its trained words and its prompt."""

    def _run(row: dict, phase: str = "sft", template: str = CHATML) -> tuple[str, list[str], object]:
        tokenizer = character_tokenizer(template, "<|begin_of_text|>" if template is LLAMA31 else None)
        data = local(write_jsonl(tmp_path / "rows.jsonl", [row]), max_length=512, max_prompt_length=400)
        examples = prepare(data, phase, tokenizer, tmp_path / "cache").train
        words = [tokenizer.decode(ids.tolist()) for ids in examples[0].trained_ids]
        assert examples.trained.tolist() == [[len(ids) for ids in examples[0].trained_ids]]
        return tokenizer.decode(examples[0].prompt_ids.tolist()), words, examples

    return _run


END = "<|im_end|>"


@pytest.mark.parametrize(
    ("trains", "expected"),
    [
        ((None, None), f"one{END}two{END}"),
        ((True, True), f"one{END}two{END}"),
        ((False, None), f"two{END}"),
        ((None, False), f"one{END}"),
        ((None, [[1, 3]]), f"one{END}wo{END}"),
        (([[0, 1], [2, 3]], False), f"oe{END}"),
        (([[0, 2]], [[1, 2]]), "onw"),
    ],
)
@pytest.mark.parametrize("column", [False, True])
def test_sft_trains_every_assistants_turn_but_what_says_otherwise(trains, expected, column, run) -> None:
    turns = [dict(message) for message in CHAT]
    if column:
        row = {"messages": turns, "mask": [None, trains[0], None, trains[1]]}
    else:
        turns[1]["train"], turns[3]["train"] = trains
        row = {"messages": turns}
    _, (chosen, _), _ = run(row)
    assert chosen == expected


def test_words_that_a_template_trims_are_found_all_the_same(run) -> None:
    _, (chosen, _), _ = run(
        {"messages": [user("a"), said(assistant("  one two "), [[6, 10]])]}, template=LLAMA31
    )
    assert chosen == "two<|eot_id|>"
    _, (chosen, _), _ = run(
        {"messages": [user("a"), said(assistant("  one two "), [[2, 5]])]}, template=LLAMA31
    )
    assert chosen == "one"


@pytest.mark.parametrize("words", ["hi", "think>", " hi "])
def test_words_are_not_taken_for_what_a_template_writes_before_them(words, run) -> None:
    """Qwen-3 writes an empty think block before an answer, and "hi" stands in it."""
    thinks = CHATML.replace(
        "message['content']",
        "('<think></think>' + message['content'] if message['role'] == 'assistant' else message['content'])",
    )
    end = len(words) - 1
    _, (chosen, _), _ = run({"messages": [user("a"), said(assistant(words), [[0, end]])]}, template=thinks)
    assert chosen == words[:end]
    whole = said(assistant(words), [[0, end + 1]])
    assert run({"messages": [user("a"), whole]}, template=thinks)[1][0] == words + END


def test_a_pair_trains_its_last_turn_and_more_where_it_says_so(run) -> None:
    chosen, rejected = [*CHAT[:3], assistant("two")], [*CHAT[:3], assistant("six")]
    prompt, words, _ = run({"chosen": chosen, "rejected": rejected}, "preference")
    assert words == [f"two{END}", f"six{END}"]
    assert "one" in prompt
    for one, other in ((True, True), (True, None)):
        both = [[said(side[1], train) if m is side[1] else m for m in side] for side, train in
                ((chosen, one), (rejected, other))]  # fmt: skip
        prompt, words, examples = run({"chosen": both[0], "rejected": both[1]}, "preference")
        assert "one" not in prompt
        assert words == [f"one{END}two{END}", f"one{END}six{END}" if other else f"six{END}"]
        assert examples[0].chosen_ids.tolist()[:3] == examples[0].rejected_ids.tolist()[:3] == [*b"one"]


def test_a_pair_whose_answers_part_at_an_earlier_turn_needs_to_say_what_is_trained(run) -> None:
    chosen = [user("a"), said(assistant("yes"), True), user("b"), assistant("two")]
    rejected = [user("a"), said(assistant("no"), True), user("c"), assistant("six")]
    prompt, words, _ = run({"chosen": chosen, "rejected": rejected}, "preference")
    assert words == [f"yes{END}two{END}", f"no{END}six{END}"]
    assert "yes" not in prompt
    _, words, _ = run(pair(chosen_mask=[[[1, 3]]], rejected_mask=[[[0, 1]]]), "preference")
    assert words == [f"es{END}", "n"]


@pytest.mark.parametrize(
    ("row", "phase", "words"),
    [
        ({"messages": [user("a"), said(assistant("b"), False)]}, "sft", "no turn is left to train"),
        ({"messages": [said(user("a"), True), assistant("b")]}, "sft", "only an assistant's turn can be trained"),
        ({"messages": [user("a"), said(assistant("b"), "yes")]}, "sft", "must be true, false or"),
        ({"messages": [user("a"), said(assistant("b"), 0.5)]}, "sft", "must be true, false or"),
        ({"messages": [user("a"), said(assistant("b"), [[0, 2]])]}, "sft", "ascending spans of its 1 characters"),
        ({"messages": [user("a"), said(assistant("bcd"), [[2, 3], [0, 1]])]}, "sft", "ascending spans"),
        ({"messages": CHAT, "mask": [True]}, "sft", "an entry for each of 4 messages"),
        ({"messages": CHAT, "mask": "yes"}, "sft", "an entry for each of 4 messages"),
        (pair(chosen_mask=[False]), "preference", "chosen has no turn to train"),
        (pair(rejected_mask=[]), "preference", "the mask of rejected must be a list"),
        ({"chosen": [user("a"), said(assistant("b"), True), user("c"), assistant("d")],
          "rejected": [user("a"), assistant("b")]}, "preference", None),
        ({"chosen": [user("a"), assistant("b"), user("c"), said(assistant("d"), True)],
          "rejected": [user("a"), assistant("b")]}, "preference", "different prompts"),
    ],
)  # fmt: skip
def test_what_cannot_be_trained_so_is_named(row, phase, words, tmp_path) -> None:
    errors = data_errors(local(write_jsonl(tmp_path / "rows.jsonl", [row])), phase)
    assert errors == [] if words is None else words in errors[0]


# ---- from the mask to the loss ------------------------------------------------------------------------------


def masked(examples: list, share: float = 0.6) -> list:
    """Train a random part of each side's tokens, at least one."""
    random = np.random.default_rng(5)

    def mask(count: int) -> np.ndarray:
        found = random.random(count) < share
        found[random.integers(count)] = True
        return found

    return [
        replace(e, chosen_mask=mask(len(e.chosen_ids)), rejected_mask=mask(len(e.rejected_ids)))
        for e in examples
    ]


@pytest.mark.parametrize("layout", ["shared_prefix", "separate"])
def test_a_masked_pair_has_the_log_probs_of_its_trained_tokens_and_no_others(layout: str) -> None:
    whole, model = random_examples(4), taught_model(tiny_config("method=dpo"))
    part = masked(whole)
    sides = []
    for examples in (whole, part):
        row = RowCollator(layout)(examples)
        with torch.no_grad():
            sides.append(pair_of(row, model(**model_inputs(row))))
    for index, example in enumerate(part):
        for name, places in zip(("chosen", "rejected"), example.trained, strict=True):
            full, cut = (getattr(pair, name) for pair in sides)
            expected = full.logp_BT[index][torch.from_numpy(places)]
            torch.testing.assert_close(cut.logp_BT[index][cut.mask_BT[index]], expected, atol=2e-5, rtol=0)
            assert int(cut.length_B[index]) == len(places)


def test_masked_pairs_train_from_a_cached_reference(tmp_path: Path) -> None:
    """The reference has a number for each trained token: at step 0 the loss is ln 2, and then it moves."""
    config, examples = tiny_config("method=dpo"), masked(random_examples(24))
    table = reference_table(
        [(ExampleList(examples), np.arange(24))], model_factory=lambda: taught_model(config), key={"toy": 1},
        cache=tmp_path / "cache", work=Work(progress=False),
    )  # fmt: skip
    trainer = tiny_trainer(config, tmp_path, rows=2, examples=examples, reference=table.lookup)
    trainer.train()
    losses = [row["loss"] for row in trainer.rows_written]
    assert losses[0] == pytest.approx(np.log(2), abs=1e-5)
    assert losses[-1] != pytest.approx(losses[0], abs=1e-6)
    trained = np.mean([len(ids) for e in examples for ids in e.trained_ids[:1]])
    assert np.mean([row["lengths/chosen"] for row in trainer.rows_written]) == pytest.approx(trained)
