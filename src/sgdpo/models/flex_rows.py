"""Attention of a packed row on a GPU: FlexAttention over the blocks that a span reaches, compiled once for any row.

What a token sees is three numbers of its own, so the mask reads nothing of the keys, and the blocks follow from the
spans' lengths without an N x N matrix and without waiting for the device. transformers' wrapper compiles again at every
change between training and evaluation; here the lengths are symbolic, and one compiled function serves all rows.
"""

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

BLOCK = 128  # tokens on each side of a block of the mask
Visible = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def visibility(span_S3: Tensor, tokens: int) -> tuple[Visible, Tensor]:
    """Return the mask function of a row, (batch, head, query, key) to whether it is seen, and where each token's span
    begins. `tokens` is known from the input's shape, so nothing is read back from the device.
    """
    prefix_S, trunk_S, branch_S = span_S3.unbind(-1)
    length_S = trunk_S + branch_S
    span_N = torch.repeat_interleave(length_S, output_size=tokens)
    start_N = (length_S.cumsum(0) - length_S)[span_N]
    middle_N = start_N + trunk_S[span_N]
    branch_N = torch.arange(tokens, device=span_S3.device) >= middle_N
    own_N = torch.where(branch_N, middle_N, start_N)  # from here on it sees all that is before itself
    prefix_N = torch.where(branch_N, start_N + prefix_S[span_N], start_N)  # and the span up to here

    def visible(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        in_prefix = (key >= start_N[query]) & (key < prefix_N[query])
        return (key <= query) & ((key >= own_N[query]) | in_prefix)

    return visible, start_N


def block_mask(span_S3: Tensor, tokens: int) -> BlockMask:
    """Return the mask with every block between a block of queries and the beginning of its first query's span."""
    visible, start_N = visibility(span_S3, tokens)
    first_Q = torch.arange(0, tokens, BLOCK, device=span_S3.device)
    seen_QK = (first_Q <= first_Q[:, None]) & (first_Q + BLOCK > start_N[first_Q][:, None])
    order_QK = torch.argsort(seen_QK.to(torch.int8), dim=-1, descending=True, stable=True)
    return BlockMask.from_kv_blocks(
        seen_QK.sum(-1, dtype=torch.int32)[None, None], order_QK.to(torch.int32)[None, None],
        BLOCK_SIZE=BLOCK, mask_mod=visible, seq_lengths=(tokens, tokens),
    )  # fmt: skip


def attend_blocks(query: Tensor, key: Tensor, value: Tensor, mask: BlockMask, scale: float) -> Tensor:
    """Return the attention output (1, N, H, E) of a row. query (1, H, N, E); key, value (1, K, N, E)."""
    # Autocast leaves rotated queries and keys wider than the values; the kernel wants one type.
    query, key = query.to(value.dtype), key.to(value.dtype)
    return _compiled()(query, key, value, block_mask=mask, scale=scale, enable_gqa=True).transpose(1, 2)


@cache
def _compiled():
    return torch.compile(flex_attention, dynamic=True)
