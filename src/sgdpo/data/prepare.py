"""Turn a data set into tokenised examples, once: a cache that is safe to share and checked, and the counts.

The cache's key covers all that the tokens depend on: the rows' content, template, tokenizer, maximum lengths,
policies, limit, phase and the format's version. Optimizer, method, seed and output folder are not in it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sgdpo.config.schema import DataConfig
from sgdpo.data.conversation import starts_elsewhere
from sgdpo.data.example import Examples, write_examples
from sgdpo.data.rows import SCORES, Rows
from sgdpo.data.sources import load_rows
from sgdpo.data.template import TEMPLATE_DATE, require_template
from sgdpo.data.tokeniser import Tokeniser
from sgdpo.store import build_once, hash_json, hash_text, hash_tokenizer

FORMAT = 10
EXAMPLES = "examples.arrow"
# Of the counts, what is said only if it happened.
REMARKS = {
    "typed": "{} hold typed control tokens, read as plain text",
    "unscored": "{} have scores that are no numbers",
    "weightless": "{} weigh 0 and are left out",
    "unknown": "{} hold characters that the vocabulary lacks",
    "trained_on": "{} of {kept} held-out rows are training rows too",
}


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


def prepare(
    data: DataConfig, phase: str, tokenizer: Any, cache: Path, extra: Sequence[str] = (), scores: bool = False
) -> Prepared:
    """Return the examples of a phase ("sft" or "preference"), from the cache if it has them.

    extra: files that the user named, in which the data's function may be. scores: the method asks for them. Raises
    ValueError, with the source and the row by name, for what cannot be read or trained on.
    """
    require_template(tokenizer)
    rules = hash_tokenizer(tokenizer, date=TEMPLATE_DATE)
    train, test = (
        _prepare_split(data, phase, split, load_rows(data, phase, split, extra), tokenizer, rules, cache)
        for split in ("train", "test")
    )
    assert train is not None, "load_rows lets no run without a training set through"
    if scores:
        for examples, found, _ in filter(None, (train, test)):
            _check_scores(examples, found["source"])
    counts: dict[str, Any] = {"train": train[1] | {"note": starts_elsewhere(tokenizer)}, "test": None}
    if test is not None:
        counts["test"] = test[1] | {"trained_on": _trained_on(test[0], train[0])}
    return Prepared(
        train=train[0],
        test=test[0] if test else None,
        counts=counts,
        fingerprint=hash_text(train[0].fingerprint + (test[0].fingerprint if test else "")),
        cached=train[2],
    )


def describe(counts: dict[str, Any]) -> str:
    """Return the counts of a prepared data set as a few readable lines."""
    return "\n".join(_describe_split(split, found) for split, found in counts.items() if found)


def _prepare_split(
    data: DataConfig, phase: str, split: str, source: Rows | None, tokenizer: Any, rules: str, cache: Path
) -> tuple[Examples, dict[str, Any], bool] | None:
    if source is None:
        return None
    limit = data.limit if split == "train" else data.test_limit
    folder = Path(cache) / "tokens" / _key(data, phase, limit, rules, source.key(Path(cache) / "hashes"))

    def build(beside: Path) -> dict[str, Any]:
        tokeniser = Tokeniser(data, phase, tokenizer, source, limit)
        fingerprint = write_examples(beside / EXAMPLES, tokeniser.examples())
        return {"fingerprint": fingerprint, "counts": tokeniser.counts()}

    manifest, built = build_once(folder, build, what=f"the tokens of {source.name}")
    return Examples(folder / EXAMPLES, manifest["fingerprint"]), manifest["counts"], not built


def _trained_on(test: Examples, train: Examples) -> int:
    """Count the held-out examples that are training ones too: by their ids, and the copies of these in their set."""
    found = np.isin(test.ids, train.ids)

    def tokens(index: int) -> tuple[bytes, ...]:
        example = test[index]
        return tuple(ids.tobytes() for ids in (example.prompt_ids, example.chosen_ids, example.rejected_ids))

    known = {tokens(index) for index in np.flatnonzero(found)}
    copies = sum(tokens(index) in known for index in np.flatnonzero(~found)) if known else 0
    return int(found.sum()) + copies


def _check_scores(examples: Examples, source: str) -> None:
    for column in SCORES:
        if missing := int(np.isnan(examples.numbers[column]).sum()):
            raise ValueError(
                f"{source}: {missing} of {len(examples)} pairs have no number in the column {column}, which the method "
                "asks for (needs.scores); add it, name another column with data.columns, or take another method"
            )


def _key(data: DataConfig, phase: str, limit: int | None, rules: str, content: str) -> str:
    return hash_json(
        {
            "format": FORMAT,
            "phase": phase,
            "rows": content,
            "limit": limit,
            "tokenizer": rules,
            "lengths": [data.max_length, data.max_prompt_length],
            "policies": [data.ties, data.identical, data.empty, data.refused, data.weights],
            "columns": data.columns,
        }
    )


def _describe_split(split: str, found: dict[str, Any]) -> str:
    dropped = ", ".join(f"{value} {reason}" for reason, value in found["dropped"].items() if value) or "none"
    cut = ", ".join(f"{value} {side}" for side, value in found["cut"].items() if value) or "none"
    lengths = "; ".join(
        f"{side} {s['mean']:.0f} (median {s['median']:.0f}, 95 % {s['p95']:.0f}, longest {s['max']})"
        for side, s in found["lengths"].items()
    )
    remarks = [
        words.format(found[key], kept=found["kept"]) for key, words in REMARKS.items() if found.get(key)
    ]
    remarks += ["each pair weighs what its column weight says"] * found["weighted"]
    remarks += [found[key] for key in ("refusal", "note") if found.get(key)]
    return (
        f"{split}: {found['read']} rows read from {found['source']}, {found['kept']} kept; "
        f"dropped: {dropped}; cut: {cut}\n"
        f"  among them {found['ties']} ties, {found['identical']} identical, {found['empty']} empty\n"
        f"  tokens: {lengths}" + "".join(f"\n  note: {remark}" for remark in remarks)
    )
