"""Per-token log-probs straight from hidden states: no tokens-by-vocabulary matrix ever exists.

The lm-head is walked in blocks of the vocabulary. A block's logits live as long as the block: the forward pass keeps a
running log-sum-exp for each token and, where the hidden states want a gradient, a running mean of the weight's rows
under the softmax, which is all of that gradient. The backward pass computes the blocks again for the weight alone, and
not at all where it is frozen. Blocks of the vocabulary, not of the tokens, so that each row of the weight's gradient is
written once. Further numbers of a token (its distribution's entropy, log sum p^2) come from the same walk, without
gradient, for those who ask. Legend of the shape suffixes: `sgdpo/pairs.py`; F are features.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sgdpo.models.fused import product_dtype

MIB = 1 << 20


class ChunkedLogProb(torch.autograd.Function):
    """Compute log softmax(hidden @ weight.T)[target] in O(tokens x chunk) memory, with both gradients.

    With features: these too, each L: `entropy`, nats; `log_p2`, the log of sum p^2.
    """

    @staticmethod
    def forward(
        ctx, hidden_LD: Tensor, weight_VD: Tensor, target_L: Tensor, chunk: int, dtype: torch.dtype,
        features: tuple[str, ...] = (),
    ):  # fmt: skip
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        operand_LD = hidden_LD.to(dtype)
        wide_L1 = torch.zeros_like(_wide(operand_LD[:, :1]))
        # Sums of exp(logit - top), of its square and of it times the weight's rows; top: the largest logit so far.
        top_L1, sum_L1, square_L1, mean_LD = wide_L1 - torch.inf, wide_L1, wide_L1, wide_L1
        for start in range(0, weight_VD.shape[0], chunk):
            block_VD = weight_VD[start : start + chunk].to(dtype)
            logit_LV = _wide(operand_LD @ block_VD.T)
            before_L1, top_L1 = top_L1, torch.maximum(top_L1, logit_LV.amax(-1, keepdim=True))
            exp_LV, kept_L1 = logit_LV.sub_(top_L1).exp_(), (before_L1 - top_L1).exp_()
            sum_L1 = sum_L1 * kept_L1 + exp_LV.sum(-1, keepdim=True)
            if wants_hidden or "entropy" in features:
                mean_LD = mean_LD * kept_L1 + exp_LV.to(dtype) @ block_VD
            if "log_p2" in features:
                square_L1 = square_L1 * kept_L1.square_() + exp_LV.square_().sum(-1, keepdim=True)
        lse_L1 = top_L1 + sum_L1.log()
        row_LD = weight_VD[target_L]
        logp_L = _wide((operand_LD[:, None] @ row_LD.to(dtype)[:, :, None])[:, 0, 0]) - lse_L1[:, 0]
        slope_LD = row_LD - mean_LD / sum_L1  # d logp / d hidden
        ctx.save_for_backward(
            slope_LD if wants_hidden else None,
            *((hidden_LD, weight_VD, target_L, lse_L1) if wants_weight else ()),
        )
        ctx.chunk, ctx.dtype, ctx.hidden_dtype = chunk, dtype, hidden_LD.dtype
        if not features:
            return logp_L
        # A token's mean logit is hidden . mean: -log p + hidden . (w - mean) is the entropy, without another walk.
        entropy_L = ((operand_LD * slope_LD).sum(-1) - logp_L).clamp_(min=0)
        found = {"entropy": entropy_L, "log_p2": (square_L1.log() - 2 * sum_L1.log())[:, 0]}
        ctx.mark_non_differentiable(*(found[name] for name in features))
        return logp_L, *(found[name] for name in features)

    @staticmethod
    def backward(ctx, grad_L: Tensor, *_: Tensor):
        slope_LD, *for_weight = ctx.saved_tensors
        grad_hidden_LD = None if slope_LD is None else (slope_LD * grad_L[:, None]).to(ctx.hidden_dtype)
        grad_weight_VD = _weight_gradient(grad_L, *for_weight, ctx.chunk, ctx.dtype) if for_weight else None
        return grad_hidden_LD, grad_weight_VD, None, None, None, None


def _weight_gradient(
    grad_L: Tensor, hidden_LD: Tensor, weight_VD: Tensor, target_L: Tensor, lse_L1: Tensor,
    chunk: int, dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    """Return the gradient of sum grad logp by the weight.

    d logp / d logits = onehot(target) - softmax. The softmax part goes block by block, the target's part is a sparse
    update; scaling the hidden states by the incoming gradient spares a pass over each block.
    """
    operand_LD = hidden_LD.to(dtype)
    scaled_LD = hidden_LD * grad_L[:, None]
    minus_LD = -scaled_LD.to(dtype)
    grad_weight_VD = torch.empty_like(weight_VD)
    for start in range(0, weight_VD.shape[0], chunk):
        block_VD = weight_VD[start : start + chunk].to(dtype)
        softmax_LV = _wide(operand_LD @ block_VD.T).sub_(lse_L1).exp_().to(dtype)
        _put_product(grad_weight_VD[start : start + chunk], softmax_LV.T, minus_LD)
    return grad_weight_VD.index_add_(0, target_L, scaled_LD.to(grad_weight_VD.dtype))


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
