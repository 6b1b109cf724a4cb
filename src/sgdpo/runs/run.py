"""One run: what it is, made once and passed on; and doing what it asks for, or finding that it is done."""

from __future__ import annotations

import glob
import logging
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from sgdpo.config.compose import to_run_config
from sgdpo.config.identity import Identity, identify, needs_start, start_config
from sgdpo.config.schema import RunConfig
from sgdpo.engine.launch import is_distributed, launch
from sgdpo.engine.nodes import this_node
from sgdpo.processes import without_environment
from sgdpo.runs.contents import changes, read_contents
from sgdpo.runs.records import (
    CHECKPOINTS,
    MODEL,
    RECORD,
    RunView,
    amend_record,
    differences,
    find_runs,
    view_run,
)
from sgdpo.store import DamagedError, held, read_json, what_is_wrong, write_json

log = logging.getLogger("sgdpo")


@dataclass(frozen=True)
class Run:
    """Hold one run: its resolved settings, its identity, its folder, and the SFT run it starts from, if any."""

    config: RunConfig
    identity: Identity
    folder: Path
    start: Run | None

    @classmethod
    def of(cls, config: RunConfig) -> Run:
        """Return the run that a config describes: the one place that computes an identity.

        Its folder is that of the run with this identity, however it is called, else named by it. Raise ValueError
        if what it reads is not there.
        """
        start = cls.of(start_config(config)) if needs_start(config) else None
        identity = identify(config, read_contents(config), start.identity if start else None)
        named = Path(config.outputs) / config.experiment / identity.name
        pattern, wanted = f"*-{identity.run_hash[:8]}", identity.run_hash
        found = find_runs(Path(config.outputs), config.experiment, pattern, "run_hash", wanted)
        # A copy of its folder must not stand in for it.
        found = sorted(found, key=lambda run: (run.status != "finished", run.folder != named))
        return cls(config, identity, found[0].folder if found else named, start)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Run:
        """Return the run that another process made and handed over."""
        start = cls.from_json(fields["start"]) if fields["start"] else None
        config = to_run_config(OmegaConf.create(fields["config"]))
        return cls(config, Identity(**fields["identity"]), Path(fields["folder"]), start)

    def to_json(self) -> dict[str, Any]:
        return {
            "config": asdict(self.config),
            "identity": asdict(self.identity),
            "folder": str(self.folder),
            "start": self.start.to_json() if self.start else None,
        }

    def finished(self) -> RunView | None:
        """Return this run's record if it is finished and its weights are as they were written."""
        found = view_run(self.folder)
        return found if found["run_hash"] == self.identity.run_hash and self._is_done(found) else None

    def result(self) -> RunView | None:
        """Return a finished run of any experiment that has this run's weights."""
        config = self.config
        parts = (config.method["name"], config.model.name, config.data.name)
        pattern = f"{glob.escape('-'.join(parts))}*-s{config.seed}-????????"
        found = find_runs(Path(config.outputs), None, pattern, "result_hash", self.identity.result_hash)
        return next((run for run in found if self._is_done(run)), None)

    def relatives(self) -> list[RunView]:
        """Return the experiment's other runs with these settings: what they read had another content."""
        key, wanted = "settings_hash", self.identity.settings_hash
        found = find_runs(Path(self.config.outputs), self.config.experiment, "*", key, wanted)
        return [run for run in found if run["run_hash"] != self.identity.run_hash]

    def _is_done(self, found: RunView) -> bool:
        if found.status != "finished":
            return False
        wrong = what_is_wrong(found.folder / MODEL, Path(self.config.cache) / "hashes")
        if wrong is not None:
            log.warning("%s is finished, but its weights are not whole (model: %s)", found.folder, wrong)
        return wrong is None


def execute(config: RunConfig) -> Path:
    """Return the folder of the finished run, training it and its SFT start only if they do not exist.

    Two processes that ask for the same run train it once: the second waits, and takes over if the first dies
    (the lock is the operating system's and ends with its owner).
    """
    return _train_once(Run.of(config))[0]


def _train_once(run: Run, *, as_start: bool = False) -> tuple[Path, bool]:
    """Return the folder of the finished run, and whether it was trained here and now.

    as_start: weights of any experiment serve. Raise ValueError for one that another process tried meanwhile, and that
    failed: it would fail again.
    """
    find = run.result if as_start else run.finished
    if not run.config.force and (done := find()) is not None:
        log.info("%s is finished already and is not trained again (force=true does)", done.folder)
        _tidy(done.folder)
        return done.folder, False
    before = view_run(run.folder)["attempts"]
    with held(_lock(run), f"the run {run.identity.name}"):
        if not run.config.force and (done := find()) is not None:
            return done.folder, False
        if as_start and (why := failed_since(before, run.folder)):
            raise ValueError(f"the SFT start {run.folder.name}, which another process tried, failed: {why}")
        start = _ensure_start(run)
        _take_over(run)
        if is_distributed(run.config):
            launch(run.config, run.folder, run.to_json())
        else:
            from sgdpo.runs.train import train  # torch and all that

            train(run)
        if this_node(run.config.engine).rank == 0:
            amend_record(run.folder, shared={"start": start})
    return run.folder, True


def failed_since(before: Any, folder: Path) -> str | None:
    """Return why a run failed, None if it did not since it had these attempts."""
    run = view_run(folder)
    return run.error if run.status == "failed" and run["attempts"] != before else None


def _tidy(folder: Path) -> None:
    """Remove the checkpoints that a kill between the finished record and their removal left.

    What the run was trained with says whether they were to stay, not the command that asks for it again.
    """
    settings = folder / "config.yaml"
    if not (folder / CHECKPOINTS).exists() or not settings.exists():
        return
    if not OmegaConf.select(OmegaConf.load(settings), "trainer.keep_finished"):
        shutil.rmtree(folder / CHECKPOINTS)


def _ensure_start(run: Run) -> str | None:
    """Train the SFT start unless a finished one exists; return "found", "trained", "waited" (another process
    trained it meanwhile) or None (none needed)."""
    if run.start is None:
        return None
    if run.start.result() is not None:
        return "found"
    if run.config.force:
        _forget_damaged(run.start.folder / RECORD)
    log.info("the SFT start %s does not exist yet: training it first", run.start.identity.name)
    with without_environment("WANDB_RUN_ID", "WANDB_SWEEP_ID"):  # a W&B agent means the run itself
        return "trained" if _train_once(run.start, as_start=True)[1] else "waited"


def _forget_damaged(record: Path) -> None:
    """Remove a start's record if it cannot be read: force, which trains no whole start again, is the word for that."""
    try:
        read_json(record, default={}, kind=dict)
    except DamagedError as error:
        log.warning("%s; it is removed", error)
        record.unlink()


def _take_over(run: Run) -> None:
    """Let an interrupted run of these settings, whose inputs changed, go on as this one if the user says so.

    Raise ValueError with the two words that decide, if none was given. The first machine alone moves folders.
    """
    config, first = run.config, this_node(run.config.engine).rank == 0
    if (run.folder / RECORD).exists():
        here = view_run(run.folder)
        # A kill came between the two halves of what is done below.
        same = here["settings_hash"] == run.identity.settings_hash
        if first and same and here["run_hash"] != run.identity.run_hash:
            _rename_record(run, here)
        return
    if config.force or config.resume == "never" or (run.folder / CHECKPOINTS).is_dir():
        return
    for other in run.relatives() if first or config.resume == "auto" else ():
        if not _could_go_on(other):
            continue
        changed = changes(other["contents"] or {}, run.identity.contents)
        if config.resume == "auto":
            raise ValueError(stale(other.folder, changed))
        log.warning("%s goes on as %s although %s", other.folder, run.folder.name, "; ".join(changed))
        if run.folder.is_dir():  # whoever started this process writes its output there
            _move_into(run.folder, other.folder)
        other.folder.rename(run.folder)
        _rename_record(run, other)
        return
    for other in _run_otherwise(run) if first else ():
        told = differences(other["settings"], run.identity.settings)
        anew = "with other settings this is another run and begins anew"
        log.warning("%s was cut short; %s: %s", other.folder, anew, told)


def _run_otherwise(run: Run) -> list[RunView]:
    """Return the experiment's runs that were to end with these weights by another engine or layout, and could go on."""
    place, wanted = Path(run.config.outputs), run.identity.result_hash
    found = find_runs(place, run.config.experiment, "*", "result_hash", wanted)
    return [other for other in found if other["run_hash"] != run.identity.run_hash and _could_go_on(other)]


def _could_go_on(other: RunView) -> bool:
    return other.status in ("interrupted", "failed") and any(other.folder.glob(f"{CHECKPOINTS}/*"))


def _rename_record(run: Run, taken: RunView) -> None:
    write_json(run.folder / RECORD, {**taken.record, "run_hash": run.identity.run_hash})


def _move_into(source: Path, target: Path) -> None:
    """Move all that lies in one folder into another, where a file of the same name stays as NAME.before."""
    for path in sorted(source.iterdir()):
        place = target / path.name
        if path.is_dir() and place.is_dir():
            _move_into(path, place)
            continue
        if place.exists():
            place.rename(place.with_name(f"{place.name}.before"))
        path.rename(place)
    source.rmdir()


def stale(folder: Path, changed: list[str]) -> str:
    """Say that an interrupted run is no longer what it was, and ask for a word."""
    return (
        f"{folder} was interrupted and could go on, but since then {'; '.join(changed)}. Say resume=anyway to go on "
        "all the same, or resume=never to start again"
    )


def _lock(run: Run) -> Path:
    """Return what is locked: a start is trained once for all experiments, any other run once for its own.

    The machines of one run train it together: each has a lock of its own.
    """
    engine = run.config.engine
    machine = f"-node{this_node(engine).rank}" if engine.num_nodes > 1 else ""
    is_start = run.config.method["phase"] == "sft"
    words = f"start-{run.identity.result_hash[:16]}" if is_start else (
        f"{run.config.experiment}-{run.identity.run_hash[:16]}"
    )  # fmt: skip
    return Path(run.config.cache) / "locks" / f"{words}{machine}"
