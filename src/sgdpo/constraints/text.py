"""What an answer is made of: words, sentences, lines, paragraphs, and how much of it is said again."""

import re

from sgdpo import overlap

_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
RUN = 3  # words that make a repetition when they come again


def words(text: str) -> list[str]:
    """Return the words in lower case; what an apostrophe or a hyphen joins is one."""
    return [word.lower() for word in _WORD.findall(text)]


def sentences(text: str) -> list[str]:
    """Split at full stops, question and exclamation marks, and at line ends; what holds no word is none."""
    return [part for part in re.split(r"[.!?]+(?=\s|$|[\"'”’)*])|\n+", text) if _WORD.search(part)]


def lines(text: str) -> list[str]:
    """Return the lines that hold anything."""
    return [line.strip() for line in text.splitlines() if line.strip()]


def paragraphs(text: str) -> list[str]:
    """Return what empty lines divide."""
    return [part.strip() for part in re.split(r"\n\s*\n", text) if part.strip()]


def repetition(text: str) -> float:
    return overlap.repetition(words(text), RUN)


def echo(text: str, prompt: str) -> float:
    """Return the share of a text's runs of three words that the prompt holds, 0 to 1."""
    runs, there = overlap.runs(words(text), RUN), set(overlap.runs(words(prompt), RUN))
    return sum(run in there for run in runs) / len(runs) if runs else 0.0
