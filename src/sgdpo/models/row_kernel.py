"""Attention of a packed row on a CPU: only the products that a token may see, in float32, without copies.

Each span is attended in up to three tiles: trunk on trunk (causal), branch on prefix (all), branch on branch
(causal). A branch's two tiles are softmaxes over disjoint keys and are merged by their log-sum-exps; with the
merged output and log-sum-exp, the flash kernel's backward pass gives each tile's exact share of the gradient
(as in ring attention: Liu et al., 2023). No mask, no padding and no N x N matrix exists. Measured on
SmolLM2's shapes: 2 times faster than sdpa with a mask for each pair, and 4 to 10 times than with one mask
for the row.

In float32 even under bf16 autocast: on CPUs torch's flash kernel is slower in bfloat16, and less exact.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_attend_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward

Span = tuple[int, int, int]  # prefix, trunk, branch: lengths in tokens


class RowAttention(torch.autograd.Function):
    """Attend within each span of a row.

    query (K, G, N, D): K key heads, G query heads for each of them. key, value (K, 1, N, D). Returns the
    output (K, G, N, D), float32 at least, laid out in memory as (N, K, G, D).
    """

    @staticmethod
    def forward(
        ctx, query: Tensor, key: Tensor, value: Tensor, spans: Sequence[Span], scale: float
    ) -> Tensor:
        wide = torch.promote_types(query.dtype, torch.float32)
        heads, groups, tokens, width = query.shape
        inputs = [query.to(wide), _shared(key.to(wide), groups), _shared(value.to(wide), groups)]
        out = query.new_empty(tokens, heads, groups, width, dtype=wide).permute(1, 2, 0, 3)
        lse = query.new_empty(heads, groups, tokens, dtype=wide)
        for queries, tiles in _regions(spans):
            parts = [
                _attend(*_tile(inputs, queries, keys), 0.0, causal, scale=scale) for keys, causal in tiles
            ]
            out[:, :, queries], lse[:, :, queries] = parts[0] if len(parts) == 1 else _merge(*parts)
        ctx.save_for_backward(query, key, value, out, lse)
        ctx.spans, ctx.scale = spans, scale
        return out

    @staticmethod
    def backward(ctx, grad_out: Tensor):
        query, key, value, out, lse = ctx.saved_tensors
        heads, groups, tokens, width = query.shape
        grad_out = grad_out.to(out.dtype)
        inputs = [
            query.to(out.dtype),
            _shared(key.to(out.dtype), groups),
            _shared(value.to(out.dtype), groups),
        ]
        grad_query = torch.zeros_like(out)
        grad_key, grad_value = (out.new_zeros(heads, tokens, width) for _ in range(2))
        for queries, tiles in _regions(ctx.spans):
            g, o, l = grad_out[:, :, queries], out[:, :, queries], lse[:, :, queries]
            for keys, causal in tiles:
                shares = _attend_backward(
                    g, *_tile(inputs, queries, keys), o, l, 0.0, causal, scale=ctx.scale
                )
                grad_query[:, :, queries] += shares[0]
                grad_key[:, keys] += shares[1].sum(1)
                grad_value[:, keys] += shares[2].sum(1)
        grads = (grad_query, grad_key[:, None], grad_value[:, None])
        return *(g.to(x.dtype) for g, x in zip(grads, (query, key, value), strict=True)), None, None


def attend_row(query: Tensor, key: Tensor, value: Tensor, spans: Sequence[Span], scale: float) -> Tensor:
    """Return the attention output (1, N, H, D) of a row. query (1, H, N, D); key, value (1, K, N, D)."""
    heads, tokens, width = key.shape[1:]
    grouped = (
        query.view(heads, -1, tokens, width) if query.is_contiguous() else query[0].unflatten(0, (heads, -1))
    )
    out = RowAttention.apply(grouped, key[0][:, None], value[0][:, None], spans, scale)
    return out.permute(2, 0, 1, 3).reshape(1, tokens, -1, width)


def _regions(spans: Sequence[Span]):
    """Yield queries and the (keys, causal) tiles they see, as slices of the row."""
    start = 0
    for prefix, trunk, branch in spans:
        middle, end = start + trunk, start + trunk + branch
        yield slice(start, middle), [(slice(start, middle), True)]
        if branch:
            yield slice(middle, end), [(slice(start, start + prefix), False), (slice(middle, end), True)]
        start = end


def _tile(inputs: Sequence[Tensor], queries: slice, keys: slice) -> tuple[Tensor, Tensor, Tensor]:
    query, key, value = inputs
    return query[:, :, queries], key[:, :, keys], value[:, :, keys]


def _shared(value: Tensor, groups: int) -> Tensor:
    return value.expand(-1, groups, -1, -1)


def _merge(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Return output and log-sum-exp of a softmax over the keys of both."""
    lse = torch.logaddexp(first[1], second[1])
    share = (first[1] - lse).exp().unsqueeze(-1)
    return second[0] + share * (first[0] - second[0]), lse
