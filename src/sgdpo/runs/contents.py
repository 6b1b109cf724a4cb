"""Hash the content of what a run reads: rows, weights, model config, tokenizer, template, the method's code.

Settings hold paths; two runs of one path are one run only if what lies there is the same. Large files are read once
and their hashes remembered by path, size and times. Nothing heavy is imported and no row is read.
"""

import ast
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from sgdpo.config.schema import ModelConfig, RunConfig
from sgdpo.hub import hub_commit
from sgdpo.places import ROOT
from sgdpo.source import find
from sgdpo.store import hash_file, hash_folder, hash_json, what_is_wrong

WEIGHTS = ("*.safetensors", "*.safetensors.index.json")
MODEL_CODE = ("config.json", "*.py")
TOKENIZER = (
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab*", "merges.txt", "*.model", "chat_template*",
)  # fmt: skip


def read_contents(config: RunConfig) -> dict[str, str]:
    """Return {what the run reads: hash of its content}. Raise ValueError for what is not there."""
    from sgdpo.data.sources import data_contents  # heavy: a source brings what it reads with

    memory = Path(config.cache) / "hashes"
    try:
        data = data_contents(config.data, config.method["phase"], memory, config.extra)
        model = _model(config.model, memory)
        code = _method_code(config.method, config.pilot, config.extra)
    except OSError as error:
        raise ValueError(f"{error.filename} cannot be read: {error.strerror}") from error
    rows = {f"data.{split}": value for split, value in data.items()}
    if (reference := reference_folder(config)) is not None:
        model["reference"] = hash_folder(reference, WEIGHTS, memory)
    return {**rows, **{f"model.{part}": value for part, value in model.items()}, "method.code": code}


def reference_folder(config: RunConfig) -> Path | None:
    """Return the folder of the reference's weights, a run's or one of its own; None: the policy's start."""
    if config.reference_weights is None:
        return None
    place = Path(config.reference_weights).expanduser()
    return place / "model" if (place / "model" / "config.json").is_file() else place


def why_no_model(run: Path, cache: str) -> str | None:
    """Return why a run's folder has no weights to use, as a phrase; None if they are as they were written."""
    folder = run / "model"
    if not any((folder / name).is_file() for name in ("config.json", "adapter_base.json")):
        return "holds no model; it is not finished: train it first"
    if folder.is_symlink():  # of a run that trains nothing: a model that no run has sealed
        return None
    wrong = what_is_wrong(folder, Path(cache) / "hashes")
    return wrong and f"has weights that are not whole (model: {wrong}); train it again"


def why_not_trusted(model: ModelConfig, trusted: bool) -> str | None:
    """Return why the model of a run, which may come from anywhere, is not loaded, as a phrase; None if it is."""
    if not model.trust_remote_code or trusted:
        return None
    return "was trained with code that its model brings; if you trust it, say trust_remote_code=true on this command"


def own_model(run: Path, model: ModelConfig) -> ModelConfig:
    """Return the model that a run has made of the one it was given: the folder holds its own tokenizer and template."""
    return replace(model, name=run.name, path=str(run / "model"), revision=None, chat_template=None)


def changes(there: dict[str, str], here: dict[str, str]) -> list[str]:
    """Name what is read that has another content."""
    return [
        f"{key} has another content" for key in sorted({*there, *here}) if there.get(key) != here.get(key)
    ]


@cache
def code_hash() -> str:
    """Return the hash of this package's code, without comments and docstrings."""
    # What else an editor leaves among them (.#a.py, a-checkpoint.py) nobody can import.
    files = (ROOT / "src" / "sgdpo").rglob("*.py")
    return hash_code(sorted(file for file in files if file.stem.isidentifier()))


def hash_code(files: Iterable[Path]) -> str:
    """Return a hash of what Python files do: neither comments, docstrings nor layout change it."""
    return hash_json([_bare(file.read_text(encoding="utf-8")) for file in files])


def _bare(text: str) -> str:
    try:
        tree = ast.parse(text)
    except SyntaxError:  # half written, and no business of a run that does not import it
        return text
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                node.body = node.body[1:]
    return ast.dump(tree)


def _model(model: ModelConfig, memory: Path) -> dict[str, str]:
    found = {}
    if model.chat_template is not None:
        template = Path(model.chat_template)
        found["chat_template"] = hash_place(template, ("chat_template*", "tokenizer_config.json"), memory)
    if model.path is None:
        return found | {"tokenizer": hash_code([ROOT / "src" / "sgdpo" / "models" / "tiny.py"])}
    folder = Path(model.path)
    if not folder.is_dir():
        return found | {"weights": hub_commit(model.path, model.revision, "model")}
    parts = {"weights": WEIGHTS, "config": MODEL_CODE, "tokenizer": TOKENIZER}
    return found | {part: hash_folder(folder, patterns, memory) for part, patterns in parts.items()}


def hash_place(path: Path, patterns: Iterable[str], memory: Path) -> str:
    """Return the hash of a file, or of a folder's files of these patterns; of a hub id the commit."""
    if path.is_file():
        return hash_file(path, memory)
    return hash_folder(path, patterns, memory) if path.is_dir() else hub_commit(str(path), None, "model")


def _method_code(method: Mapping[str, Any], pilot: Mapping[str, Any], extra: Sequence[str]) -> str:
    """Hash the files that define the method's function, its state, its parts and its pilot."""
    paths = [
        path
        for each in _whole_mixture(method)
        for path in (each["function"], (each.get("needs") or {}).get("state"))
    ]
    paths.append(pilot.get("function"))
    return hash_code(sorted({find(path, extra).module.path for path in paths if path}))


def _whole_mixture(method: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield a method and its parts; a part may be a mixture too."""
    yield method
    for part in method.get("parts") or ():
        yield from _whole_mixture(part["method"])
