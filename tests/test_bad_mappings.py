"""Settings that are mappings, edited by hand to nonsense: every place of each is a clear error or can be planned."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import pytest

from lab.plan.planner import plan
from sgdpo.config.compose import compose_run, method_of, to_run_config
from sgdpo.config.schema import RunConfig
from sgdpo.runs.validate import run_errors

SMALL = [
    "device=cpu", "tracking=off", "init=pretrained", "data.world.pairs=16", "data.world.test_pairs=0",
    "optimizer.batch_size=16",
]  # fmt: skip
PAPER = ["model=llama31_8b_instruct", "data=ultrafeedback"]
MIX = ["method=mix", "method.parts=[{method: dpo, weight: 1.0}, {method: nll, weight: 0.1}]"]
# A mapping of the run, and a composition that has one there.
MAPPINGS = {
    "method": SMALL, "method of a mixture": [*SMALL, *MIX], "start": [*SMALL, "init=sft"], "pilot": SMALL,
    "model.tiny": SMALL, "model.facts": PAPER, "data.facts": PAPER, "data.settings": SMALL,
    "engine.deepspeed": [*SMALL, "engine=zero3_offload"], "engine.fsdp": [*SMALL, "engine=fsdp"],
}  # fmt: skip
GONE: Any = object()
NONSENSE = (GONE, None, -1, 0, float("nan"), 1e30, "banana", True, [], [None], {"a": {"b": None}})


def places(node: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield every place inside a mapping."""
    inside = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in inside:
        yield (*place, key)
        yield from places(value, (*place, key))


def mapping_of(config: RunConfig, key: str) -> Any:
    group, _, inner = key.split(" ")[0].partition(".")
    return getattr(getattr(config, group), inner) if inner else getattr(config, group)


def with_nonsense(words: list[str], key: str) -> Iterator[tuple[str, RunConfig]]:
    composed = to_run_config(compose_run([*words, "engine.num_processes=2", "optimizer.max_steps=2"]))
    for number, place in enumerate(places(mapping_of(composed, key))):
        for value in NONSENSE[number % 6 :: 6]:  # one or two: the places are many and alike
            config = deepcopy(composed)
            node = mapping_of(config, key)
            for step in place[:-1]:
                node = node[step]
            if value is GONE:
                del node[place[-1]]
            else:
                node[place[-1]] = value
            yield f"{key} at {place}: {'gone' if value is GONE else value!r}", config


@pytest.mark.parametrize("key", MAPPINGS)
def test_nonsense_in_a_mapping_is_told_in_one_line_or_harms_nothing(key: str, tmp_path) -> None:
    refused = []
    for case, config in with_nonsense(MAPPINGS[key], key):
        config.cache, config.dry_run = str(tmp_path), True
        errors = run_errors(config)
        config.dry_run = False
        errors = errors or run_errors(config)
        for error in errors:
            assert "\n" not in error, case
            assert len(error) < 500, case
        refused += errors[:1]
        if not errors:
            plan(config)
            method_of(config)
    assert len(refused) > 3, "the places are tried"
