"""Say at the end of a run what it did, in numbers, and where everything is."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from sgdpo.runs.records import RunView, view_run
from sgdpo.runs.tracking import browse_hint

ROWS = ("loss", "rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies", "grad_norm")


def summarise(folder: Path) -> str:
    """Return the closing text of a run: final metrics of both splits, cost, and where to look."""
    run = view_run(folder)
    final: dict[str, Any] = run["final"] or {}
    table = Table(title=run.name, title_justify="left")
    table.add_column("metric")
    splits = [split for split in ("train", "eval") if split in final]
    for split in splits:
        table.add_column(f"{split}, step {final[split]['step']}", justify="right")
    for key in ROWS:
        if any(final[split].get(key) is not None for split in splits):
            table.add_row(key, *(_number(final[split].get(key)) for split in splits))
    screen = Console(file=io.StringIO(), width=100)
    screen.print(table)
    return screen.file.getvalue() + "\n".join(_where(run))


def _where(run: RunView) -> list[str]:
    lines = [
        f"{run['seconds']:.0f} s, peak memory {run['peak_memory_mb']:.0f} MiB"
        + (f", started from {run['start']}" if run["start"] else ""),
        f"model     {run.folder / 'model'}",
        f"metrics   {run.folder / 'metrics.jsonl'}",
        f"picture   {run.folder / 'reward_curves.png'}",
    ]
    hint = browse_hint(run)
    return lines + ([hint] if hint else [])


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"
