"""Name a run by its settings: what changes its numbers is hashed, what does not is left out."""

from __future__ import annotations

import hashlib
import json
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from typing import Any

from sgdpo.config.schema import OptimizerConfig, RatioConfig, RunConfig

# Where a run is written, watched and continued does not change its numbers.
NOT_SETTINGS = (
    "experiment",
    "outputs",
    "cache",
    "tracking",
    "resume",
    "force",
    "dry_run",
    "device",
    "start",
    "n_jobs",
    "extra",
    "label",
)
# Nor does how often it saves or how many processes prepare its rows.
NOT_TRAINER = ("save_steps", "keep_checkpoints", "keep_finished", "workers", "step0_check")


@dataclass(frozen=True)
class Identity:
    """Hold a run's name and the hashes that find it again.

    settings_hash: of everything that changes the run's record; a finished run with the same one is not repeated.
    result_hash: of what changes its weights only (no engine, layout or logging): SFT starts are found by it.
    """

    name: str
    settings: dict[str, Any]
    settings_hash: str
    result_hash: str


def run_identity(config: RunConfig) -> Identity:
    """Return the identity of a run, from its resolved settings alone."""
    settings = _settings(config)
    settings_hash = _hash(settings)
    weights_only = {k: v for k, v in settings.items() if k not in ("engine", "trainer", "reference")}
    parts = [config.method["name"], config.model.name, config.data.name]
    if config.ratio.chosen is not None:
        parts.append(f"r{config.ratio.chosen}-{config.ratio.rejected}")
    if config.label:
        parts.append(config.label)
    parts += [f"s{config.seed}", settings_hash[:8]]
    return Identity("-".join(parts), settings, settings_hash, _hash(weights_only))


def needs_start(config: RunConfig) -> bool:
    """Say whether the run starts from an SFT run that must exist first."""
    return config.init == "sft" and config.method["phase"] != "sft"


def start_config(config: RunConfig) -> RunConfig:
    """Return the SFT run that a preference run starts from: same model, data, seed and precision."""
    sft = config.optimizer.sft
    optimizer = replace(
        config.optimizer, lr=sft.lr, batch_size=sft.batch_size, epochs=sft.epochs, max_steps=sft.max_steps
    )
    return replace(
        config,
        method=deepcopy(config.start),
        ratio=RatioConfig(),
        optimizer=optimizer,
        init="sft",
        reference="cached",
        force=False,
        label="",
    )


def _settings(config: RunConfig) -> dict[str, Any]:
    settings = {key: value for key, value in asdict(config).items() if key not in NOT_SETTINGS}
    settings["optimizer"] = _phase_in_use(config.optimizer)
    settings["ratio"] = {"chosen": config.ratio.chosen, "rejected": config.ratio.rejected}
    settings["trainer"] = {k: v for k, v in settings["trainer"].items() if k not in NOT_TRAINER}
    settings["engine"] = {k: settings["engine"][k] for k in ("name", "num_processes", "num_nodes")}
    settings["precision"] = config.precision.name
    # What a model is, not where its default init points or what to do when it is missing.
    settings["model"] = {
        k: v for k, v in settings["model"].items() if k not in ("init", "setup_hint", "facts")
    }
    settings["data"] = {k: v for k, v in settings["data"].items() if k != "facts"}
    if config.method["phase"] == "sft":
        del settings["init"], settings["reference"]
    elif config.init == "sft":
        settings["start"] = run_identity(start_config(config)).result_hash
    return settings


def _phase_in_use(optimizer: OptimizerConfig) -> dict[str, Any]:
    return {k: v for k, v in asdict(optimizer).items() if k not in ("name", "sft", "preference")}


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
