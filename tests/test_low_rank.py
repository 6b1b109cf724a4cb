"""The fused LoRA layer against peft's own: outputs, gradients, what it leaves to peft, and what it keeps in memory."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import Linear as LoraLinear
from torch import nn

from packed_rows import make_examples, tiny_model
from sgdpo.config.schema import AdapterConfig
from sgdpo.data.packing import RowCollator, model_inputs
from sgdpo.models.adapters import fit_adapter
from sgdpo.models.logprobs import teach_logprobs
from sgdpo.models.low_rank import LowRankLinear, fuse_adapter

LENGTHS = [(9, 7, 5), (4, 3, 8), (12, 6, 6)]


def fitted(dtype: torch.dtype = torch.float32, **settings) -> nn.Module:
    """Return a tiny model with an adapter whose second matrix is no longer 0."""
    model = tiny_model().to(dtype)
    teach_logprobs(model, 1)
    model = fit_adapter(model, AdapterConfig(name="lora", rank=4, **settings), seed=0)
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    return model


def as_pefts(model: nn.Module) -> nn.Module:
    own = copy.deepcopy(model)
    for module in own.modules():
        if isinstance(module, LoraLinear):
            module.__dict__.pop("forward", None)
    return own


def logp_and_gradients(model: nn.Module, bf16: bool = False) -> tuple[torch.Tensor, list[torch.Tensor]]:
    row = model_inputs(RowCollator("shared_prefix")(make_examples(LENGTHS)))
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        logp_L = model(**row)
    (logp_L * torch.linspace(-1, 2, len(logp_L))).sum().backward()
    return logp_L.detach(), [p.grad for p in model.parameters() if p.requires_grad]


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)], ids=["float32", "float64"]
)
def test_log_probs_and_gradients_are_pefts(dtype: torch.dtype, tolerance: float) -> None:
    model = fitted(dtype)
    (ours, gradients), (theirs, expected) = (logp_and_gradients(m) for m in (model, as_pefts(model)))
    assert torch.allclose(ours, theirs, rtol=0, atol=10 * tolerance)
    for one, other in zip(gradients, expected, strict=True):
        assert (one - other).abs().max() <= tolerance * other.abs().max()


def test_in_bfloat16_it_is_as_near_to_float32_as_pefts() -> None:
    exact, ours, theirs = (
        torch.cat([gradient.flatten() for gradient in logp_and_gradients(model, bf16)[1]])
        for model, bf16 in ((fitted(), False), (fitted(), True), (as_pefts(fitted()), True))
    )
    assert 0 < (ours - exact).norm() <= 1.1 * (theirs - exact).norm() <= 0.1 * exact.norm()


def test_every_linear_layer_but_the_head_is_fused() -> None:
    model = fitted()
    layers = [module for module in model.modules() if isinstance(module, LoraLinear)]
    assert layers
    assert all("forward" in vars(module) for module in layers)


@pytest.mark.parametrize("settings", [{"dora": True}, {"dropout": 0.1}], ids=["dora", "dropout"])
def test_other_adapters_stay_pefts(settings: dict) -> None:
    assert not any("forward" in vars(m) for m in fitted(**settings).modules() if isinstance(m, LoraLinear))


def test_an_adapter_that_is_off_or_merged_is_pefts_too() -> None:
    model = fitted()
    row = model_inputs(RowCollator("shared_prefix")(make_examples(LENGTHS)))
    with torch.no_grad():
        on = model(**row)
        with model.disable_adapter():
            off = model(**row)
        model.merge_adapter()
        merged = model(**row)
        model.unmerge_adapter()
    plain = tiny_model()
    teach_logprobs(plain, 1)
    assert torch.equal(off, plain(**row))
    assert torch.allclose(on, merged, atol=1e-5)
    assert not torch.allclose(on, off, atol=1e-3)


def test_gradients_of_one_layer_by_finite_differences() -> None:
    torch.manual_seed(0)
    draws = [torch.randn(size, dtype=torch.float64) for size in ((5, 3), (4, 3), (4,), (2, 3), (4, 2))]
    x, weight, bias, down, up = draws
    for tensor in (x, down, up):
        tensor.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x, down, up: LowRankLinear.apply(x, weight, bias, down, up, 0.7, torch.float64), (x, down, up)
    )


def test_a_layer_keeps_its_input_and_the_thin_product_alone() -> None:
    """peft's keeps no more of these; what is spared are the sums that it makes on the way."""
    base = nn.Sequential(nn.Linear(64, 256, bias=False))
    model = get_peft_model(base, LoraConfig(r=4, target_modules=["0"]))
    assert fuse_adapter(model) == 1
    kept: dict[int, int] = {}
    weights = {parameter.data_ptr() for parameter in model.parameters()}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.data_ptr() not in weights:
            kept[tensor.data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        model(torch.randn(32, 64, requires_grad=True))
    assert sorted(kept.values()) == [32 * 4, 32 * 64]
