"""Kinds of constraint on the form: case, beginning and end, punctuation, marks, JSON."""

import json
import re
from collections.abc import Sequence
from typing import Any

from sgdpo.constraints import text


def lower(answer: str) -> bool:
    return answer == answer.lower()


def upper(answer: str) -> bool:
    return answer == answer.upper()


def starts_with(answer: str, *, words: str) -> bool:
    """No word comes before them; a quotation mark or an emoji may."""
    return re.match(rf"[\W_]*{re.escape(words)}(?!\w)", text.plain(answer), re.IGNORECASE) is not None


def ends_with(answer: str, *, words: str) -> bool:
    """No word comes after them; a quotation mark or an emoji may."""
    return re.search(rf"(?<!\w){re.escape(words)}[\W_]*\Z", text.plain(answer), re.IGNORECASE) is not None


def quoted(answer: str) -> bool:
    """One pair of double quotes, straight or curly, is around everything."""
    return re.fullmatch(r'"[^"]+"|“[^“”]+”', text.plain(answer)) is not None


def title(answer: str) -> bool:
    """The first line is a title in double angular brackets, and something follows."""
    return re.match(r"<<[^<>\n]+>>\s*\n\s*\S", text.plain(answer)) is not None


def without(answer: str, *, mark: str) -> bool:
    return mark not in answer


def question(answer: str) -> bool:
    """No word comes after the last question mark; a quotation mark or an emoji may."""
    return re.search(r"\?[\W_]*\Z", answer) is not None


def bold(answer: str, *, count: int) -> bool:
    return len(re.findall(r"\*\*(?=\S)[^*\n]+(?<=\S)\*\*", answer)) >= count


def placeholders(answer: str, *, count: int) -> bool:
    """Brackets around nothing are a box to tick, and before an address a link."""
    return sum(bool(name.strip()) for name in re.findall(r"\[([^\[\]\n]+)\](?!\()", answer)) >= count


def postscript(answer: str) -> bool:
    """A line of the last paragraph begins with P.S., and something follows."""
    last = (text.paragraphs(text.plain(answer)) or [""])[-1]
    return re.search(r"^\s*p\.\s?s\.\W*\w", last, re.IGNORECASE | re.MULTILINE) is not None


def json_keys(answer: str, *, keys: Sequence[str]) -> bool:
    """The answer, or the one fenced block that it is, is a JSON object of exactly these keys, none without value."""
    fenced = re.fullmatch(r"```(?:json)?\s*(.*?)```", answer.strip(), re.DOTALL)
    try:
        # NaN and Infinity are no JSON: int takes none of them.
        found = json.loads(fenced[1] if fenced else answer, parse_constant=int)
        return isinstance(found, dict) and set(found) == set(keys) and all(map(_says, found.values()))
    except (ValueError, RecursionError):
        return False


def _says(value: Any) -> bool:
    """Whether a value of JSON holds anything."""
    if isinstance(value, list | dict):
        return any(map(_says, value.values() if isinstance(value, dict) else value))
    return value is not None and str(value).strip() != ""
