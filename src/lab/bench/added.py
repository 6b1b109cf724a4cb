"""What each method and pilot adds to a step: its loss over DPO's, and what the lm-head or collator computes for it."""

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from lab.bench.steps import METHODS
from lab.report.pilot_theory import bound
from sgdpo.config.compose import compose_run, method_of, to_run_config
from sgdpo.data.example import Example
from sgdpo.data.overlap import OverlapCollator
from sgdpo.data.packing import RowCollator, pair_of
from sgdpo.drawing.table import Table, number
from sgdpo.method import HEAD_FEATURES, Method
from sgdpo.models.head import LogProbHead
from sgdpo.pairs import DrawKey, Pair
from sgdpo.places import CONF


def added_tables(
    examples: Sequence[Example], vocabulary: int, width: int, step_seconds: float
) -> list[Table]:
    """Show every pilot and every method of conf: milliseconds over DPO's loss, and their share of a step.

    width: of the model.
    """
    pilots = {name: bound(name, 0.6, 0.9) for name in _names("pilot")}
    every = {name: _method(f"method={name}") for name in _names("method")}
    methods = {name: method for name, method in every.items() if method.phase == "preference"}
    methods["dpo, entropy logged"] = _method("method=dpo", "trainer.entropy=true")
    table = partial(_table, examples=examples, vocabulary=vocabulary, width=width, step_seconds=step_seconds)
    return [table("pilots", "pilot", pilots), table("methods", "method", methods)]


def _table(
    name: str, what: str, methods: Mapping[str, Method], examples: Sequence[Example], vocabulary: int, width: int,
    step_seconds: float,
) -> Table:  # fmt: skip
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        dpo_ms = _loss(METHODS["dpo"], examples)
        rows = [
            (each, *_parts(method, examples, vocabulary, width, dpo_ms)) for each, method in methods.items()
        ]
    finally:
        torch.set_num_threads(threads)
    header = [what, "loss, ms", "lm-head, ms", "collator, ms", "of a step, %"]
    fact = f"Processor time over DPO's, least of several; a step takes {1e3 * step_seconds:,.0f} ms on {threads} cores."
    shown = [
        [each, *(number(ms, 2) for ms in parts), number(sum(parts) / 10 / step_seconds / threads, 3)]
        for each, *parts in rows
    ]
    return Table(name, f"What a {what} adds to a step", header, shown, 1, [fact])


def _parts(
    method: Method, examples: Sequence[Example], vocabulary: int, width: int, dpo_ms: float
) -> tuple[float, float, float]:
    state = method.new_state()
    return (
        _loss(lambda pair: method(pair, DrawKey(42), state), examples) - dpo_ms,
        _head(method.head_features, examples, vocabulary, width) if method.head_features else 0.0,
        _rows(OverlapCollator, examples) - _rows(RowCollator, examples) if method.data_features else 0.0,
    )


def _names(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def _method(*overrides: str) -> Method:
    return method_of(to_run_config(compose_run(list(overrides))))


def _loss(method: Callable[[Pair], object], examples: Sequence[Example]) -> float:
    """Return the least time of a loss with its backward pass, milliseconds, on what it may look at."""
    row = OverlapCollator("shared_prefix")(examples)
    row |= {
        key: torch.full((len(examples),), score) for key, score in (("score_w_B", 8.0), ("score_l_B", 6.0))
    }
    count = row["target_L"].numel()
    reference_L = -torch.rand(count)
    features = {"shared": row["shared"], **{name: -torch.rand(count) for name in HEAD_FEATURES}}

    def work() -> None:
        pair = pair_of(row, ((-torch.rand(count)).requires_grad_(), features), reference_L)
        method(pair).loss_B.sum().backward()

    return _best([work], 30)[0]


def _head(features: tuple[str, ...], examples: Sequence[Example], vocabulary: int, width: int) -> float:
    """Return what features cost in the lm-head, forward and backward, milliseconds: of one pair, times the pairs."""
    row = RowCollator("shared_prefix")(examples[:1])
    head = LogProbHead.from_linear(nn.Linear(width, vocabulary, bias=False), 64)
    states = torch.randn(row["target_L"].numel(), width, requires_grad=True)

    def work(asked: tuple[str, ...]) -> None:
        head.features = asked
        found: Tensor | tuple = head(states, row["target_L"])
        (found[0] if asked else found).sum().backward()

    with_features, without = _best([partial(work, features), partial(work, ())], 20)
    return (with_features - without) * len(examples)


def _rows(collator: type[RowCollator], examples: Sequence[Example]) -> float:
    return _best([lambda: collator("shared_prefix")(examples)], 10)[0]


def _best(works: Sequence[Callable[[], object]], repeats: int) -> list[float]:
    """Return each one's least processor time, milliseconds: another process beside this one does not count.

    They take turns, so that what drifts (caches, clock rates) drifts for all.
    """
    times: list[list[float]] = [[] for _ in works]
    for _ in range(repeats):
        for work, taken in zip(works, times, strict=True):
            began = time.process_time()
            work()
            taken.append(time.process_time() - began)
    return [1e3 * min(taken) for taken in times]
