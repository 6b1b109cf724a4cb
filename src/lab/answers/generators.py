"""The generators there are: the run's own model (transformers, vLLM), a served model, and answers from a file."""

import copy
import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, cast

from lab.answers.formats import read_answers, read_outputs
from lab.answers.generate import Generator
from lab.answers.prompts import Prompt, Sample, Sampling, prompt_ids, prompt_seed
from lab.serving.endpoint import ask_each
from lab.serving.reply import Reply
from lab.serving.served import Local, Remote, Served
from sgdpo.config.schema import ModelConfig
from sgdpo.models.folder import is_adapter
from sgdpo.store import hash_json, hash_tokenizer
from sgdpo.values import Range

VLLM_BATCH = 256


class OwnModel(Generator):
    """Hold what generators with the run's own model have in common; it loads when it is first asked."""

    of_run = True
    device = "cpu"
    model = cast(ModelConfig, None)  # set by `of`
    loaded = cast(Any, None)

    @cached_property
    def tokenizer(self) -> Any:
        from sgdpo.models.load import load_tokenizer

        return load_tokenizer(self.model)

    def of(self, model: ModelConfig, device: str) -> Generator:
        made = copy.copy(self)
        made.model, made.device = model, device
        return made

    def fits(self, prompt: Prompt) -> None:
        """Raise RefusedError for a conversation that the model's chat template does not render."""
        prompt_ids(self.tokenizer, prompt)

    def identity(self) -> dict[str, Any]:
        from sgdpo.models.load import content_hashes

        return {**self.how(), **content_hashes(self.model), "tokenizer": hash_tokenizer(self.tokenizer)}


@dataclass(kw_only=True)
class TransformersGenerator(OwnModel):
    """Answer with transformers on this machine: left padding, sorted by length, batches of one token budget.

    The device is no part of the identity, nor is the batch's size.
    """

    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    batch_tokens: Annotated[int, Range("[1, 1e9]")] = 32768
    long_prompts: Literal["cut", "error"] = "cut"

    def how(self) -> dict[str, Any]:
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
        if self.loaded is None:
            import torch

            from sgdpo.models.device import device_of
            from sgdpo.models.load import load_model

            device = device_of(self.device)
            model = load_model(self.model, weights=None, seed=0, dtype=getattr(torch, self.dtype))
            self.loaded = model.to(device).eval()
        return self.loaded


@dataclass(kw_only=True)
class VllmGenerator(OwnModel):
    """Answer with vLLM, if it is installed: large models on GPUs. Device and sampling are vLLM's, a seed a prompt."""

    dtype: Literal["float32", "bfloat16", "float16", "auto"] = "bfloat16"

    def errors(self) -> list[str]:
        if importlib.util.find_spec("vllm"):
            return []
        return [
            "class needs the package vllm, which is not installed: `pip install vllm` on a GPU machine, or take "
            "generator=transformers"
        ]

    def of(self, model: ModelConfig, device: str) -> Generator:
        if is_adapter(Path(model.path or "")):
            raise ValueError(
                f"{model.path} holds an adapter, and vLLM is given whole models: merge it with scripts/merge.py, or"
                " take generator=transformers, which merges it as it loads"
            )
        return super().of(model, device)

    def how(self) -> dict[str, Any]:
        return {"generator": "vllm", "dtype": self.dtype}

    def answers(self, prompts: Sequence[Prompt], sampling: Sampling) -> Iterator[list[Sample]]:
        """Yield answers in batches; the prompts' ids are ours, so no token is added to them."""
        import vllm

        from sgdpo.data.conversation import stop_ids

        self.loaded = self.loaded or vllm.LLM(model=self.model.path, dtype=self.dtype)
        stops = stop_ids(self.tokenizer)
        drawn = {"temperature": sampling.temperature, "top_p": sampling.top_p}
        drawn |= {"max_tokens": sampling.max_new_tokens, "stop_token_ids": stops}
        for start in range(0, len(prompts), VLLM_BATCH):
            chunk = prompts[start : start + VLLM_BATCH]
            seeds = [prompt_seed(sampling.seed, prompt.prompt_id) for prompt in chunk]
            outputs = self.loaded.generate(
                [{"prompt_token_ids": prompt_ids(self.tokenizer, prompt)} for prompt in chunk],
                [vllm.SamplingParams(**drawn, seed=seed) for seed in seeds],
            )
            yield [self._sample(p, out.outputs[0], stops) for p, out in zip(chunk, outputs, strict=True)]

    def _sample(self, prompt: Prompt, output: Any, stops: list[int]) -> Sample:
        ids = [token for token in output.token_ids if token not in stops]
        text = self.tokenizer.decode(ids, skip_special_tokens=True)
        return Sample(prompt.prompt_id, text, len(ids), output.finish_reason == "length")


class ServedGenerator(Served, Generator):
    """Hold what generators that ask an endpoint have in common; the server renders its own chat template."""

    kept = False  # the endpoint's ledger keeps every answer that was paid for

    def answers(self, prompts: Sequence[Prompt], sampling: Sampling) -> Iterator[list[Sample]]:
        """Yield each answer as it comes, as many under way as the endpoint's concurrency allows."""
        by_id = {prompt.prompt_id: prompt for prompt in prompts}

        def ask(key: str) -> Reply:
            return self.endpoint.chat(
                by_id[key].messages,
                max_tokens=sampling.max_new_tokens,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                seed=prompt_seed(sampling.seed, key),
            )

        strict = self.unusable == "error"
        replies = ask_each(ask, list(by_id), workers=self.concurrency, strict=strict, what="answers")
        for key, reply in replies:
            truncated = reply.finish == "length"
            tokens = None if reply.used is None else reply.used.new
            yield [Sample(key, reply.text, tokens, truncated, problem=reply.problem)]


@dataclass(kw_only=True)
class OpenAIGenerator(Remote, ServedGenerator):
    """Ask a served model. Token counts are the server's."""

    def how(self) -> dict[str, Any]:
        return {"generator": "openai", "base_url": self.base_url.rstrip("/"), "model": self.model}


@dataclass(kw_only=True)
class LocalGenerator(Local, ServedGenerator):
    """Ask a GGUF model that llama.cpp serves on loopback while the answers last."""

    def how(self) -> dict[str, Any]:
        found = super().how()
        return {"generator": "local", "model": found.pop("local"), **found}


@dataclass(kw_only=True)
class FileGenerator(Generator):
    """Take answers from a file: AlpacaEval's model_outputs.json, or FastChat's answers (.jsonl)."""

    path: str | None = None
    model: str | None = None
    kept = False

    def errors(self) -> list[str]:
        if self.path and Path(self.path).is_file():
            return []
        return [f"path={self.path} is none; generator=file reads a file of answers (.json, .jsonl)"]

    @cached_property
    def found(self) -> Mapping[str, str]:
        """Return the answers by prompt id (FastChat) or by the prompt's text (AlpacaEval)."""
        path = Path(str(self.path))
        if path.suffix == ".jsonl":
            answers = read_answers(path, self.model)
            return {f"{key}-{n}": turn for key, turns in answers.items() for n, turn in enumerate(turns, 1)}
        return {row["instruction"]: row["output"] for row in read_outputs(str(path))}

    def how(self) -> dict[str, Any]:
        return {"generator": "file", "answers": hash_json(self.found)}

    def answers(self, prompts: Sequence[Prompt], sampling: Sampling) -> Iterator[list[Sample]]:
        """Yield the file's answers. Raise ValueError naming how many prompts it does not answer."""
        texts = [self.found.get(p.prompt_id, self.found.get(p.messages[-1]["content"])) for p in prompts]
        missing = [prompt.prompt_id for prompt, text in zip(prompts, texts, strict=True) if text is None]
        if missing:
            raise ValueError(
                f"{self.path} does not answer {len(missing)} of {len(prompts)} prompts (first: {missing[0]!r})"
            )
        yield [Sample(p.prompt_id, str(text), None, False) for p, text in zip(prompts, texts, strict=True)]
