"""Every engine gives one process's result: losses, rewards, gradient norms, records, final weights.

Tiny model, float32, gloo, 20 steps, two processes; a start that was trained and loaded from its folder, as
ZeRO-3 cuts a model while it is loaded.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from lab.soak import metrics
from marks import proofs_but
from sgdpo.config.compose import compose_run, to_run_config
from sgdpo.config.schema import RunConfig
from sgdpo.engine.launch import launch
from sgdpo.runs.run import Run, execute
from sgdpo.training.checkpoints import find_resumable

TESTS = Path(__file__).parent
SMALL = (
    "device=cpu", "tracking=off", "model.tiny.num_hidden_layers=2", "data.world.pairs=80", "data.world.test_pairs=8",
    "data.world.demonstrations=64", "optimizer.batch_size=4", "optimizer.lr=1e-3", "optimizer.sft.max_steps=4",
    "optimizer.sft.batch_size=16", "trainer.max_tokens_per_row=128", "trainer.save_steps=20",
    "trainer.keep_finished=true",
)  # fmt: skip
ENGINES = {"ddp": "bco", "zero2": "bco", "zero3": "sgdpo", "zero3_offload": "sgdpo", "fsdp": "bco"}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("equality")


def config_of(place: Path, method: str, engine: str = "single", *more: str) -> RunConfig:
    processes = 1 if engine == "single" else 2
    changes = [
        f"engine={engine}",
        f"engine.num_processes={processes}",
        f"method={method}",
        f"outputs={place}",
        *more,
    ]
    return to_run_config(compose_run([*SMALL, *changes]))


@pytest.fixture(scope="module")
def single(place: Path):
    """Return the folder of one process's run of a method, trained once; its start is shared by all."""
    return lambda method: execute(config_of(place, method))


@pytest.mark.parametrize("engine", proofs_but(ENGINES, "zero3"))
def test_two_processes_give_what_one_gives(engine: str, place: Path, single, monkeypatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(TESTS))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    alone = single(ENGINES[engine])
    config = config_of(place, ENGINES[engine], engine)
    run = Run.of(config)
    assert launch(config, run.folder, run.to_json(), "hashing_rank") == 0
    together = run.folder
    same_metrics(alone, together)
    same_records(alone, together)
    same_method_state(alone, together)
    assert (together / "ranks/weights0").read_text() == (together / "ranks/weights1").read_text()
    final_weights_are_whole(alone, together)
    if config.engine.deepspeed:
        an_other_process_count_is_refused(config)


@pytest.mark.proof
def test_fsdp_multiplies_in_bfloat16_as_ddp_does(place: Path) -> None:
    """Of random weights the first loss is 4.6449 in float32, and another by 1.1e-4 where products are rounded."""
    ways = (("ddp", "bf16"), ("fsdp", "bf16"), ("fsdp", "float32"))
    ddp, fsdp, exact = (
        metrics(execute(config_of(place, "sft", engine, f"precision={name}", "optimizer.max_steps=1")))[0]
        for engine, name in ways
    )
    assert fsdp["loss"] == pytest.approx(ddp["loss"], abs=1e-6)
    assert fsdp["loss"] != pytest.approx(exact["loss"], abs=2e-5)


def same_metrics(alone: Path, together: Path) -> None:
    wanted, got = metrics(alone), metrics(together)
    assert [row.keys() for row in wanted] == [row.keys() for row in got]
    assert len([row for row in wanted if row["split"] == "train"]) == 20
    for a, b in zip(wanted, got, strict=True):
        assert b == pytest.approx(a, abs=1e-5, nan_ok=True), a["step"]


def same_records(alone: Path, together: Path) -> None:
    """The same data, start and counts; only what names the engine and the process differs."""
    wanted, got = (json.loads((folder / "record.json").read_text()) for folder in (alone, together))
    assert wanted.keys() == got.keys()
    for key in ("status", "phase", "method", "model", "data", "seed", "ratio", "result_hash", "start"):
        assert wanted[key] == got[key], key


def same_method_state(alone: Path, together: Path) -> None:
    """BCO's shift is the mean over the global batch's rewards, whoever computed them."""
    states = [sorted(folder.glob("checkpoints/*/method_state.json")) for folder in (alone, together)]
    assert [path.parent.name for path in states[0]] == [path.parent.name for path in states[1]]
    for a, b in zip(*states, strict=True):
        assert json.loads(b.read_text()) == pytest.approx(json.loads(a.read_text()), abs=1e-5)


def final_weights_are_whole(alone: Path, together: Path) -> None:
    """They load in one process with from_pretrained, and give the logits of the other run's model."""
    wanted, got = (load_file(folder / "model" / "model.safetensors") for folder in (alone, together))
    assert wanted.keys() == got.keys()
    for name in wanted:
        torch.testing.assert_close(got[name], wanted[name], atol=1e-5, rtol=0)
    models = [AutoModelForCausalLM.from_pretrained(folder / "model").eval() for folder in (alone, together)]
    ids = torch.arange(10, 30)[None]
    with torch.no_grad():
        torch.testing.assert_close(models[1](ids).logits, models[0](ids).logits, atol=1e-4, rtol=0)


def an_other_process_count_is_refused(config: RunConfig) -> None:
    """What two processes cut, one cannot continue; the error names both ways out."""
    folder = Run.of(config).folder / "checkpoints"
    assert find_resumable(folder, config.engine)[0] == folder / "checkpoint-20"
    with pytest.raises(ValueError, match=r"zero\d.* by 2 processes .* resume=never"):
        find_resumable(folder, replace(config.engine, num_processes=1))
