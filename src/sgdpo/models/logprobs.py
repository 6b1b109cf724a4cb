"""Teach a causal language model to give per-token log-probs of a packed row (`data/packing.py`).

The root module's own forward is replaced, so that it works through every wrapper (DDP, DeepSpeed,
accelerate): with `target_L` it returns log-probs, without it does what it did before. Weights and saved
files are untouched.
"""

import inspect
from types import MethodType

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from sgdpo.models import attention
from sgdpo.models.architectures import Facts, architecture_errors, fast_facts, window_of
from sgdpo.models.fused import fuse
from sgdpo.models.recompute import recomputing
from sgdpo.models.rotation import rotate_rows
from sgdpo.models.separate import RowHead, separate_logprobs


def teach_logprobs(
    model: PreTrainedModel, head_budget_mb: int, features: tuple[str, ...] = (), *, fast: bool = True
) -> None:
    """Make `model(**model_inputs(row))` return log-probs L of the row's targets, nats, float32 at least.

    With features it returns (log-probs, {feature: L}), see `head.py`.
    head_budget_mb: memory for one block of logits, MiB. fast: False takes the general path (`separate.py`) where the
    fast one would do. Plain calls, `generate` and `save_pretrained` keep working; teaching twice only changes the
    budget. Raise ValueError naming what the model cannot do.
    """
    errors = architecture_errors(model.config)
    if errors:
        raise ValueError("\n".join(errors))
    facts, head = fast_facts(model.config) if fast else None, model.get_output_embeddings()
    if facts is not None or (isinstance(head, nn.Linear) and head.bias is None):
        model.set_output_embeddings(RowHead.from_linear(head, head_budget_mb))
        model.get_output_embeddings().features = features
    if facts is not None:
        attention.register()
        model.set_attn_implementation(attention.NAME)
        if facts.fused:
            fuse(model)
            rotate_rows(model)
    model.forward = MethodType(_taught_forward(type(model).forward, facts, features), model)


def _taught_forward(plain_forward, facts: Facts | None, features: tuple[str, ...]):
    def forward(self, *args, target_L: Tensor | None = None, source_L: Tensor | None = None,
                span_S3: Tensor | None = None, **kwargs):  # fmt: skip
        if target_L is None:
            return plain_forward(self, *args, **kwargs)
        kwargs = {key: value for key, value in kwargs.items() if value is not None}  # a PEFT model passes all
        window = window_of(self.config)
        if facts is None or (window is not None and longest_sequence(span_S3) > window):
            return separate_logprobs(self, plain_forward, features, target_L, source_L, span_S3, **kwargs)
        return _row_logprobs(self, facts.logit_scale(self.config), target_L, source_L, span_S3, **kwargs)

    # generate() and Trainer read the signature. Not functools.wraps: accelerate unwraps `__wrapped__` at
    # save.
    forward.__signature__ = inspect.signature(plain_forward)
    return forward


def _row_logprobs(
    model, scale: float, target_L: Tensor, source_L: Tensor, span_S3: Tensor, **inputs
) -> Tensor:
    body = getattr(model, model.base_model_prefix)
    # A 4D mask passes through transformers unread; the attention function goes by the plan.
    passed = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=target_L.device)
    kernel = attention.kernel_for(span_S3)
    plan = attention.plan_row(span_S3, inputs["input_ids"].shape[1], kernel)
    with recomputing():
        states = body(**inputs, attention_mask=passed, use_cache=False, row_plan=plan).last_hidden_state
    predicting_LD = states[0].index_select(0, source_L)
    return model.get_output_embeddings()(predicting_LD if scale == 1 else predicting_LD * scale, target_L)


def longest_sequence(span_S3: Tensor) -> int:
    """Return the tokens of a row's longest sequence: a trunk, or a branch with its prefix."""
    prefix_S, trunk_S, branch_S = span_S3.unbind(-1)
    return int(torch.maximum(trunk_S, prefix_S + branch_S).max())
