"""What one attempt at a run tells the world: record, tracker, log and screen on rank 0, nothing on the others."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from sgdpo.drawing.curves import draw_reward_curves
from sgdpo.runs.records import CHECKPOINTS, MODEL, Record, view_run
from sgdpo.runs.run import Run
from sgdpo.runs.summary import summarise
from sgdpo.runs.tracking import Tracker, open_tracker
from sgdpo.store import seal
from sgdpo.training.checkpoints import prune, read_manifest

LOG = "log.txt"


class SilentAttempt:
    """Tell nothing: what the ranks other than 0 hold."""

    def say(self, text: str) -> None:
        """Put a text on the screen and into log.txt."""

    def note(self, text: str) -> None:
        """Put a text into log.txt alone."""

    def plan(self, **fields: Any) -> None:
        """Write into the record what will be trained on."""

    def log(self, row: Mapping[str, Any]) -> None:
        """Write a row of metrics."""

    def mark(self) -> dict[str, Any]:
        """Return what a checkpoint's manifest keeps of the record, whose rows are then on the disk."""
        return {}

    def close(self, write_pairs: Callable[[Path], None], *, keep_checkpoints: bool, **fields: Any) -> None:
        """Write what a person looks at, then close the record as finished.

        write_pairs: writes the tokens' rewards into a file. fields: of the record.
        """


class Attempt(SilentAttempt):
    """Tell everything. Use `open_attempt`."""

    def __init__(self, record: Record, tracker: Tracker):
        self._record, self._tracker = record, tracker

    def say(self, text: str) -> None:
        print(text, flush=True)
        self.note(text)

    def note(self, text: str) -> None:
        with (self._record.folder / LOG).open("a", encoding="utf-8") as file:
            file.write(f"{datetime.now().isoformat(' ', 'seconds')} {text}\n")

    def plan(self, **fields: Any) -> None:
        self._record.note(**fields)

    def log(self, row: Mapping[str, Any]) -> None:
        self._record.log(row)
        self._tracker.log(row)

    def mark(self) -> dict[str, Any]:
        return self._record.mark()

    def close(self, write_pairs: Callable[[Path], None], *, keep_checkpoints: bool, **fields: Any) -> None:
        folder = self._record.folder
        (folder / MODEL / "training_args.bin").unlink(missing_ok=True)  # a pickle; config.yaml says it all
        seal(folder / MODEL)
        picture = folder / "reward_curves.png"
        draw_reward_curves(view_run(folder).metrics(), picture, title=folder.name)
        self._tracker.image("reward_curves", picture)
        write_pairs(folder / "pairs.json")
        self._record.finish(**fields)
        self.note(summarise(folder))
        self._tracker.finish(self._record.fields["final"]["train"])
        if not keep_checkpoints:
            prune(folder / CHECKPOINTS, keep=0)


@contextmanager
def open_attempt(run: Run, checkpoint: Path | None, rank: int) -> Iterator[SilentAttempt]:
    """Open the record, its log and the tracker on rank 0; close all of them whatever happens.

    checkpoint: what the attempt continues; None starts again.
    """
    if rank != 0:
        yield SilentAttempt()
        return
    config, manifest = run.config, read_manifest(checkpoint) if checkpoint else None
    record = Record.open(
        run.folder, run.identity, phase=config.method["phase"], checkpoint=manifest, force=config.force
    )
    handler = logging.FileHandler(run.folder / LOG)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    logging.getLogger().addHandler(handler)
    tracker = None
    try:
        OmegaConf.save(OmegaConf.create(asdict(config)), run.folder / "config.yaml")
        tracker = open_tracker(config.tracking, record, asdict(config))
        yield Attempt(record, tracker)
    except Exception as error:
        with suppress(OSError):  # of a full disk, which is then what the error says
            with (run.folder / LOG).open("a", encoding="utf-8") as file:
                file.write(traceback.format_exc())
            record.fail(f"{type(error).__name__}: {error}")
        if tracker is not None:
            tracker.finish({"status": "failed"}, failed=True)
        raise
    finally:
        record.leave()
        logging.getLogger().removeHandler(handler)
        handler.close()
