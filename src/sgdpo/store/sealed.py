"""A folder that is whole says so: its manifest, written last, holds every file's size and SHA-256.

A kill can leave a folder that loads without a word and is wrong. The manifest is written after everything else
is on the disk; a folder whose files do not match it is passed over, or built again.
"""

import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from sgdpo.store.files import DamagedError, open_to_others, read_json, sync, write_whole
from sgdpo.store.hashes import hash_file, hash_json

MANIFEST = "manifest.json"


def seal(folder: Path, **fields: Any) -> None:
    """Write the manifest with each file's size and hash and these fields, once all files are on the disk.

    Files of a library that kept them to their owner become readable as the umask says.
    """
    files = _files(folder)
    for path in files:
        open_to_others(path)
        sync(path)
    with ThreadPoolExecutor() as pool:
        digests = list(pool.map(hash_file, files))
    content = {
        **fields,
        "files": {
            path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": digest}
            for path, digest in zip(files, digests, strict=True)
        },
    }
    # No newline ends it: a manifest that lacks its last byte is not whole.
    write_whole(folder / MANIFEST, json.dumps(content | {"sha256": hash_json(content, 64)}))


def read_seal(folder: Path) -> dict[str, Any] | None:
    """Return the manifest of a folder, None if it is missing or not as it was written."""
    try:
        content = read_json(folder / MANIFEST, default=None, kind=dict)
    except DamagedError:
        return None
    intact = content is not None and content.pop("sha256", None) == hash_json(content, 64)
    return content if intact and isinstance(content.get("files"), Mapping) else None


def what_is_wrong(folder: Path, memory: Path | None = None) -> str | None:
    """Return why a folder is not whole, as a phrase, None if every file is as it was written.

    memory: as in `hash_file`: large files that did not change are not read again.
    """
    content = read_seal(folder)
    if content is None:
        return (
            f"it has no readable {MANIFEST}, so it was not written to its end"
            if folder.is_dir()
            else "it is missing"
        )
    for name, expected in content["files"].items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != expected["bytes"]:
            return f"{name} has {path.stat().st_size} bytes instead of {expected['bytes']}"
        if hash_file(path, memory) != expected["sha256"]:
            return f"{name} does not have the content that was written"
    return None


def _files(folder: Path) -> list[Path]:
    return sorted(
        path
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith(f".{MANIFEST}") and path != folder / MANIFEST
    )
