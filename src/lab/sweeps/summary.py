"""What a sweep says at its end: how many cells, what they shared, which failed and how to run them again."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Mapping, Sequence

from lab.sweeps.cells import Cell
from lab.sweeps.pool import OUTPUT
from lab.sweeps.progress import clock
from lab.sweeps.status import last_line
from sgdpo.runs.records import view_run

# The record's field `shared`: what a run found made by another one, and what it made itself.
SHARED = (
    ("start", "SFT start", "trained"),
    ("tokens", "tokenised set", "built"),
    ("reference", "reference cache", "built"),
)


def summarise_sweep(
    cells: Sequence[Cell], todo: Sequence[Cell], failed: Mapping[str, str], seconds: float, command: str
) -> str:
    """Return the closing text of a sweep. failed: {cell name: why}."""
    done = len(cells) - len(failed)
    before = f" ({len(cells) - len(todo)} of them before)" if len(todo) < len(cells) else ""
    lines = [f"{done} of {len(cells)} cells done{before}, {len(failed)} failed, in {clock(seconds)}"]
    lines += _shared([cell for cell in todo if cell.name not in failed])
    if failed:
        lines += ["failed:", *_failed([cell for cell in todo if cell.name in failed], failed)]
        lines.append(f"run them again (finished cells are skipped): {command}")
    return "\n".join(lines)


def _failed(cells: Sequence[Cell], failed: Mapping[str, str]) -> list[str]:
    lines = []
    for cell in cells:
        own = [o for o in cell.overrides if not o.startswith(("n_jobs=", "launcher="))]
        alone = shlex.join(["python", "src/train.py", *own, "hydra.mode=RUN"])
        lines += [f"  {cell.name}: {last_line(failed[cell.name])}", f"    output  {cell.folder / OUTPUT}"]
        lines += [f"    alone   {alone}"]
    return lines


def _shared(cells: Sequence[Cell]) -> list[str]:
    """Count what was made once and used by many; the time that the shared SFT starts saved."""
    runs = [view_run(cell.folder) for cell in cells]
    lines = []
    for key, words, made in SHARED:
        counts = Counter(value for run in runs if (value := (run["shared"] or {}).get(key)))
        if counts:
            reused = counts.total() - counts[made]
            lines.append(
                f"  {words}: {made} {counts[made]}×, reused {reused}×" + _saved(key, made, cells, runs)
            )
    return ["shared by the cells that ran now:", *lines] if lines else []


def _saved(key: str, made: str, cells: Sequence[Cell], runs: Sequence) -> str:
    if key != "start":
        return ""
    saved = 0.0
    for cell, run in zip(cells, runs, strict=True):
        if cell.start is not None and (run["shared"] or {}).get(key) not in (None, made):
            saved += view_run(cell.folder.parent / cell.start.name)["seconds"] or 0.0
    return f", {clock(saved)} of training saved" if saved else ""
