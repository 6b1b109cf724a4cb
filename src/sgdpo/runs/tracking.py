"""W&B or nothing: a mirror of metrics.jsonl that never asks, never hangs and never stops a run.

One W&B run a run, its id kept in the record, its files inside the run's folder. Rows become `train/<key>` and
`eval/<key>` at W&B's own step, equal to metrics.jsonl.

A resumed run continues the same W&B run. Online, the id is resumed on the server, which ignores the few
steps it already has (the resumed steps are the same numbers). Offline, a killed process may have lost its
last rows: so the offline file is written again from metrics.jsonl under the same id and the old one is
removed. Only if the old one was synced before does the new file hold the new steps alone; `wandb sync` then
appends them.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from sgdpo.config.schema import TrackingConfig
from sgdpo.runs.records import METRICS, Record, RunView, view_run
from sgdpo.store import read_jsonl

FINISH_TIMEOUT = 60.0  # seconds to wait for uploads at the end; what is left stays on disk for `wandb sync`
TABLE_ROWS = 200  # samples of an evaluation that W&B shows
TAG_LENGTH = 64  # W&B's limit
LABELS = ("step", "epoch", "split")


class Tracker(Protocol):
    """What a run tells a tracker."""

    def log(self, row: Mapping[str, Any]) -> None:
        """Mirror one row of metrics.jsonl."""

    def image(self, key: str, path: Path) -> None:
        """Add a picture to the last logged step."""

    def finish(self, summary: Mapping[str, Any], failed: bool = False) -> None:
        """Set the summary and close; a failed run is marked as one."""

    def browse_hint(self) -> str:
        """Return how to look at the run: commands, or nothing to say."""


class NoTracker:
    """Track nothing."""

    def log(self, row: Mapping[str, Any]) -> None:
        """Do nothing."""

    def image(self, key: str, path: Path) -> None:
        """Do nothing."""

    def finish(self, summary: Mapping[str, Any], failed: bool = False) -> None:
        """Do nothing."""

    def browse_hint(self) -> str:
        """Return that there is nothing to browse."""
        return "Tracking is off; the metrics are in metrics.jsonl."


class WandbTracker:
    """Mirror a run into one W&B run. Use `open_tracker`."""

    def __init__(self, run: Any, folder: Path):
        self._run = run
        self._folder = folder
        self._step = 0
        for split in ("train", "eval"):
            run.define_metric(f"{split}/*", step_metric="step")

    def log(self, row: Mapping[str, Any]) -> None:
        """Mirror one row: its metrics as `train/<key>` or `eval/<key>`, with `step` and `epoch`."""
        self._step = row["step"]
        self._run.log(wandb_row(row), step=self._step)

    def image(self, key: str, path: Path) -> None:
        """Add a picture to the last logged step."""
        import wandb

        self._run.log({key: wandb.Image(str(path))}, step=self._step)

    def finish(self, summary: Mapping[str, Any], failed: bool = False) -> None:
        """Set the summary and close; waits at most FINISH_TIMEOUT seconds for uploads."""
        self._run.summary.update(dict(summary))
        self._run.finish(exit_code=1 if failed else 0)

    def browse_hint(self) -> str:
        """Return the address of an online run, or how to browse and sync an offline one."""
        return browse_hint(view_run(self._folder))


def wandb_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the W&B form of a row of metrics.jsonl."""
    metrics = {f"{row['split']}/{key}": value for key, value in row.items() if key not in LABELS}
    return {key: row[key] for key in ("step", "epoch") if key in row} | metrics


def open_tracker(tracking: TrackingConfig, record: Record, config: Mapping[str, Any]) -> Tracker:
    """Open the run's tracker and keep its id in the record.

    config: the resolved run, nested, as W&B shows and groups it. Falls back to offline when there is no key
    or no server within `tracking.init_timeout` seconds.
    """
    mode = "disabled" if tracking.name == "off" else choose_mode(tracking.mode)
    if mode == "disabled":
        return NoTracker()
    before = record.fields.get("tracker")
    replayed = _rows_to_replay(record.folder, before)
    run, mode = _start(tracking, record, config, mode, before["id"] if before else None)
    folder = Path(run.settings.sync_dir)
    where = {"folder": str(_inside(folder, record.folder)), "url": run.url if mode == "online" else None}
    record.note(tracker={"id": run.id, "mode": mode, **where})
    if replayed is not None:
        shutil.rmtree(record.folder / before["folder"])
    tracker = WandbTracker(run, record.folder)
    for row in record.kept_rows() if replayed is not None else []:
        tracker.log(row)
    return tracker


def add_evaluation(
    folder: Path, key: str, result: Mapping[str, Any], samples: Sequence[Mapping[str, Any]]
) -> None:
    """Add an evaluation's numbers and first samples to the W&B run of a run; never stops the evaluation.

    The run is continued under its id. Offline this makes a further file in the run's folder, which `wandb sync`
    appends like the others.
    """
    view = view_run(folder)
    tracker, settings = view["tracker"], (view["settings"] or {}).get("tracking") or {}
    mode = choose_mode(tracker["mode"]) if tracker else "disabled"
    if mode == "disabled":
        return
    import wandb

    numbers = {
        f"evaluation/{key}/{name}": value
        for name, value in result.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
    columns = list(dict.fromkeys(name for row in samples for name in row))
    rows = [[row.get(name) for name in columns] for row in samples[:TABLE_ROWS]]
    try:
        run = wandb.init(
            mode=mode,
            id=tracker["id"],
            resume="allow",
            project=settings.get("project"),
            entity=settings.get("entity"),
            dir=str(folder),
            reinit="create_new",
            settings=wandb.Settings(console="off", silent=True, finish_timeout=FINISH_TIMEOUT),
        )
        # Beyond the last step of training: W&B takes no step twice.
        step = max((row["step"] for row in view.metrics()), default=0) + len(view["eval"] or {})
        run.log({f"evaluation/{key}/samples": wandb.Table(columns=columns, data=rows)}, step=step)
        run.summary.update(numbers)
        run.finish()
    except Exception as error:
        print(f"W&B: {key} of {folder} was not added ({str(error).splitlines()[0]}); it is in the record.")


def browse_hint(run: RunView) -> str:
    """Return the address of a run that W&B has, or how to browse and upload an offline one."""
    tracker = run["tracker"]
    if not tracker:
        return "Tracking is off; the metrics are in metrics.jsonl."
    if tracker["mode"] == "online":
        return f"W&B       {tracker['url']}"
    folder = _inside(run.folder / tracker["folder"], Path.cwd())
    return f"browse    wandb leet {folder}\nupload    wandb sync {folder}   (all runs: make sync)"


def choose_mode(wanted: str) -> str:
    """Return "online", "offline" or "disabled": WANDB_MODE, else `wanted`, else online if there is a key."""
    mode = wanted_mode(wanted)
    if mode in ("auto", "online"):
        return "online" if _has_key() else "offline"
    return mode


def wanted_mode(wanted: str) -> str:
    """Return what WANDB_MODE says, else `wanted`. Raise ValueError for a mode that W&B does not know."""
    mode = os.environ.get("WANDB_MODE") or wanted
    mode = {"dryrun": "offline", "run": "online"}.get(mode, mode)
    if mode not in ("auto", "online", "offline", "disabled"):
        raise ValueError(
            f"tracking.mode (or WANDB_MODE) is {mode!r}; it is auto, online, offline or disabled"
        )
    return mode


def _has_key() -> bool:
    import wandb

    try:
        return bool(wandb.login(prompt=False, verify=False))
    except Exception as error:  # a malformed key must not stop a run
        print(f"W&B: the key cannot be used ({error}); this run is written offline.")
        return False


def _start(
    tracking: TrackingConfig, record: Record, config: Mapping[str, Any], mode: str, run_id: str | None
) -> tuple[Any, str]:
    import wandb

    def start(mode: str) -> Any:
        return wandb.init(
            mode=mode,
            id=run_id,
            resume="allow",
            project=tracking.project,
            entity=tracking.entity,
            dir=str(record.folder),
            name=record.fields["name"],
            group=record.fields["experiment"],
            job_type=record.fields["phase"],
            tags=_tags(tracking, record),
            config=dict(config),
            reinit="create_new",
            settings=wandb.Settings(
                console="off",
                silent=True,
                init_timeout=float(tracking.init_timeout),
                finish_timeout=FINISH_TIMEOUT,
            ),
        )

    if mode == "offline":
        return start("offline"), "offline"
    try:
        return start("online"), "online"
    except (wandb.errors.CommError, wandb.errors.UsageError, TimeoutError) as error:
        reason = str(error).splitlines()[0]
        print(f"W&B: no connection ({reason}); this run is written offline, `wandb sync` uploads it later.")
        return start("offline"), "offline"


def _tags(tracking: TrackingConfig, record: Record) -> list[str]:
    own = [record.fields.get(key) for key in ("method", "model", "dataset")]
    return list(dict.fromkeys(str(tag)[:TAG_LENGTH] for tag in [*own, *tracking.tags] if tag))


def _rows_to_replay(folder: Path, before: Mapping[str, Any] | None) -> list[dict[str, Any]] | None:
    """Return the rows to replace the earlier offline file with; None if it stays or is not there."""
    if not before or before["mode"] != "offline" or not (folder / before["folder"]).is_dir():
        return None
    if list((folder / before["folder"]).glob("*.synced")):
        return None
    return read_jsonl(folder / METRICS, torn_end=True)


def _inside(path: Path, base: Path) -> Path:
    path, base = path.resolve(), base.resolve()
    return path.relative_to(base) if path.is_relative_to(base) else path
