"""Files of an evaluation: rows as JSON lines, written whole or recovered after an interruption."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sgdpo.store.jsonio import finite, write_whole


def line(row: Mapping[str, Any]) -> str:
    """Return a row as one line of ASCII JSON, so that no character of an answer can end the line."""
    return json.dumps(finite(row)) + "\n"


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows beside and rename: a reader meets the whole file or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, "".join(map(line, rows)))


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Read rows. Raise ValueError naming the file and the line that is not a JSON object."""
    rows = []
    for number, text in enumerate(path.read_text("utf-8").split("\n"), 1):
        if not text.strip():
            continue
        try:
            row = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number}: not JSON ({error.msg})") from None
        if not isinstance(row, dict):
            raise ValueError(f"{path}, line {number}: a row must be a JSON object, not {type(row).__name__}")
        rows.append(row)
    return rows


def recover_jsonl(path: Path) -> list[dict[str, Any]]:
    """Read what a killed writer left, and cut its torn last line off the file, so that appending is safe."""
    if not path.exists():
        return []
    whole, _, torn = path.read_text("utf-8", errors="replace").rpartition("\n")
    if torn:
        write_whole(path, whole + "\n" if whole else "")
    return read_jsonl(path)


def hash_text(text: str) -> str:
    """Return the first 16 digits of the text's SHA-256: what pins a prompt or a file in a result."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]
