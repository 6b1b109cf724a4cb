"""What each pilot adds to a step: its loss over DPO's, and what the lm-head or the collator computes for it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from lab.bench.steps import METHODS
from sgdpo.config.compose import compose_run, to_run_config
from sgdpo.data.example import Example
from sgdpo.data.overlap import OverlapCollator
from sgdpo.data.packing import RowCollator, pair_of
from sgdpo.drawing.table import Table, number
from sgdpo.method import Method, bind_method
from sgdpo.models.head import LogProbHead
from sgdpo.pairs import DrawKey, Pair
from sgdpo.places import CONF


def pilots_table(examples: Sequence[Example], vocabulary: int, width: int, step_seconds: float) -> Table:
    """Show every pilot of conf/pilot: milliseconds over DPO's loss, and their share of a step. width: of the model."""
    rows, dpo_ms = [], _loss(METHODS["dpo"], examples)
    for path in sorted((CONF / "pilot").glob("*.yaml")):
        method = _bound(path.stem)
        parts = [
            _loss(lambda pair, m=method: m(pair, DrawKey(42)), examples) - dpo_ms,
            _head(method.head_features, examples, vocabulary, width) if method.head_features else 0.0,
            _rows(OverlapCollator, examples) - _rows(RowCollator, examples) if method.data_features else 0.0,
        ]
        rows.append([path.stem, *(number(ms, 2) for ms in parts), number(sum(parts) / 10 / step_seconds, 3)])
    header = ["pilot", "loss, ms", "lm-head, ms", "collator, ms", "of a step, %"]
    fact = f"Over DPO's, best of several; a step takes {1e3 * step_seconds:,.0f} ms."
    return Table("pilots", "What a pilot adds to a step", header, rows, 1, [fact])


def _bound(name: str) -> Method:
    config = to_run_config(compose_run(["method=sgdpo", f"pilot={name}"]))
    chosen, rejected = (1.0, 1.0) if config.pilot["size"]["of"] == "found" else (0.6, 0.9)
    return bind_method(config.method, {"chosen": chosen, "rejected": rejected}, pilot=config.pilot)


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
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return 1e3 * min(times)
