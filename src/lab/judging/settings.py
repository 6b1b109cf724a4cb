"""The typed form of a judge and of a generator, and all that is wrong with one.

Every field's comment is in its YAML, in conf/judge and conf/generator.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lab.judging.endpoint import EndpointSettings
from lab.judging.local_server import server_errors

JUDGES = ("checker", "openai", "local", "cached")
GENERATORS = ("transformers", "vllm", "openai", "file")


@dataclass
class JudgeConfig(EndpointSettings):
    name: str = "???"
    label: str = "???"
    file: str | None = None
    model_file: str | None = None
    context: int = 8192
    top_logprobs: int = 5
    grammar: bool = False


@dataclass
class GeneratorConfig(EndpointSettings):
    name: str = "???"
    batch_tokens: int = 32768
    dtype: str = "float32"
    long_prompts: str = "cut"
    path: str | None = None


def judge_errors(config: JudgeConfig) -> list[str]:
    """List what is wrong with the judge's settings, as sentences with advice."""
    if config.name not in JUDGES:
        return [f"judge={config.name!r} is not one of {list(JUDGES)}"]
    if config.name == "openai":
        return [f"judge.{error}" for error in config.errors()]
    if config.name == "local":
        return server_errors(Path(config.model_file) if config.model_file else None)
    if config.name == "cached" and not (config.file and Path(config.file).is_file()):
        return [f"judge=cached reads judgments from a file; judge.file={config.file} is none"]
    return []


def generator_errors(config: GeneratorConfig) -> list[str]:
    """List what is wrong with the generator's settings, as sentences with advice."""
    errors = []
    if config.name not in GENERATORS:
        errors.append(f"generator={config.name!r} is not one of {list(GENERATORS)}")
    if config.name == "openai":
        errors += [f"generator.{error}" for error in config.errors()]
    if config.name == "file" and not (config.path and Path(config.path).is_file()):
        errors.append(f"generator=file reads answers from a file; generator.path={config.path} is none")
    if config.long_prompts not in ("cut", "error"):
        errors.append(f"generator.long_prompts must be cut or error, not {config.long_prompts!r}")
    return errors
