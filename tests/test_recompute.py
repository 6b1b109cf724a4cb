"""What is kept as a recipe: the same bits forwards and backwards, less memory, nothing that outlives its use."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from packed_rows import make_examples, tiny_model
from sgdpo.config.schema import AdapterConfig
from sgdpo.data.packing import RowCollator, model_inputs
from sgdpo.models import logprobs
from sgdpo.models.adapters import fit_adapter
from sgdpo.models.fused import FusedSwiGLU
from sgdpo.models.recompute import recomputing, remember

ROW = model_inputs(RowCollator("shared_prefix")(make_examples([(9, 7, 5), (40, 30, 80), (12, 6, 6)])))


def taught(name: str = "tiny_llama", dtype: torch.dtype = torch.float32, adapter: str = "none") -> nn.Module:
    model = tiny_model(name).to(dtype)
    logprobs.teach_logprobs(model, 1)
    return model if adapter == "none" else fit_adapter(model, AdapterConfig(name=adapter, rank=4), seed=0)


def logp_and_gradients(model: nn.Module, bf16: bool = False) -> list[torch.Tensor]:
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        logp_L = model(**ROW)
    (logp_L * torch.linspace(-1, 2, len(logp_L))).sum().backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.requires_grad]
    model.zero_grad()
    return [logp_L.detach(), *gradients]


def kept_bytes(model: nn.Module) -> int:
    """Return what a forward pass leaves allocated for the backward pass."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        logp_L = model(**ROW)
    assert logp_L.requires_grad
    return sum(event.self_cpu_memory_usage for event in recorded.key_averages())


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("adapter", ["none", "lora", "dora"])
@pytest.mark.parametrize(
    ("name", "dtype", "bf16"),
    [
        ("tiny_llama", torch.float32, False),
        ("tiny_llama", torch.float32, True),
        ("tiny_qwen2", torch.bfloat16, True),
    ],
    ids=["float32", "mixed", "bfloat16"],
)
def test_the_bits_are_those_of_keeping_everything(
    name, dtype, bf16, adapter, checkpointing, monkeypatch
) -> None:
    model = taught(name, dtype, adapter).train()
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    ours = logp_and_gradients(model, bf16)
    monkeypatch.setattr(logprobs, "recomputing", nullcontext)
    for one, other in zip(ours, logp_and_gradients(model, bf16), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("adapter", ["none", "lora"])
def test_a_quarter_of_what_was_kept_is_not(adapter, monkeypatch) -> None:
    model = taught(adapter=adapter).train()
    ours = kept_bytes(model)
    monkeypatch.setattr(logprobs, "recomputing", nullcontext)
    assert ours < 0.75 * kept_bytes(model)


def test_activation_checkpointing_keeps_no_more_than_alone(monkeypatch) -> None:
    model = taught().train()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    ours = kept_bytes(model)
    monkeypatch.setattr(logprobs, "recomputing", nullcontext)
    assert ours == kept_bytes(model)


class TestRecipes:
    """By a product that two layers keep, in float64, where a count of its computations can be taken."""

    @pytest.fixture(autouse=True)
    def _factors(self) -> None:
        torch.manual_seed(0)
        self.gate, self.up = (torch.randn(6, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))
        self.weights = [torch.randn(3, 4, dtype=torch.float64, requires_grad=True) for _ in range(2)]
        self.computed = 0

    def result(self) -> torch.Tensor:
        def compute() -> torch.Tensor:
            self.computed += 1
            return product.detach().clone()

        with recomputing():
            product = FusedSwiGLU.apply(self.gate, self.up)
            remember(product, compute)
            return sum(nn.functional.linear(product, weight).square().sum() for weight in self.weights)

    def test_it_is_computed_once_for_all_who_kept_it_and_once_more_for_another_pass(self) -> None:
        result = self.result()
        assert self.computed == 0
        first = torch.autograd.grad(result, self.weights, retain_graph=True)
        assert self.computed == 1
        second = torch.autograd.grad(result, self.weights)
        assert self.computed == 2
        assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))

    def test_the_gradient_is_that_of_finite_differences(self) -> None:
        def function(gate, up, weight):
            with recomputing():
                return nn.functional.linear(FusedSwiGLU.apply(gate, up), weight)

        assert torch.autograd.gradcheck(function, (self.gate, self.up, self.weights[0]))

    def test_a_part_of_it_is_kept_itself(self) -> None:
        with recomputing():
            product = FusedSwiGLU.apply(self.gate, self.up)
            part = nn.functional.linear(product[:2], self.weights[0])
            turned = nn.functional.linear(product.T.contiguous().T, self.weights[1])
        expected = FusedSwiGLU.apply(self.gate, self.up)
        (part.sum() + turned.sum()).backward()
        assert torch.equal(self.weights[0].grad, torch.ones(3, 2, dtype=torch.float64) @ expected[:2])
        assert torch.allclose(self.weights[1].grad, torch.ones(3, 6, dtype=torch.float64) @ expected)

    def test_without_gradients_nothing_is_remembered(self) -> None:
        with torch.no_grad():
            self.result()
        outside = FusedSwiGLU.apply(self.gate, self.up)
        nn.functional.linear(outside, self.weights[0]).sum().backward()
        assert self.computed == 0
