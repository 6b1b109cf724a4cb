"""One run in order: data, start, reference, trainer, record. It reads as the table of contents.

`run` trains in this process, or as one rank of several; what must exist before (the SFT start) and where it
runs (here, or relaunched over several processes) is `execute.py`'s business.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from accelerate import PartialState
from omegaconf import OmegaConf
from transformers import set_seed
from transformers.utils.logging import disable_progress_bar

from sgdpo.config.identity import Identity, needs_start, run_identity, start_config
from sgdpo.config.schema import RunConfig
from sgdpo.data.prepare import describe, prepare
from sgdpo.drawing.curves import draw_reward_curves
from sgdpo.method import bind_method
from sgdpo.models.allocator import keep_freed_memory
from sgdpo.models.load import load_tokenizer
from sgdpo.models.threads import threads_for
from sgdpo.runs.assemble import (
    Parts,
    Reference,
    Schedule,
    build_trainer,
    check_fit,
    find_reference,
    plan_steps,
)
from sgdpo.runs.records import METRICS, Record, find_result
from sgdpo.runs.tracking import Tracker, open_tracker
from sgdpo.store import read_jsonl
from sgdpo.training.checkpoints import checkpoint_step, find_resumable, prune
from sgdpo.training.token_rewards import PAIRS_SHOWN, write_token_rewards
from sgdpo.training.trainer import PairTrainer

log = logging.getLogger("sgdpo")


def run_folder(config: RunConfig, identity: Identity) -> Path:
    """Return outputs/<experiment>/<run>."""
    return Path(config.outputs) / config.experiment / identity.name


def run(config: RunConfig) -> Path:
    """Train one run and return its folder. Its SFT start, if it needs one, must be finished."""
    disable_progress_bar()  # transformers' bars for loading and saving; ours are for what takes long
    identity, state = run_identity(config), PartialState(cpu=config.device == "cpu")
    if state.device.type == "cpu":
        keep_freed_memory()
    folder = run_folder(config, identity)
    resume = _resumable(config, folder)
    with _recorded(config, identity, folder, resume, state.process_index) as (record, tracker):
        set_seed(config.seed)
        method = bind_method(config.method, asdict(config.ratio), config.extra)
        tokenizer = load_tokenizer(config.model)
        prepared = prepare(config.data, method.phase, tokenizer, Path(config.cache))
        parts = Parts(config, method, prepared, tokenizer, start_weights(config), folder, state.num_processes)
        check_fit(parts)
        schedule = plan_steps(parts)
        if record is not None:
            print(describe(prepared.counts), flush=True)
        reference = find_reference(parts, schedule)
        if record is not None:
            _note_plan(record, parts, schedule, reference)
        trainer = build_trainer(parts, reference, schedule, _writer(record, tracker))
        if resume is not None:
            trainer.resume_method_state(resume)
        with threads_for(trainer.model):
            trainer.train(resume_from_checkpoint=str(resume) if resume else None)
        trainer.save_model(str(folder / "model"))
        if record is not None:
            # A pickle; config.yaml says it all.
            (folder / "model" / "training_args.bin").unlink(missing_ok=True)
            _close(parts, trainer, record, tracker)
    return folder


def start_weights(config: RunConfig) -> Path | None:
    """Return the folder of the SFT start's weights, or None for a run that starts from the model itself."""
    if not needs_start(config):
        return None
    wanted = run_identity(start_config(config))
    found = find_result(Path(config.outputs), wanted.result_hash)
    assert found is not None, f"the start {wanted.name} must be trained before the run"
    return found.folder / "model"


def _resumable(config: RunConfig, folder: Path) -> Path | None:
    if config.resume != "auto" or config.force:
        return None
    checkpoint, notes = find_resumable(folder / "checkpoints", config.engine)
    for note in notes:
        log.warning(note)
    if checkpoint is not None:
        log.info("%s continues after step %d", folder.name, checkpoint_step(checkpoint))
    return checkpoint


@contextmanager
def _recorded(
    config: RunConfig, identity: Identity, folder: Path, resume: Path | None, rank: int
) -> Iterator[tuple[Record | None, Tracker | None]]:
    """Open the record, its log file and the tracker on rank 0; close all of them whatever happens."""
    if rank != 0:
        yield None, None
        return
    record = Record.open(
        folder,
        name=identity.name,
        experiment=config.experiment,
        settings=identity.settings,
        settings_hash=identity.settings_hash,
        result_hash=identity.result_hash,
        phase=config.method["phase"],
        resume=resume is not None,
    )
    record.truncate_after(checkpoint_step(resume) if resume else 0)
    OmegaConf.save(OmegaConf.create(asdict(config)), folder / "config.yaml")
    tracker = open_tracker(config.tracking, record, asdict(config))
    handler = logging.FileHandler(folder / "log.txt")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logging.getLogger().addHandler(handler)
    try:
        yield record, tracker
    except Exception as error:
        with (folder / "log.txt").open("a") as file:
            file.write(traceback.format_exc())
        record.fail(f"{type(error).__name__}: {error}")
        tracker.finish({"status": "failed"}, failed=True)
        raise
    finally:
        logging.getLogger().removeHandler(handler)
        handler.close()


def _writer(record: Record | None, tracker: Tracker | None) -> Any:
    """Return what writes a row of metrics: the record first, the tracker mirrors it."""

    def write(row: dict[str, Any]) -> None:
        assert record is not None, "only rank 0 writes"
        assert tracker is not None, "only rank 0 writes"
        record.log(row)
        tracker.log(row)

    return write


def _note_plan(record: Record, parts: Parts, schedule: Schedule, reference: Reference) -> None:
    """Write into the record what will be trained on, and which shared work was there already."""
    shared: dict[str, Any] = {"tokens": "hit" if parts.prepared.cached else "built"}
    if reference.table is not None:
        shared["reference"] = "built" if reference.table.forward_tokens else "hit"
        shared["reference_forward_tokens"] = reference.table.forward_tokens
        shared["reference_examples"] = {
            "computed": reference.table.computed,
            "reused": reference.table.reused,
        }
    record.note(
        data={"fingerprint": parts.prepared.fingerprint, "counts": parts.prepared.counts},
        start=parts.start.parent.name if parts.start else None,
        steps=schedule.steps,
        rows_per_step=schedule.rows,
        shared=shared,
    )


def _close(parts: Parts, trainer: PairTrainer, record: Record, tracker: Tracker) -> None:
    """Write what a person looks at (curves, tokens with their rewards), then close the record."""
    picture = record.folder / "reward_curves.png"
    draw_reward_curves(read_jsonl(record.folder / METRICS, torn_end=True), picture, title=record.folder.name)
    tracker.image("reward_curves", picture)
    # A partitioned model gives log-probs only to all ranks together.
    if parts.method.reference and not parts.config.engine.deepspeed:
        shown = parts.prepared.train if parts.prepared.test is None else parts.prepared.test
        write_token_rewards(
            record.folder / "pairs.json",
            trainer.model,
            [shown[index] for index in range(min(PAIRS_SHOWN, len(shown)))],
            trainer.data_collator,
            parts.method,
            parts.tokenizer,
            parts.config.seed,
            trainer.live_reference,
        )
    record.finish(skipped_steps=trainer.skipped_steps)
    tracker.finish(record.fields["final"]["train"])
    if not parts.config.trainer.keep_finished:
        prune(record.folder / "checkpoints", keep=0)
