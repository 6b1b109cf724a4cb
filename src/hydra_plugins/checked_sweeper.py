"""Hydra finds the sweeper here. It checks every cell before the first one starts; see lab.sweeps.sweep."""

from dataclasses import dataclass, field
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore


@dataclass
class CheckedSweeperConf:
    """Type the sweep's YAML.

    params: {key: "comma,separated,values"}, one grid. also: further grids of the same form; the sweep is the
    union of all. The values are Any so that a YAML list reaches our own, clearer error. search: the settings of a
    search, which takes the place of the grids (conf/sweep/search.yaml).
    """

    _target_: str = "hydra_plugins.checked_sweeper.CheckedSweeper"
    params: dict[str, Any] = field(default_factory=dict)
    also: list[Any] = field(default_factory=list)
    search: dict[str, Any] | None = None


ConfigStore.instance().store(group="hydra/sweeper", name="checked", node=CheckedSweeperConf, provider="sgdpo")


class CheckedSweeper(BasicSweeper):
    """Run the union of grids through any launcher: all cells checked first, finished ones left out."""

    def __init__(self, params: dict[str, Any], also: list[Any], search: dict[str, Any] | None):
        super().__init__(max_batch_size=None, params=params)
        self.also, self.search = also, search

    def sweep(self, arguments: list[str]) -> Any:
        """Run the sweep; SystemExit(1) if a cell failed, HydraException if the sweep is not valid."""
        from lab.sweeps.sweep import run_sweep  # heavy, and Hydra imports this file in every process

        return run_sweep(self, arguments)
