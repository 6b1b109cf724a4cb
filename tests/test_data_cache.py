"""The cache of tokens: it hits when nothing changed, misses when anything did, and is shared by processes."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict

from data_helpers import (
    CHATML,
    LLAMA31,
    MIXED,
    QWEN2,
    character_tokenizer,
    generated,
    local,
    pair,
    write_jsonl,
)
from killed_run import EVERY_SPOIL, spoiled
from sgdpo.data.prepare import prepare
from sgdpo.store import hash_tokenizer


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


ENDS = CHATML.replace("'<|im_end|>'", "eos_token")


def written(cache: Path) -> set[str]:
    """Return the names of the cached sets."""
    return {path.parent.name for path in cache.glob("tokens/*/manifest.json")}


def test_cache_hits_reads_the_same_and_writes_nothing(run, tmp_path):
    first = run(MIXED)
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.arrow")}
    second = run(MIXED)
    assert (first.cached, second.cached) == (False, True)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.arrow")} == stamps
    assert (first.fingerprint, first.counts) == (second.fingerprint, second.counts)


@pytest.mark.parametrize("saved", [True, False])
def test_both_splits_of_one_folder_have_tokens_of_their_own(tmp_path, tokenizer, saved):
    splits = {"train": [pair("a"), pair("b")], "test": [pair("c")]}
    folder = tmp_path / "both"
    if saved:
        DatasetDict({name: Dataset.from_list(rows) for name, rows in splits.items()}).save_to_disk(folder)
    else:
        folder.mkdir()
        for name, rows in splits.items():
            write_jsonl(folder / f"{name}.jsonl", rows)
    prepared = prepare(local(str(folder), test=str(folder)), "preference", tokenizer, tmp_path / "cache")
    said = [[tokenizer.decode(e.prompt_ids)[17] for e in split] for split in (prepared.train, prepared.test)]
    assert said == [["a", "b"], ["c"]]
    assert prepared.counts["test"]["trained_on"] == 0


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
    retrained, ended, otherwise = (character_tokenizer(t) for t in (CHATML, ENDS, ENDS))
    retrained.add_tokens(["yes"])
    ended.bos_token = otherwise.eos_token = "<|eot_id|>"
    otherwise.bos_token = "<|eot_id|>"
    ended.sep_token = otherwise.sep_token = "<|im_end|>"  # the same special tokens, called otherwise
    cases = [
        (data, "preference", tokenizer),
        (more, "preference", tokenizer),
        (data, "sft", tokenizer),
        (data, "preference", character_tokenizer(QWEN2)),
        (data, "preference", character_tokenizer(CHATML, bos="<|im_start|>")),
        (data, "preference", retrained),
        (data, "preference", ended),
        (data, "preference", otherwise),
    ]
    for number, (settings, phase, words) in enumerate(cases, 1):
        assert not prepare(settings, phase, words, tmp_path).cached
        assert len(written(tmp_path)) == number


def test_a_tokenizer_used_before_hashes_as_a_fresh_one(tokenizer):
    fresh = hash_tokenizer(tokenizer)
    tokenizer(["a", "abc"], padding=True, truncation=True, max_length=2)
    assert hash_tokenizer(tokenizer) == fresh == hash_tokenizer(character_tokenizer(CHATML))
    assert hash_tokenizer(character_tokenizer(LLAMA31)) != fresh


@pytest.mark.parametrize("spoil", EVERY_SPOIL)
def test_a_set_with_any_file_damaged_is_tokenised_again(run, tmp_path, spoil):
    def tokens():
        found = run(MIXED)
        return found.fingerprint, [example.chosen_ids.tolist() for example in found.train], found.cached

    *first, _ = tokens()
    (name,) = written(tmp_path / "cache")
    for file in spoiled(tmp_path / "cache" / "tokens" / name, spoil):
        assert tokens() == (*first, False), file
        assert tokens() == (*first, True)


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
    """Prepare a small world; return its fingerprint, its ids and the names of what was cached."""
    data = generated(pairs=60, demonstrations=10, test_pairs=20, ties=0.2, identical=0.1, empty=0.1)
    prepared = prepare(data, "preference", character_tokenizer(CHATML), cache)
    return f"{prepared.fingerprint} {prepared.train.ids.tolist()} {sorted(written(cache))}"


@pytest.mark.proof
def test_another_process_with_another_hash_seed_gives_the_same_tokens_and_keys(tmp_path):
    tests = Path(__file__).resolve().parent
    program = "import sys, pathlib, test_data_cache as t; print(t._prepare_world(pathlib.Path(sys.argv[1])))"
    environment = os.environ | {"PYTHONHASHSEED": "1", "PYTHONPATH": f"{tests.parent / 'src'}:{tests}"}
    command = [sys.executable, "-c", program, str(tmp_path / "other")]
    said = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
    assert said.strip() == _prepare_world(tmp_path / "own")
