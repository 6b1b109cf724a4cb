"""Turn a data set into tokenised examples, once: a cache that is safe to share, and the counts.

The cache's key covers all that the tokens depend on: the rows' content, template, tokenizer, maximum lengths,
policies, limit, phase and the format's version. Optimizer, method, seed and output folder are not in it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from sgdpo.config.schema import DataConfig
from sgdpo.data.conversation import TEMPLATE_DATE, require_template
from sgdpo.data.example import Examples, write_examples
from sgdpo.data.sources import Source, load_rows
from sgdpo.data.tokeniser import Tokeniser

FORMAT = 1


@dataclass(frozen=True)
class Prepared:
    """Hold a phase's tokenised data.

    counts: {"train": {...}, "test": {...} or None}, JSON-able; see `describe`. fingerprint: a hash of all.
    cached: whether the training set was tokenised before.
    """

    train: Examples
    test: Examples | None
    counts: dict[str, Any]
    fingerprint: str
    cached: bool


def prepare(data: DataConfig, phase: str, tokenizer: Any, cache: Path) -> Prepared:
    """Return the examples of a phase ("sft" or "preference"), from the cache if it has them.

    Raises ValueError, with the source and the row by name, for what cannot be read or trained on.
    """
    require_template(tokenizer)
    rules = tokenizer_hash(tokenizer)
    train = _prepare_split(data, phase, "train", tokenizer, rules, cache)
    assert train is not None, "data_errors lets no run without a training set through"
    test = _prepare_split(data, phase, "test", tokenizer, rules, cache)
    words = train[0].fingerprint + (test[0].fingerprint if test else "")
    return Prepared(
        train=train[0],
        test=test[0] if test else None,
        counts={"train": train[1], "test": test[1] if test else None},
        fingerprint=hashlib.sha256(words.encode()).hexdigest()[:16],
        cached=train[2],
    )


def describe(counts: dict[str, Any]) -> str:
    """Return the counts of a prepared data set as a few readable lines."""
    return "\n".join(_describe_split(split, found) for split, found in counts.items() if found)


def tokenizer_hash(tokenizer: Any) -> str:
    """Return a hash of all that decides how text becomes ids: vocabulary, rules, template and its date."""
    rules = json.loads(tokenizer.backend_tokenizer.to_str())
    # Left by whoever used the tokenizer last; they do not reach this code's calls.
    rules["truncation"] = rules["padding"] = None
    words = [
        rules,
        tokenizer.chat_template,
        TEMPLATE_DATE,
        tokenizer.bos_token_id,
        sorted(tokenizer.all_special_tokens),
    ]
    return hashlib.sha256(json.dumps(words, sort_keys=True).encode()).hexdigest()[:16]


def _prepare_split(
    data: DataConfig, phase: str, split: str, tokenizer: Any, rules: str, cache: Path
) -> tuple[Examples, dict[str, Any], bool] | None:
    source = load_rows(data, phase, split)
    if source is None:
        return None
    limit = data.limit if split == "train" else data.test_limit
    folder = Path(cache) / "tokens" / _key(data, phase, limit, rules, source)
    folder.parent.mkdir(parents=True, exist_ok=True)
    # The others of several processes wait for the first and read what it wrote; a dead one's lock is free.
    with FileLock(f"{folder}.lock"):
        cached = (folder / "summary.json").exists()
        if not cached:
            _write(Tokeniser(data, phase, tokenizer, source, limit), folder)
    summary = json.loads((folder / "summary.json").read_text())
    return Examples(folder / "examples.arrow", summary["fingerprint"]), summary["counts"], cached


def _key(data: DataConfig, phase: str, limit: int | None, rules: str, source: Source) -> str:
    words = {
        "format": FORMAT,
        "phase": phase,
        "rows": source.key,
        "limit": limit,
        "tokenizer": rules,
        "lengths": [data.max_length, data.max_prompt_length],
        "policies": [data.ties, data.identical, data.empty],
    }
    return hashlib.sha256(json.dumps(words, sort_keys=True).encode()).hexdigest()[:16]


def _write(tokeniser: Tokeniser, folder: Path) -> None:
    """Write beside and rename: a folder of this name is always whole."""
    beside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        fingerprint = write_examples(beside / "examples.arrow", tokeniser.examples())
        summary = {"fingerprint": fingerprint, "counts": tokeniser.counts()}
        with open(beside / "summary.json", "w") as file:
            json.dump(summary, file, indent=2)
            file.flush()
            os.fsync(file.fileno())
        shutil.rmtree(folder, ignore_errors=True)
        beside.rename(folder)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise


def _describe_split(split: str, found: dict[str, Any]) -> str:
    dropped = ", ".join(f"{value} {reason}" for reason, value in found["dropped"].items() if value) or "none"
    cut = ", ".join(f"{value} {side}s" for side, value in found["cut"].items() if value) or "none"
    lengths = "; ".join(
        f"{side} {s['mean']:.0f} (median {s['median']:.0f}, 95 % {s['p95']:.0f}, longest {s['max']})"
        for side, s in found["lengths"].items()
    )
    return (
        f"{split}: {found['read']} rows read from {found['source']}, {found['kept']} kept; "
        f"dropped: {dropped}; cut: {cut}\n"
        f"  among them {found['ties']} ties, {found['identical']} identical, {found['empty']} empty\n"
        f"  tokens: {lengths}"
    )
