"""The head without logits: the same numbers as a dense log-softmax, whatever the size of its blocks."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from sgdpo.models.head import ChunkedLogProb, LogProbHead, chunk_size

TOKENS, WIDTH, VOCABULARY = 9, 5, 23
CHUNKS = pytest.mark.parametrize("chunk", [1, 7, VOCABULARY], ids=["chunk 1", "chunk 7", "all at once"])


def inputs(
    dtype: torch.dtype = torch.float64,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    hidden_LD = 3 * torch.randn(TOKENS, WIDTH, generator=draw, dtype=dtype)
    weight_VD = 3 * torch.randn(VOCABULARY, WIDTH, generator=draw, dtype=dtype)
    target_L = torch.randint(VOCABULARY, (TOKENS,), generator=draw)
    target_L[1] = target_L[0]
    grad_L = torch.randn(TOKENS, generator=draw, dtype=dtype)
    return hidden_LD.requires_grad_(), weight_VD.requires_grad_(), target_L, grad_L


def dense(hidden_LD: torch.Tensor, weight_VD: torch.Tensor, target_L: torch.Tensor) -> torch.Tensor:
    return (hidden_LD @ weight_VD.T).log_softmax(-1).gather(-1, target_L[:, None])[:, 0]


@CHUNKS
def test_log_probs_and_both_gradients_equal_the_dense_path(chunk) -> None:
    hidden_LD, weight_VD, target_L, grad_L = inputs()
    logp_L = ChunkedLogProb.apply(hidden_LD, weight_VD, target_L, chunk, torch.float64)
    expected_L = dense(hidden_LD, weight_VD, target_L)
    assert torch.allclose(logp_L, expected_L, rtol=0, atol=1e-12)
    found = torch.autograd.grad(logp_L, (hidden_LD, weight_VD), grad_L)
    expected = torch.autograd.grad(expected_L, (hidden_LD, weight_VD), grad_L)
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one, other, rtol=0, atol=1e-12)


@CHUNKS
def test_the_gradient_is_that_of_finite_differences(chunk) -> None:
    hidden_LD, weight_VD, target_L, _ = inputs()
    assert torch.autograd.gradcheck(
        lambda hidden, weight: ChunkedLogProb.apply(hidden, weight, target_L, chunk, torch.float64),
        (hidden_LD, weight_VD),
    )


@CHUNKS
@pytest.mark.parametrize("wanted", [("entropy",), ("log_p2",), ("log_p2", "entropy")])
def test_features_are_those_of_the_dense_distribution_and_change_no_bit_of_the_rest(chunk, wanted) -> None:
    hidden_LD, weight_VD, target_L, grad_L = inputs()
    plain_L = ChunkedLogProb.apply(hidden_LD, weight_VD, target_L, chunk, torch.float64)
    logp_L, *found = ChunkedLogProb.apply(hidden_LD, weight_VD, target_L, chunk, torch.float64, wanted)
    assert torch.equal(logp_L, plain_L)
    logp_LV = (hidden_LD @ weight_VD.T).log_softmax(-1)
    expected = {"entropy": -(logp_LV.exp() * logp_LV).sum(-1), "log_p2": (2 * logp_LV).logsumexp(-1)}
    for name, value_L in zip(wanted, found, strict=True):
        assert torch.allclose(value_L, expected[name], rtol=0, atol=1e-12)
        assert not value_L.requires_grad
    for one, other in zip(
        torch.autograd.grad(logp_L, (hidden_LD, weight_VD), grad_L),
        torch.autograd.grad(plain_L, (hidden_LD, weight_VD), grad_L),
        strict=True,
    ):
        assert torch.equal(one, other)


def test_features_of_huge_logits_are_finite_and_a_sure_distribution_has_none() -> None:
    """One logit 1e4 above the rest: entropy 0 and log sum p^2 0; and two equal ones: ln 2 and -ln 2."""
    hidden_LD, weight_VD = torch.ones(1, 1), torch.tensor([[1e4], [-1e4], [0.0]])
    for weights, expected in ((weight_VD, 0.0), (torch.tensor([[1e4], [1e4], [0.0]]), math.log(2))):
        _, entropy_L, log_p2_L = ChunkedLogProb.apply(
            hidden_LD, weights, torch.tensor([0]), 1, torch.float32, ("entropy", "log_p2")
        )
        assert entropy_L.item() == pytest.approx(expected, abs=2e-3)  # 1e4 has a step of 1e-3 in float32
        assert log_p2_L.item() == pytest.approx(-expected, abs=2e-3)


def test_a_frozen_side_gets_no_gradient() -> None:
    hidden_LD, weight_VD, target_L, grad_L = inputs()
    weight_VD.requires_grad_(False)
    ChunkedLogProb.apply(hidden_LD, weight_VD, target_L, 7, torch.float64).backward(grad_L)
    assert weight_VD.grad is None
    assert hidden_LD.grad.abs().sum() > 0


@pytest.mark.parametrize(("frozen", "walks"), [((), 4), (("weight",), 2), (("hidden", "weight"), 1)])
@pytest.mark.parametrize("wanted", [(), ("log_p2",)])
def test_the_vocabulary_is_walked_no_oftener_than_the_gradients_ask(frozen, walks, wanted) -> None:
    """Products of tokens x vocabulary x width: the logits; the hidden states' gradient; again and the weight's.

    An adapter's frozen head is walked in the forward pass alone; an entropy beside a gradient costs no product more.
    """
    hidden_LD, weight_VD, target_L, grad_L = inputs()
    for name, value in (("hidden", hidden_LD), ("weight", weight_VD)):
        value.requires_grad_(name not in frozen)
    targets_own = 2 * TOKENS * WIDTH
    for features in (wanted, (*wanted, "entropy")):
        with FlopCounterMode(display=False) as counted:
            found = ChunkedLogProb.apply(hidden_LD, weight_VD, target_L, 7, torch.float64, features)
            logp_L = found[0] if features else found
            if logp_L.requires_grad:
                logp_L.backward(grad_L)
        asked = walks + (walks == 1 and "entropy" in features)
        assert counted.get_total_flops() == asked * 2 * TOKENS * VOCABULARY * WIDTH + targets_own


def test_bfloat16_rounds_the_product_alone() -> None:
    """Against float64 on the same rounded operands: only the logits are rounded, so sums stay exact.

    Logits below 128 in size are rounded by at most 2**-2 (8 bits of mantissa), and so is their log-sum-exp.
    """
    hidden_LD, weight_VD, target_L, _ = inputs(torch.float32)
    logp_L = ChunkedLogProb.apply(hidden_LD, weight_VD, target_L, 7, torch.bfloat16)
    exact_L = dense(hidden_LD.bfloat16().double(), weight_VD.bfloat16().double(), target_L)
    assert logp_L.dtype == torch.float32
    assert (hidden_LD @ weight_VD.T).abs().max() < 128
    assert (logp_L.double() - exact_L).abs().max() < 2 * 2**-2


def test_huge_logits_stay_finite() -> None:
    hidden_LD, weight_VD, target_L, grad_L = inputs(torch.float32)
    logp_L = ChunkedLogProb.apply(hidden_LD * 1e3, weight_VD, target_L, 7, torch.float32)
    logp_L.backward(grad_L)
    assert torch.isfinite(logp_L).all()
    assert torch.isfinite(hidden_LD.grad).all()
    assert torch.isfinite(weight_VD.grad).all()


def test_the_head_gives_logits_without_targets_and_log_probs_with_them() -> None:
    linear = nn.Linear(WIDTH, VOCABULARY, bias=False)
    head = LogProbHead.from_linear(linear, budget_mb=1)
    hidden_LD, _, target_L, _ = inputs(torch.float32)
    assert head.weight is linear.weight
    assert torch.equal(head(hidden_LD), linear(hidden_LD))
    assert torch.allclose(head(hidden_LD, target_L), dense(hidden_LD, linear.weight, target_L), atol=1e-5)


def test_the_block_fits_the_budget() -> None:
    """An entry takes 8 bytes (float32 and a copy): 1 MiB holds 131,072 of them, 1,024 for 128 tokens."""
    assert chunk_size(tokens=128, vocabulary=50_000, budget_mb=1) == 1024
    assert chunk_size(tokens=128, vocabulary=500, budget_mb=1) == 500
    assert chunk_size(tokens=10**9, vocabulary=500, budget_mb=1) == 1


class Adapted(nn.Linear):
    pass


@pytest.mark.parametrize(
    ("linear", "message"),
    [
        (nn.Linear(4, 8), "has a bias"),
        (Adapted(4, 8, bias=False), "Adapted, not a plain linear layer"),
    ],
)
def test_a_head_that_is_not_a_plain_linear_layer_is_refused(linear, message) -> None:
    with pytest.raises(ValueError, match=message):
        LogProbHead.from_linear(linear, budget_mb=1)


def test_a_budget_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="head_budget_mb must be at least 1 MiB, not 0"):
        LogProbHead.from_linear(nn.Linear(4, 8, bias=False), budget_mb=0)
