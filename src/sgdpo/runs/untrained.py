"""A run that trains nothing: a model as it is, which evaluation and tables take as they take any other run."""

import logging
from dataclasses import asdict, replace
from pathlib import Path

from omegaconf import OmegaConf

from sgdpo.config.schema import (
    AdapterConfig,
    EngineConfig,
    OptimizerConfig,
    RatioConfig,
    RunConfig,
    TrainerConfig,
)
from sgdpo.runs.records import MODEL, RECORD, Record, view_run
from sgdpo.runs.run import Run
from sgdpo.store import held

log = logging.getLogger("sgdpo")


def untrained(config: RunConfig) -> Path:
    """Return the folder of the run, its weights a link to the model's own.

    Raises ValueError for a random model, and for a dry run: there is nothing to plan.
    """
    from sgdpo.models.load import weights_folder  # torch and all that

    if config.dry_run:
        raise ValueError("dry_run=true: a start trains nothing, so there is nothing to plan; leave it out")
    if config.model.path is None:
        raise ValueError(
            f"model={config.model.name} is random before it is trained: there is nothing to evaluate"
        )
    method = {**config.start, "name": "start", "title": "Start"}
    run = Run.of(_without_training(replace(config, method=method)))
    with held(Path(config.cache) / "locks" / f"start-{run.identity.run_hash[:16]}", "this run"):
        if (run.folder / RECORD).is_file() and view_run(run.folder).status == "finished":
            log.info("%s is there already", run.folder)
            return run.folder
        weights = weights_folder(config.model)
        assert weights is not None, "it has a path"
        record = Record.open(run.folder, run.identity, phase=method["phase"])
        (run.folder / MODEL).symlink_to(weights.resolve())
        OmegaConf.save(OmegaConf.create(asdict(run.config)), run.folder / "config.yaml")
        record.note(steps=0)
        record.finish()
    return run.folder


def _without_training(config: RunConfig) -> RunConfig:
    """Leave out what only a training reads: runs that differ in nothing else stand on one start, evaluated once."""
    return replace(
        config,
        ratio=RatioConfig(),
        pilot={},
        optimizer=OptimizerConfig(name="none"),
        trainer=TrainerConfig(asked_by=config.trainer.asked_by),
        adapter=AdapterConfig(),
        engine=EngineConfig(),
        init="pretrained",
        reference_weights=None,
        label="",
    )
