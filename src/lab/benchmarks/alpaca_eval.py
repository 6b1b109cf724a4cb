"""AlpacaEval 2: a pairwise judge weighs our answer against the baseline's, by the log-probs of two labels.

The form is `weighted_alpaca_eval_gpt4_turbo` of alpaca-eval 0.6.6: its prompt (a data file, pinned by its
hash), its seeded order of the two answers, its reading of the first token's top log-probs, its file formats.
A preference in its files is 1 where the baseline won, 2 where ours did, and anything between; here it is 0 to 1.
Nothing of AlpacaEval's data is part of this repository.

Departures: placeholders are filled in one pass and chat turns are split before, so that no answer can write
either (theirs splits after); markers in answers are broken and counted (`guard.py`); judgments without a
preference are counted, and more than 5 % of them are refused; difficulties are matched by instruction, not by
row.
"""

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from lab.answers.formats import HUB, locate, of_one_model, read_outputs, read_rows, refuse_twice
from lab.answers.prompts import Prompt, Sample
from lab.benchmarks.benchmark import Judgment, Sampled, Seed, markers_met
from lab.judging.guard import fill, guard, markers_of
from lab.judging.judges import JudgeRequest
from lab.serving.reply import Reply
from sgdpo.hub import first_line
from sgdpo.store import hash_file, hash_json, hash_text, write_json
from sgdpo.values import fits

TEMPLATE = Path(__file__).parent / "data" / "alpaca_eval_clf.txt"
FIRST, SECOND = "m", "M"
TOP_LOGPROBS = 5
GRAMMAR = f'root ::= "{FIRST}" | "{SECOND}"'
WEIGHTED, FROM_TEXT = "weighted_alpaca_eval_gpt4_turbo", "alpaca_eval_clf"
GAMED_COLUMNS = ("preference", "std_delta_len", "instruction_difficulty", "not_gamed_baseline")


@dataclass(kw_only=True)
class AlpacaEval(Sampled):
    """Win over the baseline's answers to AlpacaEval's instructions."""

    unit = "preference"
    middle = 0.5

    baseline: str
    difficulties: str | None = None
    numbering: str | None = None
    gamed: str | None = None
    weighted: bool = True
    order_seed: Seed = 0

    def errors(self) -> list[str]:
        errors = []
        if self.gamed and not self.difficulties:
            errors.append(
                "benchmark.gamed needs the instructions' difficulties too: set benchmark.difficulties, or gamed=null"
            )
        for key in ("baseline", "difficulties", "numbering", "gamed"):
            place = getattr(self, key)
            try:
                if place and not place.startswith(HUB):
                    locate(place)
            except ValueError as error:
                errors.append(f"benchmark.{key}={error}")
        return errors

    @cached_property
    def theirs(self) -> list[dict[str, Any]]:
        return read_outputs(self.baseline)[: self.limit]

    @cached_property
    def template(self) -> str:
        return TEMPLATE.read_text("utf-8")

    def prompts(self) -> list[Prompt]:
        """Return the instructions; files of the length control that are wrong are found before anybody answers."""
        prompts = [Prompt.user(hash_text(row["instruction"]), row["instruction"]) for row in self.theirs]
        self.control([prompt.prompt_id for prompt in prompts])
        return prompts

    def questions(self, samples: Sequence[Sample], repeat: int = 0) -> list[JudgeRequest]:
        """Return one question an instruction; equal answers are a tie and are not paid for."""
        return [self._question(row, sample, repeat) for row, sample in zip(self.theirs, samples, strict=True)]

    def _question(self, row: Mapping[str, Any], sample: Sample, repeat: int) -> JudgeRequest:
        instruction, theirs = row["instruction"], row["output"]
        markers = markers_of(self.template)
        shown = [guard(theirs, markers), guard(sample.text, markers)]
        facts = {
            "switched": switched(instruction, self.order_seed),
            "characters": len(sample.text),
            "baseline_characters": len(theirs),
            "markers": shown[1].marked,
            "demands": shown[1].demands,
            "answers": hash_json([theirs, sample.text]),
        }
        texts = [answer.text for answer in (shown[::-1] if facts["switched"] else shown)]
        values = {"instruction": instruction, "output_1": texts[0], "output_2": texts[1]}
        chat = split_chat(self.template)
        messages = tuple({"role": role, "content": fill(content, values)} for role, content in chat)
        return JudgeRequest(
            messages,
            temperature=1.0 if self.weighted else 0.0,
            top_logprobs=TOP_LOGPROBS if self.weighted else 0,
            repeat=repeat,
            grammar=GRAMMAR,
            prompt_id=sample.prompt_id,
            facts=facts,
            decided=0.5 if theirs == sample.text else None,
        )

    def read(self, request: JudgeRequest, reply: Reply) -> float | None:
        """Return the preference, 0 (baseline) to 1 (ours); None if the judge named neither label.

        The probability of the first label among both is softmax over the two top log-probs; a label outside the
        top ones counts 0. With weighted=false the text counts.
        """
        if reply.top_logprobs is None:
            first = None if self.weighted else {FIRST: 1.0, SECOND: 0.0}.get(reply.text.strip())
        else:
            known = {token: value for token, value in reply.top_logprobs if token in (FIRST, SECOND)}
            weights = {label: math.exp(known[label]) if label in known else 0.0 for label in (FIRST, SECOND)}
            total = sum(weights.values())
            first = weights[FIRST] / total if total > 0 else None
        if first is None:
            return None
        return first if request.facts["switched"] else 1 - first

    def published(self, file: Path, model: str | None = None) -> list[dict[str, Any]]:
        rows = read_rows(file, ("instruction", "output_1", "output_2"))
        rows = of_one_model(rows, "generator_2", model, file)
        refuse_twice(file, rows)
        return [
            {
                "prompt_id": hash_text(row["instruction"]),
                "judge": row.get("annotator"),
                "preference": _won(row.get("preference")),
                "characters": len(row["output_2"]),
                "baseline_characters": len(row["output_1"]),
                "answers": hash_json([row["output_1"], row["output_2"]]),
                "model": row.get("generator_2"),
            }
            for row in rows
        ]

    def summarise(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Return win rates in per cent; the raw one is alpaca-eval's, the mean over the rows that have one."""
        from lab.benchmarks.length_control import length_controlled
        from lab.benchmarks.statistics import discrete_win_rate, share

        won_B = self.scores(rows)
        rate, characters = share(won_B), [row["characters"] for row in rows]
        lc = length_controlled(
            [row["preference"] for row in rows],
            characters,
            [row["baseline_characters"] for row in rows],
            **self.control([row["prompt_id"] for row in rows]),
        )
        return {
            **rate.fields("win_rate"),
            "discrete_win_rate": discrete_win_rate(won_B),
            **lc.fields(),
            **markers_met(rows),
            "unparsable": len(rows) - len(won_B),
            "n": len(rows),
        }

    def control(self, prompt_ids: Sequence[str]) -> dict[str, Any]:
        """Return what the length-controlled fit needs beside the judgments, as far as files are given."""
        given: dict[str, Any] = {"difficulty_B": None, "gamed": None}
        if self.difficulties:
            numbered = read_outputs(self.numbering or self.baseline)
            numbering = [hash_text(row["instruction"]) for row in numbered]
            given["difficulty_B"] = read_difficulties(self.difficulties, numbering, prompt_ids)
        if self.gamed:
            given["gamed"] = read_gamed(self.gamed)
        return given

    def inputs(self) -> dict[str, Any]:
        files = {name: getattr(self, name) for name in ("baseline", "difficulties", "numbering", "gamed")}
        files |= {} if self.difficulties else {"numbering": None}
        hashes = {name: path and hash_file(locate(path))[:16] for name, path in files.items()}
        return {**hashes, "judge_prompt": hash_text(self.template)}

    def write(self, folder: Path, samples: Sequence[Sample], judgments: Sequence[Judgment]) -> None:
        assert self.subject is not None, "somebody has answered"
        name, outputs, annotations = self.subject.name, [], []
        for row, sample, judgment in zip(self.theirs, samples, judgments, strict=True):
            about = {"instruction": row["instruction"], "generator": name, "dataset": "alpaca_eval"}
            outputs.append({**about, "output": sample.text})
            annotations.append(
                {
                    "instruction": row["instruction"],
                    "output_1": row["output"],
                    "generator_1": str(row.get("generator") or "baseline"),
                    "output_2": sample.text,
                    "generator_2": name,
                    "annotator": WEIGHTED if self.weighted else FROM_TEXT,
                    "preference": None if judgment.score is None else 1 + judgment.score,
                    "raw_completion": None if judgment.reply is None else _raw(judgment.reply),
                }
            )
        write_json(folder / "model_outputs.json", outputs)
        write_json(folder / "annotations.json", annotations)


def switched(instruction: str, seed: int) -> bool:
    """Say whether ours is shown first: the very draw of alpaca-eval, so that annotations move both ways."""
    return random.Random(f"is_switched_outputs{instruction}{seed}").choices([False, True], k=1)[0]


def split_chat(template: str) -> list[tuple[str, str]]:
    """Split a ChatML template into (role, content), before anything is filled in."""
    turns = [turn.split("\n", 1) for turn in template.strip().split("<|im_start|>")[1:]]
    return [(role.strip(), content.split("<|im_end|>", 1)[0].strip()) for role, content in turns]


def read_difficulties(path: str, numbering: Sequence[str], prompt_ids: Sequence[str]) -> list[float]:
    """Return the difficulty of each prompt from instruction_difficulty.csv, or from df_gamed.csv.

    These number the instructions; `numbering` are the prompts that the numbers mean. A column `instruction` is
    better and goes first. Raises ValueError for prompts without a difficulty.
    """
    table = _read_table(path)
    difficulty = _numbers(
        table["instruction_difficulty" if "instruction_difficulty" in table else table.columns[-1]]
    )
    if "instruction" in table:
        known = dict(zip(map(hash_text, table["instruction"].astype(str)), difficulty, strict=True))
    else:
        number = _numbers(table["index"] if "index" in table else table[table.columns[0]])
        by_number = dict(zip(number, difficulty, strict=True))
        known = {prompt: by_number[n] for n, prompt in enumerate(numbering) if n in by_number}
    if missing := [prompt for prompt in prompt_ids if not math.isfinite(known.get(prompt, math.nan))]:
        raise ValueError(
            f"{path} has no difficulty for {len(missing)} of {len(prompt_ids)} instructions; its numbers must be "
            "those of benchmark.numbering, the file of all instructions in the published order"
        )
    return [float(known[prompt]) for prompt in prompt_ids]


def read_gamed(path: str) -> Any:
    """Return the annotations of the gamed baselines, a table of numbers. Raise ValueError for anything else."""
    table = _read_table(path)
    if absent := [column for column in GAMED_COLUMNS if column not in table]:
        raise ValueError(f"{path} lacks the columns {absent}; it must be AlpacaEval's df_gamed.csv")
    table = table[list(GAMED_COLUMNS)].apply(_numbers)
    wrong = ~table.abs().lt(math.inf).all(axis=1) | ~table["preference"].between(0, 1)
    if wrong.any():
        raise ValueError(
            f"{path}, line {int(wrong.to_numpy().argmax()) + 2}: {', '.join(GAMED_COLUMNS)} must be numbers, the "
            "preference one from 0 to 1"
        )
    return table


def _read_table(path: str) -> Any:
    import pandas as pd

    file = locate(path)
    try:
        return pd.read_csv(file)
    except ValueError as error:  # of pandas and of the decoder
        raise ValueError(f"{path} cannot be read as a CSV file: {first_line(error)}") from None


def _numbers(column: Any) -> Any:
    """Return a column of a table as numbers, NaN where there is none."""
    import pandas as pd

    return pd.to_numeric(column, errors="coerce").astype(float)


def _won(value: Any) -> float | None:
    """Return preference - 1; None for anything that is no preference, as alpaca-eval drops it."""
    if not fits(value, float) or not (value == 0 or 1 <= value <= 2):
        return None
    return 0.5 if value == 0 else float(value) - 1


def _raw(reply: Reply) -> dict[str, Any]:
    """Return a reply in the shape of the API's own answer, which alpaca-eval's parser reads."""
    top = [{"token": token, "logprob": value} for token, value in reply.top_logprobs or ()]
    content = [{"token": reply.text, "top_logprobs": top}] if top else []
    return {"text": reply.text, "finish_reason": reply.finish, "logprobs": {"content": content}}
