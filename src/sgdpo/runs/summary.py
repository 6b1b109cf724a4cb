"""Say at the end of a run what it did, in numbers, and where everything is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sgdpo.drawing.table import Table, number
from sgdpo.runs.records import MODEL, SAMPLES, RunView, view_run
from sgdpo.runs.tracking import browse_hint

ROWS = ("loss", "rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies", "grad_norm")


def summarise(folder: Path) -> str:
    """Return the closing text of a run: final metrics of both splits, cost, what it is not, and where to look."""
    run = view_run(folder)
    final: dict[str, Any] = run["final"] or {}
    splits = [split for split in ("train", "eval") if split in final]
    shown = [key for key in ROWS if any(final[split].get(key) is not None for split in splits)]
    table = Table(
        "summary",
        run.name,
        ["metric", *(f"{split}, step {final[split]['step']}" for split in splits)],
        [[key, *(number(final[split].get(key), 4) for split in splits)] for key in shown],
    )
    attempts = len(run["attempts"] or [])
    cost = f"{run['seconds']:.0f} s" + (f" in {attempts} attempts" if attempts > 1 else "")
    start = f", started from {run['start']}" if run["start"] else ""
    lines = [
        f"{cost}, peak memory {run['peak_memory_mb']:.0f} MiB{start}",
        *_best(run),
        *_unseen(run),
        *(f"note      {note}" for note in run["notes"] or ()),
        *(f"not       {name}: {', '.join(what)}" for name, what in (run["differs_from"] or {}).items()),
        f"model     {folder / MODEL}",
        f"metrics   {folder / 'metrics.jsonl'}",
        *([f"samples   {folder / SAMPLES}"] if (folder / SAMPLES).exists() else []),
        f"picture   {folder / 'reward_curves.png'}",
        browse_hint(run),
    ]
    return table.console().rstrip("\n") + "\n" + "\n".join(lines)


def _unseen(run: RunView) -> list[str]:
    """Say which part of the training set the steps do not reach."""
    if not (run["data"] and run["steps"]):
        return []
    kept, batch = run["data"]["counts"]["train"]["kept"], run["settings"]["optimizer"]["batch_size"]
    if run.steps_taken < kept // batch:
        return [f"seen      {run.steps_taken * batch} of {kept} examples, less than an epoch"]
    if left_out := kept % batch:
        return [
            f"left out  {left_out} of {kept} examples in each epoch, others each time: a step takes exactly {batch}"
        ]
    return []


def _best(run: RunView) -> list[str]:
    """Say which step's weights the run ended with, if not the last one's, and whether it stopped early."""
    if (best := run["best"]) is None:
        return []
    early = (
        f"; stopped after step {best['stopped_early']} of {run['steps']}" if "stopped_early" in best else ""
    )
    return [
        f"best      {best['metric']} {best['value']:.4f} at step {best['step']}: these are model's weights{early}"
    ]
