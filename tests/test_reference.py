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
from sgdpo.data.packing import RowCollator, model_inputs, pair_of
from sgdpo.models.load import load_tokenizer
from sgdpo.models.logprobs import teach_logprobs
from sgdpo.reference import Work, reference_key, reference_table
from sgdpo.reference.store import open_table, write_table

KEY = {"weights": "w", "dtype": "float32", "tokenizer": "t", "max_length": 64, "max_prompt_length": 32}
WORK = Work(max_tokens=64, progress=False)
LENGTHS = [(5, 7, 3), (4, 1, 9), (8, 2, 2), (3, 6, 6), (2, 11, 1)]


class Factory:
    """Build the reference model and count how often that was needed."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> torch.nn.Module:
        self.calls += 1
        model = tiny_model()
        teach_logprobs(model, 1)
        return model


@pytest.fixture
def examples() -> ExampleList:
    return ExampleList(make_examples(LENGTHS))


def table(examples, cache: Path, factory=None, key=KEY, work=WORK):
    return reference_table([examples], model_factory=factory or Factory(), key=key, cache=cache, work=work)


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
    assert set(first) == {"weights", "dtype", "tokenizer", "max_length", "max_prompt_length"}


def test_rows_carry_the_cached_values_so_a_reference_has_no_log_ratio_to_itself(examples, tmp_path) -> None:
    made, model = table(examples, tmp_path), Factory()()
    row = RowCollator("shared_prefix", made.lookup)(examples.examples[::-1])
    pair = pair_of(row, model(**model_inputs(row)))
    assert pair.chosen.ratio_BT.abs().max() < 1e-5
    assert pair.rejected.ratio_BT.abs().max() < 1e-5


@pytest.mark.parametrize("name", ["values.f32", "ids.i64", "table.json"])
def test_a_torn_file_is_noticed_and_the_table_built_again(examples, tmp_path, caplog, name) -> None:
    before = table(examples, tmp_path).lookup(1000)[0].copy()
    torn = folder_of(tmp_path) / name
    torn.write_bytes(torn.read_bytes()[:-3])
    factory = Factory()
    with caplog.at_level(logging.WARNING):
        again = table(examples, tmp_path, factory)
    assert "damaged" in caplog.text
    assert factory.calls == 1
    assert np.array_equal(again.lookup(1000)[0], before)


def test_a_table_of_other_weights_in_this_ones_place_is_an_error(examples, tmp_path) -> None:
    table(examples, tmp_path)
    head = folder_of(tmp_path) / "table.json"
    content = json.loads(head.read_text())
    content["key"]["weights"] = "others"
    head.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="made for another weights"):
        table(examples, tmp_path)


def test_an_example_that_the_table_does_not_hold_is_an_error(examples, tmp_path) -> None:
    with pytest.raises(ValueError, match="example 5 is not in the reference cache"):
        table(examples, tmp_path).lookup(5)


def test_an_unfilled_row_is_refused(tmp_path) -> None:
    """Of two examples with 2 + 1 tokens each, the second one's last token was never computed."""
    values = np.array([-1, -2, -3, -4, -5, np.nan], np.float32)
    with pytest.raises(ValueError, match=r"1 reference log-probs are missing or not finite.* of example 9"):
        write_table(tmp_path / "t", {}, np.array([4, 9]), np.array([[2, 1], [1, 2]]), values, {})
    assert open_table(tmp_path / "t", {}) is None


OWNER = """
import sys, time
from filelock import FileLock
from pathlib import Path
lock = FileLock(sys.argv[1]); lock.acquire()
beside = Path(sys.argv[2]); beside.mkdir(); (beside / "values.f32").write_bytes(b"half")
print("held", flush=True); time.sleep(60)
"""


def test_a_dead_owners_work_is_taken_over(examples, tmp_path, caplog) -> None:
    """The first run is killed while it holds the lock and has half a table; the second waits, then works."""
    table(examples, tmp_path / "elsewhere")
    name = folder_of(tmp_path / "elsewhere").name
    reference = tmp_path / "reference"
    reference.mkdir()
    arguments = [str(reference / f"{name}.lock"), str(reference / f".{name}.partial")]
    owner = subprocess.Popen([sys.executable, "-c", OWNER, *arguments], stdout=subprocess.PIPE, text=True)
    assert owner.stdout.readline() == "held\n"
    killer = subprocess.Popen(["sh", "-c", f"sleep 0.5; kill -9 {owner.pid}"])
    began = time.monotonic()
    with caplog.at_level(logging.INFO):
        made = table(examples, tmp_path)
    assert time.monotonic() - began > 0.3
    assert "waiting for it" in caplog.text
    assert len(made) == len(LENGTHS)
    killer.wait()
    owner.wait()


def test_two_runs_that_start_together_compute_once(examples, tmp_path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    factory = Factory()
    with ThreadPoolExecutor(2) as pool:
        tables = list(pool.map(lambda _: table(examples, tmp_path, factory), range(2)))
    assert factory.calls == 1
    assert np.array_equal(tables[0].lookup(1000)[0], tables[1].lookup(1000)[0])
