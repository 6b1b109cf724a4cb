"""Do what one composed run asks for: skip it if it is done, train its start first, then run it here or relaunched."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from sgdpo.config.identity import Identity, needs_start, run_identity, start_config
from sgdpo.config.schema import RunConfig
from sgdpo.engine.launch import is_distributed, launch
from sgdpo.engine.nodes import this_node
from sgdpo.runs.records import amend_record, find_result, find_run
from sgdpo.runs.run import run, run_folder

log = logging.getLogger("sgdpo")


def execute(config: RunConfig) -> Path:
    """Return the folder of the finished run, training it and its SFT start only if they do not exist.

    Two processes that ask for the same run train it once: the second waits, and takes over if the first dies
    (the lock is the operating system's and ends with its owner).
    """
    return _train_once(config)[0]


def _train_once(config: RunConfig) -> tuple[Path, bool]:
    """Return the folder of the finished run, and whether it was trained here and now."""
    identity = run_identity(config)
    if (done := finished(config, identity)) is not None:
        log.info("%s is finished already and is not trained again (force=true does)", done)
        return done, False
    with _lock(config, identity) as waited:
        if waited and (done := finished(config, identity)) is not None:
            return done, False
        start = _ensure_start(config)
        folder = run_folder(config, identity)
        if is_distributed(config):
            launch(config)
        else:
            run(config)
        if this_node(config.engine).rank == 0:
            amend_record(folder, shared={"start": start})
    return folder, True


def finished(config: RunConfig, identity: Identity) -> Path | None:
    """Return the folder of a finished run with these settings, unless it shall be trained again."""
    if config.force:
        return None
    found = find_run(Path(config.outputs), config.experiment, identity.settings_hash)
    return found.folder if found is not None and found.status == "finished" else None


def _ensure_start(config: RunConfig) -> str | None:
    """Train the SFT start unless a finished one exists; return "found", "trained", "waited" (another process
    trained it meanwhile) or None (none needed)."""
    if not needs_start(config):
        return None
    start = start_config(config)
    if find_result(Path(config.outputs), run_identity(start).result_hash) is not None:
        return "found"
    log.info("the SFT start %s does not exist yet: training it first", run_identity(start).name)
    return "trained" if _train_once(start)[1] else "waited"


@contextmanager
def _lock(config: RunConfig, identity: Identity) -> Iterator[bool]:
    """Hold a run's lock; yield whether another process had it before."""
    folder = Path(config.cache) / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    # The machines of one run train it together: each has a lock of its own.
    machine = f"-node{this_node(config.engine).rank}" if config.engine.num_nodes > 1 else ""
    lock = FileLock(folder / f"{config.experiment}-{identity.settings_hash[:16]}{machine}.lock")
    waited = False
    try:
        lock.acquire(blocking=False)
    except Timeout:
        log.info("waiting for the process that trains %s", identity.name)
        waited = True
        lock.acquire()
    try:
        yield waited
    finally:
        lock.release()
