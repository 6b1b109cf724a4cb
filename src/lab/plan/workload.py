"""How much work a run is: pairs, tokens, steps, rows; counted where the data is at hand, estimated where not."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lab.plan.memory import Row
from sgdpo.config.schema import RunConfig
from sgdpo.data.batching import rows_per_step, tokens_of
from sgdpo.data.prepare import prepare
from sgdpo.data.rows import Rows
from sgdpo.data.sources import load_rows
from sgdpo.models.load import load_tokenizer

# Files above this are estimated rather than tokenised for a plan.
CHEAP_MB = 64
# What is assumed of a set of which nothing is known: UltraFeedback's size and lengths (conf/data/ultrafeedback.yaml).
UNKNOWN = {
    "preference": {"rows": 61135, "tokens": [175, 295, 258]},
    "sft": {"rows": 61135, "tokens": [0, 1200, 0]},
}


@dataclass(frozen=True)
class Workload:
    """Hold the size of one training run.

    examples: in the training set. tokens, predicted: of one pass over it, all and trained ones, as packed.
    rows: of a step and process. row: the longest one. counted: False if tokens are an estimate, which `source`
    explains.
    """

    examples: int
    tokens: int
    predicted: int
    steps: int
    epochs: float
    rows: int
    row: Row
    counted: bool
    source: str


def workload(config: RunConfig) -> Workload:
    """Return the work of a run. Reads and tokenises data only if it is on this machine and small."""
    if _is_cheap(config):
        lengths = _counted_lengths(config)
        return _of_lengths(config, lengths, True, "counted on the tokenised training set")
    return _estimated(config)


def _is_cheap(config: RunConfig) -> bool:
    local_tokenizer = config.model.path is None or Path(config.model.path).expanduser().is_dir()
    rows = _training_rows(config)
    return local_tokenizer and not rows.remote and rows.size < CHEAP_MB * 2**20


def _training_rows(config: RunConfig) -> Rows:
    rows = load_rows(config.data, config.method["phase"], "train", config.extra)
    assert rows is not None, "load_rows lets no run without a training set through"
    return rows


def _counted_lengths(config: RunConfig) -> np.ndarray:
    tokenizer = load_tokenizer(config.model)
    return prepare(
        config.data, config.method["phase"], tokenizer, Path(config.cache), config.extra
    ).train.lengths


def _of_lengths(config: RunConfig, lengths: np.ndarray, counted: bool, source: str) -> Workload:
    layout, batch = config.trainer.layout, config.optimizer.batch_size
    world = config.engine.num_processes * config.engine.num_nodes
    tokens, predicted = tokens_of(lengths, layout), lengths[:, 1] + lengths[:, 2]
    budget = config.trainer.max_tokens_per_row
    rows = rows_per_step(lengths, batch, world, budget, layout, seed=config.seed)
    longest = int(min(max(budget, tokens.max()), math.ceil(tokens.mean() * batch / (rows * world) * 1.1)))
    longest = max(longest, int(tokens.max()))
    share = predicted.sum() / tokens.sum()
    examples = len(lengths)
    return Workload(
        examples, int(tokens.sum()), int(predicted.sum()), *_steps(config, examples), rows,
        Row(longest, math.ceil(longest * share)), counted, source,
    )  # fmt: skip


def _steps(config: RunConfig, examples: int) -> tuple[int, float]:
    """Return the optimizer steps and the passes they make; a remainder below a batch is left out."""
    optimizer = config.optimizer
    per_epoch = max(examples // optimizer.batch_size, 1)
    if optimizer.max_steps > 0:
        return optimizer.max_steps, optimizer.max_steps / per_epoch
    return math.ceil(optimizer.epochs * per_epoch), optimizer.epochs


def _estimated(config: RunConfig) -> Workload:
    data, phase = config.data, config.method["phase"]
    known = (data.facts or {}).get(phase)
    facts = known or UNKNOWN[phase]
    examples, tokens = min(facts["rows"], data.limit or facts["rows"]), facts["tokens"]
    lengths = np.tile(np.array(tokens, np.int64), (examples, 1))
    row = _estimated_row(config, lengths)
    rows_known = (
        f"{facts['rows']:,} rows by its card" if known else f"{facts['rows']:,} rows assumed, set data.limit"
    )
    source = f"estimated: {_training_rows(config).name}, {rows_known}, {sum(tokens)} tokens a row on average"
    world = config.engine.num_processes * config.engine.num_nodes
    totals = tokens_of(lengths, config.trainer.layout)
    rows = math.ceil(int(totals[0]) * config.optimizer.batch_size / world / row.tokens * 1.05)
    return Workload(
        examples, int(totals.sum()), int(lengths[:, 1:].sum()), *_steps(config, examples), rows, row, False,
        source,
    )  # fmt: skip


def _estimated_row(config: RunConfig, lengths: np.ndarray) -> Row:
    """Return the row that a step fills: the budget, or less if a step's pairs do not fill one, or one pair."""
    world = config.engine.num_processes * config.engine.num_nodes
    tokens = tokens_of(lengths[:1], config.trainer.layout)[0]
    of_step = math.ceil(tokens * config.optimizer.batch_size / world)
    longest_pair = config.data.max_length * (1 if config.method["phase"] == "sft" else 2)
    size = max(min(config.trainer.max_tokens_per_row, of_step), min(longest_pair, of_step))
    return Row(size, math.ceil(size * lengths[0, 1:].sum() / tokens))
