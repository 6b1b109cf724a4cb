"""Bind a method's YAML to its function, and hold what the YAML says that the function needs.

A method is one pure function and one YAML (see `contract.py`). Nothing outside `conf/method` and `sgdpo/methods`
knows a method by name. Nothing heavy is imported to check one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sgdpo.contract import Kind, binding_errors, settings_of
from sgdpo.places import CONF
from sgdpo.source import find, load_dotted
from sgdpo.values import Range, value_error

if TYPE_CHECKING:
    from sgdpo.pairs import DrawKey, Pair, PairLoss, Ratios
    from sgdpo.pilot import Pilot

NEEDS = ("reference", "ratios", "draws", "state", "pilot", "features", "scores")
GIVEN = NEEDS[1:5]  # these arrive as keywords of the function; the others arrive in the pair
# What can be known of a token beside its log-prob: by the lm-head (models/head.py), by the data (data/overlap.py).
HEAD_FEATURES, DATA_FEATURES = ("entropy", "log_p2"), ("shared",)
FEATURES = (*HEAD_FEATURES, *DATA_FEATURES)
METHOD = Kind(
    "method",
    required=("phase", "needs"),
    reserved=("title", "colour"),
    given=GIVEN,
    positional=("pair",),
    ranges={"beta": Range("(0, 1e6]")},
)
RATIO = Range("[0, 1]")
PILOT = Kind(
    "pilot",
    reserved=("whole", "features", "size", "coupling", "refresh", "draws", "through"),
    positional=("place",),
)
PILOT_WORDS = {
    "coupling": ("independent", "shared", "complement", "antithetic"),
    "refresh": ("step", "epoch", "never"),
    "through": ("value", "gradient"),
}
SIZE_WORDS = {"of": ("shorter", "own", "found"), "rounding": ("floor", "stochastic", "none")}


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
    pilot: Pilot | None = None
    features: tuple[str, ...] = ()
    scores: bool = False

    @property
    def head_features(self) -> tuple[str, ...]:
        """Return what the lm-head is to say of each token."""
        return tuple(name for name in self.features if name in HEAD_FEATURES)

    @property
    def data_features(self) -> tuple[str, ...]:
        """Return what a row is to hold of each token, in the order of its targets."""
        return tuple(name for name in self.features if name in DATA_FEATURES)

    def __call__(self, pair: Pair, draws: DrawKey, state: Any = None) -> PairLoss:
        """Return the loss of each pair; pass the function only what its YAML says it needs."""
        needs: dict[str, Any] = {}
        if self.draws:
            needs["draws"] = draws
        if self.ratios is not None:
            needs["ratios"] = self.ratios
        if self.pilot is not None:
            needs["pilot"] = self.pilot
        if self.state_class is not None:
            needs["state"] = state
        return self.function(pair, **self.hyper, **needs)

    def new_state(self) -> Any:
        """Return the method's state as it is before the first step, or None."""
        return self.state_class() if self.state_class else None


def method_errors(
    config: Mapping[str, Any],
    ratio: Mapping[str, Any],
    extra: Sequence[str] = (),
    folders: Sequence[Path] = (CONF,),
    *,
    pilot: Mapping[str, Any] | None = None,
) -> list[str]:
    """List everything wrong with a method's YAML, its ratios and its pilot, as sentences with advice."""
    errors = binding_errors(METHOD, config, extra, folders)
    if any(key not in config for key in (METHOD.key, *METHOD.required)):
        return errors
    if not isinstance(config["needs"], Mapping):
        return [*errors, f"method.needs must be a mapping with the keys {list(NEEDS)}"]
    if config["phase"] not in ("sft", "preference"):
        errors.append(f"method.phase must be sft or preference, not {config['phase']!r}")
    errors += _needs_errors(config, extra)
    name, needs = config.get("name", "?"), config["needs"]
    errors += _ratio_errors(name, bool(needs.get("ratios")), ratio)
    return [*errors, *_pilot_errors(name, bool(needs.get("pilot")), pilot or {}, ratio, extra, folders)]


def bind_method(
    config: Mapping[str, Any],
    ratio: Mapping[str, Any],
    extra: Sequence[str] = (),
    *,
    pilot: Mapping[str, Any] | None = None,
) -> Method:
    """Return the method that a YAML describes. Raise ValueError with every error at once."""
    from sgdpo.pairs import Ratios

    if errors := method_errors(config, ratio, extra, pilot=pilot):
        raise ValueError("\n".join(errors))
    needs = config["needs"]
    bound = _bind_pilot(pilot, extra) if needs.get("pilot") and pilot else None
    features = [*(needs.get("features") or ()), *((pilot or {}).get("features") or ())]
    return Method(
        name=config["name"],
        phase=config["phase"],
        function=load_dotted(config["function"], extra),
        hyper=settings_of(METHOD, config),
        reference=bool(needs.get("reference")),
        draws=bool(needs.get("draws")),
        ratios=Ratios(float(ratio["chosen"]), float(ratio["rejected"])) if needs.get("ratios") else None,
        state_class=load_dotted(needs["state"], extra) if needs.get("state") else None,
        pilot=bound,
        features=tuple(dict.fromkeys(features)),
        scores=bool(needs.get("scores")),
    )


def _needs_errors(config: Mapping[str, Any], extra: Sequence[str]) -> Iterator[str]:
    """Hold what the YAML says the method needs against the keywords that the function takes."""
    needs = config["needs"]
    if unknown := sorted(set(map(str, needs)) - set(NEEDS)):
        yield f"method.needs has unknown keys {unknown}; known: {list(NEEDS)}"
    try:
        taken = find(config["function"], extra).parameters
    except ValueError:
        return  # binding_errors says it
    for key in GIVEN:
        if bool(needs.get(key)) != (key in taken):
            does = "takes" if key in taken else "does not take"
            yield f"method.needs.{key} is {needs.get(key)!r}, but its function {does} {key!r}"
    if needs.get("pilot") and not needs.get("reference"):
        yield "method.needs.pilot is a part of a log-ratio, so method.needs.reference must be true as well"
    for key in ("reference", "ratios", "draws", "pilot", "scores"):
        if not isinstance(needs.get(key, False), bool):
            yield f"method.needs.{key} must be true or false, not {needs[key]!r}"
    features = needs.get("features") or []
    if not isinstance(features, list) or set(features) - set(FEATURES):
        yield f"method.needs.features must be a list of {list(FEATURES)}, not {features!r}"
    if needs.get("state"):
        try:
            if not find(needs["state"], extra).is_class:
                yield f"method.needs.state: {needs['state']} is no class"
        except ValueError as error:
            yield f"method.needs.state: {error}"


def _ratio_errors(name: str, wanted: bool, ratio: Mapping[str, Any]) -> Iterator[str]:
    given = {key: ratio[key] for key in ("chosen", "rejected") if ratio.get(key) is not None}
    if not wanted and given:
        keys = ", ".join(f"ratio.{key}" for key in given)
        yield f"method {name!r} takes no ratio, but {keys} is set; leave it out or use ratio=none"
    for key in ("chosen", "rejected") if wanted else ():
        if key not in given:
            yield f"method {name!r} needs ratio.{key} in [0, 1]; ratio=paper sets 0.6 and 0.9"
        elif given[key] not in RATIO:
            yield f"ratio.{key} must lie in [0, 1], not {given[key]}; the paper's grid is 0.6 to 1.0"


def _pilot_errors(
    name: str, wanted: bool, pilot: Mapping[str, Any], ratio: Mapping[str, Any], extra: Sequence[str],
    folders: Sequence[Path],
) -> Iterator[str]:  # fmt: skip
    """Hold a pilot's YAML against its select, its words, and the ratios it is to follow."""
    if not wanted:
        if pilot:
            yield f"method {name!r} takes no pilot, but pilot={pilot.get('name')} is set; leave it out"
        return
    if not pilot:
        yield f"method {name!r} needs a pilot; pilot=uniform is the paper's"
        return
    yield from binding_errors(PILOT, pilot, extra, folders)
    size = pilot.get("size")
    if not isinstance(size, Mapping) or set(size) != set(SIZE_WORDS):
        yield f"pilot.size must be a mapping with the keys {list(SIZE_WORDS)}, not {size!r}"
        return
    said = {**{key: pilot.get(key) for key in PILOT_WORDS}, **{f"size.{key}": size[key] for key in size}}
    words = {**PILOT_WORDS, **{f"size.{key}": options for key, options in SIZE_WORDS.items()}}
    yield from (
        f"pilot.{key} must be one of {', '.join(words[key])}, not {value!r}"
        for key, value in said.items()
        if value not in words[key]
    )
    both = [ratio.get("chosen"), ratio.get("rejected")]
    if size["of"] == "found" and None not in both and both != [1, 1]:
        yield (
            f"pilot={pilot.get('name')} takes as many tokens as it finds, so the ratios must both be 1, not {both[0]} "
            f"and {both[1]}; say ratio=full"
        )
    if pilot.get("whole") and size["rounding"] == "none":
        yield f"pilot.size.rounding=none gives fractions, {pilot.get('name')} takes whole tokens: floor or stochastic"
    if problem := value_error(pilot.get("draws"), int, Range("[1, 1000]")):
        yield f"pilot.draws{problem}"
    if set(pilot.get("features") or []) - set(FEATURES):
        yield f"pilot.features must be a list of {list(FEATURES)}, not {pilot['features']!r}"
    if pilot.get("coupling") == "complement" and None not in both and abs(sum(both) - 1) > 1e-9:
        yield f"pilot.coupling=complement needs ratios that add up to 1, not {both[0]} and {both[1]}"


def _bind_pilot(config: Mapping[str, Any], extra: Sequence[str]) -> Pilot:
    from sgdpo.pilot import Pilot

    words = {key: config[key] for key in (*PILOT_WORDS, "draws")}
    return Pilot(
        load_dotted(config["function"], extra), settings_of(PILOT, config), **config["size"], **words
    )
