"""Teach a causal language model to give per-token log-probs of a packed row (`data/packing.py`).

The root module's own forward is replaced, so that it works through every wrapper (DDP, DeepSpeed,
accelerate): with `target_L` it returns log-probs, without it does what it did before. Weights and saved
files are untouched.
"""

from __future__ import annotations

import inspect
from types import MethodType

import torch
from torch import Tensor
from transformers import PreTrainedModel

from sgdpo.models import attention
from sgdpo.models.fused import fuse
from sgdpo.models.head import LogProbHead
from sgdpo.models.rotation import rotate_rows

# Architectures whose attention is plain causal softmax attention through transformers' attention interface,
# and whose logits are the lm-head's output as it is: their rows may share prefixes.
SHARED_PREFIX_TYPES = ("llama", "qwen2", "qwen3", "mistral")


def teach_logprobs(model: PreTrainedModel, head_budget_mb: int, features: tuple[str, ...] = ()) -> None:
    """Make `model(**model_inputs(row))` return log-probs L of the row's targets, nats, float32 at least.

    With features it returns (log-probs, {feature: L}), see `head.py`.
    head_budget_mb: memory for one block of logits, MiB. Plain calls, `generate` and `save_pretrained` keep
    working; teaching twice only changes the budget. Raise ValueError naming what the model cannot do.
    """
    errors = architecture_errors(model.config)
    if errors:
        raise ValueError("\n".join(errors))
    attention.register()
    model.set_attn_implementation(attention.NAME)
    model.set_output_embeddings(LogProbHead.from_linear(model.get_output_embeddings(), head_budget_mb))
    model.get_output_embeddings().features = features
    fuse(model)
    rotate_rows(model)
    model.forward = MethodType(_taught_forward(type(model).forward), model)


def architecture_errors(config) -> list[str]:
    """List why a model's attention or logits do not allow packed rows, by name."""
    kind = config.model_type
    if kind not in SHARED_PREFIX_TYPES:
        return [
            f"model type {kind!r} is not known to attend causally and plainly; known:"
            f" {list(SHARED_PREFIX_TYPES)}"
        ]
    windows = sum(name != "full_attention" for name in getattr(config, "layer_types", None) or [])
    if windows or (kind == "mistral" and config.sliding_window is not None):
        return [
            f"model type {kind!r} is configured with sliding-window attention, which packed rows do not"
            " support; set sliding_window to null in its config.json if your sequences are shorter than the"
            " window"
        ]
    return []


def _taught_forward(plain_forward):
    def forward(self, *args, target_L: Tensor | None = None, source_L: Tensor | None = None,
                span_S3: Tensor | None = None, **kwargs):  # fmt: skip
        if target_L is None:
            return plain_forward(self, *args, **kwargs)
        return _row_logprobs(self, target_L, source_L, span_S3, **kwargs)

    # generate() and Trainer read the signature. Not functools.wraps: accelerate unwraps `__wrapped__` at
    # save.
    forward.__signature__ = inspect.signature(plain_forward)
    return forward


def _row_logprobs(model, target_L: Tensor, source_L: Tensor, span_S3: Tensor, **inputs) -> Tensor:
    body = getattr(model, model.base_model_prefix)
    # A 4D mask passes through transformers unread; the attention function goes by the plan.
    passed = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=target_L.device)
    kernel = attention.kernel_for(span_S3)
    plan = attention.plan_row(span_S3, inputs["input_ids"].shape[1], kernel)
    states = body(**inputs, attention_mask=passed, use_cache=False, row_plan=plan).last_hidden_state
    return model.lm_head(states[0].index_select(0, source_L), target_L)
