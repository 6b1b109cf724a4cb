"""Rounds of preference training on a policy's own answers: sample, pair, train, evaluate, and again from there.

Every step is one that its own command could do (scripts/sample.py, src/train.py, scripts/evaluate.py) and finds what
is finished by its content: the same command continues a killed chain where it was.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any

from lab.benchmarks.benchmark import Subject
from lab.evaluation.evaluate import evaluate
from lab.evaluation.settings import (
    EvaluateConfig,
    absent,
    build_benchmark,
    compose_evaluation,
    evaluation_errors,
)
from lab.sampling.sample import prompt_errors, sample
from lab.sampling.settings import SampleConfig, compose_sample, sample_errors
from sgdpo.config.compose import compose_alone, compose_run, to_run_config, to_typed
from sgdpo.config.identity import needs_start, start_config
from sgdpo.config.schema import ModelConfig, RunConfig
from sgdpo.data.sources import data_errors
from sgdpo.mixtures import needs_of
from sgdpo.runs.records import MODEL, amend_record
from sgdpo.runs.run import execute
from sgdpo.runs.untrained import untrained
from sgdpo.runs.validate import run_errors, value_errors
from sgdpo.source import load_dotted
from sgdpo.values import OneOf, Range, schema_errors

log = logging.getLogger("sgdpo")
# Settings that the sampling and the evaluation share with the training.
SHARED = ("outputs", "cache", "device", "extra")
# Settings that the rounds make themselves.
MADE = ("sample.policy", "sample.into", "sample.part", "sample.parts", "evaluate.runs")


@dataclass
class RoundsConfig:
    """Hold what is said of the rounds; the comments are in conf/rounds.yaml."""

    rounds: Annotated[int, Range("[1, 1000]")] = 3
    begin_from: Annotated[str, OneOf("previous", "first")] = "previous"
    refer_to: Annotated[str, OneOf("previous", "first")] = "previous"
    prompts: Annotated[str, OneOf("same", "parts")] = "same"


@dataclass(frozen=True)
class Chain:
    """Hold a chain of rounds: what is said of it, of each round's run, of its sampling, of its evaluation."""

    settings: RoundsConfig
    run: RunConfig
    sampling: SampleConfig
    evaluation: EvaluateConfig

    @classmethod
    def of(cls, words: Sequence[str]) -> Chain:
        """Compose a chain from overrides: of conf/rounds.yaml, `sample.` and `evaluate.` ones, all others of the run.

        The prompts come from the run's data; folders, device and extra files are the same for all.
        """
        if made := [key for word in words if (key := word.split("=")[0]) in MADE]:
            raise ValueError(
                f"leave {', '.join(made)} out: every round has its own (prompts=parts gives each a part)"
            )
        ours = tuple(f"{field.name}=" for field in fields(RoundsConfig))
        own, asked, judged = (
            [word.removeprefix(prefix) for word in words if word.startswith(prefix or ours)]
            for prefix in ("", "sample.", "evaluate.")
        )
        words_of_run = [word for word in words if not word.startswith((*ours, "sample.", "evaluate."))]
        run = to_run_config(compose_run(words_of_run))
        keys = {word: word.lstrip("+").split("=")[0] for word in words_of_run}
        shared = [word for word, key in keys.items() if key in SHARED]
        data = [word for word, key in keys.items() if key == "data" or key.startswith("data.")]
        trust = f"trust_remote_code={run.model.trust_remote_code}"
        return cls(
            to_typed(compose_alone("rounds", RoundsConfig, own), RoundsConfig),
            run,
            compose_sample([*shared, f"data={run.data.name}", *data, *asked]),
            compose_evaluation([*shared, trust, *judged]),
        )

    def errors(self) -> list[str]:
        """List everything wrong with the chain, before its first round, as sentences with advice."""
        if errors := [*schema_errors(self.settings), *value_errors(self.run)]:
            return errors
        errors = run_errors(self.run, sampled=True) + sample_errors(self.sampling, policy=False)
        if self.run.dry_run:
            errors.append("dry_run=true: nothing can be planned before there are pairs; leave it out")
        if needs_start(self.run):
            errors += data_errors(self.run.data, "sft", self.run.extra)
        elif self.run.model.path is None:
            errors.append(
                f"model={self.run.model.name} is random before it is trained: take init=sft, or a model with a path"
            )
        errors += evaluation_errors(self.evaluation, runs=False)
        errors += self._errors_between()
        if not errors and not load_dotted(self.sampling.generator["class"], self.run.extra).of_run:
            errors.append(
                f"sample.generator={self.sampling.generator['name']} answers for another model than the rounds train; "
                "leave it out, or sample once with scripts/sample.py"
            )
        if not errors:
            parts = self.settings.rounds if self.settings.prompts == "parts" else 1
            errors += prompt_errors(self.sampling, parts)
            subject = Subject(self.run.model.name, None, self.run)
            errors += [f"evaluate.{error}" for error in build_benchmark(self.evaluation, subject).errors()]
        differ = self.settings.begin_from != self.settings.refer_to and self.settings.rounds > 1
        if differ and not needs_of(self.run.method).get("reference"):
            errors.append(
                f"refer_to differs from begin_from, but method={self.run.method['name']} has no reference"
            )
        return list(dict.fromkeys(errors or [*absent(self.sampling), *absent(self.evaluation)]))

    def _errors_between(self) -> Iterator[str]:
        """Yield what only a round's training would find, after its sampling."""
        trainer, adapter, settings = self.run.trainer, self.run.adapter, self.settings
        asked = {"best": trainer.best, "benchmark": trainer.benchmark}
        if self.sampling.splits == "train" and (named := [f"trainer.{k}={v}" for k, v in asked.items() if v]):
            yield (
                f"{' and '.join(named)}: evaluations need held-out pairs, and sample.splits=train makes none; take "
                "sample.splits=both"
            )
        later = settings.rounds > 1 and "previous" in (settings.begin_from, settings.refer_to)
        if later and adapter.rank is not None and not adapter.merge:
            yield (
                f"adapter={adapter.name}: a round leaves an adapter, and the next one goes on from whole weights; set "
                "adapter.merge=true, or begin_from=first refer_to=first"
            )

    def go(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Do the rounds; yield (run folder, evaluation) of the start and of each round. Raise ValueError at once."""
        if errors := self.errors():
            raise ValueError("\n".join(errors))
        first = self.run.model
        if needs_start(self.run):
            start = execute(start_config(self.run))
            first = _model_in(first, start)
            yield self._evaluated(start)
        policy = first
        for number in range(self.settings.rounds):
            log.info("round %d of %d: answers of %s", number + 1, self.settings.rounds, policy.path)
            pairs = sample(self._sampling(number, policy), policy)
            run = self._round(number, pairs, first, policy)
            if errors := run_errors(run):
                raise ValueError("\n".join(errors))
            if number == 0 and not needs_start(self.run):
                yield self._evaluated(untrained(run))
            folder = execute(run)
            amend_record(folder, round={"number": number + 1, "policy": policy.path, "pairs": str(pairs)})
            yield self._evaluated(folder)
            policy = _model_in(first, folder)

    def _sampling(self, number: int, policy: ModelConfig) -> SampleConfig:
        """Return a round's sampling: draws of its own, and of the prompts all or the round's part."""
        path = Path(str(policy.path))
        named = str(path.parent if path.name == MODEL else path)
        parts = (number, self.settings.rounds) if self.settings.prompts == "parts" else (0, 1)
        seed = self.sampling.seed + number
        return replace(self.sampling, policy=named, seed=seed, part=parts[0], parts=parts[1], into=None)

    def _round(self, number: int, pairs: Path, first: ModelConfig, previous: ModelConfig) -> RunConfig:
        from sgdpo.models.load import weights_folder  # torch and all that

        start, reference = (
            first if word == "first" else previous
            for word in (self.settings.begin_from, self.settings.refer_to)
        )
        read = to_run_config(compose_run(["data=sampled"])).data
        data = replace(
            self.run.data, name=read.name, function=read.function, columns=read.columns, limit=None, test_limit=None,
            facts=None, settings={"folder": str(pairs), "world": self.run.data.settings.get("world")},
        )  # fmt: skip
        # A folder: the model's path may be a hub id.
        other = None if reference.path == start.path else str(weights_folder(reference))
        label = "-".join(word for word in (self.run.label, f"round{number + 1}") if word)
        return replace(
            self.run, data=data, model=start, init="pretrained", reference_weights=other, label=label
        )

    def _evaluated(self, folder: Path) -> tuple[str, dict[str, Any]]:
        return str(folder), evaluate(replace(self.evaluation, runs=[str(folder)]))[str(folder)]


def _model_in(model: ModelConfig, run: Path) -> ModelConfig:
    """Return a model as a run left it, under its own name; the saved folder has its tokenizer and template."""
    return replace(model, path=str(run / MODEL), revision=None, chat_template=None)
