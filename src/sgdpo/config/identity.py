"""Name a run by its settings and by the content of what it reads: what changes its numbers is hashed, no more."""

from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from typing import Any

from sgdpo.config.schema import FROM_THE_RUN, AdapterConfig, RatioConfig, RunConfig
from sgdpo.store import hash_json

# Where a run is written, watched and continued, and how it is called, does not change its numbers.
NOT_SETTINGS = (
    "experiment", "outputs", "cache", "tracking", "resume", "force", "dry_run", "device", "start", "n_jobs", "label",
    "extra",
)  # fmt: skip
# Nor do, in its groups: how often it saves, how many processes prepare its rows, where a model's default init points,
# what a table calls a method.
NOT_IN_GROUP = {
    "trainer": (
        "save_steps",
        "keep_checkpoints",
        "keep_finished",
        "workers",
        "step0_check",
        "samples",
        "sample_tokens",
        "benchmark",
        "asks",
        "asked_by",
        "best",
        "better",
        "patience",
    ),
    "model": ("init", "setup_hint", "facts"),
    "data": ("facts",),
    "method": ("title", "colour"),
    "optimizer": ("name", "sft", "preference"),
}
# Settings of DeepSpeed (conf/engine) that say how what is trained is cut and sent; any other may change the numbers, an
# optimizer of its own for example.
LAYOUT = (
    *FROM_THE_RUN, "zero_allow_untested_optimizer", "zero_force_ds_cpu_optimizer", "zero_optimization",
    "steps_per_print",
)  # fmt: skip
# What weights do not depend on.
NOT_WEIGHTS = ("engine", "trainer", "reference")
NOT_WEIGHTS_CONTENT = "data.test"
# What decides which weights a run ends with, if it does not end with the last ones; answers, if they are asked.
CHOICE, ANSWERS = ("best", "better", "patience", "eval_steps"), ("samples", "sample_tokens", "asks")


@dataclass(frozen=True)
class Identity:
    """Hold a run's name and the hashes that find it again.

    contents: {what is read: hash of its content}. settings_hash: of the settings alone. run_hash: of all that
    changes the run's record; a finished run with the same one is not repeated. result_hash: of what changes its
    weights only (no engine, layout or logging): SFT starts are found by it. result_settings: their part of it.
    """

    name: str
    settings: dict[str, Any]
    contents: dict[str, str]
    settings_hash: str
    run_hash: str
    result_hash: str
    result_settings: str


def identify(config: RunConfig, contents: Mapping[str, str], start: Identity | None) -> Identity:
    """Return the identity of a run, from its resolved settings, what it reads, and the start it needs."""
    settings, contents = _settings(config), dict(contents)
    if start is not None:
        settings["start"] = start.result_settings
        own = {key: value for key, value in start.contents.items() if not key.startswith("model.")}
        contents |= {f"start.{key}": value for key, value in own.items()}
    weights = {key: value for key, value in _hashed(settings).items() if key not in NOT_WEIGHTS}
    read = {key: value for key, value in contents.items() if not key.endswith(NOT_WEIGHTS_CONTENT)}
    # A run that skips steps may end with weights at which one that stops never arrives.
    if config.trainer.on_nonfinite == "skip":
        weights["on_nonfinite"] = "skip"
    if choice := _choice(config):
        weights, read = weights | {"choice": choice}, contents
    run_hash = _hash([_hashed(settings), contents])
    parts = [config.method["name"], config.model.name, config.data.name]
    if config.adapter.rank is not None:
        parts.append(config.adapter.name)
    if config.ratio.chosen is not None:
        parts.append(f"r{config.ratio.chosen}-{config.ratio.rejected}")
    parts += [*([config.label] if config.label else []), f"s{config.seed}", run_hash[:8]]
    return Identity(
        name="-".join(parts),
        settings=settings,
        contents=contents,
        settings_hash=_hash(_hashed(settings)),
        run_hash=run_hash,
        result_hash=_hash([weights, read]),
        result_settings=_hash(weights),
    )


def needs_start(config: RunConfig) -> bool:
    """Say whether the run starts from an SFT run that must exist first."""
    return config.init == "sft" and config.method["phase"] != "sft"


def start_errors(config: RunConfig) -> Iterator[str]:
    """Yield why a run cannot start from what its settings name: a preference run would need a start in turn."""
    if (phase := config.start.get("phase")) != "sft":
        yield (
            f"start: {config.start.get('name')} is of phase {phase}, and a run starts from an SFT run; leave it out, or"
            " give a method of phase sft (method@start=sft)"
        )


def start_config(config: RunConfig) -> RunConfig:
    """Return the SFT run that a preference run starts from: same model, data, seed and precision."""
    if errors := list(start_errors(config)):
        raise ValueError(*errors)
    sft = config.optimizer.sft
    optimizer = replace(
        config.optimizer, lr=sft.lr, batch_size=sft.batch_size, epochs=sft.epochs, max_steps=sft.max_steps
    )
    return replace(
        config,
        method=deepcopy(config.start),
        ratio=RatioConfig(),
        pilot={},
        adapter=AdapterConfig() if config.adapter.start == "full" else replace(config.adapter, merge=True),
        optimizer=optimizer,
        trainer=replace(config.trainer, best=None, patience=None),
        init="sft",
        reference="cached",
        reference_weights=None,
        force=False,
        label="",
    )


def _settings(config: RunConfig) -> dict[str, Any]:
    settings = {key: value for key, value in asdict(config).items() if key not in NOT_SETTINGS}
    for group in ("trainer", "model", "data", "optimizer"):
        settings[group] = {k: v for k, v in settings[group].items() if k not in NOT_IN_GROUP[group]}
    settings["trainer"] |= _choice(config)
    settings["ratio"] = {"chosen": config.ratio.chosen, "rejected": config.ratio.rejected}
    settings["engine"] = {k: settings["engine"][k] for k in ("name", "num_processes", "num_nodes")}
    if further := {k: v for k, v in (config.engine.deepspeed or {}).items() if k not in LAYOUT}:
        settings["deepspeed"] = further
    settings["precision"] = config.precision.name
    if config.adapter.rank is None:
        del settings["adapter"]
    if config.method["phase"] == "sft":
        del settings["init"], settings["reference"]
    if config.reference_weights is None:
        del settings["reference_weights"]
    return settings


def _choice(config: RunConfig) -> dict[str, Any]:
    if config.trainer.best is None:
        return {}
    keys = CHOICE + (ANSWERS if config.trainer.best.startswith("samples/") else ())
    return {key: getattr(config.trainer, key) for key in keys}


def _hashed(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out how a method is shown, which a record keeps."""
    method = {k: v for k, v in settings["method"].items() if k not in NOT_IN_GROUP["method"]}
    return {**settings, "method": method}


def _hash(value: Any) -> str:
    return hash_json(value, 64)
