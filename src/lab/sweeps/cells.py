"""Which cells a sweep has, composed fast, and whether it may start: all that is wrong with any is said at once.

A sweep is a union of grids: `params` is the first, every entry of `also` one more. A command-line override
wins over a grid's own value. If a grid names the key, the override reaches only the grids that name it (so
`ratio.chosen=0.6,0.8` changes the ratio grid, not the DPO run beside it); otherwise it reaches all of them.

Hydra takes about 0.2 s for one cell. Cells with the same groups have the same defaults list, and Hydra applies value
overrides after it has merged that list; so each set of groups is composed once, and every cell gets its values on a
copy, with Hydra's own function. A test compares the two ways key by key.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, RangeSweep
from hydra.errors import ConfigCompositionException, HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from sgdpo.config.compose import composition_words, inside_nothing, to_run_config, unknown_key, unknown_keys
from sgdpo.config.schema import RunConfig, TrainerConfig
from sgdpo.console import is_advice
from sgdpo.runs.records import RECORD, flatten, view_run
from sgdpo.runs.run import Run

# What says how a sweep is run, not which cell this is.
HOW = ("sweep", "launcher", "n_jobs", "hydra", "dry_run", "force", "label")
# Swept keys that a run's name holds anyway.
IN_EVERY_NAME = ("method", "model", "data", "seed", "ratio.chosen", "ratio.rejected")
LONGEST_LABEL = 60
MOST_CELLS = 10_000
MOST_SHOWN = 12


class SweepError(ValueError):
    """Say what is wrong with a sweep, before anything starts."""


@dataclass(frozen=True)
class Cell:
    """Hold one cell: its overrides, its run, and whether that was finished when the sweep was composed."""

    overrides: tuple[str, ...]
    run: Run
    finished: bool

    @property
    def config(self) -> RunConfig:
        return self.run.config

    @property
    def folder(self) -> Path:
        return self.run.folder

    @property
    def name(self) -> str:
        return self.run.folder.name


class Composer:
    """Compose cells of one sweep with Hydra's loader."""

    def __init__(self, loader: ConfigLoaderImpl, master: DictConfig):
        self.loader, self.master = loader, master
        self.parser = OverridesParser.create(config_loader=loader)
        self._bases: dict[tuple[str, ...], DictConfig] = {}

    def compose(self, overrides: Sequence[str]) -> DictConfig:
        """Return the cell's config without Hydra's own node. Raises Hydra's and OmegaConf's errors."""
        parsed = self.parser.parse_overrides(list(overrides))
        groups = tuple(o.input_line for o in parsed if self.chooses_a_group(o))
        if groups not in self._bases:
            base = self.loader.load_sweep_config(self.master, list(groups))
            with open_dict(base):
                del base["hydra"]
            self._bases[groups] = base
        values = [o for o in parsed if not self.chooses_a_group(o) and not o.is_hydra_override()]
        words = [override.input_line for override in values]
        if broken := list(inside_nothing(words, lambda: self._bases[groups])):
            raise ConfigCompositionException("; ".join(broken))
        config = deepcopy(self._bases[groups])
        ConfigLoaderImpl._apply_overrides_to_config(values, config)
        return config

    def cell(self, overrides: Sequence[str], config: DictConfig | None = None) -> Cell:
        config = self.compose(overrides) if config is None else config
        if not self._asks_for_answers(overrides, config.trainer):
            config.trainer.samples = 0  # nobody reads the answers of a hundred cells
        run = Run.of(to_run_config(config))
        return Cell(tuple(overrides), run, run.finished() is not None)

    @staticmethod
    def _asks_for_answers(overrides: Sequence[str], trainer: DictConfig) -> bool:
        """Say whether the sweep itself asks: by an override, by a number of its own, or to choose the weights."""
        given = any(override.lstrip("+").startswith("trainer.samples=") for override in overrides)
        return (
            given or trainer.samples != TrainerConfig().samples or (trainer.best or "").startswith("samples/")
        )

    def chooses_a_group(self, override: Override) -> bool:
        return self.loader.repository.group_exists(override.key_or_group)


def missing_starts(cells: Sequence[Cell]) -> list[Run]:
    """List every SFT start that cells need and no finished run is, each once."""
    starts = {cell.run.start.identity.result_hash: cell.run.start for cell in cells if cell.run.start}
    return [start for start in starts.values() if start.result() is None]


def label_cells(batch: Sequence[Sequence[str]]) -> list[str]:
    """Name cells shortly by the overrides in which those of one sweep differ, "ratio.chosen=0.6 seed=1"."""
    return [" ".join(differing or own) or "the run itself" for own, differing in _own_overrides(batch)]


def label_runs(batch: Sequence[Sequence[str]]) -> list[str]:
    """Return for every cell what its run's name shall hold of the swept keys: "lr1e-4", often nothing."""
    labels = []
    for _, differing in _own_overrides(batch):
        pairs = [override.lstrip("+").split("=", 1) for override in differing]
        # An interpolation follows from another key.
        told = [(k, v) for k, v in pairs if k not in IN_EVERY_NAME and not v.startswith("$")]
        words = [f"{k.rsplit('.', 1)[-1]}{Path(v).name}" for k, v in told]
        labels.append(re.sub(r"[^\w.+-]+", "_", "-".join(words), flags=re.ASCII)[:LONGEST_LABEL].strip(".-_"))
    return labels


def root_of(override: str) -> str:
    """Return the group or first key that an override is of: "optimizer" of "optimizer.lr=1e-4"."""
    return re.split(r"[=./]", override.lstrip("+"), maxsplit=1)[0]


def _own_overrides(batch: Sequence[Sequence[str]]) -> list[tuple[list[str], list[str]]]:
    """Return (overrides that say which cell this is, those of them that not every cell has) of each cell."""
    everywhere = set.intersection(*(set(overrides) for overrides in batch)) if len(batch) > 1 else set()
    found = []
    for overrides in batch:
        own = [o for o in overrides if root_of(o) not in HOW]
        own = [o for o in own if "${" not in o]  # ratio.rejected=${ratio.chosen} says nothing of its own
        found.append((own, [o for o in own if o not in everywhere] if len(batch) > 1 else []))
    return found


def expand(
    params: Mapping[str, Any], also: Sequence[Any], arguments: Sequence[str], parser: OverridesParser
) -> list[tuple[int, list[str]]]:
    """Return (number of its grid, overrides) of every cell. Raises SweepError naming every bad entry."""
    grids = grids_of({"params": params, **{f"also[{number}]": entry for number, entry in enumerate(also)}})
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


def grids_of(given: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return each grid's keys and values as the command line gives them. Raises SweepError for all that is bad."""
    errors: list[str] = []
    grids = [_grid(where, entries, errors) for where, entries in given.items()]
    if errors:
        raise SweepError("\n".join(errors))
    return grids


def _grid(where: str, entries: Any, errors: list[str]) -> dict[str, str]:
    grid = {}
    if not isinstance(entries, Mapping):
        errors.append(f"hydra.sweeper.{where} must be a mapping like params, not {entries!r}")
        return grid
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


def _product(overrides: list[Override]) -> list[list[str]]:
    # Counted before the combinations are made. The last override of a key wins.
    lengths = {o.key_or_group: exact_count(o) if o.is_sweep_override() else 1 for o in overrides}
    total = math.prod(lengths.values())
    if total > MOST_CELLS:
        what = " x ".join(f"{key} {length:,}" for key, length in lengths.items() if length > 1)
        raise SweepError(f"the sweep has {total:,} cells ({what}); at most {MOST_CELLS:,} are possible")
    return BasicSweeper.split_arguments(overrides, max_batch_size=None)[0]


def exact_count(override: Override) -> int:
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


def check_cells(batch: Sequence[tuple[int, Sequence[str]]], composer: Composer) -> list[Cell]:
    """Return the cells of a union of grids; a cell that two grids share is there once.

    batch: (number of its grid, overrides) of every cell.
    Raises SweepError that lists every invalid cell, cells that are one run, and records of another version.
    """
    every = [overrides for _, overrides in batch]
    _refuse_unknown_keys(every, composer)
    labels, errors = label_cells(every), {}
    found: list[tuple[int, str, Cell]] = []
    for (grid, overrides), label, of_run in zip(batch, labels, label_runs(every), strict=True):
        cell = checked_cell([*overrides, f"label={of_run}"] if of_run else overrides, composer)
        if isinstance(cell, Cell):
            found.append((grid, label, cell))
        else:
            for problem in cell:
                errors.setdefault(problem, []).append(label)
    cells = list({cell.run.identity.run_hash: cell for _, _, cell in reversed(found)}.values())[::-1]
    for wrong in (errors, _misplaced(found), _duplicates(found), _unreadable(cells)):
        _refuse(wrong, len(batch))
    return cells


def _refuse_unknown_keys(batch: Sequence[Sequence[str]], composer: Composer) -> None:
    words = sorted({override for overrides in batch for override in overrides})
    parsed = [o for o in composer.parser.parse_overrides(words) if not o.is_hydra_override()]
    keys = {o.key_or_group for o in parsed if not composer.chooses_a_group(o)}
    settings = asdict(RunConfig())
    known = [*settings, *flatten(settings)]
    unknown = [
        unknown_key(key, known)
        for key in sorted(keys)
        if unknown_keys(OmegaConf.from_dotlist([f"{key}=null"]))
    ]
    if unknown:
        raise SweepError("\n".join(unknown))


def checked_cell(overrides: Sequence[str], composer: Composer) -> Cell | list[str]:
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
    except ValueError as error:  # what the run reads is not there
        if not is_advice(error):
            raise
        return str(error).split("\n")


def _list_advice(overrides: Sequence[str], composer: Composer) -> str:
    """Point at a list that was given where single values are swept."""
    for override in composer.parser.parse_overrides(list(overrides)):
        key, value = override.key_or_group, override.value()
        if isinstance(value, list) and not isinstance(OmegaConf.select(composer.master, key), ListConfig):
            return (
                f"; {key} takes one value and a list is not swept over; "
                f"write a comma string: {key}={','.join(map(str, value))}"
            )
    return ""


def _duplicates(found: Sequence[tuple[int, str, Cell]]) -> dict[str, list[str]]:
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
    differing = {o.split("=")[0] for o in set(first.overrides) ^ set(second.overrides)} - {"label"} or {
        "label"
    }
    return (
        f"two cells are one run ({first.name}): a {first.config.method['name']} run does not depend on "
        f"{', '.join(sorted(differing))}, so sweeping over it repeats the run; leave it out of the sweep"
    )


def _misplaced(found: Sequence[tuple[int, str, Cell]]) -> dict[str, list[str]]:
    """A sweep is one experiment: its cells share the folder and the cache."""
    errors = {}
    for key in ("experiment", "outputs", "cache"):
        values = sorted({str(getattr(cell.config, key)) for *_, cell in found})
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
