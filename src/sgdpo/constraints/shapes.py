"""Kinds of constraint on the form: case, beginning and end, punctuation, marks, JSON."""

import json
import re
from collections.abc import Sequence


def lower(answer: str) -> bool:
    return answer == answer.lower()


def upper(answer: str) -> bool:
    return answer == answer.upper()


def starts_with(answer: str, *, words: str) -> bool:
    return answer.strip().lower().startswith(words.lower())


def ends_with(answer: str, *, words: str) -> bool:
    return answer.strip().lower().endswith(words.lower())


def quoted(answer: str) -> bool:
    """One pair of double quotes, straight or curly, is around everything."""
    return re.fullmatch(r'"[^"]+"|“[^“”]+”', answer.strip()) is not None


def title(answer: str) -> bool:
    """The first line is a title in double angular brackets, and something follows."""
    return re.match(r"\s*<<[^<>\n]+>>\s*\n\s*\S", answer) is not None


def without(answer: str, *, mark: str) -> bool:
    return mark not in answer


def question(answer: str) -> bool:
    return answer.strip().endswith("?")


def bold(answer: str, *, count: int) -> bool:
    return len(re.findall(r"\*\*[^*\n]+\*\*", answer)) >= count


def placeholders(answer: str, *, count: int) -> bool:
    return len(re.findall(r"\[[^\[\]\n]+\]", answer)) >= count


def postscript(answer: str) -> bool:
    """A line of its own begins with P.S. and says something."""
    return re.search(r"^\s*p\.\s?s\.:? *\S", answer, re.IGNORECASE | re.MULTILINE) is not None


def json_keys(answer: str, *, keys: Sequence[str]) -> bool:
    """The answer, or the one fenced block that it is, is a JSON object of exactly these keys, none without value."""
    fenced = re.fullmatch(r"```(?:json)?\s*(.*?)```", answer.strip(), re.DOTALL)
    try:
        found = json.loads(fenced[1] if fenced else answer)
    except (ValueError, RecursionError):
        return False
    return (
        isinstance(found, dict)
        and set(found) == set(keys)
        and all(v not in ("", None) for v in found.values())
    )
