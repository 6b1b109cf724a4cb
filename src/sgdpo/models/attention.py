"""Attention over a packed row: a token sees its own sequence, a rejected completion never the chosen one.

A row's spans say what attends to what: `trunk` tokens causally among themselves, then `branch` tokens to the
first `prefix` tokens of the trunk and causally among themselves (`data/packing.py`). On a CPU `row_kernel.py`
does it, or `padded_spans.py` if all spans are short; on a GPU FlexAttention with a block mask; elsewhere sdpa
with the dense mask, which defines them all.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from transformers import AttentionInterface
from transformers.integrations.flex_attention import flex_attention_forward
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

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
        visible = visibility(span_S3, tokens)
        return RowPlan(mask=create_block_mask(visible, None, None, tokens, tokens, device=span_S3.device))
    return RowPlan(mask=dense_mask(span_S3, tokens)[None, None])


def kernel_for(span_S3: Tensor) -> str:
    """Return the fastest kernel for a row's spans on their device."""
    if span_S3.device.type != "cpu":
        return "flex" if span_S3.device.type == "cuda" else "dense"
    return "padded" if int(span_S3[:, 1:].sum(-1).max()) <= LONGEST else "spans"


def visibility(span_S3: Tensor, tokens: int) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """Return FlexAttention's mask function of a row: (batch, head, query, key) to whether it is seen.

    Built on the row's device without a synchronisation: `tokens` is known from the input's shape.
    """
    prefix_S, trunk_S, branch_S = span_S3.unbind(-1)
    length_S = trunk_S + branch_S
    span_N = torch.repeat_interleave(length_S, output_size=tokens)
    offset_N = torch.arange(tokens, device=span_S3.device) - (length_S.cumsum(0) - length_S)[span_N]
    branch_N = offset_N >= trunk_S[span_N]
    prefix_N = offset_N < prefix_S[span_N]

    def visible(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        causal = (span_N[query] == span_N[key]) & (key <= query)
        return causal & (~branch_N[query] | branch_N[key] | prefix_N[key])

    return visible


def dense_mask(span_S3: Tensor, tokens: int) -> Tensor:
    """Return the boolean mask of a row, N x N; True where a query (row) sees a key (column)."""
    index_N = torch.arange(tokens, device=span_S3.device)
    return visibility(span_S3, tokens)(index_N, index_N, index_N[:, None], index_N[None, :])


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
        # Autocast leaves rotated queries and keys wider than the values; the kernel wants one type.
        query, key = query.to(value.dtype), key.to(value.dtype)
        return flex_attention_forward(module, query, key, value, row_plan.mask, scaling=scale, **kwargs)[
            0
        ], None
    return sdpa_attention_forward(module, query, key, value, row_plan.mask, scaling=scale, **kwargs)


def register() -> None:
    """Make the attention known to transformers, with sdpa's own masks for calls without a plan."""
    AttentionInterface.register(NAME, row_attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
