"""Find everything wrong with a composed run before anything heavy loads: all errors at once, none a traceback."""

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from sgdpo.config.compose import config_folders, method_of, to_run_config, unknown_key, unknown_keys
from sgdpo.config.identity import needs_start, start_errors
from sgdpo.config.schema import AdapterConfig, OptimizerConfig, RunConfig
from sgdpo.contract import Kind, build
from sgdpo.method import method_errors
from sgdpo.mixtures import needs_of
from sgdpo.places import CONF
from sgdpo.runs.contents import reference_folder, why_no_model
from sgdpo.runs.records import RECORD
from sgdpo.runs.tracking import wanted_mode
from sgdpo.values import schema_errors

MIN_FREE_MB = 64
ASKED = Kind("trainer", key="asked_by", given=("run",), parts=("errors", "prompts", "scores"))


def config_errors(config: DictConfig, sound: Callable[[RunConfig], object] = id) -> list[str]:
    """List every error of a composed run, each a sentence that says what, where and what to do.

    sound: is told of the run once its values are sound, before seconds of imports.
    """
    if unknown := unknown_keys(config):
        return [*map(unknown_key, unknown)]
    try:
        typed = to_run_config(config)
    except ValueError as error:
        return [str(error)]
    return run_errors(typed, config_folders(), sound)


def run_errors(
    config: RunConfig,
    folders: Sequence[Path] = (CONF,),
    sound: Callable[[RunConfig], object] = id,
    *,
    sampled: bool = False,
) -> list[str]:
    """List every error of a typed run. What needs a library or a file comes only once the values are sound.

    sampled: it trains on pairs that are yet to be sampled, so that its data has prompts alone.
    """
    if errors := list(value_errors(config, folders)):
        return errors
    sound(config)
    from sgdpo.data.sources import data_errors
    from sgdpo.engine.checks import engine_errors
    from sgdpo.models.load import model_errors

    phase = "prompts" if sampled else config.method["phase"]
    scores = bool(needs_of(config.method).get("scores")) and not sampled
    errors = [
        *model_errors(config.model, config.adapter),
        *data_errors(config.data, phase, config.extra, folders, scores=scores),
        *engine_errors(config),
        *place_errors(config),
    ]
    return errors or [*_answer_errors(config, phase), *_choice_errors(config, phase)]


def value_errors(config: RunConfig, folders: Sequence[Path] = (CONF,)) -> Iterator[str]:
    """Yield what is wrong with the values alone: no data set, model or engine is looked at."""
    ratio = asdict(config.ratio)
    given = {} if config.ratio.chosen is None and config.ratio.rejected is None else ratio
    yield from method_errors(config.method, given, config.extra, folders, pilot=config.pilot)
    same = config.method == config.start
    wrong = [] if same else method_errors(config.start, {}, config.extra, folders)
    yield from [f"start: {error}" for error in wrong] or start_errors(config)
    # The method says what is wrong with its ratios.
    yield from (
        error for error in schema_errors(config) if not error.startswith(("ratio.chosen", "ratio.rejected"))
    )
    yield from _optimizer_errors(config.optimizer)
    yield from _adapter_errors(config)
    yield from _reference_errors(config)
    try:
        wanted_mode("auto")
    except ValueError as error:
        if config.tracking.enabled:
            yield str(error)
    data = config.data
    if data.max_prompt_length >= data.max_length:
        yield (
            f"data.max_prompt_length ({data.max_prompt_length}) must be smaller than data.max_length "
            f"({data.max_length}), or no token is left for the completions"
        )
    for file in config.extra:
        if not file.endswith(".py") or not Path(file).is_file():
            yield f"extra: {file} is no Python file"


def _reference_errors(config: RunConfig) -> Iterator[str]:
    place, folder = config.reference_weights, reference_folder(config)
    if place is None or folder is None:
        return
    if not needs_of(config.method).get("reference"):
        yield f"reference_weights={place}: method={config.method.get('name')} takes no reference; leave it out"
    elif not (folder / "config.json").is_file() or not list(folder.glob("*.safetensors")):
        yield f"reference_weights={place} holds no weights; give a finished run's folder, or one with safetensors"
    elif (folder.parent / RECORD).is_file() and (wrong := why_no_model(folder.parent, config.cache)):
        yield f"reference_weights={place} {wrong}"


def _optimizer_errors(optimizer: OptimizerConfig) -> Iterator[str]:
    for phase, settings in (("", optimizer), ("sft.", optimizer.sft), ("preference.", optimizer.preference)):
        if settings.max_steps == 0:
            yield f"optimizer.{phase}max_steps must be -1 (as the epochs say) or positive, not 0"
        if settings.max_steps == -1 and settings.epochs == 0:
            yield f"optimizer.{phase}epochs must be a positive number, not 0, where max_steps is -1"


def _adapter_errors(config: RunConfig) -> Iterator[str]:
    adapter = config.adapter
    if (adapter.rank is None) != (adapter.name == AdapterConfig.name):
        yield (
            f"adapter.rank={adapter.rank} and adapter={adapter.name} contradict each other; adapter=lora has a rank"
            " (adapter.rank=16), adapter=none has none"
        )
    elif adapter.rank is None and adapter != (plain := AdapterConfig()):
        idle = ", ".join(
            f"adapter.{key}" for key in vars(plain) if getattr(adapter, key) != getattr(plain, key)
        )
        yield f"adapter=none trains every weight, but {idle} is set; say adapter=lora, or leave it out"
    if adapter.rank is None:
        return
    if not adapter.targets:
        yield "adapter.targets is empty: no layer would be trained; [all-linear] takes every layer but the lm-head"
    starts_random = not needs_start(config) or adapter.start == "adapter"
    if config.model.path is None and starts_random:
        yield (
            f"adapter={adapter.name} on the random weights of model={config.model.name}: an adapter changes what has"
            " been learned; use adapter=none for its SFT, init=sft for a method's start, or a model with a path"
        )
    if adapter.quantise and adapter.merge:
        yield (
            "adapter.merge=true cannot merge into weights of 4 bits: what was learned would be rounded away; set"
            " adapter.merge=false (evaluation merges the adapter into the unquantised base as it loads)"
        )


def logged_metrics(config: RunConfig, phase: str | None = None) -> list[str]:
    """List the metrics that a run will log and that its weights can be chosen by, as "split/name".

    phase: what of the data says whether there are held-out rows, if not the method's.
    """
    from sgdpo.training.metrics import metric_names
    from sgdpo.training.samples import MEANS, SCORED

    method = method_of(config)
    names = metric_names(method)
    if not _holds_out(config, phase or method.phase):
        return [f"train/{name}" for name in names]
    asked = (SCORED if config.trainer.benchmark else MEANS) if config.trainer.samples else ()
    answers = [f"samples/{name}" for name in asked]
    return [*(f"{split}/{name}" for split in ("eval", "train") for name in names), *answers]


def _holds_out(config: RunConfig, phase: str) -> bool:
    from sgdpo.data.sources import load_rows

    return load_rows(config.data, phase, "test", config.extra) is not None


def asker(config: RunConfig) -> Any:
    """Return what asks the benchmark of a run while it trains. Raise ValueError if it cannot be asked."""
    asked = {"name": "default", "asked_by": config.trainer.asked_by}
    made = build(ASKED, asked, config.extra, run=config)
    if errors := made.errors():
        raise ValueError("\n".join(errors))
    return made


def _answer_errors(config: RunConfig, phase: str) -> Iterator[str]:
    if config.trainer.benchmark is None:
        return
    if config.trainer.samples == 0:
        yield f"trainer.benchmark={config.trainer.benchmark} asks trainer.samples prompts, and that is 0 here"
    elif not _holds_out(config, phase):
        yield (
            f"trainer.benchmark={config.trainer.benchmark} is asked at evaluations, and data {config.data.name!r} has "
            "no held-out rows"
        )
    else:
        try:
            asker(config)
        except ValueError as error:
            yield from str(error).split("\n")


def _choice_errors(config: RunConfig, phase: str) -> Iterator[str]:
    best = config.trainer.best
    if best is None:
        if config.trainer.patience is not None:
            yield "trainer.patience counts evaluations that are not better; say by which metric with trainer.best"
        return
    known = logged_metrics(config, phase)
    if not known[0].startswith("eval/"):
        yield f"trainer.best={best} chooses at evaluations, and data {config.data.name!r} has no held-out rows"
    elif best not in known:
        yield f"trainer.best={best} is no metric of this run; there are: {', '.join(known)}"


def place_errors(config: Any, keys: Sequence[str] = ("outputs", "cache")) -> Iterator[str]:
    """Check that the folders that a configuration names can be written and have room for a start."""
    for key in keys:
        folder = Path(getattr(config, key))
        existing = next(parent for parent in (folder, *folder.absolute().parents) if os.path.lexists(parent))
        if not existing.is_dir():
            kind = "a link to nothing" if existing.is_symlink() and not existing.exists() else "a file"
            yield f"{key}={folder}: {existing} is {kind}, not a folder"
        elif not os.access(existing, os.W_OK | os.X_OK):
            yield f"{key}={folder}: no permission to write in {existing}; choose another {key}=..."
        elif (free := shutil.disk_usage(existing).free / 2**20) < MIN_FREE_MB:
            yield f"{key}={folder}: only {free:.0f} MiB are free there; a run needs at least {MIN_FREE_MB}"
