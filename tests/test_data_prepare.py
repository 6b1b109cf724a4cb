"""Preparing a set: policies, truncation, counts; examples that read back; a cache that misses when it must.

The tokenizer's ids are ASCII codes. In ChatML a prompt "Q" renders as
<|im_start|> user \\n Q <|im_end|> \\n <|im_start|> assistant \\n: 1 + 4 + 1 + 1 + 1 + 1 + 1 + 9 + 1 = 20
tokens, so a prompt of n characters has 19 + n, and an answer of n characters has n + 1 with its closing token.
"""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data_helpers import CHATML, LLAMA31, QWEN2, assistant, character_tokenizer, local, user, write_jsonl
from sgdpo.config.schema import DataConfig, WorldConfig
from sgdpo.data.prepare import describe, prepare, tokenizer_hash


def pair(prompt="Q", chosen="yes", rejected="no", **more):
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected} | more


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
    assert swapped[0] != first[0]


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


MIXED = [
    pair("a", score_chosen=2, score_rejected=1),
    pair("b", score_chosen=2, score_rejected=2),
    pair("c", "same", "same", score_chosen=3, score_rejected=3),
    pair("d", "yes", "", score_chosen=3, score_rejected=1),
    pair("e", " \n", "no", score_chosen=3, score_rejected=3),
    pair("f", "same", "same"),
]


@pytest.mark.parametrize(
    ("policies", "kept", "dropped"),
    [
        ({"ties": "keep", "identical": "keep"}, 4, {"empty": 2, "identical": 0, "ties": 0}),
        ({"ties": "keep", "identical": "drop"}, 2, {"empty": 2, "identical": 2, "ties": 0}),
        ({"ties": "drop", "identical": "keep"}, 2, {"empty": 2, "identical": 0, "ties": 2}),
        ({"ties": "drop", "identical": "drop"}, 1, {"empty": 2, "identical": 2, "ties": 1}),
    ],
)
def test_policies_drop_and_the_counts_say_what_the_set_holds(run, policies, kept, dropped):
    """Of six rows three have equal scores, two equal answers, two an empty one; e is a tie and empty."""
    counts = run(MIXED, **policies).counts["train"]
    assert (counts["read"], counts["kept"], counts["dropped"]) == (6, kept, dropped)
    assert (counts["ties"], counts["identical"], counts["empty"]) == (3, 2, 2)
    assert counts["read"] == counts["kept"] + sum(counts["dropped"].values())


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


def written(cache: Path) -> set[str]:
    """Return the names of the cached sets."""
    return {path.parent.name for path in cache.glob("tokens/*/summary.json")}


def test_cache_hits_reads_the_same_and_writes_nothing(run, tmp_path):
    first = run(MIXED)
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.arrow")}
    second = run(MIXED)
    assert (first.cached, second.cached) == (False, True)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.arrow")} == stamps
    assert (first.fingerprint, first.counts) == (second.fingerprint, second.counts)


@pytest.mark.parametrize(
    "change",
    [
        {"max_length": 127},
        {"max_prompt_length": 95},
        {"ties": "drop"},
        {"identical": "keep"},
        {"empty": "error"},
        {"limit": 3},
    ],
    ids=lambda change: next(iter(change)),
)
def test_cache_misses_on_every_setting_that_tokens_depend_on(tmp_path, tokenizer, change):
    data = local(write_jsonl(tmp_path / "rows.jsonl", MIXED[:3]))
    prepare(data, "preference", tokenizer, tmp_path)
    assert not prepare(replace(data, **change), "preference", tokenizer, tmp_path).cached


def test_cache_misses_on_rows_phase_template_and_tokenizer(tmp_path, tokenizer):
    data = local(write_jsonl(tmp_path / "rows.jsonl", MIXED))
    more = local(write_jsonl(tmp_path / "more.jsonl", [*MIXED, pair("g")]))
    retrained = character_tokenizer(CHATML)
    retrained.add_tokens(["yes"])
    cases = [
        (data, "preference", tokenizer),
        (more, "preference", tokenizer),
        (data, "sft", tokenizer),
        (data, "preference", character_tokenizer(QWEN2)),
        (data, "preference", character_tokenizer(CHATML, bos="<|im_start|>")),
        (data, "preference", retrained),
    ]
    for number, (settings, phase, words) in enumerate(cases, 1):
        assert not prepare(settings, phase, words, tmp_path).cached
        assert len(written(tmp_path)) == number


def test_a_tokenizer_used_before_hashes_as_a_fresh_one(tokenizer):
    fresh = tokenizer_hash(tokenizer)
    tokenizer(["a", "abc"], padding=True, truncation=True, max_length=2, pad_to_multiple_of=8)
    assert tokenizer_hash(tokenizer) == fresh == tokenizer_hash(character_tokenizer(CHATML))
    assert tokenizer_hash(character_tokenizer(LLAMA31)) != fresh


def test_a_half_written_set_is_written_again(run, tmp_path):
    first = run(MIXED)
    (name,) = written(tmp_path / "cache")
    (tmp_path / "cache" / "tokens" / name / "summary.json").unlink()
    again = run(MIXED)
    assert not again.cached
    assert again.fingerprint == first.fingerprint


def _prepare_in_process(arguments: tuple[str, str]) -> tuple[str, bool]:
    rows, cache = arguments
    prepared = prepare(local(rows), "preference", character_tokenizer(CHATML), Path(cache))
    return prepared.fingerprint, prepared.cached


def test_processes_that_start_together_tokenise_once(tmp_path):
    rows = write_jsonl(tmp_path / "rows.jsonl", [pair(f"Q{i}") for i in range(300)])
    with ProcessPoolExecutor(2) as pool:
        found = list(pool.map(_prepare_in_process, [(rows, str(tmp_path / "cache"))] * 4))
    assert len({fingerprint for fingerprint, _ in found}) == 1
    assert sum(not cached for _, cached in found) == 1


def _prepare_world(cache: Path) -> str:
    """Prepare a small world; return its fingerprint, its ids and the names of what was cached, as one text."""
    world = WorldConfig(pairs=60, demonstrations=10, test_pairs=20, ties=0.2, identical=0.1, empty=0.1)
    data = DataConfig(name="v", source="generated", world=world, max_length=128, max_prompt_length=96)
    prepared = prepare(data, "preference", character_tokenizer(CHATML), cache)
    return f"{prepared.fingerprint} {prepared.train.ids.tolist()} {sorted(written(cache))}"


def test_another_process_with_another_hash_seed_gives_the_same_tokens_and_keys(tmp_path):
    tests = Path(__file__).resolve().parent
    program = (
        "import sys, pathlib, test_data_prepare as t; print(t._prepare_world(pathlib.Path(sys.argv[1])))"
    )
    environment = os.environ | {"PYTHONHASHSEED": "1", "PYTHONPATH": f"{tests.parent / 'src'}:{tests}"}
    command = [sys.executable, "-c", program, str(tmp_path / "other")]
    said = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
    assert said.strip() == _prepare_world(tmp_path / "own")


def test_the_generated_set_and_its_test_set_are_prepared(tmp_path, tokenizer):
    world = WorldConfig(pairs=30, demonstrations=20, test_pairs=10, demonstration_noise=0.4)
    data = DataConfig(name="v", source="generated", world=world, max_length=128, max_prompt_length=96)
    preference = prepare(data, "preference", tokenizer, tmp_path)
    sft = prepare(data, "sft", tokenizer, tmp_path)
    assert [len(preference.train), len(preference.test), len(sft.train), len(sft.test)] == [30, 10, 20, 10]
    assert preference.fingerprint != sft.fingerprint
