"""Read what a chat endpoint sent: an answer of the API, one that cannot be used and why, or no answer at all."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sgdpo.values import fits

# A log-prob may pass 0 by rounding; JSON also knows whole numbers that no float holds.
MOST_LOGPROB, LEAST_LOGPROB = 1e-3, -sys.float_info.max


@dataclass(frozen=True)
class Tokens:
    """Hold a count of prompt and answer tokens."""

    prompt: int
    new: int

    def __add__(self, other: Tokens) -> Tokens:
        return Tokens(self.prompt + other.prompt, self.new + other.new)

    def __sub__(self, other: Tokens) -> Tokens:
        return Tokens(self.prompt - other.prompt, self.new - other.new)


@dataclass(frozen=True)
class Reply:
    """Hold one answer: its text, the first token's top log-probs if asked for, and what it used.

    used: the server's count; None if it gave none. problem: why the answer cannot be used; it has no text and no
    log-probs then.
    """

    text: str
    top_logprobs: tuple[tuple[str, float], ...] | None = None
    used: Tokens | None = None
    finish: str = "stop"
    problem: str = ""


def read_reply(text: str, top_logprobs: int) -> Reply:
    """Read an answer that `what_is_wrong` finds nothing wrong with.

    top_logprobs: how many were asked for; an answer whose first token has none of them is unusable.
    """
    answer = json.loads(text)
    choice, used = answer["choices"][0], read_usage(answer)
    message, finish = choice["message"], choice.get("finish_reason")
    content = message.get("refusal") if message.get("content") is None else message["content"]
    problem, top = "", None
    if finish == "content_filter":
        problem = "the server's content filter took the answer"
    elif not isinstance(content, str | None):
        problem = f"the content of the answer is a {type(content).__name__}, not a text"
    elif top_logprobs:
        top, problem = _top_logprobs(choice, answer.get("model"))
    if problem:
        content, top = "", None
    finish = finish if isinstance(finish, str) and finish else "stop"
    return Reply(content or "", top, used, finish, problem)


def _top_logprobs(choice: Mapping[str, Any], model: Any) -> tuple[tuple[tuple[str, float], ...] | None, str]:
    try:
        top = choice["logprobs"]["content"][0]["top_logprobs"]
        entries = [(entry["token"], entry["logprob"]) for entry in top]
    except (KeyError, IndexError, TypeError):
        entries = []
    for token, value in entries:
        if not isinstance(token, str) or not fits(value, float) or not LEAST_LOGPROB <= value <= MOST_LOGPROB:
            return None, f"the log-prob of {str(token)[:20]!r} is {str(value)[:40]!r}, which is none"
    if not entries:
        return None, (
            f"model {model!r} answered without log-probs, which the weighted judge reads its preference from. Use a "
            "server that returns top_logprobs, or benchmark.weighted=false"
        )
    return tuple((token, float(value)) for token, value in entries), ""


def read_usage(answer: Mapping[str, Any]) -> Tokens | None:
    """Return the server's own count of prompt and answer tokens; None if there is none that is a count."""
    usage = answer.get("usage")
    given = usage if isinstance(usage, dict) else {}
    counts = [given.get(key) for key in ("prompt_tokens", "completion_tokens")]
    return Tokens(*counts) if all(fits(count, int) and count >= 0 for count in counts) else None


def what_is_wrong(status: int, text: str) -> str:
    """Say why a response is no answer of the chat API, or nothing."""
    if not 200 <= status < 300:
        return f"status {status}: {_words(text)}"
    try:
        answer = json.loads(text)
    except (ValueError, RecursionError):
        return f"an answer that is not the API's JSON ({_words(text)[:60]!r}), or cut off"
    choices = answer.get("choices") if isinstance(answer, dict) else None
    first = choices[0] if isinstance(choices, list) and choices else None
    if not isinstance(first, dict) or not isinstance(first.get("message"), dict):
        said = _words(text)[:100]
        return f"an answer without choices ({said!r}): this is not an OpenAI-compatible chat endpoint, or it is broken"
    return ""


def _words(text: str) -> str:
    """Return what a server says of an error: its message, or the beginning of whatever it sent."""
    try:
        said = json.loads(text)["error"]
        text = str(said["message"] if isinstance(said, dict) else said)
    except (ValueError, TypeError, KeyError, RecursionError):
        pass
    return " ".join(text.split())[:300]
