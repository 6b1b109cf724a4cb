"""What a benchmark is: a class and a YAML in conf/benchmark that names it. Importing this loads nothing heavy.

    @dataclass(kw_only=True)
    class Politeness(Sampled):
        words: int = 3                                                # its own settings: keys of its YAML

        def prompts(self): ...                                        # what a model answers
        def questions(self, samples, repeat=0): ...                   # what a judge is asked of the answers
        def read(self, request, reply): ...                           # a score out of the judge's reply

Evaluation, judge variance and comparison are folds over it and know no benchmark.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

from lab.answers.prompts import Prompt, Sample, Sampling
from lab.judging.judges import JudgeRequest
from lab.serving.endpoint import MOST_UNUSABLE
from lab.serving.reply import Reply
from sgdpo.config.schema import RunConfig
from sgdpo.contract import Kind
from sgdpo.store import hash_json
from sgdpo.values import HalfOpenShare, Range

BENCHMARK = Kind(
    "benchmark",
    key="class",
    reserved=("headline", "metrics", "better", "about"),
    given=("subject",),
    parts=("prompts", "questions", "read", "summarise", "write"),
)
UNPARSABLE = -1  # in FastChat's rows
Count = Annotated[int, Range("[1, inf)")]
Seed = Annotated[int, Range("[0, 2147483647]")]
Temperature = Annotated[float, Range("[0, 10]")]


@dataclass(frozen=True)
class Subject:
    """Hold who is evaluated: a run, its settings and its start; only a name for answers that came in files.

    start: finds the folder of the SFT run it began from, None if it began from none. evaluate: evaluates another
    run on the same benchmark with some settings changed, and returns the folder of that result.
    """

    name: str
    folder: Path | None = None
    config: RunConfig | None = None
    device: str = "auto"
    start: Callable[[], Path | None] = lambda: None
    evaluate: Callable[..., Path] | None = None


@dataclass(frozen=True)
class Judgment:
    """Hold what was asked, what the judge answered (None: nobody was asked), and the score read from it."""

    request: JudgeRequest
    reply: Reply | None
    score: float | None


@dataclass(kw_only=True)
class Benchmark:
    """Score answers. Derive from it, or from Sampled where answers are drawn.

    decides: who scores where no judge is asked ("checker"); empty: a judge does. answered: False if it scores the
    model itself, so that no generator answers. unit: the name of a score in a judgment's row. scale: highest less
    lowest score. middle: where a score changes sides, if it does.
    """

    decides = ""
    answered = True
    unit = "score"
    scale = 1.0
    middle = None

    subject: Subject | None = None
    seed: Seed = 0
    limit: Count | None = None

    def errors(self) -> list[str]:
        """List what is wrong with the settings together, or for the subject; nothing heavy is loaded."""
        return []

    def prompts(self) -> list[Prompt]:
        return []

    def sampling(self) -> Sampling:
        return Sampling()

    def questions(self, samples: Sequence[Sample], repeat: int = 0) -> list[JudgeRequest]:
        """Return what the judge is asked, or what is decided without one, of the answers to all prompts."""
        return []

    def read(self, request: JudgeRequest, reply: Reply) -> float | None:
        return None

    def row(self, judgment: Judgment, judge: str) -> dict[str, Any]:
        """Return a judgment as it is written to judgments.jsonl."""
        score = {self.unit: judgment.score}
        return {"prompt_id": judgment.request.prompt_id, "judge": judge, **score, **judgment.request.facts}

    def published(self, file: Path, model: str | None = None) -> list[dict[str, Any]]:
        """Read judgments in the benchmark's own published form, as `row` writes them; model: whose, of several.

        `answers` in a row is the hash of what was judged, where the file says it.
        """
        raise ValueError("no published form of judgments is known for it")

    def score_of(self, row: Mapping[str, Any]) -> float | None:
        return row[self.unit]

    def summarise(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Return the numbers of a result from judgments' rows. Raise ValueError if too many say nothing."""
        from lab.benchmarks.statistics import bootstrap  # numpy; whoever only checks settings needs none

        scores = self.scores(rows)
        interval = bootstrap(scores, seed=self.seed).fields("score", mean="score_mean")
        return {**interval, "unparsable": len(rows) - len(scores), "n": len(rows)}

    def write(self, folder: Path, samples: Sequence[Sample], judgments: Sequence[Judgment]) -> None:
        """Write answers and judgments in the benchmark's published form too, if it has one."""

    def inputs(self) -> dict[str, Any]:
        """Return, for settings that name files, what stands for them in the identity: a hash of their content."""
        return {}

    def settings(self) -> dict[str, Any]:
        """Return the settings that a result depends on, files by their content."""
        named = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "subject"}
        return {**named, **self.inputs()}

    def scores(self, rows: Sequence[Mapping[str, Any]]) -> list[float]:
        """Return the scores that there are. Raise ValueError if more than 5 % say nothing."""
        scores = [self.score_of(row) for row in rows]
        refuse_unparsable(sum(score is None for score in scores), len(scores))
        return [score for score in scores if score is not None]


@dataclass(kw_only=True)
class Sampled(Benchmark):
    """Score answers that are drawn with one temperature for all prompts."""

    temperature: Temperature = 1.0
    top_p: HalfOpenShare = 1.0
    max_new_tokens: Count = 64

    def sampling(self) -> Sampling:
        return Sampling(self.temperature, self.top_p, self.max_new_tokens, self.seed)


def number_of(row: Mapping[str, Any], field: str) -> Any:
    """Return a number of a judgment's row, None where it says nothing: FastChat's rows mark that with -1."""
    value = row.get(field)
    return None if value == UNPARSABLE and "question_id" in row else value


def markers_met(rows: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Count the answers that held the judge's markers, and those that asked for a rating (`guard.py`)."""
    return {
        "answers_with_markers": sum(bool(row.get("markers")) for row in rows),
        "answers_asking_for_a_rating": sum(bool(row.get("demands")) for row in rows),
    }


def prompts_hash(prompts: Sequence[Prompt]) -> str:
    return hash_json([[p.prompt_id, [dict(turn) for turn in p.messages], p.follows] for p in prompts])


def refuse_unparsable(unparsable: int, total: int) -> None:
    """Raise ValueError if more than 5 % of the judgments say nothing: their mean would mislead."""
    if unparsable > MOST_UNUSABLE * total or total == unparsable:
        raise ValueError(
            f"{unparsable} of {total} judgments name no verdict, over {MOST_UNUSABLE:.0%}: this judge does "
            "not follow the prompt. All replies are kept; look at them, or take another judge"
        )
