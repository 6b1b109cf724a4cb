"""How many CPU threads a model is worth."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

SMALL_MODEL = 20_000_000  # parameters


@contextmanager
def threads_for(model: nn.Module) -> Iterator[None]:
    """Run a small model on one CPU thread inside the block: two would wait for each other longer than they work.

    Measured on two cores with the tiny Llama, 64 examples a step: 0.16 s with one thread, 0.15 s with two, and
    0.6 to 20 s with two beside other busy processes. The numbers do not depend on it.
    """
    threads = torch.get_num_threads()
    on_cpu = next(model.parameters()).device.type == "cpu"
    if on_cpu and sum(p.numel() for p in model.parameters()) < SMALL_MODEL:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
