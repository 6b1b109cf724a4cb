"""A tiny trainer for tests: random examples, a two-layer Llama, a reference that is the model itself."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sgdpo.config.compose import compose_run, to_run_config
from sgdpo.config.schema import RunConfig
from sgdpo.data.batching import RowSampler, StepSampler
from sgdpo.data.example import Example
from sgdpo.data.packing import RowCollator, model_inputs
from sgdpo.method import bind_method
from sgdpo.models.load import load_model, load_tokenizer
from sgdpo.models.logprobs import teach_logprobs
from sgdpo.training.arguments import training_arguments
from sgdpo.training.trainer import PairTrainer

BUDGET = 4096
SMALL = [
    "tracking=off",
    "device=cpu",
    "optimizer.batch_size=8",
    "optimizer.lr=1e-3",
    "model.tiny.num_hidden_layers=2",
]


def tiny_config(*overrides: str) -> RunConfig:
    return to_run_config(compose_run([*SMALL, *overrides]))


def random_examples(count: int, sft: bool = False, seed: int = 0) -> list[Example]:
    """Return examples of random ids with unequal lengths."""
    random = np.random.default_rng(seed)

    def ids(low: int, high: int) -> np.ndarray:
        return random.integers(5, 60, random.integers(low, high)).astype(np.int32)

    examples = []
    for index in range(count):
        chosen = ids(2, 12)
        rejected = np.zeros(0, np.int32) if sft else ids(2, 12)
        examples.append(Example(1000 + index, ids(3, 9), chosen, rejected, np.ones(len(chosen), bool)))
    return examples


def lengths(examples: list[Example]) -> np.ndarray:
    return np.array([[len(e.prompt_ids), len(e.chosen_ids), len(e.rejected_ids)] for e in examples])


def taught_model(config: RunConfig) -> torch.nn.Module:
    model = load_model(config.model, seed=config.seed)
    teach_logprobs(model, config.trainer.head_budget_mb)
    return model


def reference_of(model: torch.nn.Module, examples: list[Example], layout: str = "shared_prefix") -> Any:
    """Return a lookup of the model's own log-probs, pair by pair."""
    table = {}
    for example in examples:
        with torch.no_grad():
            logp_L = model(**model_inputs(RowCollator(layout)([example]))).numpy()
        split = len(example.chosen_ids)
        table[example.example_id] = (logp_L[:split], logp_L[split:])
    return table.__getitem__


def tiny_trainer(
    config: RunConfig, folder: Path, *, rows: int = 1, steps: int = 3, **changes: Any
) -> PairTrainer:
    """Return a trainer over 24 random examples (3 steps of 8), writing its rows to `trainer.rows_written`."""
    ratio = {"chosen": config.ratio.chosen, "rejected": config.ratio.rejected}
    method = bind_method(config.method, ratio, pilot=config.pilot)
    examples = changes.pop("examples", None) or random_examples(24, sft=method.phase == "sft")
    model = changes.pop("model", None) or taught_model(config)
    reference = changes.pop("reference", None) or (
        reference_of(model, examples) if method.reference else None
    )
    written: list[dict[str, Any]] = []
    sizes = lengths(examples)
    config = replace(config, optimizer=replace(config.optimizer, max_steps=steps))
    trainer = PairTrainer(
        args=training_arguments(config, folder, steps, rows, evaluates=False),
        config=config,
        model=model,
        train_dataset=examples,
        eval_dataset=examples,
        processing_class=load_tokenizer(config.model),
        method=method,
        train_rows=StepSampler(
            sizes, config.optimizer.batch_size, rows, 1, config.seed, config.trainer.layout
        ),
        eval_rows=RowSampler(sizes, BUDGET, 1, config.trainer.layout),
        collator=RowCollator(config.trainer.layout, reference, scores=method.scores),
        live_reference=changes.pop("live_reference", None),
        log_row=written.append,
        **changes,
    )
    trainer.rows_written = written
    return trainer


def weights(trainer: PairTrainer) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in trainer.model.parameters()])
