"""Put a run's parts together: examples, reference, policy, and the trainer that meets them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sgdpo.config.schema import RunConfig
from sgdpo.data.batching import RowSampler, StepSampler, planned_examples, rows_per_step
from sgdpo.data.example import Examples
from sgdpo.data.packing import RowCollator
from sgdpo.data.prepare import Prepared
from sgdpo.method import Method
from sgdpo.models.load import fit_errors, load_config, load_model
from sgdpo.models.logprobs import teach_logprobs
from sgdpo.reference import ReferenceTable, Work, reference_key, reference_table
from sgdpo.training.arguments import total_steps, training_arguments
from sgdpo.training.progress import Progress
from sgdpo.training.token_rewards import PAIRS_SHOWN
from sgdpo.training.trainer import PairTrainer


@dataclass(frozen=True)
class Parts:
    """Hold what a run is made of.

    start: folder of the SFT start's weights, None for the model's own. folder: the run's. world: processes.
    """

    config: RunConfig
    method: Method
    prepared: Prepared
    tokenizer: PreTrainedTokenizerBase
    start: Path | None
    folder: Path
    world: int


@dataclass(frozen=True)
class Reference:
    """Hold the reference: a table of cached log-probs, a live model, or neither."""

    table: ReferenceTable | None = None
    live: PreTrainedModel | None = None


@dataclass(frozen=True)
class Schedule:
    """Hold how a run is cut: optimizer steps, and rows of a step on each rank."""

    steps: int
    rows: int


def check_fit(parts: Parts) -> None:
    """Raise ValueError if there is too little data for a step, or the data does not fit the model."""
    train, batch = parts.prepared.train, parts.config.optimizer.batch_size
    if len(train) < batch:
        raise ValueError(
            f"{len(train)} training examples are left but a step takes {batch}; "
            f"set optimizer.batch_size to at most {len(train)}, or bring more data"
        )
    sets = [train] if parts.prepared.test is None else [train, parts.prepared.test]
    longest = max(int((s.lengths[:, 0] + s.lengths[:, 1:].max(1)).max()) for s in sets)
    if errors := fit_errors(load_config(parts.config.model, parts.start), len(parts.tokenizer), longest):
        raise ValueError("\n".join(errors))


def plan_steps(parts: Parts) -> Schedule:
    """Return how many steps the run takes, and how many rows a step has on each rank."""
    config, train = parts.config, parts.prepared.train
    rows = rows_per_step(
        train.lengths, config.optimizer.batch_size, parts.world, config.trainer.max_tokens_per_row,
        config.trainer.layout, seed=config.seed, epochs=math.ceil(config.optimizer.epochs),
    )  # fmt: skip
    return Schedule(total_steps(config, len(train)), rows)


def find_reference(parts: Parts, schedule: Schedule) -> Reference:
    """Return the reference's per-token log-probs: from the cache, computed once, or a frozen model.

    Call it before TrainingArguments exist: under ZeRO-3 every model loaded after them is partitioned.
    """
    config, state = parts.config, PartialState()
    if not parts.method.reference:
        return Reference()

    def factory() -> PreTrainedModel:
        return policy(config, parts.start).requires_grad_(False).eval()

    if config.reference == "live":
        return Reference(live=factory())
    work = Work(
        layout=config.trainer.layout,
        max_tokens=config.trainer.max_tokens_per_row,
        device=str(state.device),
        autocast=torch.bfloat16 if config.precision.name == "bf16" else None,
        rank=state.process_index,
        world=state.num_processes,
    )
    cache = Path(config.cache)
    key = work.agree(
        lambda: reference_key(
            config.model, parts.start, config.seed, parts.tokenizer, config.precision.name,
            config.data.max_length, config.data.max_prompt_length, cache / "hashes",
        )
    )  # fmt: skip
    sets = _looked_up(parts, schedule)
    table = reference_table(sets, model_factory=factory, key=key, cache=cache, work=work)
    return Reference(table=table)


def _looked_up(parts: Parts, schedule: Schedule) -> list[tuple[Examples, np.ndarray]]:
    """Return each data set with the positions of the examples whose reference the run will ask for."""
    train, test = parts.prepared.train, parts.prepared.test
    config = parts.config
    steps = planned_examples(len(train), config.optimizer.batch_size, config.seed, schedule.steps)
    if test is not None:
        return [(train, steps), (test, np.arange(len(test)))]
    shown = np.arange(min(PAIRS_SHOWN, len(train)))
    return [(train, np.union1d(steps, shown))]


def policy(config: RunConfig, start: Path | None) -> PreTrainedModel:
    """Return the model that starts the run, taught to give per-token log-probs."""
    model = load_model(config.model, weights=start, seed=config.seed)
    teach_logprobs(model, config.trainer.head_budget_mb)
    if config.trainer.activation_checkpointing:
        model.gradient_checkpointing_enable()
    return model


def build_trainer(
    parts: Parts, reference: Reference, schedule: Schedule, log_row: Callable[[dict[str, Any]], None]
) -> PairTrainer:
    """Return the trainer of a run; `log_row` gets every row of metrics on rank 0."""
    config, train, test = parts.config, parts.prepared.train, parts.prepared.test
    trainer, batch = config.trainer, config.optimizer.batch_size
    arguments = training_arguments(config, parts.folder, schedule.steps, schedule.rows, test is not None)
    return PairTrainer(
        args=arguments,
        model=policy(config, parts.start),
        train_dataset=train,
        eval_dataset=test,
        processing_class=parts.tokenizer,
        method=parts.method,
        train_rows=StepSampler(train.lengths, batch, schedule.rows, parts.world, config.seed, trainer.layout),
        eval_rows=RowSampler(test.lengths, trainer.max_tokens_per_row, parts.world, trainer.layout)
        if test is not None
        else None,
        collator=RowCollator(trainer.layout, reference.table.lookup if reference.table else None),
        live_reference=reference.live,
        log_row=log_row,
        draws_seed=config.seed,
        precision=config.precision.name,
        step0_check=trainer.step0_check,
        on_nonfinite=trainer.on_nonfinite,
        keep_checkpoints=trainer.keep_checkpoints,
        engine=config.engine,
        callbacks=[Progress(parts.folder.name)],
    )
