"""The attention layer of a packed row: projections, rotary positions turned in place, `attention.py`'s attention.

transformers turns queries and keys by way of a negated and concatenated copy; here each half is written once.
Only calls with a row plan come here: generation and plain calls go through the module's own forward. Legend of
the shape suffixes: `sgdpo/pairs.py`; H are heads, E is the width of one.
"""

from types import MethodType

import torch
from torch import Tensor, nn

from sgdpo.models.attention import RowPlan, row_attention


class Rotation(torch.autograd.Function):
    """Turn pairs of (first half, second half) of each head by an angle (rotary positions; Su et al., 2021).

    states_NHE; cos_NE and sin_NE hold every angle twice, as transformers makes them.
    """

    @staticmethod
    def forward(ctx, states_NHE: Tensor, cos_NE: Tensor, sin_NE: Tensor) -> Tensor:
        ctx.save_for_backward(cos_NE, sin_NE)
        return _turned(states_NHE, cos_NE, sin_NE)

    @staticmethod
    def backward(ctx, grad_NHE: Tensor):
        cos_NE, sin_NE = ctx.saved_tensors
        return _turned(grad_NHE, cos_NE, -sin_NE), None, None


def _turned(states_NHE: Tensor, cos_NE: Tensor, sin_NE: Tensor) -> Tensor:
    half = states_NHE.shape[-1] // 2
    cos, sin = cos_NE[:, None, :half], sin_NE[:, None, :half]
    first, second = states_NHE[..., :half], states_NHE[..., half:]
    dtype = torch.promote_types(states_NHE.dtype, cos.dtype)
    out_NHE = states_NHE.new_empty(states_NHE.shape, dtype=dtype)
    torch.mul(first, cos, out=out_NHE[..., :half]).addcmul_(second, sin, value=-1)
    torch.mul(second, cos, out=out_NHE[..., half:]).addcmul_(first, sin)
    return out_NHE


def rotate_rows(model: nn.Module) -> None:
    """Let the attention layers of a transformers model take packed rows by the forward below."""
    for module in model.modules():
        if hasattr(module, "q_proj") and hasattr(module, "o_proj"):
            module.forward = MethodType(_attention_forward(type(module).forward), module)


def _attention_forward(plain_forward):
    def forward(self, hidden_states: Tensor, position_embeddings: tuple[Tensor, Tensor],
                attention_mask: Tensor | None, row_plan: RowPlan | None = None, **kwargs):  # fmt: skip
        if row_plan is None:
            return plain_forward(self, hidden_states, position_embeddings, attention_mask, **kwargs)
        query, key, value = (
            project(hidden_states[0]).unflatten(-1, (-1, self.head_dim))
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        if hasattr(self, "q_norm"):
            query, key = self.q_norm(query), self.k_norm(key)
        cos_NE, sin_NE = (angle[0] for angle in position_embeddings)
        query, key = (Rotation.apply(states, cos_NE, sin_NE) for states in (query, key))
        heads_first = [states.transpose(0, 1)[None] for states in (query, key, value)]
        out, _ = row_attention(self, *heads_first, attention_mask, row_plan, scaling=self.scaling)
        return self.o_proj(out.flatten(-2)), None

    return forward
