"""Per-token log-probs straight from hidden states: no tokens-by-vocabulary matrix ever exists.

The lm-head is walked in blocks of the vocabulary. A block's logits live as long as the block: the forward
pass keeps a running log-sum-exp for each token, the backward pass computes the block again. Blocks of the
vocabulary, not of the tokens, so that each row of the weight's gradient is written once. Further numbers of a token
(its distribution's entropy, log sum p^2) come from the same blocks, without gradient, for those who ask. Legend of the
shape suffixes: `sgdpo/pairs.py`; F are features.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sgdpo.models.fused import product_dtype

MIB = 1 << 20


class ChunkedLogProb(torch.autograd.Function):
    """Compute log softmax(hidden @ weight.T)[target] in O(tokens x chunk) memory, with both gradients."""

    @staticmethod
    def forward(
        ctx, hidden_LD: Tensor, weight_VD: Tensor, target_L: Tensor, chunk: int, dtype: torch.dtype,
        features: tuple[str, ...] = (),
    ):  # fmt: skip
        lse_L, moments = None, Moments(features)
        operand_LD = hidden_LD.to(dtype)
        for start in range(0, weight_VD.shape[0], chunk):
            block_LV = _wide(operand_LD @ weight_VD[start : start + chunk].to(dtype).T)
            top_L1 = block_LV.amax(-1, keepdim=True)
            block_LV.sub_(top_L1)
            exp_LV = block_LV.exp() if features else block_LV.exp_()
            sum_L = exp_LV.sum(-1)
            block_L = sum_L.log() + top_L1[:, 0]
            before_L, lse_L = lse_L, block_L if lse_L is None else torch.logaddexp(lse_L, block_L)
            if features:
                moments.add(block_LV, exp_LV, sum_L, block_L, before_L, lse_L)
        picked_L = _wide((operand_LD[:, None] @ weight_VD[target_L].to(dtype)[:, :, None])[:, 0, 0])
        ctx.save_for_backward(hidden_LD, weight_VD, target_L, lse_L)
        ctx.chunk, ctx.dtype = chunk, dtype
        if not features:
            return picked_L - lse_L
        found = moments.features()
        ctx.mark_non_differentiable(*found)
        return picked_L - lse_L, *found

    @staticmethod
    def backward(ctx, grad_L: Tensor, *_: Tensor):
        hidden_LD, weight_VD, target_L, lse_L = ctx.saved_tensors
        chunk, dtype = ctx.chunk, ctx.dtype
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        operand_LD = hidden_LD.to(dtype)
        # d logp / d logits = onehot(target) - softmax. The softmax part goes block by block, the target's part is
        # two sparse updates; scaling the hidden states by the incoming gradient spares a pass over each block.
        scaled_LD = hidden_LD * grad_L[:, None]
        minus_LD = -scaled_LD.to(dtype)
        grad_hidden_LD = torch.zeros_like(hidden_LD, dtype=lse_L.dtype)
        grad_weight_VD = torch.empty_like(weight_VD) if wants_weight else None
        for start in range(0, weight_VD.shape[0], chunk):
            block_VD = weight_VD[start : start + chunk].to(dtype)
            softmax_LV = _wide(operand_LD @ block_VD.T).sub_(lse_L[:, None]).exp_().to(dtype)
            if wants_hidden:
                _subtract_product(grad_hidden_LD, softmax_LV, block_VD)
            if wants_weight:
                _put_product(grad_weight_VD[start : start + chunk], softmax_LV.T, minus_LD)
        if wants_hidden:
            grad_hidden_LD += weight_VD[target_L]
            grad_hidden_LD *= grad_L[:, None]
        if wants_weight:
            grad_weight_VD.index_add_(0, target_L, scaled_LD.to(grad_weight_VD.dtype))
        return (
            grad_hidden_LD.to(hidden_LD.dtype) if wants_hidden else None,
            grad_weight_VD,
            None,
            None,
            None,
            None,
        )


class Moments:
    """Gather features of each token's distribution from the blocks, and use these up.

    They are kept relative to the log-sum-exp so far: logits of 1e4 would leave no digits of their differences.
    """

    def __init__(self, wanted: tuple[str, ...]) -> None:
        self.wanted = wanted
        self.found: dict[str, Tensor] = {}

    def add(
        self, below_LV: Tensor, exp_LV: Tensor, sum_L: Tensor, block_L: Tensor, before_L: Tensor | None, lse_L: Tensor
    ) -> None:  # fmt: skip
        """Take in a block: logit - its largest, exp of it, its sum; log-sum-exps: its own, before it, of both."""
        if "entropy" in self.wanted:
            # sum p (log S - below): a logarithm of every p would cost more than twice as much.
            entropy_L = sum_L.log() - below_LV.mul_(exp_LV).sum(-1) / sum_L
            if before_L is not None:
                # The entropy of a mixture: each part's own, and what it lacks of the whole, by its share.
                kept_L, new_L = before_L - lse_L, block_L - lse_L
                entropy_L = kept_L.exp() * (self.found["entropy"] - kept_L) + new_L.exp() * (
                    entropy_L - new_L
                )
            self.found["entropy"] = entropy_L
        if "log_p2" in self.wanted:
            log_p2_L = exp_LV.square_().sum(-1).log() - 2 * sum_L.log()
            if before_L is not None:
                kept_L, new_L = before_L - lse_L, block_L - lse_L
                log_p2_L = torch.logaddexp(self.found["log_p2"] + 2 * kept_L, log_p2_L + 2 * new_L)
            self.found["log_p2"] = log_p2_L

    def features(self) -> list[Tensor]:
        """Return what was wanted, in that order: `entropy`, nats; `log_p2`, the log of sum p^2."""
        return [self.found[name] for name in self.wanted]


def _subtract_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    if total.dtype == left.dtype:
        total.addmm_(left, right, alpha=-1)
    else:
        total -= left @ right


def _put_product(place: Tensor, left: Tensor, right: Tensor) -> None:
    if place.dtype == left.dtype:
        torch.mm(left, right, out=place)
    else:
        place.copy_(left @ right)


def _wide(value: Tensor) -> Tensor:
    """Return the value in float32 at least: sums of exponentials never run in half precision."""
    return value.float() if value.dtype in (torch.bfloat16, torch.float16) else value


class LogProbHead(nn.Linear):
    """Stand in for a model's lm-head: logits as before, or per-token log-probs if targets are given.

    The weight is used inside this module's forward, so that ZeRO-3 gathers it and DDP reduces its gradient.
    budget_mb: memory for one block of logits, MiB. features: what it says of a token beside its log-prob.
    """

    budget_mb: int = 64
    features: tuple[str, ...] = ()

    @classmethod
    def from_linear(cls, linear: nn.Linear, budget_mb: int) -> LogProbHead:
        """Return a head that shares the weight (tied embeddings stay tied). Raise ValueError if it cannot."""
        if type(linear) not in (nn.Linear, cls):
            raise ValueError(
                f"the lm-head is a {type(linear).__name__}, not a plain linear layer: adapters or"
                " quantisation on the lm-head are not supported; leave the lm-head out of them"
            )
        if linear.bias is not None:
            raise ValueError(
                "the lm-head has a bias, which per-token log-probs do not support; use another model"
            )
        if budget_mb < 1:
            raise ValueError(f"trainer.head_budget_mb must be at least 1 MiB, not {budget_mb}")
        head = cls(linear.in_features, linear.out_features, bias=False, device="meta")
        head.weight = linear.weight
        head.budget_mb = budget_mb
        return head.train(linear.training)

    def forward(
        self, input: Tensor, target_L: Tensor | None = None
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """Return logits of `input`; or, with targets, log-probs float32 L (float64 for float64 states).

        With features: the log-probs and {feature: L}, without gradient.
        """
        if target_L is None:
            return super().forward(input)
        chunk = chunk_size(target_L.shape[0], self.weight.shape[0], self.budget_mb)
        found = ChunkedLogProb.apply(input, self.weight, target_L, chunk, product_dtype(input), self.features)
        return (found[0], dict(zip(self.features, found[1:], strict=True))) if self.features else found


def chunk_size(tokens: int, vocabulary: int, budget_mb: int) -> int:
    """Return how many vocabulary entries fit the budget: a block's logits in float32 and one more copy."""
    return max(1, min(vocabulary, budget_mb * MIB // (8 * max(tokens, 1))))
