"""Attention over a packed row: a token sees its own sequence, a rejected completion never the chosen one.

A row's spans say what attends to what: `trunk` tokens causally among themselves, then `branch` tokens to the
first `prefix` tokens of the trunk and causally among themselves (`data/packing.py`). On a CPU `row_kernel.py`
does it, or `padded_spans.py` if all spans are short; on a GPU `flex_rows.py`; elsewhere sdpa with the dense mask,
which defines them all.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from sgdpo.models.flex_rows import attend_blocks, block_mask, visibility
from sgdpo.models.padded_spans import LONGEST, PaddedSpans, attend_padded, pad_spans
from sgdpo.models.row_kernel import Span, attend_row

NAME = "sgdpo_rows"
KERNELS = ("spans", "padded", "flex", "dense")


@dataclass(frozen=True)
class RowPlan:
    """Hold what the attention layers of one forward share: the spans, their slots, or the mask that they make."""

    spans: list[Span] | None = None
    padded: PaddedSpans | None = None
    mask: BlockMask | Tensor | None = None


def plan_row(span_S3: Tensor, tokens: int, kernel: str) -> RowPlan:
    """Return the plan of a row of `tokens` tokens. kernel: `spans` or `padded` (CPU), `flex` (CUDA), `dense`."""
    assert kernel in KERNELS, kernel
    if kernel == "spans":
        return RowPlan(spans=[tuple(span) for span in span_S3.tolist()])
    if kernel == "padded":
        return RowPlan(padded=pad_spans(span_S3))
    if kernel == "flex":
        return RowPlan(mask=block_mask(span_S3, tokens))
    return RowPlan(mask=dense_mask(span_S3, tokens)[None, None])


def kernel_for(span_S3: Tensor) -> str:
    """Return the fastest kernel for a row's spans on their device."""
    if span_S3.device.type != "cpu":
        return "flex" if span_S3.device.type == "cuda" else "dense"
    return "padded" if int(span_S3[:, 1:].sum(-1).max()) <= LONGEST else "spans"


def dense_mask(span_S3: Tensor, tokens: int) -> Tensor:
    """Return the boolean mask of a row, N x N; True where a query (row) sees a key (column)."""
    index_N = torch.arange(tokens, device=span_S3.device)
    visible, _ = visibility(span_S3, tokens)
    return visible(index_N, index_N, index_N[:, None], index_N)


def row_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    row_plan: RowPlan | None = None,
    scaling: float | None = None,
    **kwargs,
) -> tuple[Tensor, None]:
    """Attend within a packed row if there is a plan; otherwise do as transformers' sdpa does."""
    if row_plan is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    scale = module.scaling if scaling is None else scaling
    if row_plan.spans is not None:
        return attend_row(query, key, value, row_plan.spans, scale), None
    if row_plan.padded is not None:
        return attend_padded(query, key, value, row_plan.padded, scale), None
    if isinstance(row_plan.mask, BlockMask):
        return attend_blocks(query, key, value, row_plan.mask, scale), None
    return sdpa_attention_forward(module, query, key, value, row_plan.mask, scaling=scale, **kwargs)


def register() -> None:
    """Make the attention known to transformers, with sdpa's own masks for calls without a plan."""
    AttentionInterface.register(NAME, row_attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
