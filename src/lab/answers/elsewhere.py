"""Generators that need no model here: a served model, and answers that somebody else generated."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from lab.answers.formats import read_answers, read_outputs
from lab.answers.generate import Generator
from lab.answers.prompts import Prompt, Sample, Sampling, prompt_seed
from lab.serving.endpoint import Endpoint, EndpointSettings, ask_each
from lab.serving.reply import Reply
from sgdpo.store import hash_json


@dataclass(kw_only=True)
class OpenAIGenerator(Generator, EndpointSettings):
    """Ask a served model; the server renders its own chat template. Token counts are the server's."""

    kept = False  # the endpoint's ledger keeps every answer that was paid for
    endpoint = cast(Endpoint, None)  # set by open; no annotation, which would make it a setting

    def errors(self) -> list[str]:
        """List what is wrong with the endpoint's settings."""
        return EndpointSettings.errors(self)

    def open(self, stack: ExitStack) -> None:
        """Read the key and the ledger."""
        self.endpoint = Endpoint(self, self.cache)

    def how(self) -> dict[str, Any]:
        """Return where the model is served, and its name there."""
        return {"generator": "openai", **self.endpoint.identity}

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
            yield [Sample(key, reply.text, reply.completion_tokens, truncated, problem=reply.problem)]

    def cost(self) -> dict[str, Any]:
        """Return what the endpoint's ledger counted."""
        return self.endpoint.ledger.report()


@dataclass(kw_only=True)
class FileGenerator(Generator):
    """Take answers from a file: AlpacaEval's model_outputs.json, or FastChat's answers (.jsonl)."""

    path: str | None = None
    model: str | None = None
    kept = False

    def errors(self) -> list[str]:
        """Say that there is no file."""
        if self.path and Path(self.path).is_file():
            return []
        return [f"path={self.path} is none; generator=file reads a model_outputs.json or a .jsonl of answers"]

    @cached_property
    def found(self) -> Mapping[str, str]:
        """Return the answers by prompt id (FastChat) or by the prompt's text (AlpacaEval)."""
        path = Path(str(self.path))
        if path.suffix == ".jsonl":
            answers = read_answers(path, self.model)
            return {f"{key}-{n}": turn for key, turns in answers.items() for n, turn in enumerate(turns, 1)}
        return {row["instruction"]: row["output"] for row in read_outputs(str(path))}

    def how(self) -> dict[str, Any]:
        """Return the hash of the answers."""
        return {"generator": "file", "answers": hash_json(self.found)}

    def answers(self, prompts: Sequence[Prompt], sampling: Sampling) -> Iterator[list[Sample]]:
        """Yield the file's answers. Raise ValueError naming how many prompts it does not answer."""
        texts = {
            prompt.prompt_id: self.found.get(prompt.prompt_id, self.found.get(prompt.messages[-1]["content"]))
            for prompt in prompts
        }
        missing = [key for key, text in texts.items() if text is None]
        if missing:
            raise ValueError(
                f"{self.path} does not answer {len(missing)} of {len(prompts)} prompts (first: {missing[0]!r})"
            )
        yield [Sample(key, str(text), None, False) for key, text in texts.items()]
