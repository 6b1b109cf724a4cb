"""Decode a batch with transformers: left padding, and noise that makes greedy decoding an exact, keyed draw.

The Gumbel-max trick: argmax(logits / temperature + g) with independent standard Gumbel g is an exact draw
from softmax(logits / temperature). Here g is a hash of (key of the prompt, step, token), so a prompt's sample
depends on (seed, prompt, step) and not on the batch, its order, or the device's random state. In float32 the
batch changes logits by rounding alone; a token can differ only where two candidates tie to that precision.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

from lab.answers.prompts import Sample, Sampling, prompt_key, stop_ids
from sgdpo import keyed


@dataclass(frozen=True)
class Fitted:
    """Hold a prompt's ids as they fit the model's context, how many new tokens may follow, and whether it was cut."""

    ids: list[int]
    new: int
    cut: bool


@torch.inference_mode()
def answer_batch(model: Any, tokenizer: Any, fitted: dict[str, Fitted], sampling: Sampling) -> list[Sample]:
    """Return a sample for each fitted prompt, by its id."""
    stops = stop_ids(tokenizer)
    width = max(len(prompt.ids) for prompt in fitted.values())
    input_ids_BN, mask_BN = _pad_left(
        [prompt.ids for prompt in fitted.values()], width, stops[0], model.device
    )
    config = GenerationConfig(
        max_new_tokens=max(prompt.new for prompt in fitted.values()),
        do_sample=False,
        use_cache=True,
        eos_token_id=stops,
        pad_token_id=stops[0],
    )
    new_BN = model.generate(
        input_ids=input_ids_BN,
        attention_mask=mask_BN,
        generation_config=config,
        logits_processor=_processors(list(fitted), sampling, width, model.device),
    )[:, width:]
    return [
        _sample(tokenizer, key, prompt, row[: prompt.new], stops)
        for (key, prompt), row in zip(fitted.items(), new_BN.tolist(), strict=True)
    ]


def _pad_left(rows: list[list[int]], width: int, pad: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return ids and mask, int64, shape (B, width); the mask, not the pad id, says what is real."""
    ids = [[pad] * (width - len(row)) + row for row in rows]
    mask = [[0] * (width - len(row)) + [1] * len(row) for row in rows]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


def _processors(keys: list[str], sampling: Sampling, width: int, device: torch.device) -> LogitsProcessorList:
    if sampling.temperature == 0:
        return LogitsProcessorList()
    key_B = torch.tensor([prompt_key(sampling.seed, key) for key in keys], dtype=torch.int64, device=device)
    processors: list[Any] = [TemperatureLogitsWarper(sampling.temperature)]
    if sampling.top_p < 1:
        processors.append(TopPLogitsWarper(sampling.top_p))
    return LogitsProcessorList([*processors, GumbelProcessor(key_B, width)])


def _sample(tokenizer: Any, key: str, prompt: Fitted, row: list[int], stops: list[int]) -> Sample:
    end = next((position for position, token in enumerate(row) if token in stops), None)
    text = tokenizer.decode(row[:end], skip_special_tokens=True)
    return Sample(key, text, tokens=len(row[:end]), truncated=end is None, prompt_cut=prompt.cut)


def gumbel_noise(key_B: Tensor, step: int, size: int) -> Tensor:
    """Return standard Gumbel noise, float64, shape (B, size), a pure function of its arguments.

    key_B: int64, one key a row. step: 0-based count of new tokens. size: the vocabulary.
    """
    token_V = torch.arange(size, dtype=torch.int64, device=key_B.device)
    row_B1 = keyed.mix64_(key_B + keyed.signed((step + 1) * keyed.GOLDEN))[:, None]
    uniform_BV = keyed.uniform(keyed.mix64_(row_B1 + (token_V + 1) * keyed.signed(keyed.GOLDEN)))
    return -torch.log(-torch.log(uniform_BV))


class GumbelProcessor(LogitsProcessor):
    """Turn greedy decoding into keyed sampling: scores + Gumbel noise of (key, step, token)."""

    def __init__(self, key_B: Tensor, prompt_length: int):
        self.key_B, self.prompt_length = key_B, prompt_length

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return the noisy scores, float64, shape (B, V); columns that were ruled out (-inf) stay so."""
        step = input_ids.shape[1] - self.prompt_length
        return scores.double() + gumbel_noise(self.key_B, step, scores.shape[1])
