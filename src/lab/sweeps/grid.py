"""Which cells a sweep has, and whether it may start: all that is wrong with any of them is said at once.

A sweep is a union of grids: `params` is the first, every entry of `also` one more. A command-line override
wins over a grid's own value. If a grid names the key, the override reaches only the grids that name it (so
`ratio.chosen=0.6,0.8` changes the ratio grid, not the DPO run beside it); otherwise it reaches all of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from decimal import Decimal
from difflib import get_close_matches
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, RangeSweep
from hydra.errors import HydraException
from omegaconf import ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lab.sweeps.cells import Cell, Composer, SweepError, label_cells, label_runs
from sgdpo.config.compose import composition_words, unknown_keys
from sgdpo.config.schema import RunConfig
from sgdpo.runs.records import RECORD, flatten, view_run

MOST_CELLS = 10_000
MOST_SHOWN = 12
Batch = Sequence[tuple[int, Sequence[str]]]


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
    names_a_sweep = any(override.key_or_group == "sweep" for override in given)
    if not cells or (names_a_sweep and not named and len(cells) < 2):
        raise SweepError(
            "the grid is empty: no cell to run. Give values in the sweep's hydra.sweeper.params or on "
            "the command line, for example seed=0,1,2"
        )
    return cells


def _product(overrides: list[Override]) -> list[list[str]]:
    """Return every combination of the swept values, counted before they are made."""
    # The last override of a key wins.
    lengths = {o.key_or_group: _exact(o) if o.is_sweep_override() else 1 for o in overrides}
    total = math.prod(lengths.values())
    if total > MOST_CELLS:
        what = " x ".join(f"{key} {length:,}" for key, length in lengths.items() if length > 1)
        raise SweepError(f"the sweep has {total:,} cells ({what}); at most {MOST_CELLS:,} are possible")
    return BasicSweeper.split_arguments(overrides, max_batch_size=None)[0]


def _exact(override: Override) -> int:
    """Return how many values an override sweeps over; a range counts in the decimals that were typed.

    Hydra adds up binary fractions: range(0.6,1.0,0.1) would hold 0.7999999999999999, a run of its own.
    """
    sweep = override.value()
    if not override.is_discrete_sweep():
        raise SweepError(
            f"{override.input_line}: an interval has no end of values; give some: a,b,c or a range"
        )
    if not isinstance(sweep, RangeSweep):
        return sum(1 for _ in override.sweep_iterator())
    numbers = {"start": sweep.start, "stop": sweep.stop, "step": sweep.step}
    if not all(math.isfinite(number) for number in numbers.values()) or sweep.step == 0:
        raise SweepError(f"{override.input_line}: a range needs finite numbers and a step that is not 0")
    if not all(isinstance(number, int) for number in numbers.values()):
        override._value = replace(sweep, **{k: Decimal(repr(number)) for k, number in numbers.items()})
    start, stop, step = (Decimal(repr(number)) for number in numbers.values())
    return max(0, math.ceil((stop - start) / step))


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


def check_cells(batch: Batch, composer: Composer) -> list[Cell]:
    """Return the cells of a union of grids; a cell that two grids share is there once.

    batch: (number of its grid, overrides) of every cell.
    Raises SweepError that lists every invalid cell, cells that are one run, and records of another version.
    """
    every = [overrides for _, overrides in batch]
    _refuse_unknown_keys(every, composer)
    labels, errors = label_cells(every), {}
    found: list[tuple[int, str, Cell]] = []
    for (grid, overrides), label, of_run in zip(batch, labels, label_runs(every), strict=True):
        cell = _cell([*overrides, f"label={of_run}"] if of_run else overrides, composer)
        if isinstance(cell, Cell):
            found.append((grid, label, cell))
        else:
            for problem in cell:
                errors.setdefault(problem, []).append(label)
    _refuse(errors, len(batch))
    _refuse(_misplaced([cell for _, _, cell in found]), len(batch))
    _refuse(_duplicates(found), len(batch))
    cells = list({cell.run.identity.run_hash: cell for _, _, cell in reversed(found)}.values())[::-1]
    _refuse(_unreadable(cells), len(batch))
    return cells


def _refuse_unknown_keys(batch: Sequence[Sequence[str]], composer: Composer) -> None:
    """Raise SweepError that names every key that no run has, once and not for every cell."""
    words = sorted({override for overrides in batch for override in overrides})
    parsed = [o for o in composer.parser.parse_overrides(words) if not o.is_hydra_override()]
    keys = {o.key_or_group for o in parsed if not composer.chooses_a_group(o)}
    settings = asdict(RunConfig())
    known, unknown = [*settings, *flatten(settings)], []
    for key in sorted(keys):
        nested: Any = None
        for part in reversed(key.split(".")):
            nested = {part: nested}
        if unknown_keys(OmegaConf.create(nested)):
            close = get_close_matches(key, known, 1)
            unknown.append(f"unknown key '{key}'" + (f": did you mean {close[0]}?" if close else ""))
    if unknown:
        raise SweepError("\n".join(problem for problem in unknown))


def _cell(overrides: Sequence[str], composer: Composer) -> Cell | list[str]:
    """Return the cell, or everything that is wrong with it. A finished one was valid: no heavy import."""
    try:
        config = composer.compose(overrides)
        if not unknown_keys(config):
            cell = composer.cell(overrides, config)
            if cell.finished and not cell.config.force:
                return cell
        from sgdpo.runs.validate import config_errors  # imports torch, seconds

        return config_errors(config) or cell
    except (HydraException, OmegaConfBaseException) as error:
        return [composition_words(error) + _list_advice(overrides, composer)]


def _list_advice(overrides: Sequence[str], composer: Composer) -> str:
    """Point at a list that was given where single values are swept."""
    lists = [o for o in composer.parser.parse_overrides(list(overrides)) if isinstance(o.value(), list)]
    for override in lists:
        if not isinstance(OmegaConf.select(composer.master, override.key_or_group), ListConfig):
            comma = ",".join(map(str, override.value()))
            return (
                f"; {override.key_or_group} takes one value and a list is not swept over; "
                f"write a comma string: {override.key_or_group}={comma}"
            )
    return ""


def _duplicates(found: Iterable[tuple[int, str, Cell]]) -> dict[str, list[str]]:
    """Find cells of one grid that are one and the same run."""
    errors: dict[str, list[str]] = {}
    seen: dict[tuple[int, str], tuple[str, Cell]] = {}
    for grid, label, cell in found:
        first_label, first = seen.setdefault((grid, cell.run.identity.run_hash), (label, cell))
        if first is not cell:
            errors.setdefault(_same_run(first, cell), []).append(f"{first_label}   and   {label}")
    return errors


def _same_run(first: Cell, second: Cell) -> str:
    if first.overrides == second.overrides:
        return "the same cell is there twice: a value is repeated in the grid"
    differing = {o.split("=")[0] for o in set(first.overrides) ^ set(second.overrides)} - {"label"}
    return (
        f"two cells are one run ({first.name}): a {first.config.method['name']} run does not depend on "
        f"{', '.join(sorted(differing))}, so sweeping over it repeats the run; leave it out of the sweep"
    )


def _misplaced(cells: Sequence[Cell]) -> dict[str, list[str]]:
    """A sweep is one experiment: its cells share the folder and the cache."""
    errors = {}
    for key in ("experiment", "outputs", "cache"):
        values = sorted({str(getattr(cell.config, key)) for cell in cells})
        if len(values) > 1:
            errors[f"{key} must be one for all cells of a sweep; run one sweep for each"] = values
    return errors


def _unreadable(cells: Sequence[Cell]) -> dict[str, list[str]]:
    """Find records of these cells that cannot be read: half a file, another format version."""
    views = [view_run(cell.folder) for cell in cells if not cell.finished and (cell.folder / RECORD).exists()]
    return {str(view.error): [view.name] for view in views if view.status == "broken"}


def _refuse(errors: dict[str, list[str]], total: int) -> None:
    if not errors:
        return
    lines = [f"the sweep of {total} cells is not valid, and nothing was started"]
    for problem, labels in errors.items():
        more = [f"      and in {len(labels) - MOST_SHOWN} more"] if len(labels) > MOST_SHOWN else []
        lines += [f"  - {problem}", *(f"      in {label}" for label in labels[:MOST_SHOWN]), *more]
    raise SweepError("\n".join(lines))
