"""Over several ranks, too, a loss that is not finite ends the run by name."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from poisoned_rank import POSITION
from sgdpo.config.compose import compose_run, to_run_config
from sgdpo.data.prepare import prepare
from sgdpo.engine.launch import LaunchError, launch
from sgdpo.models.load import load_tokenizer
from sgdpo.runs.records import view_run
from sgdpo.runs.run import Run
from sgdpo.training.checkpoints import what_is_wrong

SMALL = (
    "device=cpu", "tracking=off", "init=pretrained", "model.tiny.num_hidden_layers=1", "data.world.pairs=24",
    "data.world.test_pairs=8", "data.world.demonstrations=16", "optimizer.batch_size=4", "trainer.save_steps=1",
    "trainer.step0_check=false", "engine.num_processes=2",
)  # fmt: skip


@pytest.mark.proof
@pytest.mark.parametrize("engine", ["ddp", "zero3", "fsdp"])
def test_step_pair_and_last_good_checkpoint_are_named_whoever_had_the_pair(
    engine: str, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    config = to_run_config(
        compose_run([*SMALL, f"engine={engine}", f"outputs={tmp_path}", f"cache={tmp_path}/c"])
    )
    run = Run.of(config)
    with pytest.raises(LaunchError) as caught:
        launch(config, run.folder, run.to_json(), "poisoned_rank")
    pairs = prepare(config.data, "preference", load_tokenizer(config.model), Path(config.cache)).train
    folder, said = run.folder, str(caught.value)
    step = int(re.search(r"step (\d+): the loss or its gradient is not finite", said)[1])
    assert f"pairs {pairs.ids[POSITION]}; " in said
    assert ("checkpoint: none" if step == 1 else f"checkpoint: checkpoint-{step - 1}.") in said
    assert view_run(folder).status == "failed"
    assert not (folder / "model").exists()
    assert all(what_is_wrong(checkpoint) is None for checkpoint in (folder / "checkpoints").glob("*"))
