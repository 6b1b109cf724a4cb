"""Bind a method's YAML to its function, and hold what the YAML says that the function needs.

A method is one pure function and one YAML (see `contract.py`). Nothing outside `conf/method` and `sgdpo/methods`
knows a method by name. Nothing heavy is imported to check one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sgdpo.contract import Kind, binding_errors, settings_of
from sgdpo.mixtures import PART_FORM, PartStates, needs_of, with_parts
from sgdpo.places import CONF
from sgdpo.source import Definition, find, load_dotted
from sgdpo.values import AtLeast0, Range, value_error

if TYPE_CHECKING:
    from sgdpo.pairs import DrawKey, Pair, PairLoss, Part, Ratios
    from sgdpo.pilot import Pilot

PHASES = ("sft", "preference")
NEEDS = ("reference", "ratios", "draws", "state", "pilot", "parts", "features", "scores")
# What the class of a state defines: `advance` takes {name: (sum, count)} of what the function returned as `sums`.
STATE_PARTS = ("advance", "state_dict", "load_state_dict")
GIVEN = NEEDS[1:6]  # these arrive as keywords of the function; the others arrive in the pair
# What can be known of a token beside its log-prob: by the lm-head (models/head.py), by the data (data/overlap.py).
HEAD_FEATURES, DATA_FEATURES = ("entropy", "log_p2"), ("shared",)
FEATURES = (*HEAD_FEATURES, *DATA_FEATURES)
METHOD = Kind(
    "method",
    required=("phase", "needs"),
    reserved=("title", "colour", "parts"),
    given=GIVEN,
    positional=("pair",),
)
# What a function reads of a pair that it is given only where the YAML says so.
READ_WITH = {
    "reference": {"reference_BT", "ratio_BT", "ratio_B", "mean_ratio_B"},
    "scores": {"score_w_B", "score_l_B"},
}
COLOUR = re.compile("#[0-9a-fA-F]{6}")
RATIO = Range("[0, 1]")
# Keys of a pilot's YAML beside its select's own, and those of its size: fields of `Pilot`, which says what they may be.
DRAWING, SIZE = ("coupling", "refresh", "draws", "through"), ("of", "rounding")
PILOT = Kind("pilot", reserved=("whole", "features", "size", *DRAWING), positional=("place",))


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
    parts: tuple[tuple[float, Method], ...] = ()

    @property
    def head_features(self) -> tuple[str, ...]:
        """Return what the lm-head is to say of each token."""
        return tuple(name for name in self.features if name in HEAD_FEATURES)

    @property
    def data_features(self) -> tuple[str, ...]:
        """Return what a row is to hold of each token, in the order of its targets."""
        return tuple(name for name in self.features if name in DATA_FEATURES)

    @property
    def notes(self) -> list[str]:
        """Return what a run says of its pilots before it trains."""
        empty = [side for side in ("chosen", "rejected") if self.pilot and getattr(self.ratios, side) == 0]
        return [
            f"ratio.{side}=0: the {side} pilot is empty; with both empty SGDPO is half of BCO"
            for side in empty
        ]

    def __call__(self, pair: Pair, draws: DrawKey, state: Any = None) -> PairLoss:
        """Return the loss of each pair; pass the function only what its YAML says it needs.

        Raise ValueError for a function that does not return one number a pair: its sum would count for one pair.
        """
        result = self.function(pair, **self.hyper, **self._needed(draws, state))
        shape = getattr(getattr(result, "loss_B", None), "shape", None)
        if shape != pair.chosen.mask_BT.shape[:1]:
            made = type(result).__name__ if shape is None else f"losses of the shape {tuple(shape)}"
            raise ValueError(
                f"method {self.name!r} must return a PairLoss of one loss for each of {len(pair.chosen.mask_BT)} "
                f"pairs, unreduced, not {made}"
            )
        return result

    def _needed(self, draws: DrawKey, state: Any) -> dict[str, Any]:
        if self.parts:
            return {"parts": list(self._parts(draws, state))}
        needs: dict[str, Any] = {}
        if self.draws:
            needs["draws"] = draws
        if self.ratios is not None:
            needs["ratios"] = self.ratios
        if self.pilot is not None:
            needs["pilot"] = self.pilot
        if self.state_class is not None:
            needs["state"] = state
        return needs

    def _parts(self, draws: DrawKey, state: PartStates | None) -> Iterator[Part]:
        from sgdpo.pairs import Part

        for place, (weight, method) in enumerate(self.parts):
            own = state.states.get(str(place)) if state else None
            yield Part(method.name, weight, partial(method, draws=draws, state=own))

    def new_state(self) -> Any:
        """Return the method's state as it is before the first step, or None."""
        if self.state_class:
            return self.state_class()
        found = {str(place): method.new_state() for place, (_, method) in enumerate(self.parts)}
        return PartStates(kept) if (kept := {key: state for key, state in found.items() if state}) else None


def method_errors(
    config: Mapping[str, Any],
    ratio: Mapping[str, Any],
    extra: Sequence[str] = (),
    folders: Sequence[Path] = (CONF,),
    *,
    pilot: Mapping[str, Any] | None = None,
) -> list[str]:
    """List everything wrong with a method's YAML, its ratios and its pilot, as sentences with advice."""
    try:
        config = with_parts(config, folders)
    except ValueError as error:
        return str(error).split("\n")
    errors, sound = _own_errors(config, extra, folders)
    if not sound:
        return errors
    name, needs = config.get("name", "?"), needs_of(config)
    errors += _ratio_errors(name, bool(needs.get("ratios")), ratio)
    return [*errors, *_pilot_errors(name, bool(needs.get("pilot")), pilot or {}, ratio, extra, folders)]


def _own_errors(
    config: Mapping[str, Any], extra: Sequence[str], folders: Sequence[Path]
) -> tuple[list[str], bool]:
    """Hold a YAML against its function, a mixture's parts against theirs; say too whether its needs can be read."""
    errors = binding_errors(METHOD, config, extra, folders)
    if any(key not in config for key in (METHOD.key, *METHOD.required)):
        return errors, False
    if not isinstance(config["needs"], Mapping):
        return [*errors, f"method.needs must be a mapping with the keys {list(NEEDS)}"], False
    if config["phase"] not in PHASES:
        errors.append(f"method.phase must be {' or '.join(PHASES)}, not {config['phase']!r}")
    if problem := value_error(config.get("title"), str | None):
        errors.append(f"method.title{problem}")
    if (colour := config.get("colour")) is not None and not COLOUR.fullmatch(str(colour)):
        errors.append(f'method.colour must be as in "#0072B2", not {colour!r}')
    needs_errors = list(_needs_errors(config, extra))
    errors += needs_errors
    found, parts, sound = config.get("name", "?"), config.get("parts") or [], not needs_errors
    if bool(config["needs"].get("parts")) != bool(parts):
        errors.append(
            f"method.parts of {found!r} is empty: a mixture of nothing; give a list of {PART_FORM}"
            if config["needs"].get("parts")
            else f"method.parts is for mixtures (method=mix); {found!r} is none"
        )
    for place, part in enumerate(parts):
        inner, readable = _own_errors(part["method"], extra, folders)
        sound &= readable
        where = f"method.parts[{place}]"
        errors += [f"{where}: {error}" for error in inner]
        if problem := value_error(part["weight"], AtLeast0):
            errors.append(f"{where}.weight{problem}")
        if part["method"].get("phase") != config["phase"]:
            errors.append(
                f"{where}: {part['method'].get('name')} is of the phase {part['method'].get('phase')}, the mixture of "
                f"{config['phase']}: their losses count different things; nll is the likelihood of the chosen answer"
            )
    if parts and not errors and not any(part["weight"] for part in parts):
        errors.append("method.parts: all weights are 0: a mixture of nothing; give one a positive weight")
    return errors, sound


def bind_method(
    config: Mapping[str, Any],
    ratio: Mapping[str, Any],
    extra: Sequence[str] = (),
    *,
    pilot: Mapping[str, Any] | None = None,
    logged: Sequence[str] = (),
) -> Method:
    """Return the method that a YAML describes. Raise ValueError with every error at once.

    logged: features of tokens that are to be among the metrics, whether the method needs them or not.
    """
    if errors := method_errors(config, ratio, extra, pilot=pilot):
        raise ValueError("\n".join(errors))
    from sgdpo.pairs import Ratios

    config = with_parts(config)
    needs = needs_of(config)
    bound = _bind_pilot(pilot, extra) if needs.get("pilot") and pilot else None
    features = [*(needs.get("features") or ()), *((pilot or {}).get("features") or ()), *logged]
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
        parts=tuple(
            (float(part["weight"]), _bind_part(part["method"], ratio, extra, pilot))
            for part in config.get("parts") or ()
        ),
    )


def _bind_part(
    config: Mapping[str, Any], ratio: Mapping[str, Any], extra: Sequence[str], pilot: Mapping[str, Any] | None
) -> Method:
    """Bind a part of a mixture with as much of the run's ratio and pilot as it takes."""
    needs = needs_of(config)
    return bind_method(
        config, ratio if needs.get("ratios") else {}, extra, pilot=pilot if needs.get("pilot") else None
    )


def _needs_errors(config: Mapping[str, Any], extra: Sequence[str]) -> Iterator[str]:
    """Hold what the YAML says the method needs against the keywords that the function takes."""
    needs = config["needs"]
    if unknown := sorted(set(map(str, needs)) - set(NEEDS)):
        yield f"method.needs has unknown keys {unknown}; known: {list(NEEDS)}"
    try:
        function = find(config["function"], extra)
    except ValueError:
        return  # binding_errors says it
    for key in GIVEN:
        if bool(needs.get(key)) != (key in function.parameters):
            does = "takes" if key in function.parameters else "does not take"
            yield f"method.needs.{key} is {needs.get(key)!r}, but its function {does} {key!r}"
    for key, names in READ_WITH.items():
        if not needs.get(key) and (read := sorted(names & function.attributes_read())):
            yield f"method.needs.{key} is {needs.get(key)!r}, but its function looks at {', '.join(read)}"
    if needs.get("pilot") and not needs.get("reference"):
        yield "method.needs.pilot is a part of a log-ratio, so method.needs.reference must be true as well"
    for key in ("reference", "ratios", "draws", "pilot", "parts", "scores"):
        if not isinstance(needs.get(key, False), bool):
            yield f"method.needs.{key} must be true or false, not {needs[key]!r}"
    yield from _features_errors("method.needs.features", needs.get("features"), function)
    if needs.get("state"):
        try:
            state = find(needs["state"], extra)
            if not state.is_class:
                yield f"method.needs.state: {needs['state']} is no class"
            elif lacking := [part for part in STATE_PARTS if part not in state.attributes]:
                yield f"method.needs.state: {needs['state']} lacks {lacking}"
        except ValueError as error:
            yield f"method.needs.state: {error}"


def _features_errors(key: str, given: Any, function: Definition | None) -> Iterator[str]:
    """Hold the features that a YAML names against those there are and those that its function reads."""
    features = given or []
    if not isinstance(features, list) or any(feature not in FEATURES for feature in features):
        yield f"{key} must be a list of {list(FEATURES)}, not {features!r}"
    elif function and (lacking := function.keys_of("features") - set(features)):
        yield f"{key} lacks {sorted(lacking)}, which {function.path} looks at"


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
    bound = binding_errors(PILOT, pilot, extra, folders)
    yield from bound
    size = pilot.get("size")
    if not isinstance(size, Mapping) or set(size) != set(SIZE):
        yield f"pilot.size must be a mapping with the keys {list(SIZE)}, not {size!r}"
        return
    given = {key: pilot.get(key) for key in DRAWING} | {f"size.{key}": size[key] for key in SIZE}
    hints = find("sgdpo.pilot.Pilot").parameters
    for key, value in given.items():
        if problem := value_error(value, hints[key.removeprefix("size.")][0]):
            yield f"pilot.{key}{problem}"
    both = [float(ratio[side]) for side in ("chosen", "rejected") if ratio.get(side) is not None]
    if size["of"] == "found" and len(both) == 2 and both != [1, 1]:
        yield (
            f"pilot={pilot.get('name')} takes as many tokens as it finds, so the ratios must both be 1, not {both[0]} "
            f"and {both[1]}; say ratio=full"
        )
    if pilot.get("whole") and size["rounding"] == "none":
        yield f"pilot.size.rounding=none gives fractions, {pilot.get('name')} takes whole tokens: floor or stochastic"
    if problem := value_error(pilot.get("whole", False), bool):
        yield f"pilot.whole{problem}"
    if given["coupling"] == "antithetic" and given["refresh"] == "step":
        yield "pilot.coupling=antithetic turns the keys of the epoch before: its draws must outlast a step"
    yield from _features_errors(
        "pilot.features", pilot.get("features"), None if bound else find(pilot["function"], extra)
    )
    if pilot.get("coupling") == "complement" and len(both) == 2 and abs(sum(both) - 1) > 1e-9:
        yield f"pilot.coupling=complement needs ratios that add up to 1, not {both[0]} and {both[1]}"


def _bind_pilot(config: Mapping[str, Any], extra: Sequence[str]) -> Pilot:
    from sgdpo.pilot import Pilot

    words = {key: config[key] for key in DRAWING}
    return Pilot(
        load_dotted(config["function"], extra), settings_of(PILOT, config), **config["size"], **words
    )
