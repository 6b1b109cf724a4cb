"""Train one run in order: data, start, reference, trainer, record. It reads as the table of contents.

In this process, or as one rank of several; what must exist before (the SFT start) and where it runs (here, or
relaunched over several processes) is `run.py`'s business.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from sgdpo.config.compose import method_of
from sgdpo.config.schema import RunConfig
from sgdpo.data.batching import RowSampler, StepSampler, planned_examples, rows_per_step
from sgdpo.data.example import Examples
from sgdpo.data.overlap import OverlapCollator
from sgdpo.data.packing import RowCollator
from sgdpo.data.prepare import Prepared, describe, prepare
from sgdpo.method import Method
from sgdpo.models.adapters import WithoutAdapter, fit_adapter, write_base
from sgdpo.models.allocator import keep_freed_memory
from sgdpo.models.architectures import fit_errors, path_words
from sgdpo.models.load import (
    config_errors,
    content_hashes,
    load_config,
    load_model,
    load_tokenizer,
    merge_in_place,
)
from sgdpo.models.logprobs import teach_logprobs
from sgdpo.models.threads import threads_for
from sgdpo.processes import rank_0_decides
from sgdpo.reference import ReferenceTable, Work, reference_key, reference_table
from sgdpo.runs.attempt import SilentAttempt, open_attempt
from sgdpo.runs.contents import changes, reference_folder
from sgdpo.runs.provenance import made_by
from sgdpo.runs.records import CHECKPOINTS, MODEL, why_foreign
from sgdpo.runs.run import Run, stale
from sgdpo.runs.validate import asker
from sgdpo.store import read_seal, write_json
from sgdpo.training.arguments import compensated_adamw, on_gpu, total_steps, training_arguments
from sgdpo.training.checkpoints import checkpoint_step, find_resumable, full_disk_named
from sgdpo.training.progress import Progress
from sgdpo.training.samples import Samples
from sgdpo.training.token_rewards import PAIRS_SHOWN, token_rewards
from sgdpo.training.trainer import PairTrainer

log = logging.getLogger("sgdpo")

# Of these another version may give other numbers in the middle of a run.
ARITHMETIC = ("torch", "transformers", "accelerate", "deepspeed")


@dataclass(frozen=True)
class Parts:
    """Hold what a run is made of.

    start: folder of the SFT start's weights, None for the model's own. world: processes. steps: of the optimizer.
    rows: of a step on each rank.
    """

    run: Run
    method: Method
    prepared: Prepared
    tokenizer: PreTrainedTokenizerBase
    start: Path | None
    world: int
    steps: int = 1
    rows: int = 1

    @property
    def config(self) -> RunConfig:
        return self.run.config


ROWS_AHEAD = 2  # torch's prefetch_factor


@dataclass(frozen=True)
class Reference:
    """Hold the reference: a table of cached log-probs, a live model, or neither."""

    table: ReferenceTable | None = None
    live: PreTrainedModel | None = None


def train(run: Run) -> None:
    """Train one run in its folder. Its SFT start, if it needs one, must be finished."""
    config, state = run.config, PartialState(cpu=not on_gpu(run.config))
    if state.device.type == "cpu":
        keep_freed_memory()
    # Only rank 0 reads the checkpoints through; the others take its word.
    checkpoint = rank_0_decides(lambda: find_checkpoint(run))
    with open_attempt(run, checkpoint, state.process_index) as attempt:
        set_seed(config.seed)
        method = method_of(config)
        tokenizer = load_tokenizer(config.model)
        if errors := config_errors(load_config(config.model), config.adapter):  # of a hub's model, here now
            raise ValueError("\n".join(errors))
        prepared = prepare(
            config.data, method.phase, tokenizer, Path(config.cache), config.extra, scores=method.scores
        )
        parts = Parts(run, method, prepared, tokenizer, start_weights(run), state.num_processes)
        parts = plan_steps(parts)
        notes = [*method.notes, *check_fit(parts)]
        attempt.say("\n".join([describe(prepared.counts), *notes]))
        reference = find_reference(parts)
        attempt.plan(notes=notes, **planned(parts, reference))
        trainer = build_trainer(parts, reference, attempt)
        if checkpoint is not None:
            trainer.resume_states(checkpoint)
        with threads_for(trainer.model):
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        best = trainer.restore_best()
        trainer.check_weights()
        with full_disk_named(run.folder / MODEL, run.folder / CHECKPOINTS):
            save_model(parts, trainer)
        attempt.close(
            lambda path: write_pairs(path, parts, trainer),
            keep_checkpoints=config.trainer.keep_finished,
            skipped_steps=trainer.skipped_steps,
            best=best,
        )


def find_checkpoint(run: Run) -> Path | None:
    """Return the checkpoint that this attempt continues, None to start at the first step.

    Raise ValueError if there is one but something has changed since, or its rows of metrics are lost.
    """
    config, lost = run.config, []

    def foreign(manifest: Mapping[str, Any]) -> str | None:
        wrong = why_foreign(run.folder, manifest)
        if wrong is not None and "rows" in wrong:
            lost.append(wrong)
        return wrong

    if config.resume == "never" or config.force:
        return None
    checkpoint, notes = find_resumable(run.folder / CHECKPOINTS, config.engine, foreign)
    for note in notes:
        log.warning(note)
    if checkpoint is None:
        if lost:
            raise ValueError(
                f"the run cannot be continued without gaps: {lost[0]}. Say resume=never to start it again"
            )
        return None
    manifest = read_seal(checkpoint) or {}
    if changed := changed_since(manifest["made_by"]):
        if config.resume != "anyway":
            raise ValueError(stale(run.folder, changed))
        log.warning("%s goes on although %s", run.folder, "; ".join(changed))
    log.info("%s continues after step %d", run.folder.name, checkpoint_step(checkpoint))
    return checkpoint


def changed_since(there: Mapping[str, Any]) -> list[str]:
    """Name what is not as it was when a checkpoint was written: the code, or a package that does arithmetic."""
    here, found = made_by(), []
    if there["code"] != here["code"]:
        commits = f"commit {(there['commit'] or '?')[:8]} there, {(here['commit'] or '?')[:8]} here"
        found.append(f"the code has changed ({commits}{', with edits' if here['dirty'] else ''})")
    for package in ARITHMETIC:
        old, new = there["versions"].get(package), here["versions"].get(package)
        if old != new:
            found.append(f"{package} is {old} there, {new} here")
    return found


def start_weights(run: Run) -> Path | None:
    """Return the folder of the SFT start's weights, or None for a run that starts from the model itself."""
    if run.start is None:
        return None
    found = run.start.result()
    assert found is not None, f"the start {run.start.identity.name} must be trained before the run"
    return found.folder / MODEL


def check_fit(parts: Parts) -> list[str]:
    """Return what is to be said of how the model trains.

    Raise ValueError if the data does not fit the model, or its held-out rows the processes.
    """
    train, test = parts.prepared.train, parts.prepared.test
    if test is not None and len(test) < parts.world:
        raise ValueError(
            f"{len(test)} held-out rows cannot be dealt to {parts.world} processes; bring more (data.test,"
            " data.test_limit), leave them out, or set engine.num_processes"
        )
    sets = [train] if test is None else [train, test]
    longest = max(int((s.lengths[:, 0] + s.lengths[:, 1:].max(1)).max()) for s in sets)
    config = load_config(parts.config.model, parts.start)
    if errors := fit_errors(config, len(parts.tokenizer), longest):
        raise ValueError("\n".join(errors))
    return path_words(config, longest)


def plan_steps(parts: Parts) -> Parts:
    """Return the parts with how many steps the run takes, and how many rows a step has on each rank.

    Raise ValueError if there is too little data for a step.
    """
    config, train = parts.config, parts.prepared.train
    steps = total_steps(config, len(train))
    rows = rows_per_step(
        train.lengths, config.optimizer.batch_size, parts.world, config.trainer.max_tokens_per_row,
        config.trainer.layout, seed=config.seed, steps=steps,
    )  # fmt: skip
    return replace(parts, steps=steps, rows=rows)


def find_reference(parts: Parts) -> Reference:
    """Return the reference's per-token log-probs: from the cache, computed once, or a frozen model.

    Call it before TrainingArguments exist: under ZeRO-3 every model loaded after them is partitioned.
    """
    config, state = parts.config, PartialState()
    if not parts.method.reference:
        return Reference()

    weights = reference_folder(config) or parts.start

    def factory() -> PreTrainedModel:
        return taught(config, weights).requires_grad_(False).eval()

    if config.reference == "live":
        return Reference(live=None if config.adapter.rank and weights == parts.start else factory())
    work = Work(
        layout=config.trainer.layout,
        max_tokens=config.trainer.max_tokens_per_row,
        device=str(state.device),
        autocast=torch.bfloat16 if config.precision.bf16 else None,
        rank=state.process_index,
        world=state.num_processes,
    )
    cache = Path(config.cache)
    key = rank_0_decides(
        lambda: reference_key(
            config.model, weights, config.seed, parts.tokenizer, config.precision.name,
            config.data.max_length, config.data.max_prompt_length, cache / "hashes", quantise=config.adapter.quantise,
        )
    )  # fmt: skip
    table = reference_table(_looked_up(parts), model_factory=factory, key=key, cache=cache, work=work)
    return Reference(table=table)


def _looked_up(parts: Parts) -> list[tuple[Examples, np.ndarray]]:
    """Return each data set with the positions of the examples whose reference the run will ask for."""
    train, test = parts.prepared.train, parts.prepared.test
    config = parts.config
    # The loader collates rows past the last step's: accelerate one, each of its workers as many as torch lets it.
    ahead = math.ceil((1 + ROWS_AHEAD * config.trainer.workers) / parts.rows)
    steps = planned_examples(len(train), config.optimizer.batch_size, config.seed, parts.steps + ahead)
    if test is not None:
        return [(train, steps), (test, np.arange(len(test)))]
    shown = np.arange(min(PAIRS_SHOWN, len(train)))
    return [(train, np.union1d(steps, shown))]


def taught(config: RunConfig, start: Path | None, features: tuple[str, ...] = ()) -> PreTrainedModel:
    """Return the model that starts the run, taught to give per-token log-probs: the reference."""
    dtype = torch.bfloat16 if config.precision.lean else torch.float32
    model = load_model(
        config.model, weights=start, seed=config.seed, dtype=dtype, quantise=config.adapter.quantise
    )
    teach_logprobs(model, config.trainer.head_budget_mb, features)
    return model


def policy(config: RunConfig, start: Path | None, features: tuple[str, ...]) -> nn.Module:
    """Return what the run trains: the reference, or an adapter on it."""
    model = taught(config, start, features)
    if config.adapter.rank is not None:
        model = fit_adapter(model, config.adapter, config.seed)
    if config.trainer.activation_checkpointing:
        model.gradient_checkpointing_enable()
    return model


def planned(parts: Parts, reference: Reference) -> dict[str, Any]:
    """Return the record's fields: what will be trained on, and which shared work was there already."""
    shared: dict[str, Any] = {"tokens": "hit" if parts.prepared.cached else "built"}
    if reference.table is not None:
        shared["reference"] = "built" if reference.table.forward_tokens else "hit"
        shared["reference_forward_tokens"] = reference.table.forward_tokens
        shared["reference_examples"] = {
            "computed": reference.table.computed,
            "reused": reference.table.reused,
        }
    finished = [run for run in parts.run.relatives() if run.status == "finished"]
    return {
        "data": {"fingerprint": parts.prepared.fingerprint, "counts": parts.prepared.counts},
        "start": parts.start.parent.name if parts.start else None,
        "steps": parts.steps,
        "rows_per_step": parts.rows,
        "shared": shared,
        "differs_from": {
            run.name: changes(run["contents"] or {}, parts.run.identity.contents) for run in finished
        },
    }


def answered(parts: Parts) -> Samples | None:
    """Return the prompts that the policy answers at every evaluation: a benchmark's, or held-out ones."""
    trainer, test = parts.config.trainer, parts.prepared.test
    if test is None or trainer.samples == 0:
        return None
    if trainer.benchmark is None:
        return Samples.of(test, parts.tokenizer, trainer.samples, trainer.sample_tokens)
    asked = asker(parts.config)
    return Samples(asked.prompts(parts.tokenizer), parts.tokenizer, trainer.sample_tokens, asked.scores)


def build_trainer(parts: Parts, reference: Reference, attempt: SilentAttempt) -> PairTrainer:
    """Return the trainer of a run, whose rows and marks go to the attempt."""
    config, train, test = parts.config, parts.prepared.train, parts.prepared.test
    trainer, batch, folder = config.trainer, config.optimizer.batch_size, parts.run.folder
    collator = OverlapCollator if parts.method.data_features else RowCollator
    arguments = training_arguments(config, folder, parts.steps, parts.rows, test is not None)
    model, live = policy(config, parts.start, parts.method.head_features), reference.live
    if config.reference == "live" and parts.method.reference and live is None:
        live = WithoutAdapter(model)  # what starts the run is the reference, and is there already
    return PairTrainer(
        args=arguments,
        optimizer_cls_and_kwargs=compensated_adamw(config) if config.precision.facts.compensated else None,
        config=config,
        model=model,
        train_dataset=train,
        eval_dataset=test,
        processing_class=parts.tokenizer,
        method=parts.method,
        train_rows=StepSampler(train.lengths, batch, parts.rows, parts.world, config.seed, trainer.layout),
        eval_rows=RowSampler(test.lengths, trainer.max_tokens_per_row, parts.world, trainer.layout)
        if test is not None
        else None,
        collator=collator(
            trainer.layout, reference.table.lookup if reference.table else None, scores=parts.method.scores
        ),
        live_reference=live,
        log_row=attempt.log,
        samples=answered(parts),
        log_samples=attempt.sample,
        mark=attempt.mark,
        callbacks=[Progress(folder.name, attempt.say, attempt.note)],
    )


def save_model(parts: Parts, trainer: PairTrainer) -> None:
    """Write model/: the weights; or the adapter with what it belongs to, merged into it if the run says so."""
    config, folder = parts.config, parts.run.folder / MODEL
    trainer.save_model(str(folder))
    if config.adapter.rank is None or not trainer.is_world_process_zero():
        return
    memory = Path(config.cache) / "hashes"
    weights = content_hashes(config.model, parts.start, memory=memory)["weights"]
    write_base(folder, parts.start or config.model.path, config.model.revision, weights)
    if config.adapter.merge:
        merge_in_place(folder, config.model)


def write_pairs(path: Path, parts: Parts, trainer: PairTrainer) -> None:
    """Write the rewards of some held-out pairs' tokens, where there are any and rank 0 alone can compute them."""
    # A partitioned model gives log-probs only to all ranks together.
    if not parts.method.reference or parts.config.engine.sharded:
        return
    shown = parts.prepared.train if parts.prepared.test is None else parts.prepared.test
    examples = [shown[index] for index in range(min(PAIRS_SHOWN, len(shown)))]
    if rewards := token_rewards(trainer, examples, parts.tokenizer):
        write_json(path, {"pairs": rewards})
