"""Compose `conf/` into the typed RunConfig, and keep what the typed form cannot catch out of it."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, fields, is_dataclass, replace
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from hydra import compose, initialize_config_dir
from hydra._internal.utils import get_args_parser
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigTypeError, MissingMandatoryValue, OmegaConfBaseException, ValidationError

from sgdpo.config.schema import DataConfig, RunConfig
from sgdpo.method import PHASES, Method, bind_method
from sgdpo.mixtures import with_parts
from sgdpo.places import CONF

T = TypeVar("T")
TAKE_A_VALUE = (
    "--config-dir", "-cd", "--config-name", "-cn", "--config-path", "-cp", "--package", "-p", "--cfg", "-c",
    "--info", "-i",
)  # fmt: skip
# Lines of OmegaConf's errors that tell a user nothing.
NOISE = ("full_key:", "object_type=", "reference_type=")


@cache
def register_schema(name: str = "run_schema", schema: type = RunConfig) -> None:
    """Make a typed form known to Hydra; conf/config.yaml, or another command's, names it first in its defaults."""
    node = OmegaConf.structured(schema)
    if "data" in node:
        # A data set's YAML holds the settings of its own function beside the common ones.
        OmegaConf.set_struct(node.data, False)
    ConfigStore.instance().store(name=name, node=node)


def compose_run(overrides: list[str]) -> DictConfig:
    """Compose a run from command-line overrides, in Hydra's application or without it."""
    register_schema()
    if GlobalHydra.instance().is_initialized():
        return compose("config", overrides)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", overrides)


def compose_alone(name: str, schema: type, overrides: Sequence[str]) -> DictConfig:
    """Compose conf/<name>.yaml, whose typed form is `<name>_schema`, without Hydra's application around it."""
    register_schema(f"{name}_schema", schema)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(name, list(overrides))


def config_folders() -> list[Path]:
    """Return the folders that YAMLs come from in this process: conf/, and those given by --config-dir."""
    if not HydraConfig.initialized():
        return [CONF]
    sources = HydraConfig.get().runtime.config_sources
    return list(dict.fromkeys([CONF, *(Path(s.path) for s in sources if s.schema == "file")]))


@cache
def written(group: str, name: str, folders: tuple[Path, ...] = (CONF,)) -> dict[str, Any]:
    """Return a group's option over those that it builds on, without the groups that it selects; {} for none.

    folders: of `config_folders`; the first that has the option gives it.
    """
    # By what is there: not every text is a path, and none leads out of the group.
    files = (path for folder in folders for path in (folder / group).glob("*.yaml") if path.stem == name)
    own: Any = next(map(OmegaConf.load, files), OmegaConf.create())
    bases = [base for base in own.pop("defaults", []) if isinstance(base, str) and base != "_self_"]
    below = (written(group, base, folders) for base in bases)
    whole: Any = OmegaConf.to_container(OmegaConf.merge(*below, own))
    return whole


def unknown_keys(config: DictConfig, schema: type = RunConfig) -> list[str]:
    """List the keys that no dataclass knows: `+typo=1` composes, and must not pass."""
    node = _settings_apart(OmegaConf.to_container(config, resolve=False))
    return sorted(_unknown(node, schema(), ""))


def unknown_key(key: str, known: Iterable[str] = (), below: Iterable[str] = ()) -> str:
    """Say that there is no such key, and which may be meant: a known one, or one of its name below other keys."""
    same = [other for other in below if other.endswith(f".{key}")]
    nearest = min((other.count(".") for other in same), default=0)
    close = [other for other in same if other.count(".") == nearest] or get_close_matches(key, known, 1)
    few = 0 < len(close) < 4
    meant = f"did you mean {' or '.join(close)}?" if few else "no setting here has this name (see conf/)"
    return f"unknown key {key!r}: {meant}"


def _settings_apart(node: Any) -> Any:
    """Move a data set's own settings into one place; its contract checks them."""
    if not isinstance(node.get("data"), dict):
        return node
    data = dict(node["data"])
    own = {key: data.pop(key) for key in list(data) if key not in {f.name for f in fields(DataConfig)}}
    return {**node, "data": {**data, "settings": {**data.get("settings", {}), **own}}}


def _unknown(node: Any, known: Any, prefix: str) -> Iterator[str]:
    for key in node if isinstance(node, dict) else ():
        value = getattr(known, str(key), None)
        if key != "hydra" and not hasattr(known, str(key)):
            yield f"{prefix}{key}"
        elif is_dataclass(value):
            yield from _unknown(node[key], value, f"{prefix}{key}.")


def composition_words(error: Exception) -> str:
    """Return what Hydra or OmegaConf says of a configuration as one sentence, with the reason kept in its cause."""
    if str(error).startswith("error: "):
        return str(error)  # a sweep's, which lists the cells
    if isinstance(error, OverrideParseException):
        return _misread(error)
    causes = [e for e in (error, error.__cause__, error.__context__) if e is not None]
    if found := re.match(r"Could not override '(.+)'", str(error)):
        parent = getattr(error.__cause__, "parent_node", None) or {}
        inside = str(getattr(error.__cause__, "full_key", ""))  # of a mapping that was given whole
        key = inside if inside.startswith(found[1]) else found[1]
        known = [f"{key.rpartition('.')[0]}.{other}".lstrip(".") for other in parent]
        said = unknown_key(key, known, _keys(OmegaConf.to_container(parent)) if parent else ())
        free = key.count(".") > 1 and OmegaConf.get_type(parent) is dict
        return f"{said} (a new one is added with +{key}=...)" if free else said
    if found := re.match(r"Ambiguous value for argument '(.+?)=(.*)'", str(error)):
        key, value = found.groups()
        text = _text(key, value)
        return f"{key}={value}: several values are a sweep (src/train.py -m); a text with a comma is {text}"
    text = "\n".join(dict.fromkeys(str(e).strip() for e in causes)).split("Config search path:")[0]
    lines = [
        line.rstrip() for line in text.splitlines() if line.strip() and not line.strip().startswith(NOISE)
    ]
    options = ", ".join(line.strip() for line in lines if line.startswith("\t"))
    sentence = ": ".join(line.strip().rstrip(".:") for line in lines if not line.startswith("\t"))
    if found := re.search(r"Could not find '(\w+)/(.+?)'", sentence):
        sentence = sentence.replace(found[0], f"{found[0]}{_meant(*found.groups())}", 1)
    return f"{sentence}: {options}" if options else sentence


def _options(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def _meant(group: str, option: str) -> str:
    """Say what may be meant by an option that a group has not: one of nearly its name, or a path or hub id."""
    options = {name.lower(): name for name in _options(group)}
    if close := get_close_matches(option.lower(), options, 1):
        return f" (did you mean {options[close[0]]}?)"
    if "/" not in option or "local" not in options:
        return ""
    # What a YAML of one's own leaves null comes first in it.
    settings: Any = OmegaConf.load(CONF / group / "local.yaml")
    key = next(key for key, value in settings.items() if value is None)
    own = "local" if "hub" not in options or Path(option).exists() else "hub"
    return f" (one of your own is {group}={own} {group}.{key}={option})"


def _keys(node: Any, prefix: str = "") -> Iterator[str]:
    for key in node if isinstance(node, dict) else ():
        if key != "hydra":
            yield f"{prefix}{key}"
            yield from _keys(node[key], f"{prefix}{key}.")


def _misread(error: OverrideParseException) -> str:
    """Say why Hydra cannot read a word of the command line, and how a text is given that its grammar does not take."""
    key, equals, value = error.override.partition("=")
    if not (key.strip() and equals) or key != key.strip():
        return f"{error.override!r} is no setting: KEY=VALUE in one word (--help lists them)"
    reason = str(error.__context__ or error).splitlines()[0]
    return f"{error.override}: {reason}; a plain text goes into quotes of its own: {_text(key, value)}"


def _text(key: str, value: str) -> str:
    """Return a setting as one types it into a shell whose value is a text."""
    return f'"{key}={quoted(value)}"'


def quoted(text: str) -> str:
    """Return a text as Hydra's grammar reads any: a folder's name may hold each character that it knows."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def options_apart(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the options with their values, and the overrides: Hydra takes overrides in one piece only."""
    options: tuple[list[str], list[str]] = ([], [])
    for word, before in zip(arguments, ["", *arguments], strict=False):
        options[not word.startswith("-") and before not in TAKE_A_VALUE].append(word)
    return options


def list_errors(arguments: Sequence[str]) -> list[str]:
    """List the command-line overrides that Hydra would answer in words about its own types.

    An option that is none; a group set to null; a list given to a key of one value, as one tries who wants a sweep.
    """
    _, unknown = get_args_parser().parse_known_args(list(arguments))
    found = [
        f"{word} is no option; a setting is KEY=VALUE, without dashes (--help lists them)" for word in unknown
    ]
    parser = OverridesParser.create()
    for word in arguments:
        group, _, value = word.partition("=")
        if group.isidentifier() and (CONF / group).is_dir():
            found += _no_option(group, value)
        found += _borrowed(word, arguments)
        if "=[" not in word or word.startswith("hydra"):
            continue
        try:
            override = parser.parse_override(word)
            if override.is_sweep_override():  # its values are checked cell by cell
                continue
            OmegaConf.update(OmegaConf.structured(RunConfig), override.key_or_group, override.value())
        except (ConfigTypeError, ValidationError):
            values: Any = override.value()
            key, comma = override.key_or_group, ",".join(map(str, values))
            found.append(f"{key} takes one value, and a list is not swept over; write {key}={comma} with -m")
        except (HydraException, OmegaConfBaseException):
            continue  # Hydra says it better
    groups = [word for word in arguments if (CONF / word.partition("=")[0]).is_dir()]
    with suppress(HydraException, OmegaConfBaseException):  # Hydra says it better
        found += inside_nothing(arguments, lambda: compose_run(groups))
    return found


def _no_option(group: str, value: str) -> Iterator[str]:
    options = ", ".join(_options(group))
    if value == "null" and group != "sweep":
        yield f"{group}=null leaves nothing to take its place; choose one of {options}"
    elif re.fullmatch(r"[-+.\d][-+.\de]*(,[-+.\d][-+.\de]*)*", value):
        settings = getattr(RunConfig(), group, None)
        keys = [f.name for f in fields(settings) if f.name != "name"] if is_dataclass(settings) else ["KEY"]
        named = ", ".join(f"{group}.{key}" for key in keys)
        where = f"; a value goes to a key of it: {named}" if settings is not None else ""
        yield f"{group}={value}: {group} is one of {options}{where}"


def _borrowed(word: str, arguments: Sequence[str]) -> Iterator[str]:
    """Refuse that a name alone is another option's: records and tables would show what did not run."""
    if found := re.fullmatch(r"(\w+)\.name=(.*)", word):
        group, names = found.groups()
        for option in sorted({*names.split(",")} & {*_options(group)}):
            if f"{group}={option}" not in arguments:
                yield f"{word} would call this {group} as another is called; take that one with {group}={option}"


def inside_nothing(overrides: Sequence[str], composed: Callable[[], DictConfig]) -> Iterator[str]:
    """Yield the mappings that the chosen groups leave null and an override reaches into: OmegaConf breaks there.

    composed: gives the chosen groups as they are without the values; asked only where an override may reach so far.
    """
    matches = [re.match(r"\+*(\w+)\.(\w+)(\.|=\{\s*[^}\s])", word) for word in overrides]
    named, settings = dict.fromkeys((match[1], match[2]) for match in matches if match), RunConfig()
    reached = [key for key in named if getattr(getattr(settings, key[0], 0), key[1], 0) is None]
    if not reached:
        return
    config = composed()
    for group, key in reached:
        if config[group][key] is None:
            files = sorted((CONF / group).glob("*.yaml"))
            having = [
                f"{group}={p.stem}" for p in files if OmegaConf.select(OmegaConf.load(p), key) is not None
            ]
            yield f"{group}.{key} is null here, with nothing in it to set; it is there with {', '.join(having)}"


def to_typed(config: DictConfig, schema: type[T]) -> T:
    """Return a configuration as resolved typed dataclasses. Raise ValueError naming what does not fit."""
    try:
        resolved: Any = OmegaConf.to_container(config, resolve=True)
        resolved.pop("hydra", None)
        typed: Any = OmegaConf.to_object(
            OmegaConf.merge(OmegaConf.structured(schema), _settings_apart(resolved))
        )
        return typed
    except MissingMandatoryValue as error:
        group = str(error.full_key).split(".")[0]
        raise ValueError(f"{error.full_key} is not set; choose one of conf/{group}: {group}=...") from None
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None)
        raise ValueError(f"{f'{key}: ' if key else ''}{composition_words(error)}") from None


def method_of(config: RunConfig) -> Method:
    """Bind the method of a run, with its ratio, its pilot and what the run logs of tokens."""
    logged = ["entropy"] if config.trainer.entropy else []
    return bind_method(config.method, asdict(config.ratio), config.extra, pilot=config.pilot, logged=logged)


def to_run_config(config: DictConfig) -> RunConfig:
    """Return the resolved run as typed dataclasses; below this point no config object travels."""
    phase = OmegaConf.select(config, "method.phase")
    if phase not in PHASES:  # the optimizer's keys point to it
        raise ValueError(f"method.phase must be {' or '.join(PHASES)}, not {phase!r}")
    typed, folders = to_typed(config, RunConfig), config_folders()
    trainer = typed.trainer
    if trainer.benchmark is not None and trainer.asks is None:
        trainer = replace(trainer, asks=written("benchmark", trainer.benchmark, tuple(folders)))
    return replace(typed, method=with_parts(typed.method, folders), trainer=trainer)
