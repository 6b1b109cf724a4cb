"""A run asks for the reference of what its steps see, through the entrypoint: accumulation, workers, ranks, reuse."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from sgdpo.config.compose import method_of
from sgdpo.config.schema import RunConfig
from sgdpo.models.adapters import WithoutAdapter
from sgdpo.models.load import load_tokenizer
from sgdpo.runs import run as run_module
from sgdpo.runs import train
from sgdpo.runs.attempt import SilentAttempt
from sgdpo.runs.records import Record, view_run
from sgdpo.runs.run import Run
from sgdpo.store import held
from tiny_training import tiny_config

TRAIN = Path(__file__).resolve().parents[1] / "src" / "train.py"
SMALL = (
    "device=cpu", "tracking=off", "method=dpo", "init=pretrained", "model.tiny.num_hidden_layers=1",
    "model.tiny.hidden_size=32", "model.tiny.intermediate_size=64", "data.world.pairs=80",
    "data.world.test_pairs=8", "optimizer.batch_size=4", "optimizer.max_steps=2",
)  # fmt: skip


def shared(outputs: Path, *overrides: str) -> dict:
    """Train as a user does; return what the record says of shared work."""
    command = [sys.executable, str(TRAIN), *SMALL, f"outputs={outputs}", *overrides]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    records = sorted(outputs.glob("*/*/record.json"), key=lambda path: path.stat().st_mtime)
    return json.loads(records[-1].read_text())["shared"]


@pytest.mark.parametrize(
    ("overrides", "computed"),
    [
        # 2 steps of 4, the next one, whose first row is loaded ahead
        pytest.param(["trainer.max_tokens_per_row=96"], 12, id="accumulation", marks=pytest.mark.proof),
        # 5 rows ahead, of 1 row a step
        pytest.param(["trainer.workers=2"], 28, id="workers", marks=pytest.mark.proof),
        pytest.param(
            ["engine=ddp", "engine.num_processes=2", "trainer.max_tokens_per_row=96"],
            12,
            id="two ranks",
            marks=pytest.mark.proof,
        ),
    ],
)
def test_a_run_shorter_than_an_epoch_computes_what_it_looks_up(tmp_path, overrides, computed) -> None:
    """Of 80 training pairs; and the 8 held-out ones that it evaluates on."""
    found = shared(tmp_path, *overrides)
    assert found["reference_examples"] == {"computed": computed + 8, "reused": 0}


@pytest.mark.proof
def test_another_method_and_more_steps_take_over_what_is_there(tmp_path) -> None:
    first, second = shared(tmp_path), shared(tmp_path, "method=bco", "optimizer.max_steps=20")
    assert first["reference"] == second["reference"] == "built"
    assert second["reference_examples"] == {"computed": 80 - 12, "reused": 12 + 8}


def trains(outputs: Path, *overrides: str) -> subprocess.Popen:
    command = [sys.executable, str(TRAIN), *SMALL, f"outputs={outputs}", *overrides]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


@pytest.mark.proof
def test_ranks_that_wait_for_another_runs_work_are_not_taken_for_hanging(tmp_path: Path) -> None:
    """Two minutes of waiting are four times what the watchdog allows; a held lock is all that another run shows."""
    first = shared(tmp_path, "experiment=first")
    assert first["reference"] == "built"
    lock = min((tmp_path / "cache" / "reference").glob("*.lock"))
    held = subprocess.Popen(["flock", str(lock), "sleep", "120"])
    waiting = trains(
        tmp_path, "experiment=second", "engine=ddp", "engine.num_processes=2", "engine.timeout_minutes=0.5"
    )
    said = waiting.communicate(timeout=300)[0]
    assert held.wait() == 0
    assert waiting.returncode == 0, said
    assert "waiting for it: process" in said


@pytest.mark.proof
def test_two_experiments_that_start_together_train_their_start_once(tmp_path: Path) -> None:
    own = ["init=sft", "data.world.demonstrations=64", "optimizer.sft.max_steps=30"]
    both = [trains(tmp_path, f"experiment={name}", *own) for name in ("one", "two")]
    said = [process.communicate(timeout=300)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    records = [json.loads(path.read_text()) for path in tmp_path.glob("*/*/record.json")]
    starts = [record for record in records if record["phase"] == "sft"]
    assert len(starts) == 1
    assert len(starts[0]["attempts"]) == 1
    assert sorted(r["shared"]["start"] for r in records if r["phase"] != "sft") in (
        ["trained", "waited"], ["found", "trained"],
    )  # fmt: skip


def test_who_waits_for_a_start_that_fails_does_not_try_it_again(tmp_path: Path, caplog) -> None:
    """It would come to the same end; the next command tries again."""
    caplog.set_level(logging.INFO, "sgdpo")
    start = Run.of(tiny_config(f"outputs={tmp_path}")).start
    with ThreadPoolExecutor() as pool:
        with held(run_module._lock(start), "the start"):
            waiting = pool.submit(run_module._train_once, start, as_start=True)
            while "waiting for it" not in caplog.text:
                time.sleep(0.01)
            Record.open(start.folder, start.identity, phase="sft").fail("ValueError: too few rows")
        with pytest.raises(ValueError, match="another process tried, failed: ValueError: too few rows"):
            waiting.result()
    assert len(view_run(start.folder)["attempts"]) == 1


def parts_of(config: RunConfig, folder: Path) -> SimpleNamespace:
    """Return what a run is made of, as far as its reference goes."""
    data = SimpleNamespace(train=SimpleNamespace(lengths=np.full((8, 3), 4)), test=None)
    return SimpleNamespace(
        config=config, method=method_of(config), start=None, world=1, tokenizer=load_tokenizer(config.model),
        run=SimpleNamespace(folder=folder), prepared=data, steps=1, rows=1,
    )  # fmt: skip


def test_weights_held_in_four_bits_have_a_table_of_their_own(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(train, "_looked_up", lambda *_: [])
    monkeypatch.setattr(train, "reference_table", lambda *_, key, **__: key)
    full, lora, qlora = (
        train.find_reference(parts_of(tiny_config(*more, f"cache={tmp_path}"), tmp_path)).table
        for more in ([], ["adapter=lora"], ["adapter=qlora"])
    )
    assert full == lora
    assert {**lora, "quantise": True} == qlora


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["adapter=lora"], "without the adapter"),
        (["adapter=lora", "reference_weights=other"], "other"),
        (["reference_weights=other"], "other"),
        ([], "the start"),
        (["adapter=lora", "method=simpo"], None),
        (["method=simpo"], None),
    ],
    ids=str,
)
def test_a_live_reference_is_the_model_that_the_settings_name(
    tmp_path, monkeypatch, overrides, expected
) -> None:
    """A model of these weights, the policy's own base, or none where the method asks for none."""

    def taught(config, weights):
        return torch.nn.ParameterDict({str(weights or "the start"): torch.zeros(1)})

    monkeypatch.setattr(train, "taught", taught)
    monkeypatch.setattr(train, "policy", lambda *_: "policy")
    monkeypatch.setattr(train, "PairTrainer", lambda **given: given)
    parts = parts_of(tiny_config("reference=live", *overrides), tmp_path)
    reference = train.find_reference(parts)
    live = train.build_trainer(parts, reference, SilentAttempt())["live_reference"]
    if expected is None or expected == "without the adapter":
        assert (type(live) is WithoutAdapter) == (live is not None) == (expected is not None)
    else:
        assert list(live) == [expected]
