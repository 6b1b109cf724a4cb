"""What each pilot adds to a step: its loss over DPO's, and what the lm-head or the collator computes for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from lab.bench.steps import METHODS, seconds_of
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
    rows, dpo_ms = [], _loss(METHODS["dpo"], examples)
    for path in sorted((CONF / "pilot").glob("*.yaml")):
        method = bound(path.stem, 0.6, 0.9)
        parts = [
            _loss(lambda pair, m=method: m(pair, DrawKey(42)), examples) - dpo_ms,
            _head(method.head_features, examples, vocabulary, width) if method.head_features else 0.0,
            _rows(OverlapCollator, examples) - _rows(RowCollator, examples) if method.data_features else 0.0,
        ]
        rows.append([path.stem, *(number(ms, 2) for ms in parts), number(sum(parts) / 10 / step_seconds, 3)])
    header = ["pilot", "loss, ms", "lm-head, ms", "collator, ms", "of a step, %"]
    fact = f"Over DPO's, best of several; a step takes {1e3 * step_seconds:,.0f} ms."
    return Table("pilots", "What a pilot adds to a step", header, rows, 1, [fact])


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
    """Return what features cost in the lm-head, forward and backward, milliseconds."""
    row = RowCollator("shared_prefix")(examples)
    head = LogProbHead.from_linear(nn.Linear(width, vocabulary, bias=False), 64)
    states = torch.randn(row["target_L"].numel(), width, requires_grad=True)

    def work(asked: tuple[str, ...]) -> None:
        head.features = asked
        found: Tensor | tuple = head(states, row["target_L"])
        (found[0] if asked else found).sum().backward()

    return _best(partial(work, features), 3) - _best(partial(work, ()), 3)


def _rows(collator: type[RowCollator], examples: Sequence[Example]) -> float:
    return _best(lambda: collator("shared_prefix")(examples), 10)


def _best(work: Callable[[], object], repeats: int) -> float:
    return 1e3 * min(seconds_of(work) for _ in range(repeats))
