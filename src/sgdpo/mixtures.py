"""What a mixture's YAML says of its parts, which are methods: their settings, what they need, their states.

No part is bound here (`method.py` does that), and nothing heavy is imported.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from sgdpo.places import CONF
from sgdpo.values import value_error

METHODS = "method"  # their folder in conf/
# How a method is shown, and what it would compose beside itself: none of it goes into a mixture.
NOT_IN_PART = ("defaults", "title", "colour")
PART_FORM = "{method: NAME, weight: NUMBER}"


def with_parts(config: Mapping[str, Any], folders: Sequence[Path] = (CONF,)) -> dict[str, Any]:
    """Return a method's settings with each part of a mixture as its own YAML has it, and what the part changes.

    A part is {method: NAME, weight: W, SETTING: VALUE ...} and becomes {weight: W, method: {...}}; it stays if it is
    one already. Raise ValueError for parts of another form and for names that are no method's.
    """
    parts = config.get("parts")
    if not parts:
        return dict(config)
    yamls = {path.stem: path for folder in folders for path in sorted((folder / METHODS).glob("*.yaml"))}
    if not isinstance(parts, list):
        raise ValueError(f"method.parts must be a list of {PART_FORM}, not {parts!r}")
    errors = [error for place, part in enumerate(parts) for error in _form_errors(place, part, yamls)]
    if errors:
        raise ValueError("\n".join(errors))
    found, titles = [], []
    for part in parts:
        given = part["method"]
        title = given["name"] if isinstance(given, Mapping) else str(given)
        if not isinstance(given, Mapping):
            yaml = OmegaConf.to_container(OmegaConf.load(yamls[str(given)]))
            assert isinstance(yaml, dict)
            title = yaml.get("title") or title
            given = {key: value for key, value in yaml.items() if key not in NOT_IN_PART}
        given = {**given, **{key: value for key, value in part.items() if key not in ("method", "weight")}}
        found.append({"weight": part["weight"], "method": with_parts(given, folders)})
        titles.append(title if part["weight"] == 1 else f"{part['weight']:g} {title}")
    return {**config, "title": config.get("title") or " + ".join(titles), "parts": found}


def _form_errors(place: int, part: Any, yamls: Mapping[str, Path]) -> Iterator[str]:
    where = f"method.parts[{place}]"
    if not isinstance(part, Mapping) or not {"method", "weight"} <= set(part):
        yield f"{where} must be {PART_FORM}, not {part!r}"
    elif isinstance(part["method"], Mapping) and "name" not in part["method"]:
        yield f"{where}.method must be a name, or all settings of a method with its name, not {part['method']!r}"
    elif not isinstance(part["method"], Mapping) and str(part["method"]) not in yamls:
        yield f"{where}: there is no method {part['method']!r}; there are {', '.join(sorted(yamls))}"
    elif problem := value_error(part["weight"], float):
        yield f"{where}.weight{problem}"


def needs_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a method's YAML says it needs; for a mixture, what any of its parts needs too."""
    needs = dict(config["needs"])
    for part in config.get("parts") or ():
        for key, value in needs_of(part["method"]).items():
            both = [*(needs.get(key) or ()), *(value or ())] if key == "features" else needs.get(key) or value
            needs |= {} if key in ("state", "parts") else {key: both}
    return needs


class PartStates:
    """Hold the states of a mixture's parts, by place; what a part asks of a step is called "place/name"."""

    def __init__(self, states: Mapping[str, Any]) -> None:
        self.states = states

    def advance(self, sums: Mapping[str, tuple[float, int]]) -> None:
        """Hand each part what it asked for."""
        for place, state in self.states.items():
            state.advance(
                {key[len(place) + 1 :]: v for key, v in sums.items() if key.startswith(f"{place}/")}
            )

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return {place: state.state_dict() for place, state in self.states.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take the states of a checkpoint."""
        for place, part in self.states.items():
            part.load_state_dict(state[place])
