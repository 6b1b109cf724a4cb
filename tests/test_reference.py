"""The reference cache: computed once, found again, never silently wrong."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from packed_rows import ExampleList, make_examples, model_config, plain_logprobs, tiny_model
from sgdpo.data.batching import StepSampler, planned_examples
from sgdpo.data.packing import RowCollator, model_inputs, pair_of
from sgdpo.models.load import load_model, load_tokenizer
from sgdpo.models.logprobs import teach_logprobs
from sgdpo.reference import Work, reference_key, reference_table
from sgdpo.reference.table import Table
from sgdpo.store import read_jsonl
from sgdpo.store.stretches import ABOUT, FILLED, VALUES

KEY = {"weights": "w", "dtype": "float32", "tokenizer": "t", "max_length": 64, "max_prompt_length": 32}
WORK = Work(max_tokens=64, progress=False)
LENGTHS = [(5, 7, 3), (4, 1, 9), (8, 2, 2), (3, 6, 6), (2, 11, 1)]


class Factory:
    """Build the reference model and count how often that was needed."""

    def __init__(self, slow: float = 0.0) -> None:
        self.calls, self.slow = 0, slow

    def __call__(self) -> torch.nn.Module:
        self.calls += 1
        model = tiny_model()
        teach_logprobs(model, 1)
        if self.slow:
            model.register_forward_pre_hook(lambda *_: time.sleep(self.slow))
        return model


@pytest.fixture
def examples() -> ExampleList:
    return ExampleList(make_examples(LENGTHS))


def table(examples, cache: Path, factory=None, key=KEY, work=WORK, wanted=None):
    wanted = np.arange(len(examples)) if wanted is None else np.asarray(wanted)
    return reference_table(
        [(examples, wanted)], model_factory=factory or Factory(), key=key, cache=cache, work=work
    )


def folder_of(cache: Path) -> Path:
    return next(path for path in (cache / "reference").iterdir() if path.is_dir())


def test_the_table_holds_each_examples_log_probs_whatever_the_rows(examples, tmp_path) -> None:
    made = table(examples, tmp_path)
    plain = tiny_model().eval()
    for example in examples.examples:
        chosen, rejected = made.lookup(example.example_id)
        assert torch.allclose(
            torch.tensor(chosen), plain_logprobs(plain, example.prompt_ids, example.chosen_ids), atol=1e-5
        )
        assert torch.allclose(
            torch.tensor(rejected), plain_logprobs(plain, example.prompt_ids, example.rejected_ids), atol=1e-5
        )
        assert chosen.dtype == np.float32


def test_a_second_run_computes_nothing(examples, tmp_path) -> None:
    """25 cells of a ratio grid differ in ratio, learning rate and seed: none of it is in the key.

    The 5 pairs take 15 + 14 + 12 + 15 + 14 = 70 tokens, once.
    """
    factory = Factory()
    cells = [table(examples, tmp_path, factory) for _ in range(25)]
    assert factory.calls == 1
    assert sum(cell.forward_tokens for cell in cells) == 70


@pytest.mark.parametrize("part", list(KEY))
def test_every_part_of_the_key_makes_another_table(examples, tmp_path, part) -> None:
    factory = Factory()
    table(examples, tmp_path, factory)
    table(examples, tmp_path, factory, key={**KEY, part: "other"})
    assert factory.calls == 2


def test_other_examples_make_another_table(examples, tmp_path) -> None:
    factory = Factory()
    table(examples, tmp_path, factory)
    table(ExampleList(make_examples(LENGTHS[:4])), tmp_path, factory)
    table(ExampleList(examples.examples, fingerprint="another template"), tmp_path, factory)
    assert factory.calls == 3


def test_the_key_follows_weights_template_and_lengths_and_nothing_else() -> None:
    config = model_config()
    tokenizer = load_tokenizer(config)
    first = reference_key(config, None, 1, tokenizer, "float32", 64, 32)
    assert first == reference_key(config, None, 1, tokenizer, "float32", 64, 32)
    assert reference_key(config, None, 2, tokenizer, "float32", 64, 32)["weights"] != first["weights"]
    tokenizer.chat_template += " "
    assert reference_key(config, None, 1, tokenizer, "float32", 64, 32)["tokenizer"] != first["tokenizer"]
    assert set(first) == {"weights", "config", "dtype", "tokenizer", "max_length", "max_prompt_length"}


@pytest.mark.parametrize(
    ("setting", "value", "changes"),
    [
        ("rms_norm_eps", 0.1, True),
        ("rope_parameters", {"rope_type": "default", "rope_theta": 77.0}, True),
        ("sliding_window", 3, True),
        ("use_cache", False, False),
        ("transformers_version", "0.0.1", False),
    ],
)
def test_the_same_weights_under_another_config_are_another_reference(
    tmp_path, setting, value, changes
) -> None:
    """Norms and rotations are no weights: a table made under another eps would be stale."""
    config = model_config()
    tokenizer = load_tokenizer(config)
    load_model(config, seed=1).save_pretrained(tmp_path)

    def key():
        return reference_key(config, tmp_path, 1, tokenizer, "float32", 64, 32, tmp_path / "hashes")

    before = key()
    settings = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(settings | {setting: value}))
    assert (key() != before) is changes
    assert key()["weights"] == before["weights"]


def test_rows_carry_the_cached_values_so_a_reference_has_no_log_ratio_to_itself(examples, tmp_path) -> None:
    made, model = table(examples, tmp_path), Factory()()
    row = RowCollator("shared_prefix", made.lookup)(examples.examples[::-1])
    pair = pair_of(row, model(**model_inputs(row)))
    assert pair.chosen.ratio_BT.abs().max() < 1e-5
    assert pair.rejected.ratio_BT.abs().max() < 1e-5


def everything(made, examples) -> list[np.ndarray]:
    return [side.copy() for example in examples.examples for side in made.lookup(example.example_id)]


DAMAGES = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-3]),
    "bit flipped": lambda path: path.write_bytes(flipped(path.read_bytes())),
    "empty": lambda path: path.write_bytes(b""),
    "other content": lambda path: path.write_text('["wrong"]\n'),
    "missing": lambda path: path.unlink(),
}


def flipped(content: bytes) -> bytes:
    """Flip the lowest bit in the middle of the first line, which is then no longer what was written."""
    middle = len(content.split(b"\n")[0]) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", [ABOUT, VALUES, FILLED])
def test_whatever_is_damaged_is_noticed_and_computed_again(examples, tmp_path, caplog, name, damage) -> None:
    """Three files, five damages: either a word and the right values, or one clear error; never wrong values."""
    before = everything(table(examples, tmp_path), examples)
    DAMAGES[damage](folder_of(tmp_path) / name)
    with caplog.at_level(logging.WARNING):
        again = table(examples, tmp_path)
    assert again.forward_tokens > 0
    silent = [(FILLED, "truncated"), (FILLED, "empty"), (FILLED, "missing")]  # as a kill leaves it
    assert ("damaged" in caplog.text) is ((name, damage) not in silent)
    assert all(map(np.array_equal, everything(again, examples), before))
    assert table(examples, tmp_path).forward_tokens == 0


def test_a_table_of_other_weights_in_this_ones_place_is_an_error(examples, tmp_path) -> None:
    table(examples, tmp_path)
    head = folder_of(tmp_path) / ABOUT
    content = json.loads(head.read_text())
    content["key"]["weights"] = "others"
    head.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="made for another weights"):
        table(examples, tmp_path)


def test_an_example_that_the_table_does_not_hold_is_an_error(examples, tmp_path) -> None:
    with pytest.raises(ValueError, match="example 5 is not in the reference cache"):
        table(examples, tmp_path).lookup(5)


def test_a_value_that_is_not_finite_is_refused_and_nothing_is_kept(examples, tmp_path) -> None:
    made = Table(tmp_path, KEY, examples)
    made.open()
    broken = np.full(10, np.nan, np.float32)
    with pytest.raises(ValueError, match=r"1 examples are not finite, the first of example 1000"):
        made.add({0: broken})
    assert read_jsonl(made.folder / FILLED) == []


def test_only_what_is_wanted_is_computed_and_other_subsets_take_what_is_there(examples, tmp_path) -> None:
    """The pairs take 15, 14, 12, 15 and 14 tokens."""
    first = table(examples, tmp_path, wanted=[1, 3])
    assert (first.forward_tokens, first.computed, first.reused) == (29, 2, 0)
    with pytest.raises(
        ValueError, match="example 1000 is not in the reference cache, which holds 2 examples"
    ):
        first.lookup(1000)
    kept = [value.copy() for value in first.lookup(1007)]
    second = table(examples, tmp_path, wanted=[0, 1, 2])
    assert (second.forward_tokens, second.computed, second.reused) == (27, 2, 1)
    assert all(map(np.array_equal, second.lookup(1007), kept))
    last = table(examples, tmp_path)
    assert (last.forward_tokens, last.computed, last.reused) == (14, 1, 4)
    whole = table(examples, tmp_path / "other")
    for example in examples.examples:
        for ours, theirs in zip(
            last.lookup(example.example_id), whole.lookup(example.example_id), strict=True
        ):
            assert np.allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize(("steps", "seen"), [(1, 8), (2, 16), (3, 30), (7, 30)])
def test_the_planned_steps_say_which_examples_they_see(steps, seen) -> None:
    """30 examples in steps of 8: an epoch is 3 steps, and from there on another seed's remainder is wanted too."""
    positions = planned_examples(30, 8, seed=3, steps=steps)
    assert len(set(positions.tolist())) == seen
    sizes = np.full((30, 3), 4)
    sampler = StepSampler(sizes, 8, 1, 1, 3, "shared_prefix")
    rows = [index for row, _ in zip(sampler, range(steps), strict=False) for index in row]
    assert set(rows) <= set(positions.tolist())


SLOW = """
import sys, time; sys.path[:0] = [sys.argv[2]]
from pathlib import Path
import test_reference as t
factory = t.Factory(slow=0.03)
made = t.table(t.many_examples(), Path(sys.argv[1]), factory, work=t.Work(max_tokens=16, progress=False))
print(made.forward_tokens, made.computed, made.reused, flush=True)
"""


def many_examples() -> ExampleList:
    return ExampleList(make_examples([(3, 2 + i % 5, 1 + i % 3) for i in range(60)]))


def slow_pass(cache: Path) -> subprocess.Popen:
    command = [sys.executable, "-c", SLOW, str(cache), str(Path(__file__).parent)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def stretches(cache: Path) -> list[dict]:
    return [row for path in cache.glob(f"reference/*/{FILLED}") for row in read_jsonl(path, torn_end=True)]


def test_a_killed_pass_goes_on_where_it_was_and_ends_with_the_same_values(tmp_path) -> None:
    """SIGKILL in the middle; the next process computes the rest, bit for bit as one that was not killed."""
    examples, killed = many_examples(), slow_pass(tmp_path)
    while len(stretches(tmp_path)) < 2:
        assert killed.poll() is None, "it ended before it could be killed"
        time.sleep(0.005)
    killed.kill()
    killed.wait()
    kept = sum(len(stretch["spans"]) for stretch in stretches(tmp_path))
    assert 0 < kept < len(examples)
    work = Work(max_tokens=16, progress=False)
    last, whole = table(examples, tmp_path, work=work), table(examples, tmp_path / "whole", work=work)
    assert (last.reused, last.computed) == (kept, len(examples) - kept)
    assert 0 < last.forward_tokens < whole.forward_tokens
    for example in examples.examples:
        assert all(map(np.array_equal, last.lookup(example.example_id), whole.lookup(example.example_id)))


def test_two_processes_that_want_the_same_table_compute_it_once(tmp_path, caplog) -> None:
    """The second waits with a word; together they run each token forward once. One killed hands over its work."""
    examples = many_examples()
    first = slow_pass(tmp_path)
    while not stretches(tmp_path):
        time.sleep(0.005)
    with caplog.at_level(logging.INFO):
        mine = table(examples, tmp_path, work=Work(max_tokens=16, progress=False))
    assert f"waiting for it: process {first.pid} makes the reference log-probs" in caplog.text
    tokens, computed, reused = map(int, first.communicate()[0].split())
    assert (computed, reused) == (60, 0)
    assert (mine.forward_tokens, mine.computed, mine.reused) == (0, 0, 60)
    assert tokens == sum(int(size.sum()) for size in examples.lengths)


@pytest.mark.proof
def test_who_waits_for_a_pass_that_is_killed_takes_it_over(tmp_path) -> None:
    first = slow_pass(tmp_path)
    while not stretches(tmp_path):
        time.sleep(0.005)
    killer = subprocess.Popen(["sh", "-c", f"sleep 0.4; kill -9 {first.pid}"])
    mine = table(many_examples(), tmp_path, work=Work(max_tokens=16, progress=False))
    assert first.wait() == -9
    assert mine.computed + mine.reused == 60
    assert 0 < mine.reused < 60
    killer.wait()


def test_two_runs_that_start_together_compute_once(examples, tmp_path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    factory = Factory()
    with ThreadPoolExecutor(2) as pool:
        tables = list(pool.map(lambda _: table(examples, tmp_path, factory), range(2)))
    assert factory.calls == 1
    assert np.array_equal(tables[0].lookup(1000)[0], tables[1].lookup(1000)[0])
