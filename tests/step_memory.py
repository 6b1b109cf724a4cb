"""Measure what a training step really allocates on the CPU, by the allocator's own events."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from sgdpo.config.schema import ModelConfig
from sgdpo.data.example import Example
from sgdpo.data.packing import RowCollator, model_inputs
from sgdpo.models.load import load_model
from sgdpo.models.logprobs import teach_logprobs


def packed_row(pairs: int, prompt: int, chosen: int, rejected: int, vocabulary: int) -> dict[str, Tensor]:
    random = np.random.default_rng(0)

    def ids(count: int) -> np.ndarray:
        return random.integers(5, vocabulary, count).astype(np.int32)

    examples = [
        Example(i, ids(prompt), ids(chosen), ids(rejected), np.ones(chosen, bool)) for i in range(pairs)
    ]
    return RowCollator("shared_prefix")(examples)


def step_peak(
    model: ModelConfig, row: dict[str, Tensor], bf16: bool, checkpointing: bool, budget_mb: int
) -> int:
    """Return the peak of one row's forward and backward pass, bytes, beside weights and gradients.

    The gradients are there before: of several rows of a step, every row but the first finds them so.
    """
    taught = load_model(model, seed=0)
    teach_logprobs(taught, budget_mb)
    if checkpointing:
        taught.gradient_checkpointing_enable()
        taught.config.use_cache = False
    for parameter in taught.parameters():
        parameter.grad = torch.zeros_like(parameter)

    def step() -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            logp_L = taught(**model_inputs(row))
        logp_L.mean().backward()

    return _peak(step)


def _peak(work: Callable[[], None]) -> int:
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        work()
    held = most = 0
    for event in recorded.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return most
