"""Turn a sweep's YAML and the command line into the overrides of every cell.

A sweep is a union of grids: `params` is the first, every entry of `also` one more. A command-line override
wins over a grid's own value. If a grid names the key, the override reaches only the grids that name it (so
`ratio.chosen=0.6,0.8` changes the ratio grid, not the DPO run beside it); otherwise it reaches all of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override

from lab.sweeps.errors import SweepError


def expand(
    params: Mapping[str, Any], also: Sequence[Any], arguments: Sequence[str], parser: OverridesParser
) -> list[tuple[int, list[str]]]:
    """Return (number of its grid, overrides) of every cell. Raises SweepError naming every bad entry."""
    grids = _grids(params, also)
    given = parser.parse_overrides(list(arguments))
    named = {key for grid in grids for key in grid}
    cells = []
    for number, grid in enumerate(grids):
        own = parser.parse_overrides([f"{key}={value}" for key, value in grid.items()])
        mine = [o for o in given if o.key_or_group in grid or o.key_or_group not in named]
        cells += [(number, cell) for cell in _product(own + mine)]
    if not cells or (_names_a_sweep(given) and not named and len(cells) < 2):
        raise SweepError(
            "the grid is empty: no cell to run. Give values in the sweep's hydra.sweeper.params or on the "
            "command line, for example seed=0,1,2"
        )
    return cells


def _product(overrides: list[Override]) -> list[list[str]]:
    return BasicSweeper.split_arguments(overrides, max_batch_size=None)[0]


def _names_a_sweep(given: Sequence[Override]) -> bool:
    return any(override.key_or_group == "sweep" for override in given)


def _grids(params: Mapping[str, Any], also: Sequence[Any]) -> list[dict[str, str]]:
    errors: list[str] = []
    grids = [_grid("params", params, errors)]
    for number, entry in enumerate(also):
        if isinstance(entry, Mapping):
            grids.append(_grid(f"also[{number}]", entry, errors))
        else:
            errors.append(f"hydra.sweeper.also[{number}] must be a mapping like params, not {entry!r}")
    if errors:
        raise SweepError("\n".join(errors))
    return grids


def _grid(where: str, entries: Mapping[str, Any], errors: list[str]) -> dict[str, str]:
    grid = {}
    for key, value in entries.items():
        if isinstance(value, Sequence) and not isinstance(value, str):
            comma = ",".join(map(str, value))
            errors.append(
                f"hydra.sweeper.{where}: {key} is a YAML list, which Hydra does not sweep over; "
                f'write a comma string: {key}: "{comma}"'
            )
        elif value is None or not str(value).strip():
            errors.append(
                f'hydra.sweeper.{where}: {key} names no value, so the grid is empty; write {key}: "a,b"'
            )
        else:
            grid[key] = str(value).lower() if isinstance(value, bool) else str(value)
    return grid
