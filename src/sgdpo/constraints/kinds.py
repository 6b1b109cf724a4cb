"""A kind of constraint: a pure function and a YAML in conf/constraint that names it; nobody knows one by name.

    def words_at_most(answer: str, *, count: int) -> bool: ...

The YAML says how an instruction asks for it, what its arguments are drawn from, and what it speaks of. Two aspects mean
more: who speaks of `topic` need not name the topic; what `avoid` forbids is not asked for by the same instruction.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import yaml

from sgdpo.config.compose import config_folders
from sgdpo.contract import Kind, binding_errors, load
from sgdpo.places import CONF
from sgdpo.source import find
from sgdpo.values import fits

CONSTRAINT = Kind("constraint", positional=("answer",), required=("say", "draw", "aspects"))


@dataclass(frozen=True)
class Constraint:
    """Hold one constraint of one instruction: its kind's name, the arguments drawn, the sentence that asks for it."""

    kind: str
    arguments: Mapping[str, Any]
    text: str = ""


@dataclass(frozen=True)
class ConstraintKind:
    """Hold a kind: whether an answer keeps it, how it is asked for, and what excludes other kinds beside it."""

    name: str
    holds: Callable[..., bool]
    say: Sequence[str]
    draw: Mapping[str, Sequence[Any]]
    aspects: frozenset[str]
    source: str

    def one(self, random: Random) -> Constraint:
        """Draw the arguments and the sentence."""
        drawn = {key: random.choice(values) for key, values in self.draw.items()}
        shown = {key: ", ".join(map(str, v)) if isinstance(v, list) else v for key, v in drawn.items()}
        return Constraint(self.name, drawn, random.choice(self.say).format(**shown))


def load_kinds(names: Sequence[str] | None = None) -> dict[str, ConstraintKind]:
    """Load the kinds of conf/constraint by name, all of them or those named. Raise ValueError with all errors.

    An instruction is read again wherever answers to it are scored, in processes that know no --config-dir: so there is
    one place of kinds.
    """
    folders = [folder / "constraint" for folder in config_folders() if folder != CONF]
    if apart := [str(path) for folder in folders for path in sorted(folder.glob("*.yaml"))]:
        raise ValueError(
            f"{', '.join(apart)}: kinds of constraint are read from conf/constraint alone; put the YAML there, and its "
            "function into src/sgdpo/constraints"
        )
    files = {path.stem: path for path in sorted((CONF / "constraint").glob("*.yaml"))}
    if unknown := sorted(set(names or ()) - set(files)):
        raise ValueError(
            f"{', '.join(unknown)}: no kind of constraint; conf/constraint has {', '.join(files)}"
        )
    asked = files if names is None else names
    settings = {name: _read(files[name]) for name in asked}
    if errors := [error for name, given in settings.items() for error in kind_errors(name, given)]:
        raise ValueError("\n".join(errors))
    return {name: _kind(given, files[name].read_text("utf-8")) for name, given in settings.items()}


def _read(path: Path) -> dict[str, Any]:
    with path.open(encoding="utf-8") as file:  # whose name YAML's errors say
        found = yaml.safe_load(file)
    return found if isinstance(found, dict) else {}


def kind_errors(name: str, settings: Mapping[str, Any]) -> list[str]:
    """List what is wrong with a kind's YAML: every value that may be drawn is held against the function."""
    where = f"conf/constraint/{name}.yaml"
    return [error if where in error else f"{error} ({where})" for error in _errors(name, where, settings)]


def _errors(name: str, where: str, settings: Mapping[str, Any]) -> list[str]:
    draw = settings.get("draw")
    if not isinstance(draw, Mapping) or not all(
        isinstance(values, list) and values for values in draw.values()
    ):
        return [f"{where}: draw must give each argument a list of values, not {draw!r}"]
    if errors := binding_errors(CONSTRAINT, {k: v for k, v in settings.items() if k in ("name", "function")}
                                | {k: settings[k] for k in CONSTRAINT.required if k in settings}
                                | _first(settings)):  # fmt: skip
        return errors
    errors = [f"{where}: name is {settings['name']!r}; it is the file's, {name!r}"] * (
        settings["name"] != name
    )
    for key in ("say", "aspects"):
        if not settings[key] or not fits(settings[key], list[str]):
            errors.append(f"{where}: {key} must be a list of at least one text, not {settings[key]!r}")
    for key, values in settings["draw"].items():
        for value in values:
            errors += binding_errors(CONSTRAINT, {**settings, **_first(settings), key: value})
    for sentence in settings["say"] if not errors else ():
        try:
            sentence.format(**settings["draw"])
        except (KeyError, IndexError, ValueError) as error:
            errors.append(
                f"{where}: {sentence!r} does not fit the arguments {sorted(settings['draw'])}: {error}"
            )
    return errors


def _first(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the first value of each argument, with which the contract can be tried."""
    return {key: values[0] for key, values in settings["draw"].items()}


def _kind(settings: Mapping[str, Any], text: str) -> ConstraintKind:
    holds = load(CONSTRAINT, {**settings, **_first(settings)})
    code = find(settings["function"]).module.path.read_text("utf-8")
    shape = {key: settings[key] for key in ("name", "say", "draw")}
    return ConstraintKind(**shape, holds=holds, aspects=frozenset(settings["aspects"]), source=text + code)
