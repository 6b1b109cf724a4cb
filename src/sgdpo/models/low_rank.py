"""A LoRA layer in one pass: its base's product and, added in place, that of its two thin matrices.

peft's layer makes three tensors of the output's size (the base's product, the adapter's, their sum) and passes over
each, forwards and backwards. Here the thin product is added to the base's as a matrix product adds (`addmm`), and the
backward pass keeps what peft's keeps: the input and the thin matrix's output. Legend of the shape suffixes:
`sgdpo/pairs.py`; F is the width of the output, R the rank.
"""

from __future__ import annotations

from types import MethodType

import torch
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn
from torch.nn.functional import linear

from sgdpo.models.fused import product_dtype


class LowRankLinear(torch.autograd.Function):
    """Compute x W^T + scale (x A^T) B^T for a frozen W; all of `dtype`, as autocast would have it."""

    @staticmethod
    def forward(
        ctx, input_ND: Tensor, weight_FD: Tensor, bias_F: Tensor | None, down_RD: Tensor, up_FR: Tensor,
        scale: float, dtype: torch.dtype,
    ) -> Tensor:  # fmt: skip
        input_ND = input_ND.to(dtype)
        low_NR = input_ND @ down_RD.to(dtype).T
        ctx.save_for_backward(input_ND, weight_FD, down_RD, up_FR, low_NR)
        ctx.scale = scale
        out_NF = linear(input_ND, weight_FD.to(dtype), None if bias_F is None else bias_F.to(dtype))
        return out_NF.addmm_(low_NR, up_FR.to(dtype).T, alpha=scale)

    @staticmethod
    def backward(ctx, grad_NF: Tensor):
        input_ND, weight_FD, down_RD, up_FR, low_NR = ctx.saved_tensors
        dtype = input_ND.dtype
        grad_low_NR = (grad_NF @ up_FR.to(dtype)).mul_(ctx.scale)
        grad_down_RD = (grad_low_NR.T @ input_ND).to(down_RD.dtype)
        grad_up_FR = (grad_NF.T @ low_NR).mul_(ctx.scale).to(up_FR.dtype)
        grad_input_ND = None
        if ctx.needs_input_grad[0]:
            grad_input_ND = (grad_NF @ weight_FD.to(dtype)).addmm_(grad_low_NR, down_RD.to(dtype))
        return grad_input_ND, None, None, grad_down_RD, grad_up_FR, None, None


def fuse_adapter(model: nn.Module) -> int:
    """Let every plain LoRA layer of a peft model use the function above; return how many do.

    Not DoRA, not dropout, not quantised bases: these stay peft's.
    """
    layers = [module for module in model.modules() if _is_plain(module)]
    for layer in layers:
        layer.forward = MethodType(_forward, layer)
    return len(layers)


def _is_plain(module: nn.Module) -> bool:
    if type(module) is not LoraLinear or type(module.base_layer) is not nn.Linear or module.lora_variant:
        return False
    return all(isinstance(dropout, nn.Identity) for dropout in module.lora_dropout.values())


def _forward(self: LoraLinear, x: Tensor) -> Tensor:
    weight = self.base_layer.weight
    (down,), (up,), (scale,) = self.lora_A.values(), self.lora_B.values(), self.scaling.values()
    # peft keeps adapters of bfloat16 weights in float32; ZeRO-3 gathers a layer's weights in that layer's own forward.
    mixed, apart = weight.dtype != down.weight.dtype, hasattr(weight, "ds_id")
    if self.disable_adapters or self.merged or mixed or apart:
        return LoraLinear.forward(self, x)
    out = LowRankLinear.apply(
        x.flatten(0, -2), weight, self.base_layer.bias, down.weight, up.weight, scale, product_dtype(x)
    )
    return out.unflatten(0, x.shape[:-1])
