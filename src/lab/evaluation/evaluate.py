"""Evaluate runs: one benchmark, one judge, any number of runs; results go into each run's record.

A run's folder gets `eval/<key>/` with every sample and every judgment. The key is `<benchmark>-<judge>`, and the
hash of the evaluation's identity is added where benchmark or generator are not set as conf/ has them, or where
the place is taken by another judge of that name: a result replaces only one of the same identity. A judging whose
verdicts cannot be read is refused; its files lie in `eval/<key>-refused/`, beside a result that there may be. What was
generated or judged before comes from the cache, so the same command continues an interrupted evaluation and pays
for nothing twice.
"""

import logging
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from lab.answers.generate import Generator, generate, open_generator
from lab.answers.prompts import Prompt, Sample, Sampling
from lab.benchmarks.benchmark import Benchmark, Judgment, Subject, prompts_hash
from lab.evaluation.settings import (
    EvaluateConfig,
    build_benchmark,
    evaluation_errors,
    is_usual,
    read_config,
    usual_generator,
)
from lab.judging.judges import Judge, JudgeRequest, ask_all, open_judge
from sgdpo.runs.contents import own_model, why_no_model, why_not_trusted
from sgdpo.runs.records import amend_record, view_run
from sgdpo.runs.tracking import add_evaluation
from sgdpo.store import hash_json, held, read_json, write_json, write_jsonl

log = logging.getLogger("sgdpo")


def evaluate(config: EvaluateConfig) -> dict[str, dict[str, Any]]:
    """Evaluate every run and return {run folder: result}. Raise ValueError with all that is wrong, before."""
    with opened(config) as evaluation:
        return {run: evaluation.of(Path(run)) for run in config.runs}


@contextmanager
def opened(config: EvaluateConfig, done: Path | None = None):
    """Give an Evaluation for the length of a block: its judge and generator are open, its budget is one.

    done: a folder of what this command has evaluated, for several processes; None: it is this process's alone.
    """
    if errors := evaluation_errors(config):
        raise ValueError("\n".join(errors))
    cache = Path(config.cache)
    with (
        open_generator(config.generator, cache, config.extra) as generator,
        open_judge(config.judge, cache, config.extra) as judge,
        TemporaryDirectory() as own,
    ):
        yield Evaluation(config, generator, judge, done or Path(own))


class Evaluation:
    """Evaluate one run after the other; a run that others start from is evaluated once."""

    def __init__(self, config: EvaluateConfig, generator: Generator, judge: Judge, done: Path):
        self.config, self.generator, self.judge, self.done = config, generator, judge, done
        self.cache = Path(config.cache)

    def of(self, run: Path) -> dict[str, Any]:
        return self._once(run, self.config, self.generator)[1]

    def answered(self, run: Path) -> tuple[Benchmark, list[Sample]]:
        """Return the benchmark as it is for this run, and the run's answers to its prompts."""
        benchmark, generator = self._made(run, self.config, self.generator)
        return benchmark, answer(generator, benchmark.prompts(), benchmark.sampling(), self.cache)

    def _made(self, run: Path, config: EvaluateConfig, generator: Generator) -> tuple[Benchmark, Generator]:
        """Return the benchmark as it is for this run, and what answers for it.

        Raise ValueError if the run's weights are not whole, or bring code that nobody asked for.
        """
        run_config, start = read_config(run), partial(self._start, run)
        subject = Subject(run.name, run, run_config, config.device, start, self._evaluate_another)
        benchmark = build_benchmark(config, subject)
        model, trusted = run_config.model, config.trust_remote_code
        if generator.of_run and (wrong := why_no_model(run, config.cache) or why_not_trusted(model, trusted)):
            raise ValueError(f"{run} {wrong}")
        return benchmark, generator.of(own_model(run, model), config.device)

    def _once(self, run: Path, config: EvaluateConfig, generator: Generator) -> tuple[Path, dict[str, Any]]:
        """Evaluate a run, or wait for the process that does, or take what one has made."""
        # A start may be evaluated with its own model too, where the runs' answers come in a file.
        place = self.done / hash_json([str(run.resolve()), config.benchmark, config.generator])
        with held(place, f"the evaluation of {run.name}"):
            if (made := read_json(place, default=None)) is None:
                folder, result = self._evaluate(run, config, generator)
                write_json(place, made := {"folder": str(folder), "result": result})
        return Path(made["folder"]), made["result"]

    def _evaluate(
        self, run: Path, config: EvaluateConfig, generator: Generator
    ) -> tuple[Path, dict[str, Any]]:
        before = self._bills()
        benchmark, own = self._made(run, config, generator)
        prompts = benchmark.prompts()
        identity = self._identity(config, benchmark, prompts, generator)
        judged_by = benchmark.decides or self.judge.label
        key = key_of(run, config, judged_by, identity)
        asked = prompts if benchmark.answered else []
        samples = answer(own, asked, benchmark.sampling(), self.cache)
        judgments = judge_samples(benchmark, samples, self.judge)
        rows = [benchmark.row(judgment, judged_by) for judgment in judgments]
        shown, place = sample_rows(prompts, samples, rows), key
        try:
            summary = benchmark.summarise(rows)
        except Exception:
            place = f"{key}-refused"  # a result of that name that there is keeps its files
            raise
        finally:  # all that was answered and judged is on the disk, whatever the summary says of it
            folder = run / "eval" / place
            folder.mkdir(parents=True, exist_ok=True)
            write_jsonl(folder / "samples.jsonl", shown)
            write_jsonl(folder / "judgments.jsonl", rows)
            benchmark.write(folder, samples, judgments)
        result = {**summary, **lengths(samples), "identity": identity}
        result |= {"sampling": asdict(benchmark.sampling()), "judge": judged_by}
        result |= {"samples": f"eval/{key}/samples.jsonl", **self._paid_since(before)}
        write_json(folder / "result.json", result)
        amend_record(run, eval={key: result})
        add_evaluation(run, read_config(run).tracking, key, result, shown)
        return folder, result

    def _start(self, run: Path) -> Path | None:
        start = view_run(run)["start"]
        if start is None:
            log.info("%s has no SFT start: no win rate", run.name)
            return None
        places = [*Path(self.config.outputs).glob(f"*/{start}/model"), *run.parent.glob(f"{start}/model")]
        if not places:
            raise ValueError(
                f"the start {start} of {run} is gone; set benchmark.baseline to a run, or to null"
            )
        return min(places).parent

    def _evaluate_another(self, run: Path, **changed: Any) -> Path:
        """Evaluate another run, with its own model: a served model or a file of answers is of the run alone."""
        config = replace(self.config, benchmark={**self.config.benchmark, **changed})
        if self.generator.of_run:
            return self._once(run, config, self.generator)[0]
        usual = usual_generator()
        with open_generator(usual, self.cache) as generator:
            return self._once(run, replace(config, generator=usual), generator)[0]

    def _identity(
        self, config: EvaluateConfig, benchmark: Benchmark, prompts: Sequence[Prompt], generator: Generator
    ) -> dict[str, Any]:
        """Return all that makes two results comparable: everything but the run's own weights."""
        return {
            "benchmark": config.benchmark["name"],
            "settings": benchmark.settings(),
            "prompts": prompts_hash(prompts),
            "generator": generator.how() if benchmark.answered else None,
            "judge": benchmark.decides or self.judge.identity(),
        }

    def _bills(self) -> dict[str, dict[str, Any]]:
        return {"cost": self.judge.cost(), "generation_cost": self.generator.cost()}

    def _paid_since(self, before: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
        return {
            name: {k: v - before[name].get(k, 0) for k, v in bill.items() if isinstance(v, int | float)}
            for name, bill in self._bills().items()
            if bill
        }


def key_of(run: Path, config: EvaluateConfig, judge: str, identity: Mapping[str, Any]) -> str:
    """Return the name of a result: the short one if its settings are the usual ones and no other result has it."""
    name = f"{config.benchmark['name']}-{judge}"
    there = (view_run(run)["eval"] or {}).get(name, {}).get("identity")
    return name if is_usual(config) and there in (None, identity) else f"{name}-{hash_json(identity)[:8]}"


def answer(generator: Generator, prompts: Sequence[Prompt], sampling: Sampling, cache: Path) -> list[Sample]:
    """Answer all prompts, in their order: those that follow another one after it, each with its temperature."""
    conversations: dict[str | None, tuple[Mapping[str, str], ...]] = {None: ()}
    samples: dict[str, Sample] = {}
    left = list(prompts)
    while left:
        ready = [prompt for prompt in left if prompt.follows in conversations]
        if not ready:
            raise ValueError(f"prompt {left[0].prompt_id!r} follows {left[0].follows!r}, which is not asked")
        asked = [replace(p, messages=(*conversations[p.follows], *p.messages), follows=None) for p in ready]
        for heat in sorted({_heat(p, sampling) for p in asked}):
            group = [p for p in asked if _heat(p, sampling) == heat]
            answers = generate(generator, group, replace(sampling, temperature=heat), cache)
            samples |= {sample.prompt_id: sample for sample in answers}
        for p in asked:
            said = {"role": "assistant", "content": samples[p.prompt_id].text}
            conversations[p.prompt_id] = (*p.messages, said)
        left = [p for p in left if p.prompt_id not in samples]
    return [samples[prompt.prompt_id] for prompt in prompts]


def _heat(prompt: Prompt, sampling: Sampling) -> float:
    return sampling.temperature if prompt.temperature is None else prompt.temperature


def judge_samples(
    benchmark: Benchmark, samples: Sequence[Sample], judge: Judge, repeat: int = 0
) -> list[Judgment]:
    """Judge all answers: what is decided stays, the rest the judge is asked, or its file of judgments."""
    requests = benchmark.questions(samples, repeat)
    if judge.judgments is not None and not benchmark.decides:
        published = benchmark.published(judge.judgments, getattr(judge, "model", None))
        matched = zip(requests, match_published(published, requests, judge.judgments), strict=True)
        return [Judgment(request, None, benchmark.score_of(row)) for request, row in matched]
    asked = [request for request in requests if request.decided is None]
    replies = iter(ask_all(judge, asked) if asked else ())
    judgments = []
    for request in requests:
        reply = next(replies) if request.decided is None else None
        score = request.decided if reply is None else benchmark.read(request, reply)
        judgments.append(Judgment(request, reply, score))
    return judgments


def match_published(
    published: Sequence[dict[str, Any]], requests: Sequence[JudgeRequest], file: Path
) -> list[dict[str, Any]]:
    """Return the published judgment of each request; refuse missing ones, and those of other answers."""
    rows = {row["prompt_id"]: row for row in published}
    if missing := [request.prompt_id for request in requests if request.prompt_id not in rows]:
        raise ValueError(f"{file} lacks {len(missing)} of {len(requests)} judgments (first: {missing[0]})")
    if left := len(rows) - len(requests):
        log.info("%s: %d judgments of other prompts are left out", file, left)
    matched = [rows[request.prompt_id] for request in requests]
    others = [
        row["prompt_id"]
        for request, row in zip(requests, matched, strict=True)
        if None not in (row["answers"], request.facts.get("answers"))
        and row["answers"] != request.facts["answers"]
    ]
    if others:
        raise ValueError(
            f"{file} judges other answers for {len(others)} of {len(requests)} prompts (first: {others[0]}); take "
            "the answers that belong to it: generator=file generator.path=..."
        )
    return matched


def sample_rows(
    prompts: Sequence[Prompt], samples: Sequence[Sample], judgments: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    judged, rows = {row["prompt_id"]: row for row in judgments}, []
    for prompt, sample in zip(prompts, samples, strict=False):
        row = {**judged.get(sample.prompt_id, {}), **asdict(sample), "prompt": prompt.messages[-1]["content"]}
        row["response"] = row.pop("text")
        rows.append({**row, "characters": len(sample.text)})
    return rows


def lengths(samples: Sequence[Sample]) -> dict[str, Any]:
    """Return the mean lengths of answers, and how many were cut or could not be had."""
    if not samples:
        return {}
    tokens = [sample.tokens for sample in samples]
    return {
        "tokens_mean": None if None in tokens else sum(tokens) / len(tokens),
        "characters_mean": sum(len(sample.text) for sample in samples) / len(samples),
        "truncated": sum(sample.truncated for sample in samples),
        "prompts_cut": sum(sample.prompt_cut for sample in samples),
        "answers_unusable": sum(bool(sample.problem) for sample in samples),
    }
