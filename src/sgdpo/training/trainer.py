"""transformers' Trainer, taught pairs: one batch is one packed row, one step is a fixed number of rows.

It knows no method by name. What it leaves to its base class: the loop, accumulation, DDP and DeepSpeed,
schedules, checkpoints. What it replaces, and why:
- the loss is a sum over the row divided by the *global* batch's count, so it depends neither on how a step is
  split into rows nor on the number of processes (the base class would divide again under accumulation);
- metrics are sums and counts, reduced once a log line;
- a checkpoint counts only when its manifest is written.
"""

import json
import math
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import PrinterCallback, Trainer

from sgdpo.config.schema import RunConfig
from sgdpo.data.packing import model_inputs, pair_of
from sgdpo.method import Method
from sgdpo.models.allocator import Holes
from sgdpo.pairs import DrawKey, Pair, PairLoss
from sgdpo.store import beat, what_is_wrong
from sgdpo.training import checkpoints
from sgdpo.training.arguments import phase_key
from sgdpo.training.metrics import MetricSums, pair_metrics
from sgdpo.training.samples import Samples, sample_means
from sgdpo.training.selfcheck import check_step0
from sgdpo.training.shares import insist_on_fsdp, share
from sgdpo.training.step_notes import StepEnd, StepNotes

METHOD_STATE = "method_state.json"
LATEST = "latest.json"  # the metrics last logged, by which trainer.best may choose, and how many steps were skipped
LOG_SUMS = "log_sums_{rank}.json"  # of the rows of metrics that log_steps > 1 has not written yet


class NonFiniteError(ValueError):
    """Say that a loss or a gradient stopped being finite, where, and what still stands."""


class PairTrainer(Trainer):
    """Train a model on packed rows of pairs.

    config: of the run; its seed keys the draws. method: the bound method. train_rows, eval_rows: batch samplers of row
    indices. collator: examples to row. log_row: receives each row of metrics (rank 0). samples: answered at every
    evaluation; log_samples: receives the answers (rank 0). mark: gives what a checkpoint's manifest keeps beside its
    files (rank 0).
    """

    # compute_loss divides by the step's global count, so the base class must not divide by its rows again.
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        *,
        config: RunConfig,
        method: Method,
        train_rows: Iterable[list[int]],
        eval_rows: Iterable[list[int]] | None,
        collator: Callable[[list[Any]], dict[str, Tensor]],
        live_reference: torch.nn.Module | None,
        log_row: Callable[[dict[str, Any]], None],
        samples: Samples | None = None,
        log_samples: Callable[[list[dict[str, Any]]], None] = list,
        mark: Callable[[], Mapping[str, Any]] = dict,
        **kwargs: Any,
    ) -> None:
        super().__init__(data_collator=collator, **kwargs)
        self.config, self.method, self.method_state = config, method, method.new_state()
        self._train_rows, self._eval_rows = train_rows, eval_rows
        self.live_reference = live_reference.to(self.args.device) if live_reference is not None else None
        self._log_row, self._mark = log_row, mark
        self._samples, self._log_samples = samples, log_samples
        self._latest: dict[str, float] = {}
        self._eval_loader: DataLoader | None = None
        # With another model for a reference the first ratios are not 1.
        self._step0_check = config.trainer.step0_check and config.reference_weights is None
        self._sums, self._step, self._holes = MetricSums(), StepNotes(), Holes()
        self.skipped_steps = 0
        self._clock = time.perf_counter()
        self._worked = torch.zeros(2, dtype=torch.float64)
        self.remove_callback(PrinterCallback)  # our own progress line says the same
        self.add_callback(StepEnd(self.end_step))

    def create_accelerator_and_postprocess(self) -> None:
        """Make the accelerator, and hold it to FSDP2 if the run asks for that."""
        super().create_accelerator_and_postprocess()
        self.is_fsdp_enabled = insist_on_fsdp(self.accelerator, self.args)

    # ---- data: rows of a step, dealt to the ranks ------------------------------------------------

    def get_train_dataloader(self) -> DataLoader:
        """Return the loader whose batches are packed rows, in the order that the sampler keys."""
        return self._row_loader(self.train_dataset, self._train_rows, self.args.dataloader_num_workers > 0)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        """Return the loader over the held-out rows; every rank gets as many rows as the others.

        One for the whole run, as accelerate forgets none, and with no workers between the evaluations.
        """
        if self._eval_loader is None:
            self._eval_loader = self._row_loader(self.eval_dataset, self._eval_rows)
        return self._eval_loader

    def _row_loader(self, examples: Any, rows: Iterable[list[int]], persistent: bool = False) -> DataLoader:
        loader = DataLoader(
            examples, batch_sampler=rows, collate_fn=self.data_collator, persistent_workers=persistent,
            num_workers=self.args.dataloader_num_workers, pin_memory=self.args.device.type == "cuda",
        )  # fmt: skip
        return self.accelerator.prepare(loader)

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, Tensor]], device: torch.device) -> Tensor:
        """Return what the step's loss is divided by, over all rows and ranks: pairs, or trained tokens."""
        return self._reduce(torch.stack([self._loss_count(row) for row in batch_samples]).sum().to(device))

    def _run_epoch(self, *, epoch: int, **kwargs: Any) -> None:
        """Run the rest of an epoch.

        After a resume accelerate's wrappers do not pass the epoch on to the sampler (over several ranks), and
        the base class trains on if the checkpoint was the last one, of all steps or of patience: both end here.
        """
        if self.state.global_step >= self.state.max_steps or self._out_of_patience():
            self.control.should_training_stop = True
            return
        self._train_rows.set_epoch(epoch)
        super()._run_epoch(epoch=epoch, **kwargs)

    def autocast_smart_context_manager(self, cache_enabled: bool | None = True) -> AbstractContextManager:
        """Compute in bfloat16 over float32 weights under FSDP2 too: its own policy would round the weights."""
        bf16 = self.is_fsdp_enabled and self.config.precision.bf16
        return torch.autocast(self.args.device.type, torch.bfloat16) if bf16 else nullcontext()

    # ---- loss ------------------------------------------------------------------------------------

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | None = None,
    ) -> Tensor:
        """Return the row's share of the global batch's loss."""
        pair, result = self.pair_loss(model, inputs, self._epoch_of_step(), self.state.global_step)
        if self._step0_check and self.state.global_step == 0:
            draws = DrawKey(self.config.seed, 0)
            check_step0(self.method, pair, result, draws, self.config.precision.name, self.method_state)
            self._step0_check = False
        self._note(inputs, pair, result)
        # DDP and DeepSpeed average gradients over ranks; the loss is a sum over them.
        share = (self.args.world_size / num_items_in_batch).to(result.loss_B.dtype)
        loss = pair.weighted(result.loss_B).sum() * share
        router_loss = getattr(self.model, "router_loss", None)
        if router_loss is None:
            return loss
        # A mixture's balance is a mean over a row's tokens: each row counts as much as the others of the step.
        self._sums.add({"router_loss": (router_loss.detach(), torch.ones_like(router_loss))})
        return loss + router_loss / self.args.gradient_accumulation_steps

    def pair_loss(
        self, model: torch.nn.Module, row: dict[str, Tensor], epoch: int = 0, step: int = 0
    ) -> tuple[Pair, PairLoss]:
        """Return a row's pairs and what the method makes of them; each row, in training or not, is a sign of life."""
        beat()
        output = model(**model_inputs(row))
        if self.method.data_features:
            logp_L, features = output if isinstance(output, tuple) else (output, {})
            output = (logp_L, features | {name: row[name] for name in self.method.data_features})
        pair = pair_of(row, output, self._live_reference(row))
        with torch.autocast(self.args.device.type, enabled=False), torch.enable_grad():
            if not pair.chosen.logp_BT.requires_grad and pair.rejected is not None:
                # Held-out pairs: their incentives need the method's own graph.
                pair.chosen.logp_BT.requires_grad_()
                pair.rejected.logp_BT.requires_grad_()
            return pair, self.method(pair, DrawKey(self.config.seed, epoch, step), self.method_state)

    @torch.no_grad()
    def _live_reference(self, row: dict[str, Tensor]) -> Tensor | None:
        return self.live_reference(**model_inputs(row)) if self.live_reference is not None else None

    def _epoch_of_step(self) -> int:
        rows_a_step = self.args.gradient_accumulation_steps * self.args.world_size
        return self.state.global_step * rows_a_step // len(self._train_rows)

    def _note(self, row: dict[str, Tensor], pair: Pair, result: PairLoss) -> None:
        sums = pair_metrics(pair, result, self._loss_count(row))
        self._sums.add(sums)
        self._step.add(row["example_id_B"], result)
        self._worked += torch.tensor([result.loss_B.numel(), row["input_ids"].numel()], dtype=torch.float64)

    def _loss_count(self, row: dict[str, Tensor]) -> Tensor:
        return row["count_tokens" if self.method.phase == "sft" else "count_pairs"]

    # ---- after a step ----------------------------------------------------------------------------

    def _get_grad_norm(self, model: torch.nn.Module, grad_norm: Any = None) -> Any:
        """Return the gradient's norm; a step that is not finite stops the run or is skipped here."""
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        # A loss can overflow on one rank alone; its gradient, averaged over ranks, tells all of them.
        if not math.isfinite(float(norm)):
            if self.config.trainer.on_nonfinite == "stop":
                raise NonFiniteError(self._nonfinite_message(float(norm)))
            self.skipped_steps += 1
            self._step.skipped = True
            model.zero_grad(set_to_none=True)  # AdamW leaves a parameter without gradient as it is
        return norm

    def _nonfinite_message(self, norm: float) -> str:
        return (
            f"step {self.state.global_step + 1}: the loss or its gradient is not finite (gradient norm {norm}); "
            f"pairs {self._step.suspects()}; last good checkpoint: {self._last_good()}. "
            f"Lower {phase_key(self.method.phase, 'lr')}, look at these pairs (make pair ID=...), or skip such steps "
            "with trainer.on_nonfinite=skip."
        )

    def _last_good(self) -> str:
        good, _ = checkpoints.find_resumable(Path(self.args.output_dir), self.config.engine)
        return good.name if good else "none"

    def end_step(self) -> None:
        """Let the method's state see what it asked for of the global batch, once a step not skipped; look at memory."""
        # One NaN would stay in a running mean, and every later step be skipped for it.
        if self.method_state is not None and not self._step.skipped:
            names, sums = self._step.sums(self.args.device)
            found = self._reduce(sums).tolist()
            self.method_state.advance(
                {name: (total, int(count)) for name, (total, count) in zip(names, found, strict=True)}
            )
        self._step.clear()
        self._holes.after_step()

    def _reduce(self, sums: Tensor) -> Tensor:
        return self.accelerator.reduce(sums) if self.args.world_size > 1 else sums

    # ---- metrics ---------------------------------------------------------------------------------

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Write one row of training metrics: the sums since the last row, over all ranks."""
        if "grad_norm" not in logs:  # the base class's closing summary, not a step
            return
        row = self._sums.take(self._reduce)
        row |= {"grad_norm": logs["grad_norm"], "learning_rate": logs["learning_rate"], **self._speed()}
        self._write("train", row)
        super().log({**row, "epoch": self.state.epoch}, start_time)

    def _speed(self) -> dict[str, float]:
        now = time.perf_counter()
        pairs, tokens = self._reduce(self._worked.to(self.args.device)).tolist()
        seconds = now - self._clock
        self._clock, self._worked = now, torch.zeros(2, dtype=torch.float64)
        return {"pairs_per_second": pairs / seconds, "tokens_per_second": tokens / seconds}

    def _write(self, split: str, row: dict[str, Any]) -> None:
        self._latest |= {f"{split}/{key}": value for key, value in row.items()}
        if self.is_world_process_zero():
            self._log_row(
                {"step": self.state.global_step, "epoch": self.state.epoch or 0.0, "split": split, **row}
            )

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Return the metrics of the held-out pairs; draws are epoch 0's, always."""
        model, sums, paused = self.model_wrapped, MetricSums(), time.perf_counter()
        notes = StepNotes()
        model.eval()
        with torch.no_grad():
            for row in self.get_eval_dataloader():
                row = self._prepare_inputs(row)
                with self.compute_loss_context_manager():
                    pair, result = self.pair_loss(model, row)
                sums.add(pair_metrics(pair, result, self._loss_count(row)))
                notes.add(row["example_id_B"], result)
        metrics = sums.take(self._reduce)
        self._write("eval", metrics)
        if self._samples is not None:
            self._answer()
        model.train()
        if not math.isfinite(metrics["loss"]):
            raise NonFiniteError(
                f"step {self.state.global_step}: the loss of the held-out pairs is not finite; pairs "
                f"{notes.suspects()}. Look at these pairs (make pair ID=...), or lower "
                f"{phase_key(self.method.phase, 'lr')}."
            )
        self._clock += time.perf_counter() - paused  # speed is of training alone
        metrics = {f"eval_{key}": value for key, value in metrics.items()} | self._judged()
        # This is what marks the evaluation as done; without it the last step is evaluated a second time.
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _answer(self) -> None:
        """Answer the fixed prompts; a collective."""
        with self.compute_loss_context_manager():
            rows = self._samples.answer(self.model)
        self._write("samples", sample_means(rows))
        if self.is_world_process_zero():
            self._log_samples([{"step": self.state.global_step, **row} for row in rows])

    # ---- the best weights ------------------------------------------------------------------------

    def _judged(self) -> dict[str, float]:
        """Return the metric that decides under the name that the base class looks for."""
        best = self.config.trainer.best
        if best is None:
            return {}
        if best not in self._latest:
            raise ValueError(
                f"trainer.best={best} is no metric of this run; there are: {', '.join(sorted(self._latest))}"
            )
        value = self._latest[best]
        if self.state.best_metric is None and not math.isfinite(value):
            raise ValueError(f"trainer.best={best} is {value} at the first evaluation: choose another")
        return {f"eval_{self.args.metric_for_best_model}": value}

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        """Note an evaluation that is the best so far and save its weights, or stop when patience is at its end.

        What is noted is part of the base class's state, which a checkpoint holds.
        """
        better = super()._determine_best_metric(metrics, trial)
        self.control.should_save |= better
        self.control.should_training_stop |= self._out_of_patience()
        return better

    def _out_of_patience(self) -> bool:
        since = self.state.global_step - (self.state.best_global_step or 0)
        patience = self.config.trainer.patience
        return patience is not None and since >= patience * self.args.eval_steps

    def restore_best(self) -> dict[str, Any] | None:
        """Put the best weights in place of the last ones; return what the record says of them, None if not asked."""
        if self.config.trainer.best is None or not self.state.best_global_step:
            return None
        step, last = self.state.best_global_step, self.state.global_step
        # Not the path that the state holds: the run's folder may have moved since.
        folder = checkpoints.checkpoint_folder(Path(self.args.output_dir), step)
        if (wrong := what_is_wrong(folder)) is not None:
            raise ValueError(
                f"the best weights are lost ({folder}: {wrong}); resume=never trains the run again"
            )
        self.state.best_model_checkpoint = str(folder)
        self._load_best_model()
        early = {"stopped_early": last} if last < self.state.max_steps else {}
        return {"metric": self.config.trainer.best, "value": self.state.best_metric, "step": step, **early}

    # ---- checkpoints -----------------------------------------------------------------------------

    def check_weights(self) -> None:
        """Raise NonFiniteError, on all ranks alike, if the last update left a weight that is not finite."""
        shares = [share(parameter) for parameter in self.model.parameters()]
        bad = sum((~torch.isfinite(share).all()).double() for share in shares)
        if self._reduce(bad).item() > 0:
            raise NonFiniteError(
                f"step {self.state.global_step}: its update left weights that are not finite; last good checkpoint: "
                f"{self._last_good()}. Lower {phase_key(self.method.phase, 'lr')}."
            )

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        paused = time.perf_counter()
        self.check_weights()  # one that holds them would end every attempt that continues it
        folder = checkpoints.checkpoint_folder(Path(self.args.output_dir), self.state.global_step)
        best = {"best_step": self.state.best_global_step}
        with checkpoints.complete_checkpoint(
            folder, self.config.engine, self.config.trainer.keep_checkpoints, lambda: {**self._mark(), **best}
        ):
            super()._save_checkpoint(model, trial)
            if sums := self._sums.state():
                (folder / LOG_SUMS.format(rank=self.args.process_index)).write_text(json.dumps(sums))
            if self.is_world_process_zero():
                (folder / LATEST).write_text(json.dumps([self._latest, self.skipped_steps]))
                if self.method_state is not None:
                    (folder / METHOD_STATE).write_text(json.dumps(self.method_state.state_dict()))
        self._clock += time.perf_counter() - paused  # as after an evaluation

    def resume_states(self, folder: Path) -> None:
        """Restore, from a complete checkpoint, the method's state, what was logged last and the sums of a row that is
        not written yet.

        Of more ranks than there are now, each takes several ranks' sums.
        """
        if (folder / LATEST).is_file():
            self._latest, self.skipped_steps = json.loads((folder / LATEST).read_text())
        if self.method_state is not None:
            self.method_state.load_state_dict(json.loads((folder / METHOD_STATE).read_text()))
        mine = []
        for file in sorted(folder.glob(LOG_SUMS.format(rank="*"))):
            if int(file.stem.rpartition("_")[2]) % self.args.world_size == self.args.process_index:
                mine.append(json.loads(file.read_text()))
        self._sums.restore(mine, self.args.device)
