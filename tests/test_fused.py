"""Fused layers give the bits of transformers' own forward, and its gradients."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaRMSNorm, apply_rotary_pos_emb

from packed_rows import tiny_model
from sgdpo.models.fused import FusedRMSNorm, FusedSwiGLU, fuse
from sgdpo.models.rotation import Rotation


def test_a_norm_has_the_values_of_transformers_and_its_gradient() -> None:
    torch.manual_seed(0)
    norm = LlamaRMSNorm(24, eps=1e-5)
    torch.nn.init.normal_(norm.weight)
    hidden = torch.randn(7, 24, requires_grad=True)
    plain, fused = norm(hidden), FusedRMSNorm.apply(hidden, norm.weight, 1e-5, torch.float32)
    assert torch.equal(plain, fused)
    pull = torch.randn(7, 24)
    for one, other in zip(
        torch.autograd.grad(fused, (hidden, norm.weight), pull),
        torch.autograd.grad(plain, (hidden, norm.weight), pull),
        strict=True,
    ):
        assert torch.allclose(one, other, rtol=1e-5, atol=1e-6)


def test_swiglu_has_the_gradient_of_finite_differences() -> None:
    gate, up = (torch.randn(3, 5, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.equal(FusedSwiGLU.apply(gate, up), torch.nn.functional.silu(gate) * up)
    assert torch.autograd.gradcheck(FusedSwiGLU.apply, (gate, up))


def test_a_rotation_is_that_of_transformers() -> None:
    states = torch.randn(6, 2, 8, dtype=torch.float64, requires_grad=True)
    angle = torch.randn(6, 4, dtype=torch.float64).repeat(1, 2)
    cos, sin = angle.cos(), angle.sin()
    expected, _ = apply_rotary_pos_emb(states[None], states[None], cos[None], sin[None], unsqueeze_dim=2)
    assert torch.allclose(Rotation.apply(states, cos, sin), expected[0], rtol=0, atol=1e-14)
    assert torch.autograd.gradcheck(lambda value: Rotation.apply(value, cos, sin), (states,))


@pytest.mark.parametrize("name", ["tiny_llama", "tiny_qwen2"])
def test_a_fused_model_gives_the_same_bits(name) -> None:
    model = tiny_model(name)
    plain = copy.deepcopy(model)
    assert fuse(model) == 2 * 3 + 1, "two norms and a feed-forward layer in each of two layers, one last norm"
    ids = torch.arange(12)[None]
    assert torch.equal(model(ids).logits, plain(ids).logits)


def test_under_autocast_a_norm_gives_what_the_linear_layers_take() -> None:
    model = tiny_model()
    plain = copy.deepcopy(model)
    fuse(model)
    ids = torch.arange(12)[None]
    with torch.autocast("cpu", torch.bfloat16):
        assert model.model.norm(torch.ones(1, 2, 64)).dtype == torch.bfloat16
        assert torch.equal(model(ids).logits, plain(ids).logits)


def test_another_activation_is_left_alone() -> None:
    model = tiny_model()
    model.config.hidden_act = "gelu"
    assert fuse(model) == 2 * 2 + 1


def test_less_is_kept_for_the_backward_pass() -> None:
    kept = []
    for fused in (False, True):
        model = tiny_model()
        if fused:
            fuse(model)
        sizes: dict[int, int] = {}

        def keep(tensor: torch.Tensor, sizes=sizes) -> torch.Tensor:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            model(torch.arange(64)[None])
        kept.append(sum(sizes.values()))
    assert kept[1] < 0.9 * kept[0]
