"""Group the examples of a step into rows of even token counts; the mathematics never depends on the grouping.

A row is one packed micro-batch. Every step has the same number of rows and every rank runs the same number of
forwards, which ZeRO-3's collectives need. Row i of a step goes to rank i % world_size, as accelerate deals
them.
"""

import heapq
import logging
from collections.abc import Iterator

import numpy as np
import torch
from torch.utils.data import Sampler

from sgdpo import keyed

log = logging.getLogger(__name__)

LAYOUTS = ("shared_prefix", "separate")


def tokens_of(lengths: np.ndarray, layout: str) -> np.ndarray:
    """Return how many tokens each example takes in a row, int64[n].

    lengths: int64[n, 3] (prompt, chosen, rejected), tokens; rejected is 0 in the SFT phase.
    layout: `shared_prefix` holds the prompt once, `separate` once for each side.
    """
    assert layout in LAYOUTS, layout
    prompt, chosen, rejected = np.asarray(lengths, np.int64).T
    copies = 1 if layout == "shared_prefix" else 1 + (rejected > 0)
    return copies * prompt + chosen + rejected


def epoch_order(count: int, seed: int, epoch: int) -> np.ndarray:
    """Return the keyed permutation of an epoch: a counter-based hash of (seed, epoch, index), sorted."""
    keys = keyed.mix64_(torch.arange(count) + keyed.signed(_step(_step(seed) + epoch) + keyed.GOLDEN))
    return np.argsort(keys.numpy().view(np.uint64), kind="stable")


def _step(state: int) -> int:
    """Return the first number of splitmix64 from a state."""
    return int(keyed.mix64_(torch.tensor([keyed.signed(state + keyed.GOLDEN)])))


def even_rows(tokens: np.ndarray, rows: int) -> list[list[int]]:
    """Spread examples over `rows` rows of even token counts: the longest first, to the emptiest row.

    tokens: int64[n], n >= rows. Returns positions into `tokens`, ascending in each row; no row is empty.
    """
    assert 0 < rows <= len(tokens), (rows, len(tokens))
    heap = [(0, row) for row in range(rows)]
    members: list[list[int]] = [[] for _ in range(rows)]
    for position in np.argsort(-tokens, kind="stable").tolist():
        load, row = heap[0]
        members[row].append(position)
        heapq.heapreplace(heap, (load + int(tokens[position]), row))
    return [sorted(row) for row in members]


def _fewest_rows(tokens: np.ndarray, world_size: int, budget: int) -> int:
    """Return the fewest rows, a multiple of world_size, in which no row exceeds the budget.

    Where the examples cannot be dealt out so (fewer than a row each), return as many rows as have an example.
    """
    most = len(tokens) // world_size * world_size
    rows = min(most, world_size * max(1, -(-int(tokens.sum()) // (budget * world_size))))
    while rows < most and max(int(tokens[row].sum()) for row in even_rows(tokens, rows)) > budget:
        rows += world_size
    return rows


def row_budget(tokens: np.ndarray, max_tokens: int) -> int:
    """Return the token budget of a row: `max_tokens`, or the longest example, which then has its own row.

    Raise ValueError if not even the shortest example fits.
    """
    if len(tokens) == 0:
        raise ValueError("there is no example to put into rows; check the data set and its filters")
    if max_tokens < tokens.min():
        raise ValueError(
            f"trainer.max_tokens_per_row={max_tokens} is too small for any example: the shortest takes"
            f" {tokens.min()} tokens, the longest {tokens.max()}; set it to {tokens.max()} or more"
        )
    over = int((tokens > max_tokens).sum())
    if over:
        log.warning(
            "%d of %d examples exceed trainer.max_tokens_per_row=%d (the longest takes %d tokens):"
            " each gets a row of its own",
            over, len(tokens), max_tokens, tokens.max(),
        )  # fmt: skip
    return max(max_tokens, int(tokens.max()))


def rows_per_step(
    lengths: np.ndarray,
    batch_size: int,
    world_size: int,
    max_tokens: int,
    layout: str,
    *,
    seed: int,
    steps: int,
) -> int:
    """Return how many rows each rank runs in a step: the fewest for which no row of any step is too long.

    batch_size: examples of a step over all ranks. max_tokens: of one row. seed, steps: the orders to look at, those
    of every epoch that so many steps reach into. Raise ValueError if the batch cannot be dealt out or no example fits.
    """
    if batch_size < world_size:
        raise ValueError(
            f"optimizer.batch_size={batch_size} leaves some of {world_size} processes without an example;"
            f" set it to {world_size} or more"
        )
    tokens = tokens_of(lengths, layout)
    budget = row_budget(tokens, max_tokens)
    most = 1
    for epoch in range(-(-steps // max(1, len(tokens) // batch_size))):
        for step in _steps(len(tokens), batch_size, seed, epoch):
            # Only a step that does not fit the rows so far needs a closer look.
            rows = even_rows(tokens[step], most * world_size)
            if max(int(tokens[step][row].sum()) for row in rows) > budget:
                most = max(most, _fewest_rows(tokens[step], world_size, budget) // world_size)
    return most


def _steps(count: int, batch_size: int, seed: int, epoch: int) -> Iterator[np.ndarray]:
    order = epoch_order(count, seed, epoch)
    for start in range(0, count - batch_size + 1, batch_size):
        yield order[start : start + batch_size]


def planned_examples(count: int, batch_size: int, seed: int, steps: int) -> np.ndarray:
    """Return the positions of the examples that so many steps see, ascending, int64.

    From one whole epoch on that is all of them: other seeds leave out another remainder.
    """
    if steps >= count // batch_size:
        return np.arange(count)
    return np.sort(epoch_order(count, seed, 0)[: steps * batch_size])


class StepSampler(Sampler[list[int]]):
    """Yield the rows of an epoch, step by step: the batch sampler of a DataLoader over training examples.

    Each step is exactly `batch_size` examples in `rows` * `world_size` rows; the remainder of an epoch is
    left out. The order depends on (seed, epoch) alone: not on rows, ranks or workers.
    """

    def __init__(
        self, lengths: np.ndarray, batch_size: int, rows: int, world_size: int, seed: int, layout: str
    ) -> None:
        self.tokens = tokens_of(lengths, layout)
        if batch_size > len(self.tokens):
            raise ValueError(
                f"optimizer.batch_size={batch_size} is more than the {len(self.tokens)} training examples;"
                " make it smaller or add data"
            )
        self.examples_per_step, self.rows_per_step = batch_size, rows * world_size
        self.seed, self.epoch = seed, 0
        self.steps = len(self.tokens) // batch_size

    def set_epoch(self, epoch: int) -> None:
        """Choose the permutation of the next iteration, 0-based."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.steps * self.rows_per_step

    def __iter__(self) -> Iterator[list[int]]:
        for step in _steps(len(self.tokens), self.examples_per_step, self.seed, self.epoch):
            for row in even_rows(self.tokens[step], self.rows_per_step):
                yield step[row].tolist()


class RowSampler(Sampler[list[int]]):
    """Yield every example once, in rows of even token counts: for evaluation and for reference log-probs.

    The number of rows is a multiple of `world_size`, so that every rank runs the same number of forwards.
    """

    def __init__(self, lengths: np.ndarray, max_tokens: int, world_size: int, layout: str) -> None:
        tokens = tokens_of(lengths, layout)
        if len(tokens) < world_size:
            raise ValueError(f"{len(tokens)} examples cannot be dealt to {world_size} processes; add data")
        rows = _fewest_rows(tokens, world_size, row_budget(tokens, max_tokens))
        self.rows = even_rows(tokens, rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.rows)
