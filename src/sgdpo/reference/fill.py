"""Compute the reference log-probs that a run will look up and that no run before it has left in the cache.

One run works, the others wait for it and go on with what is still missing; a dead one is replaced. Every rank of a
run computes its share, rank 0 keeps it, stretch by stretch.
"""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sgdpo.config.schema import ModelConfig
from sgdpo.data.batching import RowSampler
from sgdpo.data.packing import RowCollator, model_inputs
from sgdpo.models.load import content_hashes
from sgdpo.models.threads import threads_for
from sgdpo.processes import rank_0_decides
from sgdpo.reference.table import WHAT, ExampleSet, ReferenceTable, Table
from sgdpo.store import Lock, beat, hash_tokenizer

log = logging.getLogger(__name__)

# A killed pass loses about this much work of every rank.
STRETCH_SECONDS = 5.0
# How long rank 0 tries for the lock before it tells the other ranks, which wait in a collective, to wait on.
TRY_SECONDS = 5.0


@dataclass(frozen=True)
class Work:
    """Hold how log-probs are computed; none of it is part of the key.

    layout, max_tokens: of a packed row. autocast: bfloat16, or None for the weights' own dtype. rank, world:
    of this process; with several, torch.distributed must be initialised. progress: show a bar with time left.
    """

    layout: str = "shared_prefix"
    max_tokens: int = 8192
    device: str = "cpu"
    autocast: torch.dtype | None = None
    rank: int = 0
    world: int = 1
    progress: bool = True


def reference_key(
    model: ModelConfig,
    weights: Path | None,
    seed: int,
    tokenizer: PreTrainedTokenizerBase,
    precision: str,
    max_length: int,
    max_prompt_length: int,
    memory: Path | None = None,
    *,
    quantise: bool = False,
) -> dict[str, Any]:
    """Return the explicit list of what reference log-probs depend on, beside the examples themselves.

    memory: where hashes of weights are remembered, as in `hash_file`. quantise: the weights are held in 4 bits.
    """
    # Only where it holds, so that the tables that whole weights have made keep their keys.
    rounded = {"quantise": True} if quantise else {}
    return {
        **rounded,
        **content_hashes(model, weights, seed=seed, memory=memory),
        "dtype": precision,
        "tokenizer": hash_tokenizer(tokenizer),
        "max_length": max_length,
        "max_prompt_length": max_prompt_length,
    }


def reference_table(
    sets: Sequence[tuple[ExampleSet, np.ndarray]],
    *,
    model_factory: Callable[[], PreTrainedModel],
    key: dict[str, Any],
    cache: Path,
    work: Work,
) -> ReferenceTable:
    """Return the per-token reference log-probs of data sets, from the cache or computed now.

    sets: each with the positions of the examples that will be looked up; only these are computed. model_factory:
    returns the reference, taught to give log-probs (`models/logprobs.py`); called only if something is missing.
    key: from `reference_key`. cache: the run's cache folder. Raise ValueError if a table was made for another key.
    """
    pass_ = _Pass(model_factory, work)
    tables = [pass_.over(Table(cache, key, examples), examples, wanted) for examples, wanted in sets]
    return ReferenceTable(tables, pass_.forward_tokens, pass_.computed, pass_.reused)


class _Pass:
    """Fill tables with one model, which loads at the first example that is missing."""

    def __init__(self, model_factory: Callable[[], PreTrainedModel], work: Work) -> None:
        self._factory, self.work = model_factory, work
        self._model: PreTrainedModel | None = None
        self.forward_tokens = self.computed = self.reused = 0

    @property
    def model(self) -> PreTrainedModel:
        if self._model is None:
            self._model = self._factory().to(self.work.device).requires_grad_(False).eval()
        return self._model

    def over(self, table: Table, examples: ExampleSet, wanted: np.ndarray) -> Table:
        with _owned(table.folder, self.work):
            rank_0_decides(table.open)
            table.read()
            rows = missing_rows(examples.lengths, wanted, table.present, self.work)
            missing = sum(map(len, rows))
            self.computed, self.reused = self.computed + missing, self.reused + len(wanted) - missing
            if rows:
                log.info(
                    "reference log-probs: %d of %d examples are in the cache, %d are computed now",
                    len(wanted) - missing, len(wanted), missing,
                )  # fmt: skip
                self._fill(table, examples, rows)
            rank_0_decides(lambda: None)  # nobody reads on before the last stretch is kept
            table.read()
        return table

    def _fill(self, table: Table, examples: ExampleSet, rows: list[list[int]]) -> None:
        """Compute rows in stretches of some seconds; each rank computes every world-th row of a stretch."""
        world, done, size = self.work.world, 0, 1
        quiet = not self.work.progress or self.work.rank > 0
        collate = RowCollator(self.work.layout)
        with tqdm(
            total=len(rows), desc="reference log-probs", unit="row", disable=quiet, mininterval=2
        ) as bar:
            while done < len(rows):
                stretch, began = rows[done : done + size * world], time.monotonic()
                values: dict[int, np.ndarray] = {}
                tokens = 0
                for indices in stretch[self.work.rank :: world]:
                    found, count = self._log_probs(collate, indices, examples)
                    values, tokens = values | found, tokens + count
                    beat()
                    bar.update(min(world, len(rows) - bar.n))
                slowest = self._keep(table, values, tokens, time.monotonic() - began)
                done += len(stretch)
                # The same on all ranks: the slowest rank's time is.
                size = max(1, min(4 * size, int(size * STRETCH_SECONDS / max(slowest, 1e-3))))

    def _keep(self, table: Table, values: dict[int, np.ndarray], tokens: int, seconds: float) -> float:
        """Bring the ranks' shares together and keep them; return the slowest rank's seconds."""
        shares: list[Any] = [(values, tokens, seconds)]
        if self.work.world > 1:
            shares = [None] * self.work.world
            dist.all_gather_object(shares, (values, tokens, seconds))
        merged = {index: found for share, _, _ in shares for index, found in share.items()}
        rank_0_decides(lambda: table.add(merged))
        self.forward_tokens += sum(count for _, count, _ in shares)
        return max(slow for _, _, slow in shares)

    @torch.no_grad()
    def _log_probs(
        self, collate: RowCollator, indices: list[int], examples: ExampleSet
    ) -> tuple[dict[int, np.ndarray], int]:
        """Return the log-probs of a row's examples, chosen then rejected, and the tokens it took."""
        row = {
            name: value.to(self.work.device)
            for name, value in collate([examples[i] for i in indices]).items()
        }
        device_type, autocast = torch.device(self.work.device).type, self.work.autocast
        with (
            torch.autocast(device_type, dtype=autocast, enabled=autocast is not None),
            threads_for(self.model),
        ):
            logp_L = self.model(**model_inputs(row)).float().cpu().numpy()
        # All chosen sides come first, then all rejected ones.
        sides = np.asarray(examples.trained)[indices].T
        pieces = np.split(logp_L, np.cumsum(sides.ravel())[:-1])
        both = zip(indices, pieces[: len(indices)], pieces[len(indices) :], strict=True)
        return {index: np.concatenate(pair) for index, *pair in both}, row["input_ids"].numel()


def missing_rows(lengths: np.ndarray, wanted: np.ndarray, present: np.ndarray, work: Work) -> list[list[int]]:
    """Return the rows of the wanted examples that are not there yet, without the examples that are.

    The rows depend on what is wanted alone: a pass that was killed goes on with the rows it had, so that its values
    are those of one that was not (an example's log-probs depend on its row's company by rounding).
    """
    if present[wanted].all():
        return []
    rows = RowSampler(lengths[wanted], work.max_tokens, 1, work.layout)
    left = ([int(wanted[i]) for i in row if not present[wanted[i]]] for row in rows)
    return [row for row in left if row]


@contextmanager
def _owned(folder: Path, work: Work) -> Iterator[None]:
    """Hold the table's lock on rank 0, while all ranks are in the block."""
    lock = Lock(folder, WHAT)
    try:
        while not rank_0_decides(lambda: lock.try_for(TRY_SECONDS)):
            beat()
        yield
    finally:
        lock.release()
