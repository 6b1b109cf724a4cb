"""Generators that answer with the run's own model: transformers anywhere, vLLM where it is installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Annotated, Any, Literal, cast

from lab.answers.generate import Generator
from lab.answers.prompts import Prompt, Sample, Sampling, prompt_ids, prompt_seed, stop_ids
from sgdpo.config.schema import ModelConfig
from sgdpo.store import hash_tokenizer
from sgdpo.values import Range

VLLM_BATCH = 256


class OwnModel(Generator):
    """Hold what both have in common: the model, its tokenizer, and who answers."""

    of_run = True
    model = cast(ModelConfig, None)  # set by `of`
    dtype = "float32"

    @cached_property
    def tokenizer(self) -> Any:
        from sgdpo.models.load import load_tokenizer

        return load_tokenizer(self.model)

    def identity(self) -> dict[str, Any]:
        """Return how, and the hashes of weights and tokenizer."""
        from sgdpo.models.load import weights_folder, weights_hash

        weights = weights_hash(weights_folder(self.model))
        return {**self.how(), "weights": weights, "tokenizer": hash_tokenizer(self.tokenizer)}


class TransformersGenerator(OwnModel):
    """Answer with transformers on this machine: left padding, sorted by length, batches of one token budget.

    model: its path is a folder that save_pretrained wrote, or a hub id. The weights load at the first answer,
    so an evaluation that the cache holds loads none. device: cpu, cuda or auto; no part of the identity.
    """

    def __init__(
        self,
        model: ModelConfig | None = None,
        *,
        device: str = "cpu",
        dtype: Literal["float32", "bfloat16", "float16"] = "float32",
        batch_tokens: Annotated[int, Range("[1, 1e9]")] = 32768,
        long_prompts: Literal["cut", "error"] = "cut",
    ):
        self.model, self.device = cast(ModelConfig, model), device
        self.dtype, self.batch_tokens, self.long_prompts = dtype, batch_tokens, long_prompts
        self._model: Any = None

    def of(self, model: ModelConfig, device: str) -> TransformersGenerator:
        """Return the generator of this model."""
        settings = {name: getattr(self, name) for name in ("dtype", "batch_tokens", "long_prompts")}
        return TransformersGenerator(model, device=device, **settings)

    def how(self) -> dict[str, Any]:
        """Return the number format and what becomes of long prompts; the batch's size changes nothing."""
        return {"generator": "transformers", "dtype": self.dtype, "long_prompts": self.long_prompts}

    def answers(self, prompts: Sequence[Prompt], sampling: Sampling) -> Iterator[list[Sample]]:
        """Yield samples batch by batch, the longest prompts first: memory runs out at once or not at all."""
        from lab.answers.decode import answer_batch
        from sgdpo.models.threads import threads_for

        model = self._load()
        fitted = {prompt.prompt_id: self._fit(model.config, prompt, sampling) for prompt in prompts}
        order = sorted(fitted, key=lambda key: (-len(fitted[key].ids), key))
        start = 0
        while start < len(order):
            row = len(fitted[order[start]].ids) + sampling.max_new_tokens
            keys = order[start : start + max(1, self.batch_tokens // row)]
            with threads_for(model):
                batch = answer_batch(model, self.tokenizer, {key: fitted[key] for key in keys}, sampling)
            yield batch
            start += len(keys)

    def _fit(self, config: Any, prompt: Prompt, sampling: Sampling) -> Any:
        """Return the prompt as it fits the model's context, with room for at least half of it as an answer."""
        from lab.answers.decode import Fitted
        from sgdpo.data.conversation import cut_prompt

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
            import torch
            from transformers import GenerationConfig

            from sgdpo.models.load import load_model

            model = load_model(self.model, weights=None, seed=0, dtype=getattr(torch, self.dtype))
            # A model's own generation settings (top-k, repetition penalty) would change the sampling unasked.
            model.generation_config = GenerationConfig()
            automatic = "cuda" if torch.cuda.is_available() else "cpu"
            self._model = model.to(automatic if self.device == "auto" else self.device).eval()
        return self._model


class VllmGenerator(OwnModel):
    """Answer with vLLM, if it is installed: for large models on GPUs. Seeds are vLLM's own, one a prompt."""

    def __init__(
        self,
        model: ModelConfig | None = None,
        *,
        dtype: Literal["float32", "bfloat16", "float16", "auto"] = "bfloat16",
    ):
        self.model, self.dtype = cast(ModelConfig, model), dtype
        self._model: Any = None

    def errors(self) -> list[str]:
        """Say that vLLM is not installed."""
        if importlib.util.find_spec("vllm"):
            return []
        return [
            "class needs the package vllm, which is not installed: `pip install vllm` on a GPU machine, or take "
            "generator=transformers"
        ]

    def of(self, model: ModelConfig, device: str) -> VllmGenerator:
        """Return the generator of this model; vLLM chooses the device."""
        return VllmGenerator(model, dtype=self.dtype)

    def how(self) -> dict[str, Any]:
        """Return the number format."""
        return {"generator": "vllm", "dtype": self.dtype}

    def answers(self, prompts: Sequence[Prompt], sampling: Sampling) -> Iterator[list[Sample]]:
        """Yield answers in batches; the prompts' ids are ours, so no token is added to them."""
        import vllm

        if self._model is None:
            self._model = vllm.LLM(model=self.model.path, dtype=self.dtype)
        stops = stop_ids(self.tokenizer)
        for start in range(0, len(prompts), VLLM_BATCH):
            chunk = prompts[start : start + VLLM_BATCH]
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
            seed=prompt_seed(sampling.seed, prompt.prompt_id),
        )

    def _sample(self, prompt: Prompt, output: Any, stops: list[int]) -> Sample:
        ids = [token for token in output.token_ids if token not in stops]
        text = self.tokenizer.decode(ids, skip_special_tokens=True)
        return Sample(prompt.prompt_id, text, len(ids), output.finish_reason == "length")
