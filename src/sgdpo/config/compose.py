"""Compose `conf/` into the typed RunConfig, and keep what the typed form cannot catch out of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigTypeError, OmegaConfBaseException, ValidationError

from sgdpo.config.schema import RunConfig
from sgdpo.places import CONF


def register_schema() -> None:
    """Make the typed form known to Hydra; conf/config.yaml names it first in its defaults."""
    ConfigStore.instance().store(name="run_schema", node=RunConfig)


def compose_run(overrides: list[str]) -> DictConfig:
    """Compose a run from command-line overrides, without Hydra's application around it."""
    register_schema()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", overrides)


def unknown_keys(config: DictConfig) -> list[str]:
    """List the keys that no dataclass knows: `+typo=1` composes, and must not pass."""
    return sorted(_unknown(OmegaConf.to_container(config, resolve=False), RunConfig, ""))


def _unknown(node: Any, schema: type, prefix: str) -> list[str]:
    if not isinstance(node, dict):
        return []
    defaults = schema()
    known = {f.name: getattr(defaults, f.name) for f in fields(schema)}
    found = [f"{prefix}{key}" for key in node if key not in known and key != "hydra"]
    for key, value in known.items():
        if is_dataclass(value) and key in node:
            found += _unknown(node[key], type(value), f"{prefix}{key}.")
    return found


def list_errors(arguments: Sequence[str]) -> list[str]:
    """List command-line overrides that give a list to a key of one value, as one tries who wants a sweep.

    Hydra composes the sweep's own config first and would speak of a type there, not of comma strings.
    """
    found, parser = [], OverridesParser.create()
    for word in arguments:
        if "=[" not in word or word.startswith("hydra"):
            continue
        try:
            override = parser.parse_override(word)
            OmegaConf.update(OmegaConf.structured(RunConfig), override.key_or_group, override.value())
        except (ConfigTypeError, ValidationError):
            key, comma = override.key_or_group, ",".join(map(str, override.value()))
            found.append(f"{key} takes one value, and a list is not swept over; write {key}={comma} with -m")
        except (HydraException, OmegaConfBaseException):
            continue  # Hydra says it better
    return found


def to_run_config(config: DictConfig) -> RunConfig:
    """Return the resolved run as typed dataclasses; below this point no config object travels."""
    resolved = OmegaConf.to_container(config, resolve=True)
    resolved.pop("hydra", None)
    return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(RunConfig), resolved))
