"""Keep for the backward pass what a cheap result was computed from, not the result.

A linear layer keeps its input. Where that is a norm's output or silu(gate) * up, everything it takes to compute it
again is kept anyway (`fused.py`); so it is kept as a recipe and computed when the layer's backward pass asks, with the
same bits. Measured on SmolLM2: a third less memory a token. Autograd's hooks on saved tensors do it, so it works for
any layer: plain, adapted, sharded. Activation checkpointing has hooks of its own and goes before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

# What may be computed again in the present forward pass, by storage; None: keep everything.
_recipes: ContextVar[dict[int, tuple[StorageWeakRef, Recipe]] | None] = ContextVar("recipes", default=None)


class Recipe:
    """Compute a tensor again when the first layer that kept it asks; let it go after the last has."""

    def __init__(self, shape: torch.Size, compute: Callable[..., Tensor], inputs: Sequence[Any]) -> None:
        self.shape, self.compute, self.inputs = shape, compute, inputs
        self.keepers = self.waiting = 0
        self.result: Tensor | None = None

    def keep(self) -> Recipe:
        self.keepers += 1
        return self

    def make(self) -> Tensor:
        if self.result is None:
            self.result, self.waiting = self.compute(*self.inputs), self.keepers
        result, self.waiting = self.result, self.waiting - 1
        if not self.waiting:
            self.result = None
        return result


@contextmanager
def recomputing() -> Iterator[None]:
    """Let the layers called inside keep recipes of what `remember` was told of."""
    if not torch.is_grad_enabled():
        yield
        return
    token = _recipes.set({})
    try:
        with torch.autograd.graph.saved_tensors_hooks(_pack, _unpack):
            yield
    finally:
        _recipes.reset(token)


def remember(result: Tensor, compute: Callable[..., Tensor], *inputs: Any) -> None:
    """Say how to compute a whole tensor again, with the same bits: `compute` of these inputs, without gradient."""
    recipes = _recipes.get()
    if recipes is None:
        return
    # A recipe holds what it needs: it goes with its result, lest it outlive what activation checkpointing frees.
    for place in [place for place, (storage, _) in recipes.items() if storage.expired()]:
        del recipes[place]
    kept = [each.detach() if isinstance(each, Tensor) else each for each in inputs]
    # Sharded engines free the parameters of a layer that has run: those in a recipe are a vector's copy.
    kept = [
        own.clone() if isinstance(each, nn.Parameter) else own for each, own in zip(inputs, kept, strict=True)
    ]
    storage = StorageWeakRef(result.untyped_storage())
    recipes[storage.cdata] = storage, Recipe(result.shape, compute, kept)


def _pack(kept: Tensor) -> Tensor | tuple[Recipe, torch.Size]:
    recipes = _recipes.get()
    _, recipe = (recipes or {}).get(kept.untyped_storage()._cdata, (None, None))
    if recipe is None or kept.numel() != recipe.shape.numel() or not kept.is_contiguous():
        return kept
    return recipe.keep(), kept.shape


def _unpack(kept: Tensor | tuple[Recipe, torch.Size]) -> Tensor:
    if isinstance(kept, Tensor):
        return kept
    recipe, shape = kept
    return recipe.make().view(shape)
