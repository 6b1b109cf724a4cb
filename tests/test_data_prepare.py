"""Preparing a set: policies, truncation, counts; examples that read back; a cache that misses when it must.

The tokenizer's ids are ASCII codes. In ChatML a prompt "Q" renders as
<|im_start|> user \\n Q <|im_end|> \\n <|im_start|> assistant \\n: 1 + 4 + 1 + 1 + 1 + 1 + 1 + 9 + 1 = 20
tokens, so a prompt of n characters has 19 + n, and an answer of n characters n + 1 with its closing token.
"""

from __future__ import annotations

import json
import pickle
from dataclasses import replace

import numpy as np
import pytest

from data_helpers import (
    CHATML,
    MIXED,
    assistant,
    character_tokenizer,
    generated,
    local,
    pair,
    user,
    write_jsonl,
)
from sgdpo.data.prepare import describe, prepare


@pytest.fixture
def tokenizer():
    return character_tokenizer(CHATML)


@pytest.fixture
def run(tmp_path, tokenizer):
    """Return a function that prepares rows with some settings."""

    def _run(rows, phase="preference", **settings):
        data = local(write_jsonl(tmp_path / "rows.jsonl", rows), **settings)
        return prepare(data, phase, tokenizer, tmp_path / "cache")

    return _run


def test_an_example_reads_back_as_it_was(run, tokenizer):
    example = run([pair()]).train[0]
    assert tokenizer.decode(example.prompt_ids) == "<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\n"
    assert example.chosen_ids.tolist() == [*b"yes", 129]
    assert example.rejected_ids.tolist() == [*b"no", 129]
    assert example.chosen_mask.tolist() == [True] * 4
    assert example.prompt_ids.dtype == np.int32
    assert example.chosen_mask.dtype == bool


def test_lengths_and_ids_are_those_of_the_examples(run):
    train = run([pair("Q" * n, "a" * n, "b" * (2 * n)) for n in (1, 2, 3)]).train
    assert train.lengths.tolist() == [[20, 2, 3], [21, 3, 5], [22, 4, 7]]
    assert train.lengths.dtype == train.ids.dtype == np.int64
    assert train.ids.tolist() == [example.example_id for example in train]
    assert [train[-1].example_id, len(train)] == [train.ids[2], 3]
    with pytest.raises(IndexError):
        train[3]


def test_examples_travel_to_a_worker_as_a_path(run):
    train = run([pair()] * 3).train
    sent = pickle.dumps(train)
    assert len(sent) < 500
    assert pickle.loads(sent)[2].chosen_ids.tolist() == [*b"yes", 129]


def test_ids_are_a_matter_of_content_and_occurrence(run):
    """The same row again is another example; its place in the set and the other rows change nothing."""
    first = run([pair("A"), pair("B"), pair("A")]).train.ids.tolist()
    other = run([pair("C"), pair("A"), pair("A"), pair("B")]).train.ids.tolist()
    assert len(set(first)) == 3
    assert other[1:] == [first[0], first[2], first[1]]
    assert min(first) >= 0
    swapped = run([pair("A", "no", "yes")]).train.ids
    spans = [run([pair("A", chosen_mask=[[[start, start + 1]]])]).train.ids for start in (0, 1)]
    assert len({first[0], *swapped, *spans[0], *spans[1]}) == 4


def test_truncation_is_one_rule_for_both_sides(run, tokenizer):
    """max_length 30, prompt at most 22: room for 8. The prompt of 24 loses its first two tokens."""
    prepared = run([pair("Q" * 5, "a" * 20, "b" * 3)], max_length=30, max_prompt_length=22)
    example = prepared.train[0]
    assert tokenizer.decode(example.prompt_ids) == "ser\nQQQQQ<|im_end|>\n<|im_start|>assistant\n"
    assert example.chosen_ids.tolist() == [*b"aaaaaaaa"]
    assert example.rejected_ids.tolist() == [*b"bbb", 129]
    assert prepared.counts["train"]["cut"] == {"prompt": 1, "chosen": 1, "rejected": 1 - 1}


def test_what_just_fits_is_not_cut(run):
    """Prompt 19 + 3 = 22 of 22; answers 7 + 1 = 8 of 8."""
    counts = run([pair("QQQ", "a" * 7, "b" * 7)], max_length=30, max_prompt_length=22).counts
    assert counts["train"]["cut"] == {"prompt": 0, "chosen": 0, "rejected": 0}


@pytest.mark.parametrize(
    ("policies", "kept", "dropped"),
    [
        ({"ties": "keep", "identical": "keep"}, 4, {"refused": 0, "empty": 2, "identical": 0, "ties": 0}),
        ({"ties": "keep", "identical": "drop"}, 2, {"refused": 0, "empty": 2, "identical": 2, "ties": 0}),
        ({"ties": "drop", "identical": "keep"}, 2, {"refused": 0, "empty": 2, "identical": 0, "ties": 2}),
        ({"ties": "drop", "identical": "drop"}, 1, {"refused": 0, "empty": 2, "identical": 2, "ties": 1}),
    ],
)
def test_policies_drop_and_the_counts_say_what_the_set_holds(run, policies, kept, dropped):
    """Of six rows three have equal scores, two equal answers, two an empty one; e is a tie and empty."""
    counts = run(MIXED, **policies).counts["train"]
    assert (counts["read"], counts["kept"], counts["dropped"]) == (6, kept, dropped)
    assert (counts["ties"], counts["identical"], counts["empty"]) == (3, 2, 2)
    assert counts["read"] == counts["kept"] + sum(counts["dropped"].values())


SYSTEM = {"role": "system", "content": "S"}
# Each is refused for a reason of its own; CHATML_ONLY takes no system turn, as Gemma's template does.
CHATML_ONLY = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
)
REFUSED = {
    "System role not supported": {"prompt": [SYSTEM, user("Q")], "chosen": "a", "rejected": "b"},
    "the role 'human'": {"prompt": [{"role": "human", "content": "Q"}], "chosen": "a", "rejected": "b"},
    "tool call": {
        "prompt": [user("Q"), assistant("") | {"tool_calls": [{"name": "f"}]}, user("x")],
        "chosen": "a", "rejected": "b",
    },
    "chosen ends with reasoning_content": {
        "prompt": "Q", "chosen": [assistant("a") | {"reasoning_content": "So."}], "rejected": [assistant("b")]
    },
    "column tools would be lost": pair(tools=[{"name": "f"}]),
    "half of a surrogate pair": pair("a\ud800"),
    "messages written as one text": pair(str([user("Q"), assistant("a")])),
    "its prompt is empty": pair(" \n"),
    "ends with an assistant's turn that chosen would": {
        "prompt": [user("Q"), assistant("Sure:")], "chosen": [assistant("a")], "rejected": [assistant("b")]
    },
}  # fmt: skip


@pytest.mark.parametrize("reason", REFUSED)
def test_a_row_that_cannot_be_trained_is_dropped_and_counted_or_stops_the_set(tmp_path, reason):
    tokenizer = character_tokenizer(CHATML_ONLY + CHATML)
    data = local(write_jsonl(tmp_path / "rows.jsonl", [pair(), REFUSED[reason], pair("b")]))
    prepared = prepare(data, "preference", tokenizer, tmp_path)
    counts = prepared.counts["train"]
    assert (counts["read"], counts["kept"], counts["dropped"]["refused"]) == (3, 2, 1)
    assert "row 1" in counts["refusal"]
    assert reason in counts["refusal"]
    assert "1 refused" in describe(prepared.counts)
    assert counts["refusal"] in describe(prepared.counts)
    with pytest.raises(ValueError, match=rf"row 1.*{reason}.*data.refused=drop"):
        prepare(replace(data, refused="error"), "preference", tokenizer, tmp_path)


def test_a_template_that_refuses_every_row_is_one_error_with_the_first_reason(tmp_path):
    data = local(write_jsonl(tmp_path / "rows.jsonl", [REFUSED["System role not supported"]] * 3))
    with pytest.raises(ValueError, match=r"none of 3 rows is left.*3 refused.*row 0.*System role"):
        prepare(data, "preference", character_tokenizer(CHATML_ONLY + CHATML), tmp_path)


def test_what_was_typed_unscored_or_unknown_is_counted_and_said(run):
    rows = [
        pair("a<|im_end|>b"),
        pair("c", "yes<|im_start|>"),
        pair("d", score_chosen="best", score_rejected="best"),
        pair("e", score_chosen=float("nan"), score_rejected=float("nan")),
        pair("f", "é"),
    ]
    prepared = run(rows)
    counts = prepared.counts["train"]
    assert (counts["typed"], counts["unscored"], counts["unknown"], counts["ties"]) == (2, 2, 1, 0)
    said = describe(prepared.counts)
    for words in (
        "2 hold typed control tokens, read as plain text",
        "2 have scores that are no numbers",
        "1 hold characters that the vocabulary lacks",
    ):
        assert words in said
    assert "note:" not in describe(run([pair()]).counts)


def test_held_out_rows_that_are_trained_on_are_counted_and_said(run, tmp_path):
    rows = [pair(letter) for letter in "ABCD"]
    prepared = run(rows, test=write_jsonl(tmp_path / "test.jsonl", [*rows[:2], pair("E")]))
    assert prepared.counts["test"]["trained_on"] == 2
    assert "2 of 3 held-out rows are training rows too" in describe(prepared.counts)
    copies = run(rows, test=write_jsonl(tmp_path / "copies.jsonl", [*rows[:1] * 3, *[pair("E")] * 2]))
    assert copies.counts["test"]["trained_on"] == 3


def test_an_empty_answer_can_be_an_error_that_names_the_row(run):
    with pytest.raises(ValueError, match=r"rows\.jsonl, row 3: an answer is empty"):
        run(MIXED, empty="error")


def test_answers_that_truncation_makes_identical_are_identical(run):
    counts = run(
        [pair("Q", "a" * 30 + "x", "a" * 30 + "y"), pair()], max_length=40, max_prompt_length=20
    ).counts
    assert counts["train"]["identical"] == counts["train"]["dropped"]["identical"] == 1


def test_length_statistics_are_those_of_what_is_kept(run):
    """Chosen lengths 2, 3, 4, 5, 6: mean and median 4, the 95th percentile 5 + 0.8 of the last step."""
    counts = run([pair("Q", "a" * n, "b") for n in range(1, 6)] + [pair("Q", "same" * 9, "same" * 9)]).counts
    assert counts["train"]["lengths"]["chosen"] == {"mean": 4.0, "median": 4.0, "p95": 5.8, "max": 6}
    assert counts["train"]["lengths"]["prompt"]["max"] == 20
    assert json.loads(json.dumps(counts)) == counts


def test_limit_takes_the_first_rows(run):
    rows = [pair(letter) for letter in "ABCDE"]
    assert run(rows, limit=2).train.ids.tolist() == run(rows).train.ids.tolist()[:2]
    assert run(rows, limit=9).counts["train"]["read"] == 5


def test_nothing_left_is_an_error_with_the_reasons(run):
    with pytest.raises(ValueError, match=r"none of 2 rows is left.*1 empty, 1 identical"):
        run([pair("a", "x", "x"), pair("b", "", "y")])


def test_different_prompts_deep_in_a_file_name_the_row(run):
    rows = [pair()] * 30 + [{"chosen": [user("A"), assistant("b")], "rejected": [user("B"), assistant("c")]}]
    with pytest.raises(ValueError, match=r"rows\.jsonl, row 30: chosen and rejected have different prompts"):
        run(rows)


def test_a_failed_preparation_leaves_nothing_behind(run, tmp_path):
    with pytest.raises(ValueError, match="none of"):
        run([pair("a", "", "")])
    assert [p for p in (tmp_path / "cache" / "tokens").iterdir() if p.suffix != ".lock"] == []


def test_sft_trains_all_assistant_turns_through_the_mask(run):
    messages = [user("Q"), assistant("ab"), user("x"), assistant("c")]
    example = run([{"messages": messages}], phase="sft").train[0]
    between = [10, 128, *b"user\nx", 129, 10, 128, *b"assistant\n"]
    assert example.chosen_ids.tolist() == [*b"ab", 129, *between, *b"c", 129]
    assert example.chosen_mask.tolist() == [True] * 3 + [False] * len(between) + [True] * 2
    assert example.rejected_ids.tolist() == []


def test_sft_on_preference_rows_trains_the_chosen_conversation(run):
    prepared = run([pair("Q", "yes", "")], phase="sft")
    assert prepared.train[0].chosen_ids.tolist() == [*b"yes", 129]
    assert set(prepared.counts["train"]["lengths"]) == {"prompt", "chosen"}


def test_no_chat_template_is_said_before_rows_are_read(tmp_path):
    with pytest.raises(ValueError, match="no chat template"):
        prepare(local("absent.jsonl"), "preference", character_tokenizer(None), tmp_path)


def test_the_summary_is_readable(run, tmp_path):
    text = describe(run(MIXED, test=write_jsonl(tmp_path / "test.jsonl", [pair()])).counts)
    assert "6 rows read" in text
    assert "2 kept; dropped: 2 empty, 2 identical" in text
    assert "3 ties, 2 identical, 2 empty" in text
    assert text.count("rows read") == 2


def test_the_generated_set_and_its_test_set_are_prepared(tmp_path, tokenizer):
    data = generated(pairs=30, demonstrations=20, test_pairs=10, demonstration_noise=0.4)
    preference = prepare(data, "preference", tokenizer, tmp_path)
    sft = prepare(data, "sft", tokenizer, tmp_path)
    assert [len(preference.train), len(preference.test), len(sft.train), len(sft.test)] == [30, 10, 20, 10]
    assert preference.fingerprint != sft.fingerprint
