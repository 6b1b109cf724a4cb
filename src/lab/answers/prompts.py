"""What goes into generation and what comes out: prompts, settings, samples, and the ids of a prompt."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sgdpo.store import hash_number


@dataclass(frozen=True)
class Prompt:
    """Hold one conversation to be answered; prompt_id names it in every file and keys its noise.

    follows: the id of a prompt whose conversation and answer come first: this one is a further turn of it.
    temperature: its own; None takes the benchmark's.
    """

    prompt_id: str
    messages: tuple[Mapping[str, str], ...]
    follows: str | None = None
    temperature: float | None = None

    @classmethod
    def user(cls, prompt_id: str, text: str, **more: Any) -> Prompt:
        return cls(prompt_id, ({"role": "user", "content": text},), **more)


@dataclass(frozen=True)
class Sampling:
    """Hold how answers are drawn.

    temperature: 0 is greedy. top_p: nucleus share in (0, 1]. max_new_tokens: an answer that has not ended by
    then is cut, and counted as truncated. seed: keys every prompt's own noise.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    max_new_tokens: int = 64
    seed: int = 0

    def errors(self) -> list[str]:
        errors = []
        if not 0 <= self.temperature < float("inf"):
            errors.append(f"temperature must be 0 (greedy) or more, not {self.temperature}")
        if not 0 < self.top_p <= 1:
            errors.append(f"top_p must lie in (0, 1], not {self.top_p} (1 keeps every token)")
        if self.max_new_tokens < 1:
            errors.append(f"max_new_tokens must be at least 1, not {self.max_new_tokens}")
        return errors


@dataclass(frozen=True)
class Sample:
    """Hold one answer: text, length in the model's own tokens (None where unknown), whether it was cut.

    prompt_cut: the prompt was too long for the model, and its beginning was left out. problem: why a server's
    answer cannot be used; it counts as an empty one.
    """

    prompt_id: str
    text: str
    tokens: int | None
    truncated: bool
    prompt_cut: bool = False
    problem: str = ""


def prompt_key(seed: int, prompt_id: str) -> int:
    """Return a signed 64-bit key of (seed, prompt id), the same on every machine."""
    number = hash_number(f"{seed}/{prompt_id}")
    return number - (number >> 63 << 64)


def prompt_seed(seed: int, prompt_id: str) -> int:
    """Return a seed of its own for each prompt, 31 bits: what servers take."""
    return prompt_key(seed, prompt_id) & 0x7FFFFFFF


def check_prompts(prompts: Sequence[Prompt]) -> None:
    """Raise ValueError if there is no prompt, an empty one, or an id twice."""
    if not prompts:
        raise ValueError("there is no prompt to answer: the benchmark's file or its limit leaves none")
    twice = sorted(key for key, count in Counter(p.prompt_id for p in prompts).items() if count > 1)
    if twice:
        raise ValueError(f"prompt ids must be unique; {_some(twice)} come more than once")
    empty = [p.prompt_id for p in prompts if not p.messages or not p.messages[-1]["content"].strip()]
    if empty:
        raise ValueError(f"the prompts {_some(empty)} are empty; remove those rows")


def prompt_ids(tokenizer: Any, prompt: Prompt) -> list[int]:
    """Return the token ids of a prompt, as training renders it, with one beginning-of-text token at most.

    Two of them move AlpacaEval by points, and nothing else shows it: it is asserted here, on the ids.
    """
    from sgdpo.data import conversation  # heavy: whoever only asks needs no tokenizer

    ids = conversation.prompt_ids(tokenizer, list(prompt.messages))
    assert ids, f"prompt {prompt.prompt_id!r} has no tokens"
    beginning = tokenizer.bos_token_id
    if beginning is not None and beginning != tokenizer.eos_token_id:
        assert ids[1:2] != [beginning], f"prompt {prompt.prompt_id!r} begins with two {tokenizer.bos_token!r}"
    return ids


def _some(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:5])) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
