"""Bind one function or class to one YAML: whatever a user adds is these two files, found by the YAML's dotted path.

The YAML names the function or class under `function` or `class`, and sets its keyword-only parameters (or
dataclass fields); the kind reserves the other keys. All of it is checked from the source text (`source.py`), so
that a wrong value is answered before torch is imported, and a dry run runs nothing.

    BENCHMARK = Kind("benchmark", key="class", parts=("prompts", "read"), given=("cache",))
    errors = binding_errors(BENCHMARK, config)             # sentences with file, key and what is expected
    benchmark = build(BENCHMARK, config, cache=folder)
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from sgdpo.places import CONF
from sgdpo.source import Definition, find, load_dotted
from sgdpo.values import NAME, value_error


@dataclass(frozen=True)
class Kind:
    """Hold what is asked of one kind of thing.

    group: its folder in conf/, and what errors call its keys. key: the YAML's key with the dotted path.
    required, reserved: the YAML's other keys that are not settings; the required ones must be there.
    given: keyword parameters that the caller passes. positional: a function's positional parameters.
    parts: what a class must define; a kind without parts is a function.
    """

    group: str
    key: str = "function"
    required: tuple[str, ...] = ()
    reserved: tuple[str, ...] = ()
    given: tuple[str, ...] = ()
    positional: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()


def binding_errors(
    kind: Kind, config: Mapping[str, Any], extra: Sequence[str] = (), folders: Sequence[Path] = (CONF,)
) -> list[str]:
    """List everything wrong with a YAML of a kind, as sentences; nothing of what it names runs.

    extra: files that the user named on this command. folders: where YAMLs come from.
    """
    name, group = config.get("name", "?"), kind.group
    if problem := NAME.problem(name if name != "?" else None):
        return [f"{group}.name{problem}"]
    if missing := [key for key in ("name", kind.key, *kind.required) if key not in config]:
        example = next((path for path, _ in _yamls(group, (CONF,))), CONF / group)
        return [f"{group} {name!r} lacks {missing}; see {_shown(example)} for the form"]
    files = [path for path, given in _yamls(group, tuple(folders)) if name in (given, path.stem)]
    if len(files) > 1:
        return [f"{group} {name!r} is the name of {' and of '.join(map(_shown, files))}; rename one"]
    try:
        target = find(config[kind.key], extra)
        errors = list(_form_errors(kind, target)) or list(_setting_errors(kind, config, target))
    except ValueError as error:
        errors = [f"{group}.{kind.key}: {error}"]
    return [f"{error} ({_shown(files[0])})" if files else error for error in errors]


def settings_of(kind: Kind, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that the YAML gives."""
    return {k: v for k, v in config.items() if k not in ("name", kind.key, *kind.required, *kind.reserved)}


def load(kind: Kind, config: Mapping[str, Any], extra: Sequence[str] = ()) -> Any:
    """Return the function or class of a YAML. Raise ValueError with every error at once."""
    if errors := binding_errors(kind, config, extra):
        raise ValueError("\n".join(errors))
    return load_dotted(config[kind.key], extra)


def build(kind: Kind, config: Mapping[str, Any], extra: Sequence[str] = (), **given: Any) -> Any:
    """Return what the class makes of the YAML's settings and of what the caller gives beside."""
    return load(kind, config, extra)(**settings_of(kind, config), **given)


def _form_errors(kind: Kind, target: Definition) -> Iterator[str]:
    """Hold the shape of the function or class against what the kind asks."""
    where = f"{kind.group}.{kind.key}: {target.path}"
    if target.is_class != bool(kind.parts):
        yield f"{where} is no {'class' if kind.parts else 'function'}"
    elif kind.parts:
        if lacking := [part for part in kind.parts if part not in target.attributes]:
            yield f"{where} lacks {lacking}; a {kind.group} has {list(kind.parts)}"
    elif len(target.positional) != len(kind.positional):
        wanted, has = ", ".join((*kind.positional, "*", "settings")), ", ".join(target.positional)
        yield f"{where} must take ({wanted}), not ({has})"


def _setting_errors(kind: Kind, config: Mapping[str, Any], target: Definition) -> Iterator[str]:
    """Hold the YAML's settings against the parameters, their annotations and ranges."""
    name, settings = config.get("name", "?"), settings_of(kind, config)
    parameters = {key: value for key, value in target.parameters.items() if key not in kind.given}
    for key, value in settings.items():
        if key not in parameters:
            yield f"{kind.group}.{key} is not a setting of {name!r}; it has {sorted(parameters)}"
        elif problem := value_error(value, parameters[key][0]):
            yield f"{kind.group}.{key}{problem}"
    if absent := [key for key, (_, needed) in parameters.items() if needed and key not in settings]:
        yield f"{kind.group} {name!r} lacks {absent} in its YAML"


@cache
def _yamls(group: str, folders: tuple[Path, ...]) -> list[tuple[Path, str]]:
    """Return each YAML of a group with the name that it gives; hundreds take a few milliseconds."""
    found = []
    for path in sorted(path for folder in folders for path in (folder / group).glob("*.yaml")):
        named = re.search(r"^name:\s*[\"']?([^\"'#\s]+)", path.read_text(encoding="utf-8"), re.M)
        found.append((path, named[1] if named else path.stem))
    return found


def _shown(path: Path) -> str:
    return str(path.relative_to(CONF.parent)) if path.is_relative_to(CONF.parent) else str(path)
