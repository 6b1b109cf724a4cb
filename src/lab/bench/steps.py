"""The preference steps that a benchmark times: our packed one, and the padded dense one as most trainers do it."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from lab.bench.rounds import Variant
from sgdpo.config.schema import ModelConfig
from sgdpo.data.batching import even_rows, tokens_of
from sgdpo.data.example import Example
from sgdpo.data.packing import RowCollator, model_inputs, pair_of
from sgdpo.methods.dpo import dpo
from sgdpo.methods.sgdpo import sgdpo
from sgdpo.models.load import load_model
from sgdpo.models.logprobs import teach_logprobs
from sgdpo.pairs import DrawKey, Pair, PairLoss, Ratios
from sgdpo.pilot import Pilot
from sgdpo.selects import uniform

BETA, RATIOS, DRAWS = 0.1, Ratios(0.6, 0.9), DrawKey(42)
PILOT = Pilot(uniform, {})


METHODS = {
    "dpo": lambda pair: dpo(pair, beta=BETA),
    "sgdpo": lambda pair: sgdpo(pair, beta=BETA, draw="shared", ratios=RATIOS, draws=DRAWS, pilot=PILOT),
}


def method_loss(method: str, pair: Pair) -> PairLoss:
    """Return the pair's loss with the paper's settings."""
    return METHODS[method](pair)


class DenseHead(nn.Linear):
    """Give per-token log-probs by way of the whole tokens-by-vocabulary matrix: what the fast path avoids."""

    def forward(self, input: Tensor, target_L: Tensor | None = None) -> Tensor:
        logits_LV = super().forward(input)
        if target_L is None:
            return logits_LV
        return logits_LV.float().log_softmax(-1).gather(-1, target_L[:, None])[:, 0]


def build_model(variant: Variant) -> PreTrainedModel:
    """Return the variant's model, taught to give log-probs, on its device."""
    if isinstance(variant.model, dict):
        torch.manual_seed(0)
        arguments = dict(variant.model)
        config = AutoConfig.for_model(arguments.pop("model_type"), **arguments)
        model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    else:
        model = load_model(ModelConfig(name="bench", path=variant.model), seed=0)
    teach_logprobs(model, head_budget_mb=64)
    if variant.head == "dense":
        head = DenseHead(1, 1, bias=False, device="meta")
        head.weight = model.lm_head.weight
        model.lm_head = head
    if variant.checkpointing:
        model.gradient_checkpointing_enable()
    return model.to(variant.device).train()


class Stepper:
    """Run preference steps of one variant: forward, loss, backward, clipping, AdamW."""

    def __init__(self, variant: Variant, model: PreTrainedModel) -> None:
        self.variant, self.model = variant, model
        self.live = copy.deepcopy(model).requires_grad_(False).eval() if variant.reference == "live" else None
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-7, fused=True)

    def rows(self, examples: Sequence[Example]) -> list[dict[str, Tensor]]:
        """Return the step's micro-batches."""
        if self.variant.layout == "padded":
            return [padded_batch(examples)]
        lengths = lengths_of(examples)
        tokens = tokens_of(lengths, self.variant.layout)
        rows = even_rows(tokens, min(len(examples), -(-int(tokens.sum()) // self.variant.max_tokens)))
        collate = RowCollator(self.variant.layout)
        return [collate([examples[index] for index in row]) for row in rows]

    def logprobs(self, model: PreTrainedModel, row: dict[str, Tensor]) -> Tensor:
        device = torch.device(self.variant.device).type
        with torch.autocast(device, torch.bfloat16, enabled=self.variant.precision == "bf16"):
            if self.variant.layout == "padded":
                return padded_logprobs(model, row)
            return model(**model_inputs(row))

    @torch.no_grad()
    def reference(self, examples: Sequence[Example]) -> list[Tensor]:
        """Return what a reference cache would give for each row of the step."""
        return [self.logprobs(self.live or self.model, self._placed(row)) for row in self.rows(examples)]

    def step(self, examples: Sequence[Example], cached: list[Tensor] | None) -> None:
        """Train on one batch. cached: the reference's log-probs; None runs the live reference."""
        for index, row in enumerate(self.rows(examples)):
            row = self._placed(row)
            with torch.no_grad():
                reference_L = self.logprobs(self.live, row) if cached is None else cached[index]
            pair = pair_of(row, self.logprobs(self.model, row), reference_L)
            (method_loss(self.variant.method, pair).loss_B.sum() / len(examples)).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def _placed(self, row: dict[str, Tensor]) -> dict[str, Tensor]:
        return {key: value.to(self.variant.device) for key, value in row.items()}


def lengths_of(examples: Sequence[Example]) -> np.ndarray:
    """Return (prompt, chosen, rejected) lengths, int64[n, 3]."""
    return np.array([[len(e.prompt_ids), len(e.chosen_ids), len(e.rejected_ids)] for e in examples])


def padded_batch(examples: Sequence[Example]) -> dict[str, Tensor]:
    """Return a row whose inputs are (2B, longest) sequences padded on the right, chosen ones first."""
    row = RowCollator("separate")(examples)
    sides = [(e.prompt_ids, e.chosen_ids) for e in examples] + [
        (e.prompt_ids, e.rejected_ids) for e in examples
    ]
    longest = max(len(prompt) + len(completion) for prompt, completion in sides)
    input_ids = torch.zeros(len(sides), longest, dtype=torch.int64)
    mask, source = torch.zeros_like(input_ids), []
    for index, (prompt, completion) in enumerate(sides):
        length = len(prompt) + len(completion)
        input_ids[index, :length] = torch.from_numpy(np.concatenate([prompt, completion]).astype(np.int64))
        mask[index, :length] = 1
        source.append(torch.arange(len(prompt) - 1, length - 1) + index * longest)
    return row | {"input_ids": input_ids, "attention_mask": mask, "source_L": torch.cat(source)}


def padded_logprobs(model: PreTrainedModel, row: dict[str, Any]) -> Tensor:
    """Return log-probs as most trainers do: logits of every position, padding included, then a dense softmax."""
    logits_BNV = model(
        input_ids=row["input_ids"], attention_mask=row["attention_mask"], use_cache=False
    ).logits
    logp_BNV = logits_BNV.float().log_softmax(-1)
    return logp_BNV.flatten(0, 1)[row["source_L"], row["target_L"]]
