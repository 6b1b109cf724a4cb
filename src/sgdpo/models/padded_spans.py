"""Attention of a packed row of short spans on a CPU: the spans padded to the longest, in one call.

`row_kernel.py` calls the kernel once for each span and tile; where spans are of a few dozen tokens those calls cost
more than their products. Measured on the tiny models, one thread: half of a training step. Legend of the shape
suffixes: `sgdpo/pairs.py`; S are spans, M is the longest of them, H are heads, E is the width of one.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

# Up to this length a span's padded products are cheaper than calls of its own (tokens).
LONGEST = 128


@dataclass(frozen=True)
class PaddedSpans:
    """Hold where the tokens of a row go: the token of each slot, the slot of each token, and what sees what."""

    token_SM: Tensor
    slot_N: Tensor
    visible_S1MM: Tensor


def pad_spans(span_S3: Tensor) -> PaddedSpans:
    """Return the slots of a row's spans. A slot past a span's end holds the row's first token; nobody reads it."""
    prefix_S11, trunk_S11, _ = (part[:, None, None] for part in span_S3.unbind(-1))
    length_S = span_S3[:, 1:].sum(-1)
    longest = int(length_S.max())
    offset_M = torch.arange(longest, device=span_S3.device)
    used_SM = offset_M < length_S[:, None]
    token_SM = ((length_S.cumsum(0) - length_S)[:, None] + offset_M) * used_SM
    query_M1, key_M = offset_M[:, None], offset_M
    seen_SMM = (query_M1 < trunk_S11) | (key_M >= trunk_S11) | (key_M < prefix_S11)
    return PaddedSpans(token_SM, used_SM.flatten().nonzero()[:, 0], (seen_SMM & (key_M <= query_M1))[:, None])


def attend_padded(query: Tensor, key: Tensor, value: Tensor, plan: PaddedSpans, scale: float) -> Tensor:
    """Return the attention output (1, N, H, E) of a row, float32 at least. query (1, H, N, E); key, value alike."""
    wide = torch.promote_types(query.dtype, torch.float32)
    with torch.autocast("cpu", enabled=False):
        padded = [_slots(states[0].to(wide), plan.token_SM) for states in (query, key, value)]
        out_SHME = scaled_dot_product_attention(*padded, plan.visible_S1MM, scale=scale, enable_gqa=True)
    return out_SHME.transpose(1, 2).flatten(0, 1).index_select(0, plan.slot_N)[None]


def _slots(states_HNE: Tensor, token_SM: Tensor) -> Tensor:
    gathered = states_HNE.transpose(0, 1).index_select(0, token_SM.flatten())
    return gathered.unflatten(0, token_SM.shape).transpose(1, 2)
