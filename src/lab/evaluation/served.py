"""Generators beside transformers: a served model, vLLM, and answers that somebody else generated."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from lab.answers.formats import read_answers, read_outputs
from lab.answers.noise import prompt_key
from lab.answers.prompts import Prompt, Sample, Sampling, prompt_ids, stop_ids
from lab.judging.endpoint import Endpoint
from sgdpo.config.schema import ModelConfig
from sgdpo.models.load import load_tokenizer, weights_folder, weights_hash


class OpenAIGenerator:
    """Ask a served model; the server renders its own chat template. Token counts are the server's."""

    def __init__(self, endpoint: Endpoint):
        self.endpoint = endpoint

    def identity(self) -> dict[str, Any]:
        """Return where the model is served, and its name there."""
        settings = self.endpoint.settings
        return {"generator": "openai", "base_url": settings.base_url, "model": settings.model}

    def answers(self, prompts: Sequence[Prompt], sampling: Sampling) -> Iterator[list[Sample]]:
        """Yield answers as many at a time as the endpoint's concurrency allows."""

        def ask(prompt: Prompt) -> Sample:
            reply = self.endpoint.chat(
                prompt.messages,
                max_tokens=sampling.max_new_tokens,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                seed=_seed(sampling, prompt),
            )
            return Sample(prompt.prompt_id, reply.text, reply.completion_tokens, reply.finish == "length")

        step = self.endpoint.settings.concurrency
        with ThreadPoolExecutor(step) as pool:
            for start in range(0, len(prompts), step):
                yield list(pool.map(ask, prompts[start : start + step]))


class VllmGenerator:
    """Answer with vLLM, if it is installed: for large models on GPUs. Seeds are vLLM's own, one a prompt."""

    def __init__(self, model: ModelConfig, *, dtype: str = "bfloat16", batch: int = 256):
        if importlib.util.find_spec("vllm") is None:
            raise ValueError(
                "generator=vllm needs the package vllm, which is not installed: `pip install vllm` on a GPU "
                "machine, or take generator=transformers"
            )
        self.config, self.dtype, self.batch = model, dtype, batch
        self.tokenizer = load_tokenizer(model)
        self._model: Any = None

    def identity(self) -> dict[str, Any]:
        """Return the hash of the weights and the number format."""
        weights = weights_hash(weights_folder(self.config))
        return {"generator": "vllm", "weights": weights, "dtype": self.dtype}

    def answers(self, prompts: Sequence[Prompt], sampling: Sampling) -> Iterator[list[Sample]]:
        """Yield answers in batches; the prompts' ids are ours, so no token is added to them."""
        import vllm

        if self._model is None:
            self._model = vllm.LLM(model=self.config.path, dtype=self.dtype)
        stops = stop_ids(self.tokenizer)
        for start in range(0, len(prompts), self.batch):
            chunk = prompts[start : start + self.batch]
            outputs = self._model.generate(
                [{"prompt_token_ids": prompt_ids(self.tokenizer, prompt)} for prompt in chunk],
                [self._parameters(vllm, sampling, prompt, stops) for prompt in chunk],
            )
            yield [self._sample(p, out.outputs[0], stops) for p, out in zip(chunk, outputs, strict=True)]

    def _parameters(self, vllm: Any, sampling: Sampling, prompt: Prompt, stops: list[int]) -> Any:
        return vllm.SamplingParams(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            max_tokens=sampling.max_new_tokens,
            stop_token_ids=stops,
            seed=_seed(sampling, prompt),
        )

    def _sample(self, prompt: Prompt, output: Any, stops: list[int]) -> Sample:
        ids = [token for token in output.token_ids if token not in stops]
        text = self.tokenizer.decode(ids, skip_special_tokens=True)
        return Sample(prompt.prompt_id, text, len(ids), output.finish_reason == "length")


class FileGenerator:
    """Take answers from a file: AlpacaEval's model_outputs.json, or FastChat's answers (.jsonl)."""

    def __init__(self, path: Path):
        if not path.is_file():
            raise ValueError(f"generator.path={path} does not exist; give a model_outputs.json or a .jsonl")
        self.path = path
        self.by_id: dict[str, str] = {}
        self.by_prompt: dict[str, str] = {}
        if path.suffix == ".jsonl":
            answers = read_answers(path)
            self.by_id = {
                f"{key}-{n}": turn for key, turns in answers.items() for n, turn in enumerate(turns, 1)
            }
        else:
            self.by_prompt = {row["instruction"]: row["output"] for row in read_outputs(str(path))}

    def identity(self) -> dict[str, Any]:
        """Return the hash of the answers."""
        answers = json.dumps([self.by_id, self.by_prompt], sort_keys=True)
        return {"generator": "file", "answers": hashlib.sha256(answers.encode()).hexdigest()[:16]}

    def answers(self, prompts: Sequence[Prompt], sampling: Sampling) -> Iterator[list[Sample]]:
        """Yield the file's answers. Raise ValueError naming how many prompts it does not answer."""
        found = {
            prompt.prompt_id: self.by_id.get(
                prompt.prompt_id, self.by_prompt.get(prompt.messages[-1]["content"])
            )
            for prompt in prompts
        }
        missing = [key for key, text in found.items() if text is None]
        if missing:
            raise ValueError(
                f"{self.path} does not answer {len(missing)} of {len(prompts)} prompts (first: {missing[0]!r})"
            )
        yield [Sample(key, text, None, False) for key, text in found.items()]


def _seed(sampling: Sampling, prompt: Prompt) -> int:
    """Return a seed of its own for each prompt, 31 bits: what servers take."""
    return prompt_key(sampling.seed, prompt.prompt_id) & 0x7FFFFFFF
