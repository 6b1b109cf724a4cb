"""Evaluate runs: one benchmark, one judge, any number of runs; results go into each run's record.

A run's folder gets `eval/<benchmark>-<judge>/` with every sample and every judgment. What was generated or
judged before comes from the cache, so the same command continues an interrupted evaluation and pays for
nothing twice.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from lab.answers.generate import Generator, TransformersGenerator
from lab.benchmarks.alpaca_flow import evaluate_alpaca
from lab.benchmarks.harness import evaluate_harness
from lab.benchmarks.mt_flow import evaluate_mt_bench
from lab.benchmarks.settings import sampling_of
from lab.benchmarks.verifiable import judge_verifiable
from lab.evaluation.served import FileGenerator, OpenAIGenerator, VllmGenerator
from lab.evaluation.settings import EvaluateConfig, evaluation_errors
from lab.judging.endpoint import Endpoint
from lab.judging.judges import EndpointJudge, Judge
from lab.judging.local_server import default_model, local_server
from lab.judging.settings import GeneratorConfig, JudgeConfig
from sgdpo.config.compose import to_run_config
from sgdpo.config.schema import RunConfig
from sgdpo.runs.records import amend_record, view_run
from sgdpo.store import write_json

log = logging.getLogger("sgdpo")
# benchmark.baseline of verifiable: win over the answers of the SFT run that the run started from.
START = "start"
# lm-eval judges by itself.
HARNESS = "harness"


def evaluate(config: EvaluateConfig) -> dict[str, dict[str, Any]]:
    """Evaluate every run and return {run folder: result}. Raise ValueError with all that is wrong, before."""
    if errors := evaluation_errors(config):
        raise ValueError("\n".join(errors))
    results, served = {}, open_served(config.generator)
    with open_judge(config.judge) as judge:
        for run in map(Path, config.runs):
            results[str(run)] = evaluate_run(config, run, judge, served)
    return results


def evaluate_run(
    config: EvaluateConfig, run: Path, judge: Judge | None, served: Endpoint | None
) -> dict[str, Any]:
    """Evaluate one run, write its samples and judgments, and put the result into its record."""
    label = HARNESS if config.benchmark.name == "lm_eval" else config.judge.label
    key = f"{config.benchmark.name}-{label}"
    folder = run / "eval" / key
    folder.mkdir(parents=True, exist_ok=True)
    bills = _bills(judge, served)
    before = {name: bill() for name, bill in bills.items()}
    result = _benchmark(config, run, judge, served, folder)
    result |= {"sampling": asdict(sampling_of(config.benchmark)), "judge": label}
    result["samples"] = str(Path("eval") / key / "samples.jsonl")
    for name, bill in bills.items():
        result[name] = {key: value - before[name][key] for key, value in bill().items()}
    if judge:
        result["judged_by"] = judge.identity()
    write_json(folder / "result.json", result)
    amend_record(run, eval={key: result})
    return result


def _bills(judge: Judge | None, served: Endpoint | None) -> dict[str, Callable[[], dict[str, Any]]]:
    """Return what is paid for, by its name in the result."""
    bills: dict[str, Callable[[], dict[str, Any]]] = {}
    if judge:
        bills["cost"] = judge.cost
    if served:
        bills["generation_cost"] = served.ledger.report
    return bills


def _benchmark(
    config: EvaluateConfig, run: Path, judge: Judge | None, served: Endpoint | None, folder: Path
) -> dict[str, Any]:
    cache, run_config = Path(config.cache), read_config(run)
    if config.benchmark.name == "lm_eval":
        return evaluate_harness(config.benchmark, run, device=config.device, folder=folder)
    generator = make_generator(config, run, run_config, served)
    if config.benchmark.name == "verifiable":
        return judge_verifiable(
            generator,
            run_config.data,
            sampling_of(config.benchmark),
            baseline=_baseline(config, run),
            folder=folder,
            cache=cache,
            limit=config.benchmark.limit,
        )
    flow = evaluate_alpaca if config.benchmark.name == "alpaca_eval" else evaluate_mt_bench
    return flow(generator, judge, config.benchmark, config.judge, name=run.name, folder=folder, cache=cache)


def _baseline(config: EvaluateConfig, run: Path) -> Path | None:
    """Return the answers to win over; the run's start is evaluated first, if need be."""
    wanted = config.benchmark.baseline
    if wanted is None:
        return None
    if wanted != START:
        path = Path(wanted)
        return (
            path / "eval" / f"verifiable-{config.judge.label}" if (path / "record.json").is_file() else path
        )
    start = view_run(run)["start"]
    if start is None:
        log.info("%s has no SFT start: no win rate", run.name)
        return None
    found = sorted(Path(config.outputs).glob(f"*/{start}/model")) or sorted(run.parent.glob(f"{start}/model"))
    if not found:
        raise ValueError(f"the start {start} of {run} is gone; set benchmark.baseline to a run, or to null")
    # A served model or a file of answers is the run's, not its start's.
    own = config.generator.name in ("transformers", "vllm")
    generator = config.generator if own else GeneratorConfig(name="transformers")
    alone = replace(config, benchmark=replace(config.benchmark, baseline=None), generator=generator)
    evaluate_run(alone, found[0].parent, None, None)
    return found[0].parent / "eval" / f"verifiable-{config.judge.label}"


def read_config(run: Path) -> RunConfig:
    """Return the settings a run was trained with. Raise ValueError if they cannot be read."""
    file = run / "config.yaml"
    if not file.is_file():
        raise ValueError(f"{run} holds no config.yaml, so its data and model are unknown; train it again")
    return to_run_config(OmegaConf.load(file))


def open_served(config: GeneratorConfig) -> Endpoint | None:
    """Return the endpoint of generator=openai: one for all runs, so that its budget holds over all of them."""
    return Endpoint(config) if config.name == "openai" else None


def make_generator(
    config: EvaluateConfig, run: Path, run_config: RunConfig, served: Endpoint | None
) -> Generator:
    """Return what answers the prompts: the run's own model, a served one, or a file of answers."""
    chosen = config.generator
    if served:
        return OpenAIGenerator(served)
    if chosen.name == "file":
        return FileGenerator(Path(str(chosen.path)))
    # The saved folder holds its own tokenizer and template; attention and trust stay as they were.
    model = replace(
        run_config.model, name=run.name, path=str(run / "model"), revision=None, chat_template=None
    )
    if chosen.name == "vllm":
        return VllmGenerator(model, dtype=chosen.dtype)
    return TransformersGenerator(
        model,
        device=config.device,
        dtype=chosen.dtype,
        batch_tokens=chosen.batch_tokens,
        long_prompts=chosen.long_prompts,
    )


@contextmanager
def open_judge(config: JudgeConfig) -> Iterator[Judge | None]:
    """Give the judge for the length of a block; None for the checker and for a file of judgments."""
    if config.name == "openai":
        yield EndpointJudge(Endpoint(config), grammar=config.grammar)
    elif config.name == "local":
        model = Path(config.model_file) if config.model_file else default_model()
        identity = {"local": model.name, "sha256": hashlib.sha256(model.read_bytes()).hexdigest()[:16]}
        with local_server(model, context=config.context) as url:
            settings = replace(config, base_url=url, model=model.stem, concurrency=1)
            yield EndpointJudge(Endpoint(settings), identity, grammar=config.grammar)
    else:
        yield None
