"""What each pilot adds to a step: its loss over DPO's, and what the lm-head or the collator computes for it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from lab.bench.steps import METHODS
from lab.report.pilot_theory import bound
from sgdpo.data.example import Example
from sgdpo.data.overlap import OverlapCollator
from sgdpo.data.packing import RowCollator, pair_of
from sgdpo.drawing.table import Table, number
from sgdpo.models.head import LogProbHead
from sgdpo.pairs import DrawKey, Pair
from sgdpo.places import CONF


def pilots_table(examples: Sequence[Example], vocabulary: int, width: int, step_seconds: float) -> Table:
    """Show every pilot of conf/pilot: milliseconds over DPO's loss, and their share of a step. width: of the model."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rows = [
            _row(path.stem, examples, vocabulary, width) for path in sorted((CONF / "pilot").glob("*.yaml"))
        ]
    finally:
        torch.set_num_threads(threads)
    header = ["pilot", "loss, ms", "lm-head, ms", "collator, ms", "of a step, %"]
    fact = f"Processor time over DPO's, least of several; a step takes {1e3 * step_seconds:,.0f} ms on {threads} cores."
    shown = [
        [name, *(number(ms, 2) for ms in parts), number(sum(parts) / 10 / step_seconds / threads, 3)]
        for name, *parts in rows
    ]
    return Table("pilots", "What a pilot adds to a step", header, shown, 1, [fact])


def _row(
    name: str, examples: Sequence[Example], vocabulary: int, width: int
) -> tuple[str, float, float, float]:
    method = bound(name, 0.6, 0.9)
    return (
        name,
        _loss(lambda pair: method(pair, DrawKey(42)), examples) - _loss(METHODS["dpo"], examples),
        _head(method.head_features, examples, vocabulary, width) if method.head_features else 0.0,
        _rows(OverlapCollator, examples) - _rows(RowCollator, examples) if method.data_features else 0.0,
    )


def _loss(method: Callable[[Pair], object], examples: Sequence[Example]) -> float:
    """Return the best time of a loss with its backward pass, milliseconds, on what it may look at."""
    row = OverlapCollator("shared_prefix")(examples)
    count = row["target_L"].numel()
    reference_L, features = -torch.rand(count), {"shared": row["shared"], "entropy": torch.rand(count)}

    def work() -> None:
        pair = pair_of(row, ((-torch.rand(count)).requires_grad_(), features), reference_L)
        method(pair).loss_B.sum().backward()

    return _best(work, 30)


def _head(features: tuple[str, ...], examples: Sequence[Example], vocabulary: int, width: int) -> float:
    """Return what features cost in the lm-head, forward and backward, milliseconds: of one pair, times the pairs."""
    row = RowCollator("shared_prefix")(examples[:1])
    head = LogProbHead.from_linear(nn.Linear(width, vocabulary, bias=False), 64)
    states = torch.randn(row["target_L"].numel(), width, requires_grad=True)

    def work(asked: tuple[str, ...]) -> None:
        head.features = asked
        found: Tensor | tuple = head(states, row["target_L"])
        (found[0] if asked else found).sum().backward()

    return (_best(partial(work, features), 5) - _best(partial(work, ()), 5)) * len(examples)


def _rows(collator: type[RowCollator], examples: Sequence[Example]) -> float:
    return _best(lambda: collator("shared_prefix")(examples), 10)


def _best(work: Callable[[], object], repeats: int) -> float:
    """Return the least processor time, milliseconds: another process beside this one does not count."""
    times = []
    for _ in range(repeats):
        began = time.process_time()
        work()
        times.append(time.process_time() - began)
    return 1e3 * min(times)
