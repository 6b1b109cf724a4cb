"""Check every cell of a sweep before the first one starts; list all that is wrong at once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from hydra.errors import HydraException
from omegaconf import ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lab.sweeps.cells import Cell, Composer, label_cells, make_cell
from lab.sweeps.errors import SweepError
from sgdpo.config.compose import unknown_keys
from sgdpo.runs.records import read_runs

# Lines of OmegaConf's errors that tell a user nothing.
NOISE = ("full_key:", "object_type=", "reference_type=")
Batch = Sequence[tuple[int, Sequence[str]]]


def check_cells(batch: Batch, composer: Composer) -> list[Cell]:
    """Return the cells of a union of grids; a cell that two grids share is there once.

    batch: (number of its grid, overrides) of every cell.
    Raises SweepError that lists every invalid cell, cells that are one run, and records of another version.
    """
    labels = label_cells([overrides for _, overrides in batch])
    found: list[tuple[int, str, Cell]] = []
    errors: dict[str, list[str]] = {}
    for (grid, overrides), label in zip(batch, labels, strict=True):
        cell = _cell(overrides, composer)
        if isinstance(cell, Cell):
            found.append((grid, label, cell))
        else:
            for problem in cell:
                errors.setdefault(problem, []).append(label)
    _refuse(errors, len(batch))
    _refuse(_misplaced([cell for _, _, cell in found]), len(batch))
    _refuse(_duplicates(found), len(batch))
    cells = list({cell.identity.settings_hash: cell for _, _, cell in reversed(found)}.values())[::-1]
    _refuse(_unreadable(cells), len(batch))
    return cells


def _cell(overrides: Sequence[str], composer: Composer) -> Cell | list[str]:
    """Return the cell, or everything that is wrong with it. A finished one was valid: no heavy import."""
    try:
        config = composer.compose(overrides)
        if not unknown_keys(config):
            cell = make_cell(overrides, config)
            if cell.finished and not cell.run.force:
                return cell
        from sgdpo.runs.validate import config_errors  # imports torch, seconds

        return config_errors(config) or cell
    except (HydraException, OmegaConfBaseException) as error:
        return [_words(error) + _list_advice(overrides, composer)]


def _words(error: Exception) -> str:
    """Return what a composition error says, with the reason that Hydra keeps in its cause."""
    causes = [
        str(e).strip()
        for e in (error, error.__cause__, error.__context__)
        if e is not None and str(e).strip()
    ]
    text = "\n".join(dict.fromkeys(causes)).split("Config search path:")[0]
    return "\n".join(l for l in text.splitlines() if l.strip() and not l.strip().startswith(NOISE))


def _list_advice(overrides: Sequence[str], composer: Composer) -> str:
    """Point at a list that was given where single values are swept."""
    lists = [o for o in composer.parser.parse_overrides(list(overrides)) if isinstance(o.value(), list)]
    base = composer.master
    for override in lists:
        if not isinstance(OmegaConf.select(base, override.key_or_group), ListConfig):
            comma = ",".join(map(str, override.value()))
            return (
                f"\n{override.key_or_group} takes one value and a list is not swept over; "
                f"write a comma string: {override.key_or_group}={comma}"
            )
    return ""


def _duplicates(found: Iterable[tuple[int, str, Cell]]) -> dict[str, list[str]]:
    """Find cells of one grid that are one and the same run: their name and hash are equal."""
    errors: dict[str, list[str]] = {}
    seen: dict[tuple[int, str], tuple[str, Cell]] = {}
    for grid, label, cell in found:
        first_label, first = seen.setdefault((grid, cell.name), (label, cell))
        if first is not cell:
            errors.setdefault(_same_run(first, cell), []).append(f"{first_label}   and   {label}")
    return errors


def _same_run(first: Cell, second: Cell) -> str:
    if first.overrides == second.overrides:
        return "the same cell is there twice: a value is repeated in the grid"
    differing = sorted({o.split("=")[0] for o in set(first.overrides) ^ set(second.overrides)})
    return (
        f"two cells are one run ({first.name}): a {first.run.method['name']} run does not depend on "
        f"{', '.join(differing)}, so sweeping over it repeats the run; leave it out of the sweep"
    )


def _misplaced(cells: Sequence[Cell]) -> dict[str, list[str]]:
    """A sweep is one experiment: its cells share the folder and the cache."""
    errors = {}
    for key in ("experiment", "outputs", "cache"):
        values = sorted({str(getattr(cell.run, key)) for cell in cells})
        if len(values) > 1:
            errors[f"{key} must be one for all cells of a sweep; run one sweep for each"] = values
    return errors


def _unreadable(cells: Sequence[Cell]) -> dict[str, list[str]]:
    """Find records of these cells that cannot be read: half a file, another format version."""
    run = cells[0].run
    names = {cell.name for cell in cells}
    broken = [v for v in read_runs(run.outputs, run.experiment) if v.status == "broken" and v.name in names]
    return {str(view.error): [view.name] for view in broken}


def _refuse(errors: dict[str, list[str]], total: int) -> None:
    if not errors:
        return
    lines = [f"error: the sweep of {total} cells is not valid, and nothing was started"]
    for problem, labels in errors.items():
        lines += [f"- {problem}", *(f"    in {label}" for label in labels)]
    raise SweepError("\n".join(lines))
