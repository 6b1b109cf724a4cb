"""Decode a batch with transformers: left padding, and noise that makes greedy decoding an exact, keyed draw.

The Gumbel-max trick: argmax(logits / temperature + g) with independent standard Gumbel g is an exact draw
from softmax(logits / temperature). Here g is a hash of (key of the prompt, step, token), so a prompt's sample
depends on (seed, prompt, step) and not on the batch, its order, or the device's random state. In float32 the
batch changes logits by rounding alone; a token can differ only where two candidates tie to that precision.
A prompt that several rows answer is read once. Rows that have ended leave the batch, so that a few long answers do not
keep all others in work. Both need a past in rows of keys and values; a model that keeps another one (a state that runs
along, or none) reads the whole text anew for every token.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import TemperatureLogitsWarper, TopPLogitsWarper

from lab.answers.prompts import Sample, Sampling, prompt_key
from sgdpo import keyed
from sgdpo.data.conversation import stop_ids
from sgdpo.models.decode import pad_left, until_stop


@dataclass(frozen=True)
class Fitted:
    """Hold a prompt's ids as they fit the model's context, how many new tokens may follow, and whether it was cut."""

    ids: list[int]
    new: int
    cut: bool


# The batch shrinks when this share of its rows has ended.
_SHRINK = 0.2
# Tokens that a processor draws at a time: noise is many steps over few numbers, and these stay in its cache.
_CACHED = 2**16


@torch.inference_mode()
def answer_batch(model: Any, tokenizer: Any, fitted: dict[str, Fitted], sampling: Sampling) -> list[Sample]:
    stops = stop_ids(tokenizer)
    rows = _continued(model, fitted, sampling, stops) or _read_again(model, fitted, sampling, stops)
    return [
        _sample(tokenizer, key, prompt, row[: prompt.new], stops)
        for (key, prompt), row in zip(fitted.items(), rows, strict=True)
    ]


def _has_rows(output: Any) -> bool:
    """Say whether a model keeps its past in rows of keys and values, which can be chosen from."""
    layers = getattr(getattr(output, "past_key_values", None), "layers", [None])
    return all(hasattr(layer, "batch_select_indices") for layer in layers)


def _read_again(
    model: Any, fitted: dict[str, Fitted], sampling: Sampling, stops: list[int]
) -> list[list[int]]:
    """Return each prompt's new ids, the whole text read anew for every token: slow, and true of any causal model.

    Padded on the right, where a causal model cannot look: a state that runs along would take padding in front for text.
    """
    rows: list[list[int]] = [[] for _ in fitted]
    prompts, going = list(fitted.values()), list(range(len(fitted)))
    keys = [prompt_key(sampling.seed, key) for key in fitted]
    while going:
        texts = [[*prompts[row].ids, *rows[row]] for row in going]
        last_B = torch.tensor([len(text) - 1 for text in texts], device=model.device)
        ids_BN = pad_sequence([torch.tensor(text) for text in texts], batch_first=True).to(model.device)
        scores_BNV = model(input_ids=ids_BN, use_cache=False).logits
        key_B = torch.tensor([keys[row] for row in going], dtype=torch.int64, device=model.device)
        scores_BV = scores_BNV[torch.arange(len(going), device=model.device), last_B].float()
        # All rows began together, so they are at one step.
        token_B = _draw(scores_BV, key_B, len(rows[going[0]]), sampling)
        for row, token in zip(going, token_B.tolist(), strict=True):
            rows[row].append(token)
        going = [row for row in going if len(rows[row]) < prompts[row].new and rows[row][-1] not in stops]
    return rows


def _continued(
    model: Any, fitted: dict[str, Fitted], sampling: Sampling, stops: list[int]
) -> list[list[int]] | None:
    """Return each prompt's new ids, step by step from what the model keeps of its past; None if that has no rows."""
    rows: list[list[int]] = [[] for _ in fitted]
    room_B = torch.tensor([prompt.new for prompt in fitted.values()], device=model.device)
    keys = [prompt_key(sampling.seed, key) for key in fitted]
    key_B = torch.tensor(keys, dtype=torch.int64, device=model.device)
    place = {ids: n for n, ids in enumerate(dict.fromkeys(tuple(prompt.ids) for prompt in fitted.values()))}
    read_B = torch.tensor([place[tuple(prompt.ids)] for prompt in fitted.values()], device=model.device)
    token_BN, mask_BN = pad_left(list(place), stops[0], model.device)
    place_BN, index_B = (mask_BN.cumsum(-1) - 1).clamp(min=0), torch.arange(len(rows), device=model.device)
    past = None
    for step in range(int(room_B.max())):
        output = model(
            input_ids=token_BN, attention_mask=mask_BN, position_ids=place_BN, past_key_values=past,
            use_cache=True, logits_to_keep=1,
        )  # fmt: skip
        if step == 0 and not _has_rows(output):
            return None
        past, scores_BV = output.past_key_values, output.logits[:, -1].float()
        if step == 0 and len(place) < len(rows):
            past.batch_select_indices(read_B)
            scores_BV, mask_BN, place_BN = scores_BV[read_B], mask_BN[read_B], place_BN[read_B]
        token_B = _draw(scores_BV, key_B, step, sampling)
        for row, token in zip(index_B.tolist(), token_B.tolist(), strict=True):
            rows[row].append(token)
        goes_B = (step + 1 < room_B) & ~torch.isin(token_B, torch.tensor(stops, device=model.device))
        if not goes_B.any():
            break
        token_BN, place_BN = token_B[:, None], place_BN[:, -1:] + 1
        mask_BN = torch.cat([mask_BN, mask_BN.new_ones(len(mask_BN), 1)], 1)
        if goes_B.sum() <= (1 - _SHRINK) * len(goes_B):
            past.batch_select_indices(goes_B.nonzero()[:, 0])
            token_BN, place_BN, mask_BN = token_BN[goes_B], place_BN[goes_B], mask_BN[goes_B]
            key_B, index_B, room_B = key_B[goes_B], index_B[goes_B], room_B[goes_B]
    return rows


def _draw(scores_BV: Tensor, key_B: Tensor, step: int, sampling: Sampling) -> Tensor:
    """Return the next token of each row, int64, shape (B,): the best at temperature 0, else a keyed draw."""
    if sampling.temperature == 0:
        return scores_BV.argmax(-1)
    scores_BV = TemperatureLogitsWarper(sampling.temperature)(None, scores_BV)
    if sampling.top_p < 1:
        scores_BV = TopPLogitsWarper(sampling.top_p)(None, scores_BV)
    size = scores_BV.shape[1]
    rows = max(1, _CACHED // size) if scores_BV.device.type == "cpu" else len(scores_BV)
    parts = zip(key_B.split(rows), scores_BV.split(rows), strict=True)
    return torch.cat([gumbel_noise(key, step, size).add_(scores).argmax(-1) for key, scores in parts])


def _sample(tokenizer: Any, key: str, prompt: Fitted, row: list[int], stops: list[int]) -> Sample:
    ids, ended = until_stop(row, stops)
    text = tokenizer.decode(ids, skip_special_tokens=True)
    return Sample(key, text, tokens=len(ids), truncated=not ended, prompt_cut=prompt.cut)


def gumbel_noise(key_B: Tensor, step: int, size: int) -> Tensor:
    """Return standard Gumbel noise, float64, shape (B, size), a pure function of its arguments.

    key_B: int64, one key a row. step: 0-based count of new tokens. size: the vocabulary.
    """
    token_V = torch.arange(size, dtype=torch.int64, device=key_B.device)
    row_B1 = keyed.mix64_(key_B + keyed.signed((step + 1) * keyed.GOLDEN))[:, None]
    uniform_BV = keyed.uniform(keyed.mix64_(row_B1 + (token_V + 1) * keyed.signed(keyed.GOLDEN)))
    return uniform_BV.log_().neg_().log_().neg_()
