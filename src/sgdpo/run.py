"""One run in order: data, start, reference, model, trainer, record. It reads as the table of contents.

`run` trains in this process, or as one rank of several; what must exist before (the SFT start) and where it
runs (here, or relaunched over several processes) is `execute.py`'s business.
"""

from __future__ import annotations

import logging
import math
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from accelerate import PartialState
from omegaconf import OmegaConf
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from sgdpo.config.identity import Identity, needs_start, run_identity, start_config
from sgdpo.config.schema import RunConfig
from sgdpo.data.batching import RowSampler, StepSampler, rows_per_step
from sgdpo.data.packing import RowCollator
from sgdpo.data.prepare import Prepared, describe, prepare
from sgdpo.method import Method, bind_method
from sgdpo.models.load import load_model, load_tokenizer, weights_hash
from sgdpo.models.logprobs import teach_logprobs
from sgdpo.jsonio import read_metrics
from sgdpo.records import METRICS, Record, find_result
from sgdpo.reference import ReferenceTable, reference_table
from sgdpo.report.curves import draw_reward_curves
from sgdpo.tracking import Tracker, open_tracker
from sgdpo.training import checkpoints
from sgdpo.training.arguments import total_steps, training_arguments
from sgdpo.training.progress import Progress
from sgdpo.training.token_rewards import PAIRS_SHOWN, write_token_rewards
from sgdpo.training.trainer import PairTrainer

log = logging.getLogger("sgdpo")


@dataclass(frozen=True)
class Place:
    """Hold where a run happens: its folder, its device, its rank among how many."""

    folder: Path
    rank: int
    world: int

    @property
    def main(self) -> bool:
        """Say whether this process keeps the record."""
        return self.rank == 0


def run_folder(config: RunConfig, identity: Identity) -> Path:
    """Return outputs/<experiment>/<run>."""
    return Path(config.outputs) / config.experiment / identity.name


def run(config: RunConfig) -> Path:
    """Train one run and return its folder. Its SFT start, if it needs one, must be finished."""
    identity = run_identity(config)
    state = PartialState(cpu=config.device == "cpu")
    place = Place(run_folder(config, identity), state.process_index, state.num_processes)
    method = bind_method(config.method, asdict(config.ratio))
    resume, notes = (None, [])
    if config.resume == "auto" and not config.force:
        resume, notes = checkpoints.find_resumable(place.folder / "checkpoints", config.engine)
    with _open(config, identity, place, resume) as (record, tracker):
        for note in notes:
            log.warning(note)
        set_seed(config.seed)
        tokenizer = load_tokenizer(config.model)
        prepared = prepare(config.data, method.phase, tokenizer, Path(config.cache))
        start = start_weights(config)
        trainer = _trainer(config, method, place, prepared, tokenizer, start, record, tracker)
        if resume is not None:
            trainer.resume_method_state(resume)
            log.info("continuing after step %d", checkpoints.checkpoint_step(resume))
        trainer.train(resume_from_checkpoint=str(resume) if resume else None)
        trainer.save_model(str(place.folder / "model"))
        if record is not None:
            _close(config, method, trainer, prepared, tokenizer, record, tracker)
    return place.folder


def start_weights(config: RunConfig) -> Path | None:
    """Return the folder of the SFT start's weights, or None for a run that starts from the model itself."""
    if not needs_start(config):
        return None
    wanted = run_identity(start_config(config))
    found = find_result(Path(config.outputs), wanted.result_hash)
    assert found is not None, f"the start {wanted.name} must be trained before the run"
    return found.folder / "model"


@contextmanager
def _open(
    config: RunConfig, identity: Identity, place: Place, resume: Path | None
) -> Iterator[tuple[Record | None, Tracker | None]]:
    """Open the record, its log file and the tracker on rank 0; close all of them whatever happens."""
    if not place.main:
        yield None, None
        return
    record = Record.open(
        place.folder,
        name=identity.name,
        experiment=config.experiment,
        settings=identity.settings,
        settings_hash=identity.settings_hash,
        result_hash=identity.result_hash,
        phase=config.method["phase"],
        resume=resume is not None,
    )
    record.truncate_after(checkpoints.checkpoint_step(resume) if resume else 0)
    OmegaConf.save(OmegaConf.create(asdict(config)), place.folder / "config.yaml")
    tracker = open_tracker(config.tracking, record, asdict(config))
    handler = logging.FileHandler(place.folder / "log.txt")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logging.getLogger().addHandler(handler)
    try:
        yield record, tracker
    except Exception as error:
        logging.getLogger().error("%s", traceback.format_exc())
        record.fail(f"{type(error).__name__}: {error}")
        tracker.finish({"status": "failed"}, failed=True)
        raise
    finally:
        logging.getLogger().removeHandler(handler)
        handler.close()


def _trainer(
    config: RunConfig,
    method: Method,
    place: Place,
    prepared: Prepared,
    tokenizer: PreTrainedTokenizerBase,
    start: Path | None,
    record: Record | None,
    tracker: Tracker | None,
) -> PairTrainer:
    """Build the trainer of a run; the reference pass happens here, before any engine partitions a model."""
    layout, budget = config.trainer.layout, config.trainer.max_tokens_per_row
    train, batch = prepared.train, config.optimizer.batch_size
    if len(train) < batch:
        raise ValueError(
            f"{len(train)} training examples are left but a step takes {batch}; "
            f"set optimizer.batch_size to at most {len(train)}, or bring more data"
        )
    reference = _reference(config, method, prepared, start, tokenizer)
    rows = rows_per_step(
        train.lengths, batch, place.world, budget, layout,
        seed=config.seed, epochs=math.ceil(config.optimizer.epochs),
    )  # fmt: skip
    steps = total_steps(config, len(train))
    if record is not None:
        _note_plan(record, prepared, steps, rows, start, reference)

    def write_row(row: dict) -> None:
        record.log(row)
        tracker.log(row)

    evaluates = prepared.test is not None
    return PairTrainer(
        args=training_arguments(config, place.folder, steps, rows, evaluates),
        model=_model(config, start),
        train_dataset=train,
        eval_dataset=prepared.test,
        processing_class=tokenizer,
        method=method,
        train_rows=StepSampler(train.lengths, batch, rows, place.world, config.seed, layout),
        eval_rows=RowSampler(prepared.test.lengths, budget, place.world, layout) if evaluates else None,
        collator=RowCollator(layout, reference.table.lookup if reference.table else None),
        live_reference=reference.live,
        log_row=write_row,
        draws_seed=config.seed,
        precision=config.precision.name,
        step0_check=config.trainer.step0_check,
        on_nonfinite=config.trainer.on_nonfinite,
        keep_checkpoints=config.trainer.keep_checkpoints,
        engine=config.engine,
        callbacks=[Progress(place.folder.name)],
    )


def _model(config: RunConfig, start: Path | None) -> PreTrainedModel:
    """Return the policy, taught to give per-token log-probs; dropout is off in its config."""
    model = load_model(config.model, weights=start, seed=config.seed)
    teach_logprobs(model, config.trainer.head_budget_mb)
    if config.trainer.activation_checkpointing:
        model.gradient_checkpointing_enable()
    return model


@dataclass(frozen=True)
class Reference:
    """Hold the reference: a table of cached log-probs, a live model, or neither."""

    table: ReferenceTable | None = None
    live: PreTrainedModel | None = None


def _reference(
    config: RunConfig, method: Method, prepared: Prepared, start: Path | None, tokenizer: PreTrainedTokenizerBase
) -> Reference:
    """Return the reference's per-token log-probs: from the cache, computed once, or a frozen model."""
    if not method.reference:
        return Reference()

    def factory() -> PreTrainedModel:
        return _model(config, start).requires_grad_(False).eval()

    if config.reference == "live":
        return Reference(live=factory())
    sets = [prepared.train] + ([prepared.test] if prepared.test is not None else [])
    return Reference(table=reference_table(sets))


def _note_plan(
    record: Record, prepared: Prepared, steps: int, rows: int, start: Path | None, reference: ReferenceTable | None
) -> None:
    log.info("%s", describe(prepared.counts))
    record.note(
        data={"fingerprint": prepared.fingerprint, "counts": prepared.counts},
        start=start.parent.name if start else None,
        steps=steps,
        rows_per_step=rows,
    )


def _close(
    config: RunConfig,
    method: Method,
    trainer: PairTrainer,
    prepared: Prepared,
    tokenizer: PreTrainedTokenizerBase,
    record: Record,
    tracker: Tracker,
) -> None:
    """Write what a person looks at (curves, tokens with their rewards), then close the record."""
    picture = record.folder / "reward_curves.png"
    draw_reward_curves(read_metrics(record.folder / METRICS), picture, title=record.folder.name)
    tracker.image("reward_curves", picture)
    shown = prepared.test if prepared.test is not None else prepared.train
    if method.reference and not config.engine.deepspeed:
        write_token_rewards(
            record.folder / "pairs.json",
            trainer.model,
            [shown[index] for index in range(min(PAIRS_SHOWN, len(shown)))],
            trainer.data_collator,
            method,
            tokenizer,
            config.seed,
            trainer.live_reference,
        )
    if record.fields["tracker"]:
        record.note(tracker={**record.fields["tracker"], "hint": tracker.browse_hint()})
    record.finish(skipped_steps=trainer.skipped_steps)
    tracker.finish(record.fields["final"]["train"])
