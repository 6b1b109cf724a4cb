"""What a scorer is, the scorers there are, and scoring answers once: a checker, a judge or a reward model.

A scorer is a class and a YAML in conf/scorer that names it. It gives every answer a number, the higher the better, or
None where it can say none; nothing else knows how good an answer is.
"""

import math
import sys
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from tqdm import tqdm

from lab.benchmarks.mt_bench import GRAMMAR, VERDICT
from lab.judging.guard import guard, markers_of
from lab.judging.judges import Judge, JudgeRequest, ask_all, judge_errors, open_judge
from lab.serving.service import Service, open_service, service_errors
from sgdpo.config.schema import ModelConfig
from sgdpo.contract import Kind, binding_errors
from sgdpo.data.rows import RefusedError
from sgdpo.hub import HUB_ID
from sgdpo.runs.contents import hash_place
from sgdpo.source import load_dotted, module_texts
from sgdpo.store import JsonLines, cut_jsonl, hash_json, held
from sgdpo.values import Range

SCORER = Kind("scorer", key="class", given=("judge", "device"), parts=("scores",))
TEMPLATE = """Rate how well an assistant answers a user: how helpful, correct and to the point the answer is, and
whether it does everything that the user asks for. Reply with nothing but the rating, from 1 (useless) to 10 (perfect),
in this form: Rating: [[5]]

[Question]
{question}

[The Start of the Answer]
{answer}
[The End of the Answer]"""


@dataclass(frozen=True)
class Answered:
    """Hold an answer with what it answers: the row that the prompt came from, the conversation, the text."""

    row: Mapping[str, Any]
    messages: Sequence[Mapping[str, str]]
    text: str


class Scorer(Service):
    """Score answers. Derive from it: `scores` is all that a scorer must have.

    asks: whether it needs a judge, which is then given. kept: whether its scores are worth keeping here, because they
    cost something and nobody else keeps them.
    """

    kind = "scorer"
    asks = False
    kept = False

    def fits(self, prompt: Answered) -> None:
        """Raise ValueError if answers to this prompt cannot be scored; asked before anything is answered."""

    @abstractmethod
    def scores(self, answers: Sequence[Answered]) -> Iterator[float | None]:
        """Yield a score for each answer, in order; None or NaN where there is none."""

    def identity(self) -> dict[str, Any]:
        """Return the class, its settings and its module's text: changed code scores anew."""
        return {**super().identity(), "code": hash_json(module_texts(sys.modules[type(self).__module__]))}


class ConstraintScorer(Scorer):
    """Check the constraints of instructions: share met, less loops and empty talk, 0 to 1."""

    def fits(self, prompt: Answered) -> None:
        from sgdpo.constraints.instructions import instruction_of

        instruction_of(prompt.row, self.kinds)

    def scores(self, answers: Sequence[Answered]) -> Iterator[float | None]:
        from sgdpo.constraints.checker import check
        from sgdpo.constraints.instructions import instruction_of

        for answer in answers:
            yield check(instruction_of(answer.row, self.kinds), answer.text, self.kinds).total

    @cached_property
    def kinds(self) -> dict[str, Any]:
        from sgdpo.constraints.kinds import load_kinds

        return load_kinds()

    def identity(self) -> dict[str, Any]:
        from sgdpo.data.instructions import sources

        return {
            "scorer": "constraints",
            "code": hash_json([*sources(), *[k.source for k in self.kinds.values()]]),
        }


class WorldScorer(Scorer):
    """Check answers to the tasks of the generated world, 0 to 10."""

    def fits(self, prompt: Answered) -> None:
        asked = prompt.messages[-1]["content"]
        try:
            _world_task(asked)
        except ValueError:  # also of what begins like a task: "Add: apples"
            raise ValueError(
                f"{asked[:60]!r} is no task of the generated world, whose checker scores no other"
            ) from None

    def scores(self, answers: Sequence[Answered]) -> Iterator[float | None]:
        for answer in answers:
            check, task = _world_task(answer.messages[-1]["content"])
            yield check(task, answer.text).total

    def identity(self) -> dict[str, Any]:
        from sgdpo.data.generated import sources

        return {"scorer": "verifiable", "code": hash_json(sources())}


def _world_task(prompt: str) -> tuple[Callable[..., Any], Any]:
    """Return the checker of a prompt's genre and its task. Raise ValueError if it is none of the generated worlds'."""
    from sgdpo.world import checker, long
    from sgdpo.world.tasks import Task, task_of

    for name, (ask, solve, _) in long.FAMILIES.items():
        if prompt.startswith(before := ask.format("")):
            content = prompt.removeprefix(before)
            return long.check, Task(name, content, prompt, solve(content))
    return checker.check, task_of(prompt)


@dataclass(kw_only=True)
class JudgeScorer(Scorer):
    """Ask a judge to rate each answer by itself, 1 to 10."""

    asks = True
    judge: Judge | None = None
    max_tokens: Annotated[int, Range("[1, 100000]")] = 16

    def scores(self, answers: Sequence[Answered]) -> Iterator[float | None]:
        assert self.judge is not None, "open_scorer gives it"
        for reply in ask_all(self.judge, [self._request(answer) for answer in answers]):
            found = VERDICT.search(reply.text)
            yield float(found[1]) if found and 1 <= float(found[1]) <= 10 else None

    def _request(self, answer: Answered) -> JudgeRequest:
        question = "\n\n".join(f"{turn['role']}: {turn['content']}" for turn in answer.messages)
        asked = question if len(answer.messages) > 1 else answer.messages[-1]["content"]
        guarded = guard(answer.text, markers_of(TEMPLATE)).text
        prompt = TEMPLATE.format(question=asked, answer=guarded)
        return JudgeRequest(
            ({"role": "user", "content": prompt},), max_tokens=self.max_tokens, grammar=GRAMMAR
        )

    def identity(self) -> dict[str, Any]:
        assert self.judge is not None, "open_scorer gives it"
        return {
            "scorer": "judge",
            "template": hash_json(TEMPLATE),
            **self.judge.identity(),
            "tokens": self.max_tokens,
        }

    def cost(self) -> dict[str, Any]:
        return self.judge.cost() if self.judge else {}


@dataclass(kw_only=True)
class RewardModel(Scorer):
    """Score with a sequence classifier of one number over the rendered conversation."""

    kept = True
    path: str | None = None
    batch_size: Annotated[int, Range("[1, 100000]")] = 8
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    device: str = "cpu"

    def errors(self) -> list[str]:
        if self.path and ((Path(self.path) / "config.json").is_file() or HUB_ID.fullmatch(self.path)):
            return []
        return [f"path={self.path} is no reward model; give a folder with config.json, or a hub id"]

    def fits(self, prompt: Answered) -> None:
        """Raise RefusedError for a conversation that its chat template does not render."""
        try:
            self._text(prompt)
        except RefusedError as error:
            raise RefusedError(f"{self.path}: {error}") from None

    def open(self, stack: ExitStack) -> None:
        """Raise ValueError for what no score could come from, before anything is answered."""
        from sgdpo.models.device import device_of
        from sgdpo.models.load import load_config

        device_of(self.device)
        self._tokenizer  # noqa: B018 one without a template is found before anything is answered
        if (labels := load_config(ModelConfig(name="reward", path=self.path)).num_labels) != 1:
            raise ValueError(f"{self.path} gives {labels} numbers; a reward model gives one")

    def scores(self, answers: Sequence[Answered]) -> Iterator[float | None]:
        import torch

        tokenizer, model = self._tokenizer, self._model
        texts = [self._text(answer) for answer in answers]
        context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        pads = tokenizer.pad_token_id is not None
        size = self.batch_size if pads else 1
        for start in range(0, len(texts), size):
            batch = tokenizer(
                texts[start : start + size], return_tensors="pt", padding=pads, truncation=True,
                max_length=context, add_special_tokens=False,
            )  # fmt: skip
            with torch.inference_mode():
                yield from model(**batch.to(model.device)).logits[:, 0].float().tolist()

    def _text(self, answer: Answered) -> str:
        from sgdpo.data.template import render

        return render(self._tokenizer, [*answer.messages, {"role": "assistant", "content": answer.text}])

    @cached_property
    def _tokenizer(self) -> Any:
        from sgdpo.data.template import default_template
        from sgdpo.models.load import loaded, tokenizer_class

        place = str(self.path)
        model = ModelConfig(name="reward", path=place)
        tokenizer = loaded(lambda: tokenizer_class(model).from_pretrained(place), "the tokenizer", place)
        if not default_template(tokenizer.chat_template, f"the tokenizer of {place}"):
            raise ValueError(
                f"{place} has no chat template, which puts a conversation to a reward model; save it with one"
            )
        tokenizer.padding_side, tokenizer.truncation_side = "right", "left"
        return tokenizer

    @cached_property
    def _model(self) -> Any:
        import torch
        from transformers import AutoModelForSequenceClassification

        from sgdpo.models.device import device_of
        from sgdpo.models.load import check_tensors, loaded

        place, kind = str(self.path), AutoModelForSequenceClassification
        how = {"dtype": getattr(torch, self.dtype), "output_loading_info": True}
        model, report = loaded(lambda: kind.from_pretrained(place, **how), "the reward model", place)
        check_tensors(report, place)  # a language model without a head of its own would score at random
        if model.config.pad_token_id is None:
            model.config.pad_token_id = self._tokenizer.pad_token_id
        return model.to(device_of(self.device)).eval()

    def identity(self) -> dict[str, Any]:
        folder = Path(str(self.path))
        model = hash_place(folder, ("*",), self.cache / "hashes")
        path = None if folder.is_dir() else self.path
        return {"scorer": "reward_model", "dtype": self.dtype, "path": path, "model": model}


def scorer_errors(
    settings: Mapping[str, Any], judge: Mapping[str, Any], extra: Sequence[str] = ()
) -> list[str]:
    """List everything wrong with a scorer's YAML, its settings and the judge beside it; nothing is loaded."""
    errors = service_errors(SCORER, settings, extra)
    if not binding_errors(SCORER, settings, extra):
        errors += judge_errors(judge, extra)
    if errors:
        return errors
    asks, answers = (load_dotted(group["class"], extra).asks for group in (settings, judge))
    if asks and not answers:
        errors.append(f"scorer={settings['name']} asks a judge: take judge=openai or judge=local")
    if answers and not asks:
        errors.append(
            f"scorer={settings['name']} asks no judge: leave judge={judge['name']} out, or take scorer=judge"
        )
    return errors


@contextmanager
def open_scorer(
    settings: Mapping[str, Any], judge: Mapping[str, Any], cache: Path, device: str, extra: Sequence[str] = ()
) -> Iterator[Scorer]:
    """Give the scorer of a YAML for the length of a block. Raise ValueError with every error at once."""
    if errors := scorer_errors(settings, judge, extra):
        raise ValueError("\n".join(errors))
    wanted = load_dotted(settings["class"], extra)
    with ExitStack() as stack:
        given: dict[str, Any] = {"device": device} if hasattr(wanted, "device") else {}
        if wanted.asks:
            given["judge"] = stack.enter_context(open_judge(judge, cache, extra))
        yield stack.enter_context(open_service(SCORER, settings, cache, extra, **given))


def score(scorer: Scorer, answers: Sequence[Answered], cache: Path) -> list[float | None]:
    """Return a score for each answer, in order, None where there is none; what is kept is not scored again."""
    if not scorer.kept:
        return [_sound(value) for value in _shown(scorer, answers)]
    keys = [hash_json([[dict(turn) for turn in answer.messages], answer.text], 24) for answer in answers]
    path = cache / "scores" / f"{hash_json(scorer.identity(), 24)}.jsonl"
    with held(path, "these scores"):
        known = {
            row["key"]: row["score"] for row in cut_jsonl(path, lambda row: {"key", "score"} <= set(row))
        }
        missing = {key: answer for key, answer in zip(keys, answers, strict=True) if key not in known}
        with JsonLines(path) as file:
            for key, value in zip(missing, _shown(scorer, list(missing.values())), strict=True):
                known[key] = _sound(value)
                file.append({"key": key, "score": known[key]})
    return [known[key] for key in keys]


def _shown(scorer: Scorer, answers: Sequence[Answered]) -> Iterator[float | None]:
    """Yield the scores under a progress bar. Raise ValueError unless there is one for each answer."""
    given = 0
    for value in tqdm(scorer.scores(answers), total=len(answers), desc="scores", unit="answer", disable=None):
        if (given := given + 1) > len(answers):
            break
        if value is not None and not hasattr(value, "__float__"):
            raise ValueError(f"{type(scorer).__name__} gives the score {value!r}, which is no number")
        yield value
    if given != len(answers):
        raise ValueError(
            f"{type(scorer).__name__} gives {'more' if given > len(answers) else given} scores for {len(answers)} "
            "answers; it must yield one for each, in order, None where it can say none"
        )


def _sound(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)
