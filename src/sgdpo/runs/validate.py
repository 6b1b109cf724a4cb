"""Find everything wrong with a composed run before anything heavy loads: all errors at once, none a traceback."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import asdict, is_dataclass
from pathlib import Path

from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from sgdpo.config.compose import to_run_config, unknown_keys
from sgdpo.config.schema import OptimizerConfig, RunConfig
from sgdpo.data.sources import data_errors
from sgdpo.engine.checks import engine_errors
from sgdpo.method import method_errors
from sgdpo.models.load import model_errors

CHOICES = {
    "init": ("sft", "pretrained"),
    "reference": ("cached", "live"),
    "resume": ("auto", "anyway", "never"),
    "device": ("auto", "cpu", "cuda"),
    "trainer.layout": ("shared_prefix", "separate"),
    "trainer.on_nonfinite": ("stop", "skip"),
    "precision.name": ("float32", "bf16"),
    "tracking.mode": ("auto", "online", "offline"),
    "optimizer.schedule": ("cosine", "linear", "constant", "constant_with_warmup"),
}
AT_LEAST = {
    "trainer.max_tokens_per_row": 1,
    "trainer.head_budget_mb": 1,
    "trainer.log_steps": 1,
    "trainer.keep_checkpoints": 1,
    "trainer.eval_steps": 0,
    "trainer.save_steps": 0,
    "trainer.workers": 0,
}
MIN_FREE_MB = 64


def config_errors(config: DictConfig) -> list[str]:
    """List every error of a composed run, each a sentence that says what, where and what to do."""
    errors = [f"unknown key {key!r}: no setting has this name (see conf/)" for key in unknown_keys(config)]
    if errors:
        return errors
    try:
        typed = to_run_config(config)
    except OmegaConfBaseException as error:
        return [f"{getattr(error, 'full_key', '') or 'config'}: {str(error).splitlines()[0]}"]
    return run_errors(typed)


def run_errors(config: RunConfig) -> list[str]:
    """List every error of a typed run."""
    phase = config.method.get("phase", "preference")
    errors = method_errors(config.method, asdict(config.ratio), config.extra)
    if config.method != config.start:
        errors += [f"start: {error}" for error in method_errors(config.start, {}, config.extra)]
    errors += [*_choice_errors(config), *_range_errors(config), *_optimizer_errors(config.optimizer)]
    errors += model_errors(config.model)
    errors += data_errors(config.data, phase)
    errors += engine_errors(config)
    return errors + list(_place_errors(config))


def _choice_errors(config: RunConfig) -> Iterator[str]:
    for key, allowed in CHOICES.items():
        value = _get(config, key)
        if value not in allowed:
            yield f"{key} must be one of {', '.join(allowed)}, not {value!r}"


def _range_errors(config: RunConfig) -> Iterator[str]:
    for key, least in AT_LEAST.items():
        if _get(config, key) < least:
            yield f"{key} must be at least {least}, not {_get(config, key)}"
    data = config.data
    if not 0 < data.max_prompt_length < data.max_length:
        yield (
            f"data.max_prompt_length ({data.max_prompt_length}) must be positive and smaller than "
            f"data.max_length ({data.max_length}), or no token is left for the completions"
        )
    if not 0 <= config.seed < 2**32:
        yield f"seed must lie in [0, 2**32), not {config.seed}"
    if not config.experiment or set(config.experiment) & set("/\\*?[]") or config.experiment.startswith("."):
        yield f"experiment {config.experiment!r} must be a plain folder name"


def _optimizer_errors(optimizer: OptimizerConfig) -> Iterator[str]:
    for phase, settings in (("", optimizer), ("sft.", optimizer.sft), ("preference.", optimizer.preference)):
        if not 0 < settings.lr < math.inf:
            yield f"optimizer.{phase}lr must be positive, not {settings.lr}"
        if settings.batch_size < 1:
            yield f"optimizer.{phase}batch_size must be at least 1, not {settings.batch_size}"
        if settings.max_steps < 1 and not settings.epochs > 0:
            yield f"optimizer.{phase}epochs must be positive, not {settings.epochs}"
        if settings.max_steps < -1 or settings.max_steps == 0:
            yield f"optimizer.{phase}max_steps must be -1 (as the epochs say) or positive, not {settings.max_steps}"
    if not 0 <= optimizer.warmup_ratio < 1:
        yield f"optimizer.warmup_ratio must lie in [0, 1), not {optimizer.warmup_ratio}"
    for key in ("beta1", "beta2"):
        if not 0 <= getattr(optimizer, key) < 1:
            yield f"optimizer.{key} must lie in [0, 1), not {getattr(optimizer, key)}"
    if optimizer.max_grad_norm < 0 or optimizer.weight_decay < 0 or optimizer.eps <= 0:
        yield "optimizer: max_grad_norm and weight_decay must not be negative, eps must be positive"


def _place_errors(config: RunConfig) -> Iterator[str]:
    """Check that outputs and cache can be written and have room for a start."""
    for key in ("outputs", "cache"):
        folder = Path(getattr(config, key))
        existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
        if not existing.is_dir():
            yield f"{key}={folder}: {existing} is a file, not a folder"
        elif not os.access(existing, os.W_OK | os.X_OK):
            yield f"{key}={folder}: no permission to write in {existing}; choose another {key}=..."
        elif (free := _free_mb(existing)) < MIN_FREE_MB:
            yield f"{key}={folder}: only {free:.0f} MiB are free there; a run needs at least {MIN_FREE_MB}"


def _free_mb(folder: Path) -> float:
    stat = os.statvfs(folder)
    return stat.f_bavail * stat.f_frsize / 2**20


def _get(config: RunConfig, key: str) -> object:
    value: object = config
    for part in key.split("."):
        assert is_dataclass(value)
        value = getattr(value, part)
    return value
