"""What a model's config alone says of how it can be trained: by packed rows, by its own forward, or not at all."""

import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import yaml
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from sgdpo.places import CONF

MOST_LAYERS = 1000
ATTENTION_KINDS = {"full_attention", "sliding_attention"}
# How configs call the weight of a router's loss: most of them, JetMoE's, DBRX's.
ROUTER_COEFFICIENTS = ("router_aux_loss_coef", "aux_loss_coef", "moe_loss_weight")


@dataclass(frozen=True)
class Facts:
    """Hold an architecture's entry in conf/architectures.yaml, where the keys are explained."""

    fused: bool = False
    unless: tuple[str, ...] = ()
    multiply: str | None = None
    divide: str | None = None

    def logit_scale(self, config: PreTrainedConfig) -> float:
        """Return what the lm-head's output is multiplied by."""
        scale = getattr(config, self.multiply) if self.multiply else 1.0
        return scale / getattr(config, self.divide) if self.divide else scale


@cache
def known() -> dict[str, Facts]:
    """Return the architectures of the fast path by model type."""
    entries: dict[str, dict[str, Any]] = yaml.safe_load((CONF / "architectures.yaml").read_text())["fast"]
    return {
        kind: Facts(**{**entry, "unless": tuple(entry.get("unless", ()))}) for kind, entry in entries.items()
    }


def fast_facts(config: PreTrainedConfig) -> Facts | None:
    """Return what the fast path needs to know of a model; None if it takes the general path, whatever its rows."""
    facts = known().get(config.model_type)
    if facts is None or set(getattr(config, "layer_types", None) or ()) - ATTENTION_KINDS:
        return None
    return None if any(getattr(config, key, None) is not None for key in facts.unless) else facts


def window_of(config: PreTrainedConfig) -> int | None:
    """Return how many tokens back some layer attends, None if all of them attend to all."""
    kinds = getattr(config, "layer_types", None)
    if kinds and "sliding_attention" not in kinds:
        return None
    return getattr(config, "sliding_window", None) or None


def rotation_turn(config: PreTrainedConfig) -> int | None:
    """Return the length beyond which one sequence changes the rotations of all in its batch (longrope); None: none."""
    given = getattr(config, "rope_parameters", None) or {}
    of_layers = [given, *(value for value in given.values() if isinstance(value, dict))]
    turns = [r["original_max_position_embeddings"] for r in of_layers if r.get("rope_type") == "longrope"]
    return min(turns, default=None)


def router_coefficient(config: PreTrainedConfig) -> float | None:
    """Return the weight of a mixture's router loss, None for an architecture that computes none."""
    if "aux_loss" not in _source(type(config)):
        return None
    config = config.get_text_config()
    places = (config, getattr(config, "ffn_config", None))
    found = (getattr(place, name, None) for place in places for name in ROUTER_COEFFICIENTS)
    return next((coefficient for coefficient in found if coefficient is not None), None)


def architecture_errors(config: PreTrainedConfig) -> list[str]:
    """List why a model cannot be trained, by name, from its config alone."""
    kind = config.model_type
    if getattr(config, "is_encoder_decoder", False):
        return [
            f"model type {kind!r} has an encoder; only causal language models (decoders) are trained here"
        ]
    # Some causal architectures keep an is_decoder of False that nothing reads.
    if getattr(config, "is_decoder", None) is False and re.search(
        r"self\.(config\.)?is_decoder", _source(type(config))
    ):
        return [
            f"model type {kind!r} attends in both directions, so it gives no probability of a text; take a causal "
            "model (or set is_decoder to true in its config.json if it was trained as one)"
        ]
    if type(config) not in AutoModelForCausalLM._model_mapping and "AutoModelForCausalLM" not in (
        getattr(config, "auto_map", None) or {}
    ):
        return [
            f"model type {kind!r} is no causal language model of transformers; take one that generates text"
        ]
    return []


def fit_errors(config: PreTrainedConfig, tokenizer_size: int, longest: int) -> list[str]:
    """List why data does not fit the model: ids beyond its vocabulary, sequences beyond its positions.

    tokenizer_size: number of ids the tokenizer can give. longest: tokens of the longest sequence.
    """
    errors = []
    config = config.get_text_config()
    if tokenizer_size > config.vocab_size:
        errors.append(
            f"the tokenizer gives ids up to {tokenizer_size - 1}, but the model's vocabulary holds"
            f" {config.vocab_size}; take the tokenizer that belongs to the model"
        )
    positions = getattr(config, "max_position_embeddings", None)
    if positions is not None and longest > positions:
        errors.append(
            f"the longest sequence has {longest} tokens, but the model has {positions} positions;"
            f" set data.max_length to {positions} or less"
        )
    turn = rotation_turn(config)
    if turn is not None and longest > turn:
        errors.append(
            f"the longest sequence has {longest} tokens, but the model's rotations (longrope) change for a whole row"
            f" where one is longer than {turn}, so that a sequence would depend on its row's company; set"
            f" data.max_length to {turn} or less"
        )
    return errors


def described(key: str, arguments: Mapping[str, Any], **given: Any) -> PreTrainedConfig:
    """Return the config of an architecture that a YAML describes under `key`, held against a model without memory.

    given: what is not the YAML's to say. Raise ValueError for a model type, a key or a value that it refuses.
    """
    arguments = dict(arguments)
    kind = arguments.pop("model_type", None)
    try:
        known = AutoConfig.for_model(kind)
    except Exception as error:  # whatever it makes of what is no word
        raise ValueError(f"{key}.model_type={kind!r} is no architecture of transformers") from error
    if unknown := sorted(name for name in arguments if not hasattr(known, name)):
        raise ValueError(f"{key} has keys that {kind!r} does not know: {unknown}")
    if theirs := sorted(set(given) & set(arguments)):
        raise ValueError(f"{key} has keys that its tokenizer decides: {theirs}; leave them out")
    try:
        return AutoConfig.for_model(kind, **given, **arguments)
    except Exception as error:  # each architecture checks its values, by exceptions of the hub's own
        raise ValueError(_refused(key, kind, error)) from error


def describing_errors(key: str, config: PreTrainedConfig) -> list[str]:
    """List why the values that a YAML gives under `key` build no model, tried without memory (torch's meta device)."""
    try:
        heads, shared = (
            getattr(config, each, None) for each in ("num_attention_heads", "num_key_value_heads")
        )
        if heads and shared is not None and (shared < 1 or heads % shared):
            return [f"{key}.num_key_value_heads={shared} must divide num_attention_heads={heads}"]
        if not 1 <= (layers := getattr(config, "num_hidden_layers", 1)) <= MOST_LAYERS:
            return [f"{key}.num_hidden_layers={layers} must lie in [1, {MOST_LAYERS}]"]
        skeleton(config)
    except Exception as error:  # whatever its modules raise
        return [_refused(key, config.model_type, error)]
    return []


def skeleton(config: PreTrainedConfig) -> PreTrainedModel:
    """Return the model that a config describes, without memory."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def _refused(key: str, kind: str, error: Exception) -> str:
    return f"{key}: {kind!r} cannot be built so: {str(error).strip().splitlines()[-1].strip()}"


@cache
def _source(kind: type[PreTrainedConfig]) -> str:
    """Return the code of the causal model that a kind of config describes, empty where transformers has none."""
    mapping = AutoModelForCausalLM._model_mapping
    return inspect.getsource(inspect.getmodule(mapping[kind])) if kind in mapping else ""


def supports_sdpa(config: PreTrainedConfig) -> bool:
    """Say whether an architecture's own forward works with torch's attention; soft-caps and sinks need `eager`."""
    mapping = AutoModelForCausalLM._model_mapping
    return type(config) not in mapping or bool(mapping[type(config)]._supports_sdpa)


def path_words(config: PreTrainedConfig, longest: int) -> list[str]:
    """Say what a user should know of how a model trains; nothing of the fast path.

    longest: tokens of the longest sequence, prompt and completion.
    """
    kind, window, found = config.model_type, window_of(config), []
    slow = "trains through its own forward, on separate padded sequences: the same numbers, more slowly"
    if fast_facts(config) is None:
        found.append(f"model type {kind!r} {slow}")
    elif window is not None and longest > window:
        found.append(
            f"model type {kind!r} {slow}, where a sequence is longer than its window of {window} tokens"
        )
    coefficient = router_coefficient(config)
    if coefficient is not None:
        found.append(f"the router's loss is trained with weight {coefficient:g}, which its config says")
        if not coefficient:
            found[-1] = "the router's loss is switched off: its weight in the model's config is 0"
    return found
