"""Compute reference log-probs once for a whole sweep: one run works, the others wait, a dead one is replaced.

The lock is the operating system's: it is free the moment its owner dies, and what the dead one left half
written is thrown away. Every rank of a run computes its share; rank 0 merges.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.distributed as dist
from filelock import FileLock, Timeout
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sgdpo.config.schema import ModelConfig
from sgdpo.data.batching import RowSampler
from sgdpo.data.example import Example
from sgdpo.data.packing import RowCollator, model_inputs
from sgdpo.models.load import load_model, weights_folder, weights_hash
from sgdpo.models.threads import threads_for
from sgdpo.reference.store import (
    FORMAT,
    ReferenceTable,
    TornTableError,
    key_hash,
    open_table,
    write_table,
)

log = logging.getLogger(__name__)


class ExampleSet(Protocol):
    """Name what a table needs of a data set: `ids` int64[n], `lengths` int64[n, 3], `fingerprint`."""

    ids: np.ndarray
    lengths: np.ndarray
    fingerprint: str

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Example: ...


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
) -> dict[str, Any]:
    """Return the explicit list of what reference log-probs depend on, beside the examples themselves."""
    folder = weights_folder(model, weights)
    words = json.dumps([tokenizer.chat_template, sorted(tokenizer.get_vocab().items())])
    return {
        # Random weights have no folder: they are what the seed makes them.
        "weights": weights_hash(folder if folder is not None else load_model(model, seed=seed)),
        "dtype": precision,
        "tokenizer": hashlib.sha256(words.encode()).hexdigest()[:16],
        "max_length": max_length,
        "max_prompt_length": max_prompt_length,
    }


def reference_table(
    sets: Sequence[ExampleSet],
    *,
    model_factory: Callable[[], PreTrainedModel],
    key: dict[str, Any],
    cache: Path,
    work: Work,
) -> ReferenceTable:
    """Return the per-token reference log-probs of the data sets, from the cache or computed now.

    model_factory: returns the reference, taught to give log-probs (`models/logprobs.py`); called only on a
    miss. key: from `reference_key`. cache: the run's cache folder. Raise ValueError if a table was made for
    another key.
    """
    parts, forward_tokens, model = [], 0, None
    for examples in sets:
        full_key = {"format": FORMAT, **key, "examples": _examples_hash(examples)}
        folder = Path(cache) / "reference" / key_hash(full_key)
        with _owned(folder, work) as present:
            if not present(full_key):
                if model is None:
                    model = _placed(model_factory(), work)
                forward_tokens += _fill(folder, full_key, examples, model, work)
        part = open_table(folder, full_key)
        assert part is not None, folder
        parts.append(part)
    return ReferenceTable(parts, forward_tokens)


def _examples_hash(examples: ExampleSet) -> str:
    digest = hashlib.sha256(examples.fingerprint.encode())
    for array in (examples.ids, examples.lengths):
        digest.update(np.ascontiguousarray(array, dtype="<i8").data)
    return digest.hexdigest()[:16]


@contextlib.contextmanager
def _owned(folder: Path, work: Work) -> Iterator[Callable[[dict[str, Any]], bool]]:
    """Hold the table's lock on rank 0; yield a question that all ranks answer alike: is the table there?"""
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder.with_name(f"{folder.name}.lock"))
    if work.rank == 0:
        _acquire(lock, folder)
    try:
        yield lambda key: _agree(work, lambda: _is_whole(folder, key))
        _agree(work, lambda: True)
    finally:
        lock.release()


def _acquire(lock: FileLock, folder: Path) -> None:
    try:
        lock.acquire(timeout=0.1)
    except Timeout:
        log.info("another run computes the reference log-probs %s; waiting for it", folder.name)
        lock.acquire()


def _agree(work: Work, ask: Callable[[], bool]) -> bool:
    """Return rank 0's answer on every rank; an error of rank 0 is raised on all of them."""
    if work.world == 1:
        return ask()
    answer: list[Any] = [None]
    if work.rank == 0:
        try:
            answer = [ask()]
        except ValueError as error:
            answer = [error]
    dist.broadcast_object_list(answer, src=0)
    if isinstance(answer[0], ValueError):
        raise answer[0]
    return answer[0]


def _is_whole(folder: Path, key: dict[str, Any]) -> bool:
    try:
        return open_table(folder, key) is not None
    except TornTableError as error:
        log.warning("the reference cache is damaged (%s); computing it again", error)
        return False


def _placed(model: PreTrainedModel, work: Work) -> PreTrainedModel:
    return model.to(work.device).requires_grad_(False).eval()


def _fill(folder: Path, key: dict[str, Any], examples: ExampleSet, model: PreTrainedModel, work: Work) -> int:
    """Compute the table, each rank its share of the rows; return the tokens run forward by all ranks."""
    starts = np.concatenate([[0], np.cumsum(np.asarray(examples.lengths)[:, 1:].sum(1))])
    values = np.full(int(starts[-1]), np.nan, dtype=np.float32)
    rows = list(RowSampler(examples.lengths, work.max_tokens, work.world, work.layout))
    tokens = _run_rows(rows[work.rank :: work.world], examples, model, work, starts, values)
    if work.world > 1:
        values, tokens = _merge(values, tokens, work)
    error = _agree(work, lambda: _write(folder, key, examples, values, tokens))
    if error:
        raise ValueError(error)
    return tokens


def _write(folder: Path, key: dict[str, Any], examples: ExampleSet, values: np.ndarray, tokens: int) -> str:
    counts = {"rows": len(examples), "tokens": len(values), "forward_tokens": tokens, "pid": os.getpid()}
    try:
        write_table(
            folder, key, np.asarray(examples.ids), np.asarray(examples.lengths)[:, 1:], values, counts
        )
    except ValueError as error:
        return str(error)
    return ""


@torch.no_grad()
def _run_rows(
    rows: Sequence[list[int]],
    examples: ExampleSet,
    model: PreTrainedModel,
    work: Work,
    starts: np.ndarray,
    values: np.ndarray,
) -> int:
    """Fill `values` for the rows' examples, in place; return how many tokens went through the model."""
    collate, forward_tokens = RowCollator(work.layout), 0
    bar = tqdm(
        rows,
        desc="reference log-probs",
        unit="row",
        disable=not work.progress or work.rank > 0,
        mininterval=2,
    )
    for indices in bar:
        row = {name: value.to(work.device) for name, value in collate([examples[i] for i in indices]).items()}
        device_type = torch.device(work.device).type
        autocast = torch.autocast(device_type, dtype=work.autocast, enabled=work.autocast is not None)
        with autocast, threads_for(model):
            logp_L = model(**model_inputs(row)).float().cpu().numpy()
        _scatter(logp_L, indices, examples.lengths, starts, values)
        forward_tokens += row["input_ids"].numel()
    return forward_tokens


def _scatter(
    logp_L: np.ndarray, indices: Sequence[int], lengths: np.ndarray, starts: np.ndarray, values: np.ndarray
) -> None:
    """Put a row's log-probs (all chosen sides first, then all rejected ones) where its examples begin."""
    taken = 0
    for side in (1, 2):
        for index in indices:
            count = int(lengths[index][side])
            start = int(starts[index]) + (int(lengths[index][1]) if side == 2 else 0)
            values[start : start + count] = logp_L[taken : taken + count]
            taken += count
    assert taken == len(logp_L), "a reference row trains every completion token"


def _merge(values: np.ndarray, tokens: int, work: Work) -> tuple[np.ndarray, int]:
    """Sum the ranks' shares: each value is filled by exactly one rank."""
    filled = torch.from_numpy((~np.isnan(values)).astype(np.int64))
    total = torch.cat([torch.from_numpy(np.nan_to_num(values)).double(), torch.tensor([float(tokens)])])
    if dist.get_backend() == "nccl":
        filled, total = filled.cuda(), total.cuda()
    dist.all_reduce(filled)
    dist.all_reduce(total)
    merged = total[:-1].float().cpu().numpy()
    merged[filled.cpu().numpy() != 1] = np.nan
    return merged, int(total[-1])
