"""Show one pair of a run's data by its id, as it is trained: where it came from, its tokens, its rewards."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from sgdpo.config.schema import AdapterConfig, EngineConfig, RunConfig
from sgdpo.data.example import Example
from sgdpo.data.prepare import Prepared, prepare
from sgdpo.method import Method, bind_method
from sgdpo.models.load import load_tokenizer
from sgdpo.runs.attempt import SilentAttempt
from sgdpo.runs.contents import reference_folder, why_no_model
from sgdpo.runs.records import MODEL
from sgdpo.runs.run import Run
from sgdpo.runs.train import Parts, Reference, build_trainer, start_weights, taught
from sgdpo.training.token_rewards import token_rewards

SIDES = ("prompt", "chosen", "rejected")
MOST_NAMED = 10


def show_pair(wanted: str, config: RunConfig, trained: Path | None = None) -> str:
    """Return the pair whose id begins with `wanted`; with its rewards under the weights of `trained`, a run's folder.

    Raise ValueError if no pair or more than one has such an id.
    """
    # One process reads and computes, however many trained.
    config = replace(config, engine=EngineConfig())
    method = bind_method(config.method, asdict(config.ratio), config.extra, pilot=config.pilot)
    tokenizer = load_tokenizer(config.model)
    prepared = prepare(config.data, method.phase, tokenizer, Path(config.cache), config.extra)
    split, row, example = _find(prepared, wanted)
    rewards: dict[str, Any] = {}
    if trained is not None:
        rewards = _rewards(_parts(config, method, prepared, tokenizer), trained, example)
    lines = [f"pair {example.example_id}: row {row} (from 0) of {prepared.counts[split]['source']}, {split}"]
    for side in SIDES:
        lines += ["", *_side(side, getattr(example, f"{side}_ids"), rewards.get(side), tokenizer)]
    if rewards:
        lines += ["", f"margin {rewards['chosen'] - rewards['rejected']:.4f}"]
    return "\n".join(lines)


def _find(prepared: Prepared, wanted: str) -> tuple[str, int, Example]:
    """Return the split, the source's row and the example of the one id that begins with `wanted`."""
    found = {}
    for split, examples in (("train", prepared.train), ("test", prepared.test)):
        if examples is not None:
            for index in np.flatnonzero(np.char.startswith(examples.ids.astype(str), wanted)):
                found[int(examples.ids[index])] = (split, int(examples.rows[index]), examples[index])
    if not found:
        total = sum(len(examples) for examples in (prepared.train, prepared.test) if examples is not None)
        raise ValueError(
            f"none of the {total} pairs has an id that begins with {wanted!r}: is it another data set's?"
        )
    if len(found) > 1:
        named = ", ".join(map(str, sorted(found)[:MOST_NAMED]))
        raise ValueError(
            f"{len(found)} pairs have an id that begins with {wanted!r}: {named}; give more digits"
        )
    return found.popitem()[1]


def _parts(
    config: RunConfig, method: Method, prepared: Prepared, tokenizer: PreTrainedTokenizerBase
) -> Parts:
    """Return what a run was made of; its adapter is merged into its weights as they load."""
    run = Run.of(config)
    if run.start is not None and run.start.result() is None:
        raise ValueError(
            f"the SFT start {run.start.identity.name} that rewards are held against is gone, or its data has changed;"
            " leave --run out, or train the run again"
        )
    whole = replace(run, config=replace(config, adapter=AdapterConfig(), reference="cached"))
    return Parts(whole, method, prepared, tokenizer, start_weights(run), 1)


def _rewards(parts: Parts, trained: Path, example: Example) -> dict[str, float]:
    """Return each side's reward under a run's final weights, against its reference."""
    if wrong := why_no_model(trained, parts.config.cache):
        raise ValueError(f"{trained} {wrong}")
    reference = reference_folder(parts.config) or parts.start
    live = taught(parts.config, reference).requires_grad_(False).eval() if parts.method.reference else None
    trainer = build_trainer(replace(parts, start=trained / MODEL), Reference(live=live), SilentAttempt())
    found = token_rewards(trainer, [example], parts.tokenizer)
    if not found:
        raise ValueError(f"{parts.method.name} gives a pair no rewards; leave --run out")
    return {side: sum(token["reward"] for token in found[0][side]) for side in SIDES[1:]}


def _side(side: str, ids: np.ndarray, reward: float | None, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    head = f"{side}: {len(ids)} tokens" + (f", reward {reward:.4f}" if reward is not None else "")
    return [head, *(f"  {line}" for line in tokenizer.decode(ids.tolist()).splitlines())] if len(ids) else []
