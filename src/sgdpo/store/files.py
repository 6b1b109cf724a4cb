"""Write files so that no reader meets half of one; read JSON and JSON lines with errors that name file and line."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any
from uuid import uuid4

_MUST_EXIST: Any = object()


class DamagedError(ValueError):
    """Say which file cannot be read, where it breaks, and what to do; whoever can build it again catches it."""


def write_whole(path: Path, content: str | bytes) -> None:
    """Write beside, flush to the disk and rename: a reader sees the old file or the new one."""
    # Not the process id: threads have one, and so may processes of two machines or containers that share the folder.
    beside = path.with_name(f".{path.name}.{uuid4().hex[:8]}")
    try:
        with open(beside, "wb") as file:
            file.write(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    sync(path.parent)


def sync(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def open_to_others(path: Path) -> None:
    """Give a file or folder the permissions that the umask allows; libraries that write by way of a temporary
    file leave it readable by its owner alone."""
    path.chmod((0o777 if path.is_dir() else 0o666) & ~_umask())


@cache
def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def write_json(path: Path, value: Any) -> None:
    """Write JSON, whole or not at all; NaN and infinities become null."""
    write_whole(path, json.dumps(finite(value), indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path, *, default: Any = _MUST_EXIST, kind: type = object, advice: str = "") -> Any:
    """Read JSON. Raise DamagedError, with the position, for what is no JSON or not of this kind.

    default: returned if there is no such file. kind: what the value must be: dict, list. advice: what to do.
    """
    if default is not _MUST_EXIST and not os.path.lexists(path):
        return default
    value = _parse(_read_text(path, advice), str(path), advice)
    if not isinstance(value, kind):
        raise _damaged(path, f"a JSON {_NAMES[kind]} is expected, not {_name(value)}", advice)
    return value


def line(row: Any) -> str:
    """Return a row, or any value, as one line of ASCII JSON, so that no character of a text can end the line."""
    return json.dumps(finite(row)) + "\n"


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows as JSON lines, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, "".join(map(line, rows)))


def read_jsonl(
    path: Path, *, torn_end: bool = False, damaged: Callable[[str], None] | None = None, advice: str = ""
) -> list[dict[str, Any]]:
    """Read JSON lines; empty lines count for the numbers and are left out.

    torn_end: a last line that a killed writer left half is left out, and a missing file has no rows. damaged: is
    told of every other line that is no JSON object, which is then left out; without it such a line raises
    DamagedError with its number.
    """
    if torn_end and not os.path.lexists(path):
        return []
    lines = _read_text(path, advice, "replace" if torn_end or damaged else "strict").split("\n")
    rows = []
    for number, text in enumerate(lines, 1):
        if not text.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row = _parse(text, where, advice)
            if not isinstance(row, dict):
                raise _damaged(where, f"a JSON object is expected, not {_name(row)}", advice)
        except DamagedError as error:
            if torn_end and number == len(lines):  # a whole line ends with a newline
                break
            if damaged is None:
                raise
            damaged(str(error))
        else:
            rows.append(row)
    return rows


def cut_jsonl(path: Path, keep: Callable[[Mapping[str, Any]], bool] | None = None) -> list[dict[str, Any]]:
    """Cut a torn last line, and the rows that `keep` refuses, off a file of JSON lines; return the others.

    After that it is safe to append to.
    """
    rows = read_jsonl(path, torn_end=True)
    kept = [row for row in rows if keep is None or keep(row)]
    torn = path.exists() and path.stat().st_size > 0 and path.read_bytes()[-1:] != b"\n"
    if torn or len(kept) < len(rows):
        write_jsonl(path, kept)
    return kept


class JsonLines:
    """Append rows to a file of JSON lines, each handed to the system at once; on the disk after `sync`.

    A torn last line must be cut off first (`cut_jsonl`).
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._descriptor: int | None = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)

    def append(self, *rows: Mapping[str, Any], durable: bool = False) -> None:
        """Append rows in one write; `durable` waits until they are on the disk."""
        assert self._descriptor is not None, f"{self.path} is closed"
        text = memoryview("".join(map(line, rows)).encode())
        while text:  # the system may take less than it is given
            text = text[os.write(self._descriptor, text) :]
        if durable:
            self.sync()

    def sync(self) -> int:
        """Wait until all rows are on the disk; return the file's length in bytes."""
        assert self._descriptor is not None, f"{self.path} is closed"
        os.fsync(self._descriptor)
        return os.fstat(self._descriptor).st_size

    def close(self) -> None:
        """Close the file; a second time does nothing."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> JsonLines:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def finite(value: Any) -> Any:
    """Return the value with NaN and infinities as null: JSON knows neither."""
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value


_NAMES = {dict: "object", list: "array", str: "text", bool: "boolean", type(None): "null", object: "value"}


def _name(value: Any) -> str:
    return _NAMES.get(type(value), "number")


def _read_text(path: Path, advice: str, errors: str = "strict") -> str:
    try:
        return Path(path).read_text(encoding="utf-8-sig", errors=errors)
    except UnicodeDecodeError as error:
        raise _damaged(path, f"byte {error.start} is no UTF-8", advice) from None
    except OSError as error:
        raise _damaged(path, (error.strerror or str(error)).lower(), advice) from None


def _parse(text: str, where: str, advice: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        place = (
            f"line {error.lineno}, column {error.colno}"
            if ", line " not in where
            else f"column {error.colno}"
        )
        raise _damaged(where, f"not JSON at {place} ({error.msg})", advice) from None
    except RecursionError:
        raise _damaged(where, "its JSON is nested too deeply", advice) from None


def _damaged(where: Path | str, what: str, advice: str) -> DamagedError:
    return DamagedError(f"{where}: {what}" + (f"; {advice}" if advice else ""))
