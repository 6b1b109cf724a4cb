"""Bind a method's YAML to its function, before anything heavy loads.

A method is one pure function and one YAML. The YAML names the function, its hyper-parameters, and what it
needs; every other key of the YAML must be a keyword of the function, of the annotated type. Nothing outside
`conf/method` and `sgdpo/methods` knows a method by name.
"""

from __future__ import annotations

import importlib
import inspect
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from sgdpo.pairs import DrawKey, Pair, PairLoss, Ratios

RESERVED = ("name", "function", "phase", "needs")
NEEDS = ("reference", "ratios", "draws", "state")
GIVEN = NEEDS[1:]  # these arrive as keywords of the function; the reference arrives in the pair


@dataclass(frozen=True)
class Method:
    """Hold a bound method: its function, its hyper-parameters and what it needs.

    phase: "sft" (loss per completion token, chosen side alone) or "preference" (loss per pair).
    """

    name: str
    phase: Literal["sft", "preference"]
    function: Callable[..., PairLoss]
    hyper: Mapping[str, Any]
    reference: bool
    draws: bool
    ratios: Ratios | None
    state_class: type | None

    def __call__(self, pair: Pair, draws: DrawKey, state: Any = None) -> PairLoss:
        """Return the loss of each pair; pass the function only what its YAML says it needs."""
        needs: dict[str, Any] = {}
        if self.draws:
            needs["draws"] = draws
        if self.ratios is not None:
            needs["ratios"] = self.ratios
        if self.state_class is not None:
            needs["state"] = state
        return self.function(pair, **self.hyper, **needs)

    def new_state(self) -> Any:
        """Return the method's state as it is before the first step, or None."""
        return self.state_class() if self.state_class else None


def load_dotted(path: str) -> Any:
    """Import `package.module.attribute`. Raise ValueError naming what is missing."""
    module, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"cannot import {path!r}: {error}") from error


def method_errors(config: Mapping[str, Any], ratio: Mapping[str, Any]) -> list[str]:
    """List everything wrong with a method's YAML and its ratios, as sentences with advice."""
    name = config.get("name", "?")
    missing = [key for key in RESERVED if key not in config]
    if missing:
        return [f"method {name!r} lacks {missing}; see conf/method/dpo.yaml for the form"]
    try:
        function = load_dotted(config["function"])
    except ValueError as error:
        return [f"method.function: {error}"]
    if not isinstance(config["needs"], Mapping):
        return [f"method.needs of {name!r} must be a mapping with the keys {list(NEEDS)}"]
    errors = _needs_errors(name, config["needs"], function)
    if config["phase"] not in ("sft", "preference"):
        errors.append(f"method.phase must be sft or preference, not {config['phase']!r}")
    errors += _hyper_errors(config, function)
    return errors + _ratio_errors(name, bool(config["needs"].get("ratios")), ratio)


def bind_method(config: Mapping[str, Any], ratio: Mapping[str, Any]) -> Method:
    """Return the method that a YAML describes. Raise ValueError with every error at once."""
    errors = method_errors(config, ratio)
    if errors:
        raise ValueError("\n".join(errors))
    needs = config["needs"]
    return Method(
        name=config["name"],
        phase=config["phase"],
        function=load_dotted(config["function"]),
        hyper={key: value for key, value in config.items() if key not in RESERVED},
        reference=bool(needs.get("reference")),
        draws=bool(needs.get("draws")),
        ratios=Ratios(float(ratio["chosen"]), float(ratio["rejected"])) if needs.get("ratios") else None,
        state_class=load_dotted(needs["state"]) if needs.get("state") else None,
    )


def _needs_errors(name: str, needs: Mapping[str, Any], function: Callable[..., PairLoss]) -> list[str]:
    """Hold what the YAML says the method needs against the keywords that the function takes."""
    unknown = sorted(set(needs) - set(NEEDS))
    errors = [f"method.needs of {name!r} has unknown keys {unknown}; known: {list(NEEDS)}"] if unknown else []
    taken = inspect.signature(function).parameters
    for key in GIVEN:
        if bool(needs.get(key)) != (key in taken):
            does = "takes" if key in taken else "does not take"
            errors.append(
                f"method.needs.{key} of {name!r} is {needs.get(key)!r}, but its function {does} {key!r}"
            )
    if needs.get("state"):
        try:
            load_dotted(needs["state"])
        except ValueError as error:
            errors.append(f"method.needs.state: {error}")
    return errors


def _hyper_errors(config: Mapping[str, Any], function: Callable[..., PairLoss]) -> list[str]:
    """Hold the YAML's keys against the function's keyword parameters and their annotations."""
    hints = typing.get_type_hints(function)
    parameters = {
        key: value
        for key, value in inspect.signature(function).parameters.items()
        if value.kind is inspect.Parameter.KEYWORD_ONLY and key not in GIVEN
    }
    errors = []
    for key, value in config.items():
        if key in RESERVED:
            continue
        if key not in parameters:
            errors.append(f"method.{key} is not a setting of {config['name']!r}; it has {sorted(parameters)}")
        elif not _fits(value, hints[key]):
            errors.append(f"method.{key}={value!r} does not fit {_words(hints[key])}")
        elif key == "beta" and not 0 < value < float("inf"):
            errors.append(f"method.beta must be a positive number, not {value!r} (the paper uses 0.1)")
    absent = [key for key, p in parameters.items() if key not in config and p.default is p.empty]
    if absent:
        errors.append(f"method {config['name']!r} lacks {absent} in its YAML")
    return errors


def _fits(value: Any, hint: Any) -> bool:
    if typing.get_origin(hint) is Literal:
        return value in typing.get_args(hint)
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return isinstance(value, hint) and (hint is bool or not isinstance(value, bool))


def _words(hint: Any) -> str:
    if typing.get_origin(hint) is Literal:
        return "one of " + ", ".join(map(str, typing.get_args(hint)))
    return hint.__name__


def _ratio_errors(name: str, wanted: bool, ratio: Mapping[str, Any]) -> list[str]:
    given = {
        key: value for key, value in ratio.items() if key in ("chosen", "rejected") and value is not None
    }
    if not wanted:
        if given:
            keys = ", ".join(f"ratio.{key}" for key in given)
            return [f"method {name!r} takes no ratio, but {keys} is set; leave it out or use ratio=none"]
        return []
    errors = []
    for key in ("chosen", "rejected"):
        value = ratio.get(key)
        if value is None:
            errors.append(f"method {name!r} needs ratio.{key} in (0, 1]; ratio=paper sets 0.6 and 0.9")
        elif not 0 < value <= 1:
            errors.append(f"ratio.{key} must lie in (0, 1], not {value}; the paper's grid is 0.6 to 1.0")
    return errors
