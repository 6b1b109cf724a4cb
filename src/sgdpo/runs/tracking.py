"""W&B or nothing: a mirror of metrics.jsonl that never asks, never hangs and never stops a run.

One W&B run a run, its id kept in the record, its files inside the run's folder. Rows become `train/<key>` and
`eval/<key>` at W&B's own step, equal to metrics.jsonl.

A resumed run continues the same W&B run. Online, the id is resumed on the server, which ignores the few
steps it already has (the resumed steps are the same numbers). Offline, a killed process may have lost its
last rows: so the offline file is written again from metrics.jsonl and samples.jsonl under the same id and the old
one is removed. Only if the old one was synced before does the new file hold the new steps alone; `wandb sync` then
appends them.

A run that starts again by the user's word (force=true, resume=never) replaces what is offline, once it has a row. What
W&B has already stays there as a run of its own: its server would drop the new steps under the old id.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shlex
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError, Future
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any
from uuid import uuid4

import psutil

from sgdpo.config.schema import TrackingConfig
from sgdpo.processes import kill_tree
from sgdpo.runs.records import LOG, METRICS, SAMPLES, Record, RunView, view_run
from sgdpo.store import line
from sgdpo.values import fits

log = logging.getLogger("sgdpo")
SERVICE_START = 40.0  # seconds, above W&B's own limit for the start of its service
GRACE = 3.0  # seconds that W&B may take to end beyond what it is told to wait for uploads
TABLE_ROWS = 200  # samples of an evaluation that W&B shows
TAG_LENGTH = 64  # W&B's limit
LABELS = ("step", "epoch", "split")


class NoTracker:
    """Track nothing: what a tracker can be told."""

    def log(self, row: Mapping[str, Any]) -> None:
        """Mirror one row of metrics.jsonl."""

    def note(self, text: str) -> None:
        """Mirror lines of log.txt."""

    def image(self, key: str, path: Path) -> None:
        """Add a picture to the last logged step."""

    def finish(self, summary: Mapping[str, Any], failed: bool = False) -> None:
        """Set the summary and close; a failed run is marked as one. Once closed it does nothing."""

    def table(self, key: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Put rows in the place of the table that was there, at the last logged step."""


class WandbThread:
    """Do W&B's work in order in a thread of its own: it may die or hang, and who asked goes on without it.

    about: what goes on without it. patience: seconds that `end` waits for uploads.
    """

    def __init__(self, about: str, patience: float):
        self._about, self._patience = about, patience + GRACE
        self._todo: SimpleQueue[tuple[Callable[[], Any], Future] | None] = SimpleQueue()
        self.failed = False
        self._thread = Thread(target=self._work, name="W&B", daemon=True)
        self._thread.start()

    def do(self, work: Callable[[], Any]) -> Future:
        """Have work done after what was asked for before; without W&B its future is cancelled."""
        future: Future = Future()
        self._todo.put((work, future))
        return future

    def end(self) -> None:
        """Wait until all is done, at most as long as the patience lasts; then end W&B's service if it hangs."""
        self._todo.put(None)
        self._thread.join(self._patience)
        if self._thread.is_alive():
            self._give_up(f"no answer within {self._patience:.0f} s")
            self._thread.join(self._patience)

    def _work(self) -> None:
        while (asked := self._todo.get()) is not None:
            work, future = asked
            if self.failed:
                future.cancel()
                continue
            try:
                future.set_result(work())
            except BaseException as error:  # W&B ends with whatever its service ended with
                self._give_up(" ".join(f"{type(error).__name__}: {error}".split())[:200])
                future.cancel()
        if self.failed:
            import wandb

            with contextlib.suppress(BaseException):
                wandb.teardown()  # or it would do so at the end of this process, with a traceback

    def _give_up(self, reason: str) -> None:
        if not self.failed:
            self.failed = True
            log.warning("W&B stopped (%s): %s goes on without it, nothing else is lost", reason, self._about)
        for child in psutil.Process().children():
            if child.name() == "wandb-core":
                kill_tree(child.pid)


class WandbTracker(NoTracker):
    """Mirror a run into one W&B run. Use `open_tracker`."""

    def __init__(self, thread: WandbThread, run: Any, replaces: Sequence[Path]):
        self._thread, self._run, self._step, self._open = thread, run, 0, True
        self._replaces = list(replaces)

    def log(self, row: Mapping[str, Any]) -> None:
        """Mirror one row: its metrics as `train/<key>` or `eval/<key>`, with `step` and `epoch`."""
        while self._replaces:
            shutil.rmtree(self._replaces.pop(), ignore_errors=True)
        step = self._step = row["step"]
        self._thread.do(lambda: self._run.log(wandb_row(row), step=step))

    def note(self, text: str) -> None:
        self._thread.do(lambda: self._run.write_logs(text))

    def image(self, key: str, path: Path) -> None:
        import wandb

        step = self._step
        self._thread.do(lambda: self._run.log({key: wandb.Image(str(path))}, step=step))

    def table(self, key: str, rows: Sequence[Mapping[str, Any]]) -> None:
        step = self._step
        self._thread.do(lambda: self._run.log({key: wandb_table(rows)}, step=step))

    def finish(self, summary: Mapping[str, Any], failed: bool = False) -> None:
        if not self._open:
            return
        self._open = False
        self._thread.do(lambda: self._run.summary.update(dict(summary)))
        self._thread.do(lambda: _close(self._run, exit_code=1 if failed else 0))
        self._thread.end()


def wandb_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the W&B form of a row of metrics.jsonl."""
    metrics = {f"{row['split']}/{key}": value for key, value in row.items() if key not in LABELS}
    return {key: row[key] for key in ("step", "epoch") if key in row} | metrics


def wandb_table(rows: Sequence[Mapping[str, Any]]) -> Any:
    """Return rows as W&B's table, a column for each of their keys, of one kind each: W&B refuses any other."""
    import wandb

    names = dict.fromkeys(name for row in rows for name in row)
    columns = {name: _of_one_kind([row.get(name) for row in rows]) for name in names}
    return wandb.Table(columns=list(columns), data=list(map(list, zip(*columns.values(), strict=True))))


def _of_one_kind(values: Sequence[Any]) -> list[Any]:
    """Return a column's values: what holds other values as JSON, and values of several kinds as text."""
    plain = [line(v).rstrip() if isinstance(v, list | tuple | dict) else v for v in values]
    kinds = {bool if isinstance(v, bool) else float if isinstance(v, int | float) else type(v) for v in plain}
    return plain if len(kinds - {type(None)}) < 2 else [None if v is None else str(v) for v in plain]


def open_tracker(
    tracking: TrackingConfig, record: Record, config: Mapping[str, Any], again: bool = False
) -> NoTracker:
    """Open the run's tracker and keep its id in the record.

    config: the resolved run, nested, as W&B shows and groups it. again: the user's word starts it again. Falls back to
    offline when there is no key or no server within `tracking.init_timeout` seconds, and to none when W&B does not
    start.
    """
    if not tracking.enabled or wanted_mode(tracking.mode) == "disabled":
        return NoTracker()
    _import_wandb(record.folder / "wandb" / "tmp")
    mode = choose_mode(tracking.mode)
    before = record.fields.get("tracker") or {}
    offline = sorted((record.folder / "wandb").glob("offline-run-*"))
    synced = {_id_of(folder) for folder in offline if any(folder.glob("*.synced"))}
    sent = {_id_of(folder) for folder in offline if any(folder.glob("*.sync*"))}  # of a killed run a part
    if again and (before.get("mode") == "online" or before.get("id") in sent):
        before = {}
    # The second: a W&B agent's name for the run that it started.
    run_id = before.get("id") or os.environ.get("WANDB_RUN_ID") or uuid4().hex[:8]
    replaces = [f for f in offline if (again or _id_of(f) == run_id) and _id_of(f) not in synced]
    # Before W&B starts: what a kill leaves of it is found by the id.
    record.note(tracker={"mode": mode, "folder": None, "url": None, **before, "id": run_id})
    thread, fields = WandbThread("the run", tracking.finish_timeout), record.fields

    def start(mode: str) -> Any:
        return _init(
            tracking, mode, record.folder, run_id, name=fields["name"], group=fields["experiment"],
            job_type=fields["phase"], tags=_tags(tracking, record), config=dict(config),
        )  # fmt: skip

    started = thread.do(lambda: start_or_offline(start, mode))
    try:
        run, mode = started.result(tracking.init_timeout + SERVICE_START)
    except (TimeoutError, CancelledError):
        thread.end()
        return NoTracker()
    folder = str(_inside(Path(run.settings.sync_dir), record.folder))
    record.note(
        tracker={"id": run.id, "mode": mode, "folder": folder, "url": run.url if mode == "online" else None}
    )
    tracker = WandbTracker(thread, run, replaces)
    if again and replaces:
        log.info("W&B: the first row replaces %d offline runs of the earlier training", len(replaces))
    elif replaces:
        with contextlib.suppress(OSError):
            tracker.note((record.folder / LOG).read_text(encoding="utf-8", errors="replace"))
        for row in record.kept(METRICS):
            tracker.log(row)
        if answers := record.kept(SAMPLES):
            tracker.table("samples", answers)
    return tracker


def add_evaluation(
    folder: Path,
    tracking: TrackingConfig,
    key: str,
    result: Mapping[str, Any],
    samples: Sequence[Mapping[str, Any]],
) -> None:
    """Add an evaluation's numbers and first samples to the W&B run of a run; never stops the evaluation.

    The run is continued under its id. Offline this makes a further file in the run's folder, which `wandb sync`
    appends like the others.
    """
    view = view_run(folder)
    tracker = view["tracker"]
    mode = choose_mode(tracker["mode"]) if tracker else "disabled"
    if mode == "disabled":
        return
    numbers = {f"evaluation/{key}/{name}": value for name, value in result.items() if fits(value, float)}
    # Beyond the last step of training: W&B takes no step twice.
    step = max((row["step"] for row in view.metrics()), default=0) + len(view["eval"] or {})

    def add() -> None:
        run = _init(tracking, mode, folder, tracker["id"])
        run.log({f"evaluation/{key}/samples": wandb_table(samples[:TABLE_ROWS])}, step=step)
        run.summary.update(numbers)
        _close(run)

    thread = WandbThread(f"{key} of {folder.name}", tracking.finish_timeout)
    thread.do(add)
    thread.end()


def browse_hint(run: RunView) -> str:
    """Return the address of a run that W&B has, or how to browse and upload an offline one."""
    tracker = run["tracker"]
    if not tracker or not tracker["folder"]:
        return f"Tracking {'did not start' if tracker else 'is off'}; the metrics are in metrics.jsonl."
    if tracker["mode"] == "online":
        return f"W&B       {tracker['url']}"
    folder = shlex.quote(str(_inside(run.folder / tracker["folder"], Path.cwd())))
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


def _import_wandb(place: Path) -> None:
    """Let W&B make its temporary folders, which a killed process leaves, in a place of the run's: the next attempt
    removes them."""
    if "wandb" in sys.modules:
        return
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    before, tempfile.tempdir = tempfile.tempdir, str(place)
    try:
        import wandb  # noqa: F401
    finally:
        tempfile.tempdir = before


def _has_key() -> bool:
    import wandb

    try:
        return bool(wandb.login(prompt=False, verify=False))
    except Exception as error:  # a malformed key must not stop a run
        log.warning("W&B: the key cannot be used (%s); this run is written offline.", error)
        return False


def start_or_offline(start: Callable[[str], Any], mode: str) -> tuple[Any, str]:
    """Start a W&B run in a mode, offline if no server answers; return it with the mode it is written in."""
    import wandb

    if mode == "offline":
        return start("offline"), "offline"
    try:
        return start("online"), "online"
    except (wandb.errors.CommError, wandb.errors.UsageError, TimeoutError) as error:
        reason = str(error).splitlines()[0]
        log.warning(
            "W&B: no connection (%s); this run is written offline, `wandb sync` uploads it later.", reason
        )
        wandb.teardown()  # its service holds the id of the run that did not start
        return start("offline"), "offline"


def _init(tracking: TrackingConfig, mode: str, folder: Path, run_id: str, **about: Any) -> Any:
    """Start or continue the W&B run of a run; its files go into the run's folder."""
    import wandb

    settings = wandb.Settings(
        # The Logs tab is told what log.txt is told: W&B's own capture would write from the run's threads.
        console="off",
        silent=True,
        init_timeout=float(tracking.init_timeout),
        finish_timeout=float(tracking.finish_timeout),
    )
    return wandb.init(
        mode=mode, id=run_id, resume="allow", project=tracking.project, entity=tracking.entity, dir=str(folder),
        reinit="create_new", settings=settings, **about,
    )  # fmt: skip


def _close(run: Any, exit_code: int = 0) -> None:
    """Finish a W&B run. Raise OSError if its offline file cannot be written: W&B itself does not say so."""
    import wandb

    file = Path(run.settings.sync_file)
    size = file.stat().st_size
    run.finish(exit_code=exit_code)
    wandb.teardown()  # its service may write the file until it ends
    if run.offline and file.stat().st_size == size:
        raise OSError(f"{file} could not be written to its end")


def _tags(tracking: TrackingConfig, record: Record) -> list[str]:
    own = [record.fields.get(key) for key in ("method", "model", "dataset")]
    return list(dict.fromkeys(str(tag)[:TAG_LENGTH] for tag in [*own, *tracking.tags] if tag))


def _id_of(offline: Path) -> str:
    return offline.name.rpartition("-")[2]


def _inside(path: Path, base: Path) -> Path:
    path, base = path.resolve(), base.resolve()
    return path.relative_to(base) if path.is_relative_to(base) else path
