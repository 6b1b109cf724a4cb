"""Hash what a result depends on, each kind of thing in one way."""

import hashlib
import json
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sgdpo.store.files import DamagedError, finite, read_json, write_json

SHORT = 16
# A file written this lately may be written again within the clock's tick: its hash is not remembered yet.
SETTLED_SECONDS = 2.0
_known: dict[tuple[str, tuple[int, ...]], str] = {}


def hash_text(text: str, digits: int = SHORT) -> str:
    """Return the first hex digits of a text's SHA-256."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:digits]


def hash_number(text: str) -> int:
    """Return 64 bits of a text's BLAKE2b, unsigned: the ids of examples and the keys of draws."""
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8)
    return int.from_bytes(digest.digest(), "little")


def hash_json(value: Any, digits: int = SHORT) -> str:
    """Return the hash of a JSON value; the order of keys does not count."""
    return hash_text(json.dumps(value, sort_keys=True), digits)


def hash_buffers(buffers: Iterable[Any], digits: int = SHORT) -> str:
    """Return the hash of bytes, or of arrays that lie in memory in one piece, one after the other."""
    digest = hashlib.sha256()
    for buffer in buffers:
        digest.update(buffer)
    return digest.hexdigest()[:digits]


def hash_file(path: Path, memory: Path | None = None) -> str:
    """Return the SHA-256 of a file's bytes, 64 hex digits.

    memory: a folder that keeps hashes of files by path, size and times, so that large files are read once; the
    time of the last change of the inode is among them, which no copy or restore can set back.
    """
    if memory is None:
        return _digest(path)
    name = str(path.resolve())
    state = _state(path)
    if (name, state) in _known:
        return _known[name, state]
    note = memory / f"{hash_text(name)}.json"
    try:
        kept = read_json(note, default=None, kind=dict) or {}
    except DamagedError:
        kept = {}
    if kept.get("path") == name and kept.get("state") == list(state) and "sha256" in kept:
        digest = kept["sha256"]
    else:
        digest = _digest(path)
        if time.time() - max(state[1:3]) / 1e9 < SETTLED_SECONDS or _state(path) != state:
            return digest
        memory.mkdir(parents=True, exist_ok=True)
        write_json(note, {"path": name, "state": list(state), "sha256": digest})
    _known[name, state] = digest
    return digest


def hash_folder(folder: Path, patterns: Iterable[str] = ("**/*",), memory: Path | None = None) -> str:
    """Return the hash of a folder's files, their names within it and their bytes, 16 hex digits.

    patterns: of the files that count, as `Path.glob` reads them. Raise ValueError if no file matches.
    """
    found = {file for pattern in patterns for file in folder.glob(pattern) if file.is_file()}
    if not found:
        raise ValueError(f"{folder} holds no {' or '.join(patterns)} to take a hash of")
    return hash_json({file.relative_to(folder).as_posix(): hash_file(file, memory) for file in found})


def hash_tokenizer(tokenizer: Any, **more: Any) -> str:
    """Return the hash of all that decides how text becomes ids: vocabulary, rules, special tokens, template.

    more: what else of the rendering counts, by name.
    """
    rules = json.loads(tokenizer.backend_tokenizer.to_str())
    # Left by whoever used the tokenizer last; they do not reach our calls.
    rules["truncation"] = rules["padding"] = None
    special, template = sorted(tokenizer.all_special_tokens), tokenizer.chat_template
    # Which of them a template writes by its name (eos_token), beside the one that is always counted.
    named = {name: token for name, token in tokenizer.special_tokens_map.items() if name in str(template)}
    named.pop("bos_token", None)
    return hash_json(
        [rules, template, tokenizer.bos_token_id, special, finite(more), *([named] if named else [])]
    )


def _state(path: Path) -> tuple[int, ...]:
    found = os.stat(path)
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
