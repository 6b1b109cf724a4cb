"""Evaluate runs: one benchmark, one judge, any number of runs; results go into each run's record.

A run's folder gets `eval/<benchmark>-<judge>/` with every sample and every judgment. What was generated or
judged before comes from the cache, so the same command continues an interrupted evaluation and pays for
nothing twice.
"""

from __future__ import annotations

import logging
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from lab.answers.generate import Generator, open_generator
from lab.answers.own_model import TransformersGenerator
from lab.benchmarks.alpaca_flow import evaluate_alpaca
from lab.benchmarks.harness import evaluate_harness
from lab.benchmarks.mt_flow import evaluate_mt_bench
from lab.benchmarks.settings import sampling_of
from lab.benchmarks.verifiable import judge_verifiable
from lab.evaluation.settings import EvaluateConfig, evaluation_errors
from lab.judging.judges import Judge, open_judge
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
    results, cache = {}, Path(config.cache)
    with open_generator(config.generator, cache) as generator, open_judge(config.judge, cache) as judge:
        for run in map(Path, config.runs):
            results[str(run)] = evaluate_run(config, run, judge, generator)
    return results


def evaluate_run(config: EvaluateConfig, run: Path, judge: Judge, generator: Generator) -> dict[str, Any]:
    """Evaluate one run, write its samples and judgments, and put the result into its record."""
    label = HARNESS if config.benchmark.name == "lm_eval" else judge.label
    key = f"{config.benchmark.name}-{label}"
    folder = run / "eval" / key
    folder.mkdir(parents=True, exist_ok=True)
    bills = {"cost": judge.cost, "generation_cost": generator.cost}
    before = {name: bill() for name, bill in bills.items()}
    result = _benchmark(config, run, judge, generator, folder)
    result |= {"sampling": asdict(sampling_of(config.benchmark)), "judge": label}
    result["samples"] = str(Path("eval") / key / "samples.jsonl")
    for name, bill in bills.items():
        if now := bill():
            result[name] = {key: value - before[name][key] for key, value in now.items()}
    if judge.asks:
        result["judged_by"] = judge.identity()
    write_json(folder / "result.json", result)
    amend_record(run, eval={key: result})
    return result


def _benchmark(
    config: EvaluateConfig, run: Path, judge: Judge, generator: Generator, folder: Path
) -> dict[str, Any]:
    cache, run_config = Path(config.cache), read_config(run)
    if config.benchmark.name == "lm_eval":
        return evaluate_harness(config.benchmark, run, device=config.device, folder=folder)
    generator = make_generator(config, run, run_config, generator)
    if config.benchmark.name == "verifiable":
        return judge_verifiable(
            generator,
            run_config.data,
            sampling_of(config.benchmark),
            baseline=_baseline(config, run, judge, generator),
            folder=folder,
            cache=cache,
            limit=config.benchmark.limit,
        )
    flow = evaluate_alpaca if config.benchmark.name == "alpaca_eval" else evaluate_mt_bench
    return flow(generator, judge, config.benchmark, name=run.name, folder=folder, cache=cache)


def _baseline(config: EvaluateConfig, run: Path, judge: Judge, generator: Generator) -> Path | None:
    """Return the answers to win over; the run's start is evaluated first, if need be."""
    wanted = config.benchmark.baseline
    if wanted is None:
        return None
    if wanted != START:
        path = Path(wanted)
        return path / "eval" / f"verifiable-{judge.label}" if (path / "record.json").is_file() else path
    start = view_run(run)["start"]
    if start is None:
        log.info("%s has no SFT start: no win rate", run.name)
        return None
    found = sorted(Path(config.outputs).glob(f"*/{start}/model")) or sorted(run.parent.glob(f"{start}/model"))
    if not found:
        raise ValueError(f"the start {start} of {run} is gone; set benchmark.baseline to a run, or to null")
    # A served model or a file of answers is the run's, not its start's.
    own = generator if generator.of_run else TransformersGenerator()
    alone = replace(config, benchmark=replace(config.benchmark, baseline=None))
    evaluate_run(alone, found[0].parent, judge, own)
    return found[0].parent / "eval" / f"verifiable-{judge.label}"


def read_config(run: Path) -> RunConfig:
    """Return the settings a run was trained with. Raise ValueError if they cannot be read."""
    file = run / "config.yaml"
    if not file.is_file():
        raise ValueError(f"{run} holds no config.yaml, so its data and model are unknown; train it again")
    return to_run_config(OmegaConf.load(file))


def make_generator(
    config: EvaluateConfig, run: Path, run_config: RunConfig, generator: Generator
) -> Generator:
    """Return what answers the prompts for a run."""
    # The saved folder holds its own tokenizer and template; attention and trust stay as they were.
    model = replace(
        run_config.model, name=run.name, path=str(run / "model"), revision=None, chat_template=None
    )
    return generator.of(model, config.device)
