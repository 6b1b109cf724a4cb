"""AlpacaEval 2: a pairwise judge weighs our answer against the baseline's, by the log-probs of two labels.

The form is `weighted_alpaca_eval_gpt4_turbo` of alpaca-eval 0.6.6: its prompt (a data file, pinned by its
hash), its seeded order of the two answers, its reading of the first token's top log-probs, its file formats.
A preference is 1 where the baseline won, 2 where ours did, and anything between.

Departures: placeholders are filled in one pass and chat turns are split before, so that no answer can write
either (theirs splits after); markers in answers are broken and counted (`guard.py`); judgments without a
preference are counted, and more than 5 % of them are refused.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lab.benchmarks.length_control import length_controlled
from lab.benchmarks.statistics import win_rate
from lab.judging.guard import Guarded, fill, guard, markers_of
from lab.judging.judges import Judge, ask_all
from lab.judging.requests import JudgeRequest
from lab.serving.endpoint import MOST_UNUSABLE
from lab.serving.reply import Reply
from sgdpo.store import hash_text

TEMPLATE = Path(__file__).parent / "data" / "alpaca_eval_clf.txt"
FIRST, SECOND = "m", "M"
# The form of a reply, for judges that can be held to one; a small model would not keep to it by itself.
GRAMMAR = f'root ::= "{FIRST}" | "{SECOND}"'
TOP_LOGPROBS = 5
ANNOTATOR = "weighted_alpaca_eval_gpt4_turbo"


@dataclass(frozen=True)
class Duel:
    """Hold one instruction with the baseline's answer (1) and ours (2), as AlpacaEval numbers them."""

    instruction: str
    baseline: str
    ours: str
    switched: bool


def switched(instruction: str, seed: int) -> bool:
    """Say whether ours is shown first: the very draw of alpaca-eval, so that annotations move both ways."""
    return random.Random(f"is_switched_outputs{instruction}{seed}").choices([False, True], k=1)[0]


def split_chat(template: str) -> list[tuple[str, str]]:
    """Split a ChatML template into (role, content), before anything is filled in."""
    turns = [turn.split("\n", 1) for turn in template.strip().split("<|im_start|>")[1:]]
    return [(role.strip(), content.split("<|im_end|>", 1)[0].strip()) for role, content in turns]


def judge_request(
    duel: Duel, template: str, *, top_logprobs: int = TOP_LOGPROBS, repeat: int = 0
) -> tuple[JudgeRequest, tuple[Guarded, Guarded]]:
    """Return the question to the judge, and how the baseline's and our answer were guarded."""
    markers = markers_of(template)
    theirs, ours = guard(duel.baseline, markers), guard(duel.ours, markers)
    shown = (ours, theirs) if duel.switched else (theirs, ours)
    values = {"instruction": duel.instruction, "output_1": shown[0].text, "output_2": shown[1].text}
    messages = tuple(
        {"role": role, "content": fill(content, values)} for role, content in split_chat(template)
    )
    request = JudgeRequest(
        messages,
        max_tokens=1,
        temperature=1.0 if top_logprobs else 0.0,
        top_logprobs=top_logprobs,
        repeat=repeat,
        grammar=GRAMMAR,
    )
    return request, (theirs, ours)


def preference(reply: Reply, was_switched: bool) -> float | None:
    """Return the preference, 1 (baseline) to 2 (ours); None if the judge named neither label.

    The probability of the first label among both is softmax over the two top log-probs; a label outside the
    top ones counts 0. A reply without log-probs (weighted=false) counts by its text.
    """
    if reply.top_logprobs is None:
        first = {FIRST: 1.0, SECOND: 0.0}.get(reply.text.strip())
    else:
        found = {token: value for token, value in reply.top_logprobs if token in (FIRST, SECOND)}
        weights = {label: math.exp(found[label]) if label in found else 0.0 for label in (FIRST, SECOND)}
        total = sum(weights.values())
        first = weights[FIRST] / total if total > 0 else None
    if first is None:
        return None
    return 1 + first if was_switched else 2 - first


@dataclass(frozen=True)
class Verdicts:
    """Hold the preference of each duel, None where the judge named no label, and what the guard counted."""

    preferences: list[float | None]
    replies: list[Reply | None]
    marked: int
    demands: int
    template_hash: str


def judge_duels(
    judge: Judge, duels: Sequence[Duel], *, top_logprobs: int = TOP_LOGPROBS, repeat: int = 0
) -> Verdicts:
    """Judge every duel; equal answers are a tie and are not paid for. Raises what ask_all raises.

    top_logprobs: 0 reads the verdict from the text (benchmark.weighted=false).
    """
    template = TEMPLATE.read_text("utf-8")
    asked = [judge_request(duel, template, top_logprobs=top_logprobs, repeat=repeat) for duel in duels]
    differs = [duel.baseline != duel.ours for duel in duels]
    answered = iter(ask_all(judge, [request for (request, _), d in zip(asked, differs, strict=True) if d]))
    replies = [next(answered) if d else None for d in differs]
    values = [
        1.5 if reply is None else preference(reply, duel.switched)
        for duel, reply in zip(duels, replies, strict=True)
    ]
    ours = [guarded[1] for _, guarded in asked]
    marked, demands = sum(g.marked for g in ours), sum(g.demands for g in ours)
    return Verdicts(values, replies, marked, demands, hash_text(template))


def annotation_rows(
    duels: Sequence[Duel], verdicts: Verdicts, *, baseline_name: str, our_name: str, annotator: str
) -> list[dict[str, Any]]:
    """Return the judgments as rows of AlpacaEval's annotations.json."""
    return [
        {
            "instruction": duel.instruction,
            "output_1": duel.baseline,
            "generator_1": baseline_name,
            "output_2": duel.ours,
            "generator_2": our_name,
            "annotator": annotator,
            "preference": value,
            "raw_completion": None if reply is None else _raw(reply),
        }
        for duel, value, reply in zip(duels, verdicts.preferences, verdicts.replies, strict=True)
    ]


def summarise_annotations(
    rows: Sequence[Mapping[str, Any]],
    *,
    difficulties: Sequence[float] | None = None,
    gamed: pd.DataFrame | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Return win rates in per cent of annotation rows, ours or published ones.

    The raw rate is alpaca-eval's: the mean of preference - 1 over the rows that have one (0, an old sign for
    a draw, counts 1.5). Raises ValueError if more than 5 % of the rows have none.
    """
    won_B = np.array([_won(row.get("preference")) for row in rows])
    known_B = np.isfinite(won_B)
    refuse_unparsable(int((~known_B).sum()), len(rows))
    rate = win_rate(won_B[known_B])
    lengths = [[len(row[key]) for row in rows] for key in ("output_2", "output_1")]
    lc = length_controlled(won_B, *lengths, difficulty_B=difficulties, gamed=gamed, seed=seed)
    return {
        "win_rate": rate.value,
        "win_rate_se": rate.error,
        "win_rate_low": rate.low,
        "win_rate_high": rate.high,
        "lc_win_rate": lc.value,
        "lc_win_rate_se": lc.error,
        "lc_form": lc.form,
        "characters_mean": float(np.mean(lengths[0])),
        "unparsable": int((~known_B).sum()),
        "n": len(rows),
    }


def refuse_unparsable(unparsable: int, total: int) -> None:
    """Raise ValueError if more than 5 % of the judgments say nothing: their mean would mislead."""
    if unparsable > MOST_UNUSABLE * total:
        raise ValueError(
            f"{unparsable} of {total} judgments name no verdict, over {MOST_UNUSABLE:.0%}: this judge does "
            "not follow the prompt. All replies are kept; look at them, or take another judge"
        )


def _won(value: Any) -> float:
    """Return preference - 1; NaN for anything that is no preference, as alpaca-eval drops it."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not (value == 0 or 1 <= value <= 2):
        return math.nan
    return 0.5 if value == 0 else float(value) - 1


def _raw(reply: Reply) -> dict[str, Any]:
    """Return a reply in the shape of the API's own answer, which alpaca-eval's parser reads."""
    top = [{"token": token, "logprob": value} for token, value in reply.top_logprobs or ()]
    content = [{"token": reply.text, "top_logprobs": top}] if top else []
    return {"text": reply.text, "finish_reason": reply.finish, "logprobs": {"content": content}}
