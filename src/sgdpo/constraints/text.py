"""What an answer is made of: words, sentences, lines, paragraphs, and how much of it is said again."""

import re
from unicodedata import normalize

from sgdpo import overlap

# First letters with full stops between (a.m., U.S.), or letters and digits that a mark inside joins (3.5, 10:30).
_WORD = re.compile(
    r"(?<![^\W_])[^\W\d_](?:\.[^\W\d_])+(?![^\W_])\.?|[^\W_]+(?:(?:['’‐‑-]|(?<=\d)[.,:](?=\d))[^\W_]+)*"
)
# Full stops that end no sentence: always, or where it goes on in small letters.
_ABBREVIATION = re.compile(
    r"\b(?:(?i:mrs?|ms|dr|prof|vs|e\.g|i\.e)\.|(?i:[a-z](?:\.[a-z])+|etc)\.(?=\s+[a-z\d(]))"
)
_SENTENCE_END = re.compile(r"[.!?…]+(?=\s|$|[\"'“”’»)\]*_])|\n+")
# The number of a list's item.
_NUMBER = re.compile(r"^[ \t]*\d{1,3}[.)](?=[ \t]+\S)", re.MULTILINE)
# What JSON writes for a line's end, a tab, and letters beyond ASCII.
_ESCAPE = re.compile(r"\\(?:[nrt]|u([0-9a-fA-F]{4}))")
RUN = 3  # words that make a repetition when they come again


def words(text: str) -> list[str]:
    """Return the words in lower case; what an apostrophe, a hyphen or a number's own mark joins is one."""
    said = _ESCAPE.sub(lambda escape: chr(int(escape[1], 16)) if escape[1] else " ", text)
    return [word.lower() for word in _WORD.findall(normalize("NFC", said))]


def sentences(text: str) -> list[str]:
    """Split at full stops, question and exclamation marks, and at line ends; what holds no word is none."""
    said = _ABBREVIATION.sub(lambda found: found[0].replace(".", ""), _NUMBER.sub("", text))
    return [part for part in _SENTENCE_END.split(said) if _WORD.search(part)]


def plain(text: str) -> str:
    """Return a text without the marks of emphasis, and nothing around it."""
    return re.sub(r"\*|(?<![^\W_])_+|_+(?![^\W_])", "", text).strip()


def lines(text: str) -> list[str]:
    """Return the lines that hold anything."""
    return [line.strip() for line in text.splitlines() if line.strip()]


def paragraphs(text: str) -> list[str]:
    """Return what empty lines divide; what holds no word (a rule) is none."""
    return [part.strip() for part in re.split(r"\n\s*\n", text) if _WORD.search(part)]


def repetition(text: str) -> float:
    return overlap.repetition(words(text), RUN)


def echo(text: str, prompt: str) -> float:
    """Return the share of a text's runs of three words that the prompt holds, 0 to 1."""
    runs, there = overlap.runs(words(text), RUN), set(overlap.runs(words(prompt), RUN))
    return sum(run in there for run in runs) / len(runs) if runs else 0.0
