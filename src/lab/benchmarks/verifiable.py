"""The verifiable benchmark: a checker knows the quality of every answer; judging needs no network, no luck.

Answers to the held-out prompts of `data=verifiable` are scored 0 to 10; the win rate is over a baseline's
answers to the same prompts (the SFT start), the better score wins and equal scores count half.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from lab.answers.prompts import Prompt, Sample
from lab.benchmarks.benchmark import Sampled
from lab.judging.judges import JudgeRequest
from sgdpo.runs.records import RECORD
from sgdpo.store import hash_file, hash_json, read_jsonl

BEST = 10
START = "start"  # baseline: the SFT run that the run started from
SAMPLES = "samples.jsonl"


@dataclass(kw_only=True)
class Verifiable(Sampled):
    """Check the answers to the held-out prompts of the run's own generated world."""

    decides = "checker"
    scale = 10.0

    baseline: str | None = START
    part: Literal["all", "tuning", "test"] = "all"

    def errors(self) -> list[str]:
        """Say so if somebody's data is no generated world."""
        data = self.subject.config.data if self.subject and self.subject.config else None
        if self.subject is None or (data and data.settings.get("world")):
            return []
        name = data.name if data else "not known"
        return [f"benchmark=verifiable needs the world of data=verifiable; the run's data is {name!r}"]

    @cached_property
    def world(self) -> Any:
        """Return the settings of the run's world."""
        from sgdpo.world.verifiable import world_of

        assert self.subject is not None, "a benchmark that only shows its settings has no tasks"
        if errors := self.errors():
            raise ValueError("\n".join(errors))
        assert self.subject.config is not None, "errors has asked for it"
        return world_of(self.subject.config.data.settings["world"])

    @cached_property
    def tasks(self) -> list[Any]:
        """Return the held-out tasks: all, or the half to choose settings by, or the half that nothing was chosen by."""
        from sgdpo.world.verifiable import held_out_prompts

        tasks = held_out_prompts(self.world)
        half = len(tasks) // 2
        parts = {"all": tasks, "tuning": tasks[:half], "test": tasks[half:]}
        return parts[self.part][: self.limit]

    def prompts(self) -> list[Prompt]:
        """Return the tasks' prompts; a baseline that does not fit them is found before the model answers."""
        assert self.theirs is None or len(self.theirs) == len(self.tasks), "read_baseline matched them"
        return [Prompt.user(task.task_id, task.prompt) for task in self.tasks]

    @cached_property
    def theirs(self) -> list[dict[str, Any]] | None:
        """Return the baseline's scored answers in the order of the tasks; None without a baseline."""
        if self.baseline is None:
            return None
        subject = self.subject
        assert subject is not None, "tasks has asked for it"
        folder = subject.start() if self.baseline == START else Path(self.baseline)
        if folder is None:
            return None
        if (folder / RECORD).is_file():
            assert subject.evaluate is not None, "a run can be evaluated"
            folder = subject.evaluate(folder, baseline=START)
        return read_baseline(folder, [task.task_id for task in self.tasks])

    def questions(self, samples: Sequence[Sample], repeat: int = 0) -> list[JudgeRequest]:
        """Return every answer with the checker's score, and with who won where there is a baseline."""
        from lab.benchmarks.statistics import preferences

        check = self.world.genre.check
        checked = [check(task, sample.text) for task, sample in zip(self.tasks, samples, strict=True)]
        facts: list[dict[str, Any]] = [
            {"correct": c.correct, "format": c.format, "padding": c.padding, "characters": len(s.text)}
            for c, s in zip(checked, samples, strict=True)
        ]
        if self.theirs is not None:
            won = preferences([c.total for c in checked], [row["score"] for row in self.theirs])
            for fact, row, preference in zip(facts, self.theirs, won, strict=True):
                fact |= {"baseline_score": row["score"], "baseline_characters": row["characters"]}
                fact["preference"] = float(preference)
        return [
            JudgeRequest(prompt_id=sample.prompt_id, decided=c.total, facts=fact)
            for sample, c, fact in zip(samples, checked, facts, strict=True)
        ]

    def summarise(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        scores = self.scores(rows)
        perfect = 100 * sum(score == BEST for score in scores) / len(scores)
        return {**super().summarise(rows), **self._wins(rows), "perfect": perfect}

    def _wins(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        from lab.benchmarks.length_control import LengthControlled, length_controlled
        from lab.benchmarks.statistics import Interval, share

        if any("preference" not in row for row in rows):
            return {**Interval(None, None, None, None).fields("win_rate"), **LengthControlled().fields()}
        won_B, ours_B, theirs_B = (
            [row[key] for row in rows] for key in ("preference", "characters", "baseline_characters")
        )
        rate, lc = share(won_B), length_controlled(won_B, ours_B, theirs_B)
        # The numbers are called after the start; whose answers they are over is said where it is another.
        over = {} if self.baseline == START else {"won_over": self.baseline}
        return {**rate.fields("win_rate"), **lc.fields(), **over}

    def inputs(self) -> dict[str, Any]:
        from sgdpo.data.generated import sources

        found = {"code": hash_json(sources())}
        if self.baseline in (None, START):
            return found
        folder = Path(self.baseline)
        # The answers of another run are drawn for this evaluation: its folder's name says whose.
        if not (folder / RECORD).is_file() and (file := answers_file(folder)).is_file():
            found["baseline"] = hash_file(file)[:16]
        return found


def answers_file(path: Path) -> Path:
    return path / SAMPLES if path.is_dir() else path


def read_baseline(path: Path, prompt_ids: Sequence[str]) -> list[dict[str, Any]]:
    """Return the baseline's scored answers, in the order of the prompts.

    Raises ValueError if the file is absent, or lacks prompts, or holds one twice.
    """
    file = answers_file(path)
    if not file.is_file():
        raise ValueError(
            f"no answers of the baseline at {file}; evaluate that run first, or set baseline=null"
        )
    rows = read_jsonl(file)
    if lines := [n for n, row in enumerate(rows, 1) if not _is_scored(row)]:
        raise ValueError(f"{file}, line {lines[0]}: not a scored answer of benchmark=verifiable")
    found = {row["prompt_id"]: row for row in rows}
    if len(found) != len(rows):
        raise ValueError(f"{file} holds {len(rows) - len(found)} prompts twice; evaluate the baseline again")
    if missing := [key for key in prompt_ids if key not in found]:
        raise ValueError(
            f"{file} has no answer to {len(missing)} of {len(prompt_ids)} prompts (first: {missing[0]!r}); "
            "it answered another world or limit: evaluate the baseline with the same data"
        )
    return [found[key] for key in prompt_ids]


def _is_scored(row: Mapping[str, Any]) -> bool:
    score, characters = row.get("score"), row.get("characters")
    # The comparison is false for NaN and for what no score of the checker's is.
    known = isinstance(score, int | float) and 0 <= score <= BEST and isinstance(characters, int)
    return known and isinstance(row.get("prompt_id"), str)
