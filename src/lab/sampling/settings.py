"""The typed form of a sampling: what conf/sample.yaml composes to, and all that is wrong with one.

Every key's comment is in its YAML. Importing this loads nothing heavy.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from omegaconf import DictConfig, OmegaConf

from lab.answers.generate import GENERATOR, generator_errors
from lab.answers.prompts import Sampling
from lab.sampling.scorers import scorer_errors
from sgdpo.config.compose import (
    compose_alone,
    config_folders,
    to_run_config,
    to_typed,
    unknown_key,
    unknown_keys,
    written,
)
from sgdpo.config.schema import DataConfig, ModelConfig
from sgdpo.contract import binding_errors
from sgdpo.data.sources import data_errors
from sgdpo.models.folder import is_adapter
from sgdpo.places import CONF
from sgdpo.runs.contents import own_model, why_no_model, why_not_trusted
from sgdpo.runs.records import RECORD
from sgdpo.runs.validate import place_errors
from sgdpo.source import load_dotted
from sgdpo.values import PLACE, OneOf, Range, schema_errors


@dataclass
class SampleConfig:
    data: DataConfig = field(default_factory=DataConfig)
    generator: dict[str, Any] = field(default_factory=dict)
    scorer: dict[str, Any] = field(default_factory=dict)
    judge: dict[str, Any] = field(default_factory=dict)
    policy: str = "smollm2_135m"
    answers: Annotated[int, Range("[2, 1000]")] = 4
    temperature: Annotated[float, Range("[0, 10]")] = 0.7
    top_p: Annotated[float, Range("(0, 1]")] = 1.0
    max_new_tokens: Annotated[int, Range("[1, 100000]")] = 96
    seed: Annotated[int, Range("[0, 2147483647]")] = 0
    margin: Annotated[float, Range("[0, 1e9]")] = 0.0
    part: Annotated[int, Range("[0, 1e6]")] = 0
    parts: Annotated[int, Range("[1, 1e6]")] = 1
    splits: Annotated[str, OneOf("train", "both")] = "both"
    into: Annotated[str, PLACE] | None = None
    outputs: Annotated[str, PLACE] = "outputs"
    cache: Annotated[str, PLACE] = "outputs/cache"
    device: Annotated[str, OneOf("auto", "cpu", "cuda")] = "auto"
    trust_remote_code: bool = False
    extra: list[str] = field(default_factory=list)

    def sampling(self) -> Sampling:
        return Sampling(self.temperature, self.top_p, self.max_new_tokens, self.seed)


def compose_sample(words: Sequence[str]) -> SampleConfig:
    return to_sample_config(compose_alone("sample", SampleConfig, words))


def to_sample_config(config: DictConfig) -> SampleConfig:
    """Return the resolved sampling as a typed dataclass. Raise ValueError for unknown keys."""
    if unknown := unknown_keys(config, SampleConfig):
        raise ValueError("\n".join(map(unknown_key, unknown)))
    return to_typed(config, SampleConfig)


def sample_errors(config: SampleConfig, *, policy: bool = True) -> list[str]:
    """List everything wrong with a sampling, as sentences with advice; loads nothing heavy.

    policy: False where somebody else says whose answers they are.
    """
    if errors := list(schema_errors(config)):
        return errors
    errors = generator_errors(config.generator, config.extra) + scorer_errors(
        config.scorer, config.judge, config.extra
    )
    if config.temperature == 0:
        errors.append("temperature must be above 0: greedy answers to one prompt are all the same")
    if config.part >= config.parts:
        errors.append(f"part ({config.part}) must be smaller than parts ({config.parts}); they count from 0")
    errors += place_errors(config, ["outputs", "cache", *(["into"] if config.into else [])])
    bound = not binding_errors(GENERATOR, config.generator, config.extra)
    if policy and bound and load_dotted(config.generator["class"], config.extra).of_run:
        errors += _model_errors(config)
    return errors + data_errors(config.data, "prompts", config.extra, config_folders())


def _model_errors(config: SampleConfig) -> list[str]:
    try:
        return answering_errors(model_of(config.policy, config.cache, config.trust_remote_code))
    except ValueError as error:
        return [str(error)]


def answering_errors(model: ModelConfig) -> list[str]:
    """List what is wrong with a model that is to answer: a run's adapter, which finds its base, serves too."""
    from sgdpo.models.load import model_errors

    return [] if is_adapter(Path(model.path or "")) else model_errors(model)


def model_of(name: str, cache: str, trusted: bool = False) -> ModelConfig:
    """Return the model that a word names: a run's folder, a name of conf/model, a model's folder or a hub id.

    trusted: Python code that it brings may run. Raises ValueError if it is a run that has no weights or brings such
    code, or a model of conf/model without weights.
    """
    folder, yaml = Path(name), CONF / "model" / f"{name}.yaml"
    if (folder / RECORD).is_file():
        run = to_run_config(OmegaConf.load(folder / "config.yaml"))
        if wrong := why_no_model(folder, cache) or why_not_trusted(run.model, trusted):
            raise ValueError(f"{name} {wrong}")
        return own_model(folder, run.model)
    if not yaml.is_file():
        return ModelConfig(name=folder.name, path=name, trust_remote_code=trusted)
    node = OmegaConf.create({"cache": cache, "model": written("model", name)})
    model = ModelConfig(**OmegaConf.to_container(node, resolve=True)["model"])
    if model.path is None:
        raise ValueError(
            f"policy={name} has no weights before it is trained; give a run: policy=outputs/<experiment>/<run>"
        )
    return model
