"""What a generator is, and answering prompts with one, once.

A generator is a class and a YAML in conf/generator that names it; it answers prompts batch by batch. `generate`
asks it only for what the cache does not hold. A cached answer's key covers the generator's identity (weights,
template, settings), the sampling and the prompt, so any change of these is a miss, and nothing else is.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from lab.answers.prompts import Prompt, Sample, Sampling, check_prompts
from lab.serving.service import Service, open_service, service_errors
from sgdpo.config.schema import ModelConfig
from sgdpo.contract import Kind
from sgdpo.store import DamagedError, JsonLines, cut_jsonl, hash_json, held

log = logging.getLogger("sgdpo")
GENERATOR = Kind("generator", key="class", parts=("answers",))
FORMAT = 2


class Generator(Service):
    """Answer prompts. Derive from it: `answers` is all that a generator must have.

    of_run: whether it answers with the evaluated run's own model (and with its start's). kept: whether its
    answers are worth keeping here, because they cost something and nobody else keeps them.
    """

    kind = "generator"
    of_run = False
    kept = True

    def of(self, model: ModelConfig, device: str) -> Generator:
        """Return the generator that answers for this model; the same for all if it is not of the run."""
        return self

    def fits(self, prompt: Prompt) -> None:
        """Raise RefusedError if this prompt cannot be answered; asked before anything is."""

    def how(self) -> dict[str, Any]:
        """Return all that an answer depends on beside prompt, sampling and the run's own model."""
        return super().identity()

    def identity(self) -> dict[str, Any]:
        return self.how()

    @abstractmethod
    def answers(self, prompts: Sequence[Prompt], sampling: Sampling) -> Iterator[list[Sample]]:
        """Yield samples in batches, in any order."""


generator_errors = partial(service_errors, GENERATOR)
open_generator = partial(open_service, GENERATOR)


def generate(
    generator: Generator, prompts: Sequence[Prompt], sampling: Sampling, cache: Path
) -> list[Sample]:
    """Return one sample a prompt, in the prompts' order; ask the generator only for those not in the cache.

    Raises ValueError for settings out of range, and for duplicate, empty or missing prompts.
    """
    if errors := sampling.errors():
        raise ValueError("; ".join(errors))
    check_prompts(prompts)
    if generator.kept:
        name = hash_json([FORMAT, generator.identity(), asdict(sampling)], 24)
        path = cache / "generations" / f"{name}.jsonl"
        with held(path, "these answers"):
            samples = _fill(generator, prompts, sampling, path)
    else:
        samples = dict(_answered(generator, prompts, sampling, 0))
    if problems := [sample.problem for sample in samples.values() if sample.problem]:
        log.warning(
            "%d of %d answers are unusable and count as empty: %s", len(problems), len(prompts), problems[0]
        )
    if cut := sum(sample.prompt_cut for sample in samples.values()):
        log.warning("%d of %d prompts pass the model's context and lost their beginning", cut, len(prompts))
    return [samples[prompt.prompt_id] for prompt in prompts]


def _fill(
    generator: Generator, prompts: Sequence[Prompt], sampling: Sampling, path: Path
) -> dict[str, Sample]:
    """Answer what the file does not hold; every batch goes there at once."""
    keys = {p.prompt_id: hash_json([p.prompt_id, [dict(turn) for turn in p.messages]]) for p in prompts}
    kept = _kept(path)
    done = {name: kept[key] for name, key in keys.items() if key in kept}
    missing = [prompt for prompt in prompts if prompt.prompt_id not in done]
    with JsonLines(path) as file:
        for name, sample in _answered(generator, missing, sampling, len(done)):
            file.append({"key": keys[name], "sample": asdict(sample)})
            done[name] = sample
    return done


def _kept(path: Path) -> dict[str, Sample]:
    """Return the answers of a file by key; one that is damaged is begun anew."""
    names = {field.name for field in fields(Sample)}

    def whole(row: Mapping[str, Any]) -> bool:
        return isinstance(row.get("key"), str) and set(row.get("sample") or ()) == names

    try:
        return {row["key"]: Sample(**row["sample"]) for row in cut_jsonl(path, whole)}
    except DamagedError as error:
        log.warning("%s; its answers are made anew", error)
        path.unlink()
        return {}


def _answered(
    generator: Generator, prompts: Sequence[Prompt], sampling: Sampling, before: int
) -> Iterator[tuple[str, Sample]]:
    """Yield (prompt id, sample) as they come, under a progress bar."""
    left = {prompt.prompt_id for prompt in prompts}
    with tqdm(total=before + len(prompts), initial=before, desc="answers", unit="prompt") as bar:
        for batch in generator.answers(prompts, sampling) if prompts else ():
            for sample in batch:
                left.remove(sample.prompt_id)
                yield sample.prompt_id, sample
            bar.update(len(batch))
    assert not left, f"the generator left out {sorted(left)[:5]}"
