"""Attention over a packed row: a token sees its own sequence, a rejected completion never the chosen one.

A row's spans say what attends to what: `trunk` tokens causally among themselves, then `branch` tokens to the
first `prefix` tokens of the trunk and causally among themselves (`data/packing.py`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

NAME = "sgdpo_rows"


@dataclass(frozen=True)
class RowPlan:
    """Hold what one forward's attention layers share. mask_NN: bool, True where a query (row) sees a key."""

    mask_NN: Tensor


def plan_row(span_S3: Tensor) -> RowPlan:
    """Return the plan of a row of spans."""
    return RowPlan(dense_mask(span_S3))


def dense_mask(span_S3: Tensor) -> Tensor:
    """Return the boolean mask of a row, N x N: the definition that every faster form is held against."""
    lengths_S = span_S3[:, 1:].sum(-1)
    total = int(lengths_S.sum())
    mask_NN = torch.zeros(total, total, dtype=torch.bool, device=span_S3.device)
    start = 0
    for prefix, trunk, branch in span_S3.tolist():
        middle, end = start + trunk, start + trunk + branch
        mask_NN[start:middle, start:middle] = torch.ones(trunk, trunk, dtype=torch.bool).tril()
        mask_NN[middle:end, start : start + prefix] = True
        mask_NN[middle:end, middle:end] = torch.ones(branch, branch, dtype=torch.bool).tril()
        start = end
    return mask_NN


def row_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    row_plan: RowPlan | None = None,
    **kwargs,
) -> tuple[Tensor, None]:
    """Attend within a packed row if there is a plan; otherwise do as transformers' sdpa does."""
    if row_plan is not None:
        attention_mask = row_plan.mask_NN[None, None]
    return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)


def register() -> None:
    """Make the attention known to transformers, with sdpa's own masks for calls without a plan."""
    AttentionInterface.register(NAME, row_attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
