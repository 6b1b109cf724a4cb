"""Answer prompts with a model, once: batched, keyed sampling, and a cache that an interruption does not lose.

A generator says who it is (`identity`) and answers prompts batch by batch. `generate` asks it only for what
the cache does not hold. The cache's key covers the generator's identity (weights, template, settings) and the
prompts, so any change of these is a miss, and nothing else is.

Sampling is exact and keyed by prompt (`noise.py`). In float32 the batch changes logits by rounding alone; a
token can differ between batch sizes only where two candidates tie to that precision.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from filelock import FileLock
from torch import Tensor
from tqdm import tqdm
from transformers import GenerationConfig, LogitsProcessorList, TemperatureLogitsWarper, TopPLogitsWarper

from lab.answers.noise import GumbelProcessor, prompt_key
from lab.answers.prompts import Prompt, Sample, Sampling, check_prompts, prompt_ids, stop_ids
from sgdpo.config.schema import ModelConfig
from sgdpo.data.conversation import cut_prompt
from sgdpo.models.load import load_model, load_tokenizer, weights_folder, weights_hash
from sgdpo.models.threads import threads_for
from sgdpo.store import cut_jsonl, line, read_jsonl, write_jsonl

FORMAT = 1
# Parameters below which one CPU thread is faster than several.


class Generator(Protocol):
    """Answer prompts; `identity` holds all that an answer depends on beside prompt and sampling."""

    def identity(self) -> dict[str, Any]:
        """Return a JSON-able description of the model and how it is asked."""
        ...

    def answers(self, prompts: Sequence[Prompt], sampling: Sampling) -> Iterator[list[Sample]]:
        """Yield samples in batches, in any order."""
        ...


def generate(
    generator: Generator, prompts: Sequence[Prompt], sampling: Sampling, cache: Path
) -> list[Sample]:
    """Return one sample a prompt, in the prompts' order; ask the generator only for those not in the cache.

    Raises ValueError for settings out of range, and for duplicate, empty or missing prompts.
    """
    if errors := sampling.errors():
        raise ValueError("; ".join(errors))
    check_prompts(prompts)
    path = cache / "generations" / f"{_key(generator, prompts, sampling)}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        if not path.exists():
            _fill(generator, prompts, sampling, path)
    samples = {row["prompt_id"]: Sample(**row) for row in read_jsonl(path)}
    return [samples[prompt.prompt_id] for prompt in prompts]


@dataclass(frozen=True)
class Fitted:
    """Hold a prompt's ids as they fit the model's context, how many new tokens may follow, and whether it was cut."""

    ids: list[int]
    new: int
    cut: bool


class TransformersGenerator:
    """Answer with transformers on this machine: left padding, sorted by length, batches of one token budget.

    model: its path is a folder that save_pretrained wrote, or a hub id. The weights load at the first answer,
    so an evaluation that the cache holds loads none. device: cpu, cuda or auto. long_prompts: what to do with
    a prompt that leaves no room for an answer: error, or cut its beginning (counted in every sample).
    batch_tokens: rows times (longest prompt + new tokens) of a batch.
    """

    def __init__(
        self,
        model: ModelConfig,
        *,
        device: str = "cpu",
        dtype: str = "float32",
        batch_tokens: int = 32768,
        long_prompts: str = "cut",
    ):
        self.config, self.long_prompts = model, long_prompts
        self.device, self.dtype, self.batch_tokens = _device(device), getattr(torch, dtype), batch_tokens
        self.tokenizer = load_tokenizer(self.config)
        self._model: Any = None

    def identity(self) -> dict[str, Any]:
        """Return the hashes of weights and tokenizer, and the number format. The device is left out."""
        words = json.dumps([self.tokenizer.chat_template, self.tokenizer.get_vocab()], sort_keys=True)
        return {
            "generator": "transformers",
            "weights": weights_hash(weights_folder(self.config)),
            "tokenizer": hashlib.sha256(words.encode()).hexdigest()[:16],
            "dtype": str(self.dtype),
            "long_prompts": self.long_prompts,
        }

    def answers(self, prompts: Sequence[Prompt], sampling: Sampling) -> Iterator[list[Sample]]:
        """Yield samples batch by batch, the longest prompts first: memory runs out at once or not at all."""
        model = self._load()
        fitted = {prompt.prompt_id: self._fit(model.config, prompt, sampling) for prompt in prompts}
        order = sorted(fitted, key=lambda key: (-len(fitted[key].ids), key))
        start = 0
        while start < len(order):
            row = len(fitted[order[start]].ids) + sampling.max_new_tokens
            keys = order[start : start + max(1, self.batch_tokens // row)]
            with threads_for(model):
                batch = _answer_batch(model, self.tokenizer, {key: fitted[key] for key in keys}, sampling)
            yield batch
            start += len(keys)

    def _fit(self, config: Any, prompt: Prompt, sampling: Sampling) -> Fitted:
        """Return the prompt as it fits the model's context, with room for at least half of it as an answer."""
        ids, new = prompt_ids(self.tokenizer, prompt), sampling.max_new_tokens
        context = getattr(config, "max_position_embeddings", None) or len(ids) + new
        if len(ids) + new <= context:
            return Fitted(ids, new, cut=False)
        if self.long_prompts == "error":
            raise ValueError(
                f"prompt {prompt.prompt_id!r} has {len(ids)} tokens, and with max_new_tokens={new} passes the "
                f"model's context of {context}. Lower max_new_tokens to {max(context - len(ids), 0)} or less, or "
                "set generator.long_prompts=cut"
            )
        kept = cut_prompt(ids, context - min(new, context // 2), self.tokenizer.bos_token_id)
        return Fitted(kept, min(new, context - len(kept)), cut=len(kept) < len(ids))

    def _load(self) -> Any:
        if self._model is None:
            model = load_model(self.config, weights=None, seed=0, dtype=self.dtype)
            # A model's own generation settings (top-k, repetition penalty) would change the sampling unasked.
            model.generation_config = GenerationConfig()
            self._model = model.to(self.device).eval()
        return self._model


@torch.inference_mode()
def _answer_batch(model: Any, tokenizer: Any, fitted: dict[str, Fitted], sampling: Sampling) -> list[Sample]:
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


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def _fill(generator: Generator, prompts: Sequence[Prompt], sampling: Sampling, path: Path) -> None:
    """Answer what is missing; every batch goes to `.part` at once, and the whole is renamed at the end."""
    part = path.with_suffix(".part")
    done = {row["prompt_id"]: Sample(**row) for row in cut_jsonl(part)}
    missing = [prompt for prompt in prompts if prompt.prompt_id not in done]
    bar = tqdm(total=len(prompts), initial=len(done), desc="answers", unit="prompt")
    with part.open("a", buffering=1, encoding="utf-8") as file, bar:
        for batch in generator.answers(missing, sampling) if missing else ():
            file.writelines(line(sample.row()) for sample in batch)
            done |= {sample.prompt_id: sample for sample in batch}
            bar.update(len(batch))
    unanswered = [prompt.prompt_id for prompt in prompts if prompt.prompt_id not in done]
    assert not unanswered, f"the generator left out {unanswered[:5]}"
    write_jsonl(path, [done[prompt.prompt_id].row() for prompt in prompts])
    part.unlink()


def _key(generator: Generator, prompts: Sequence[Prompt], sampling: Sampling) -> str:
    asked = [[prompt.prompt_id, [dict(message) for message in prompt.messages]] for prompt in prompts]
    whole = [FORMAT, generator.identity(), sampling.__dict__, asked]
    return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()[:24]
