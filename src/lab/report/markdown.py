"""Read back the Markdown that `table.py` writes, for the page."""

from __future__ import annotations

import html
import re
from typing import Any

NUMBERED = re.compile(r"^(?P<text>.*?)(?: <sup>(?P<number>\d+)</sup>)?$")
NOTE = re.compile(r"^<sup>(?P<number>\d+)</sup> (?P<text>.*)$")


def parse_table(text: str) -> dict[str, Any] | None:
    """Return title, header, rows of {text, note} and notes of {number, text}; None if it is no such table."""
    lines = text.splitlines()
    rows = [_cells(line) for line in lines if line.startswith("| ")]
    if not lines or not lines[0].startswith("### ") or len(rows) < 2:
        return None
    rest = [line.strip() for line in lines[1:] if line.strip() and not line.startswith("|")]
    header = [cell["text"] for cell in rows[0]]
    return {
        "title": lines[0][4:],
        "header": header,
        "rows": rows[1:],
        "notes": [_note(line) for line in rest],
    }


def _cells(line: str) -> list[dict[str, str | None]]:
    parts = re.split(r"(?<!\\)\|", line.strip()[1:-1])
    found = [NUMBERED.match(part.strip()) for part in parts]
    return [{"text": _plain(match["text"]), "note": match["number"]} for match in found]


def _note(line: str) -> dict[str, str | None]:
    match = NOTE.match(line)
    return (
        {"number": match["number"], "text": _plain(match["text"])}
        if match
        else {"number": None, "text": _plain(line)}
    )


def _plain(text: str) -> str:
    return html.unescape(re.sub(r"\\([|*\\])", r"\1", text))
