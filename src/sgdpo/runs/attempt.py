"""What one attempt at a run tells the world: record, tracker, log and screen on rank 0, nothing on the others."""

import logging
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from sgdpo.drawing.curves import draw_reward_curves
from sgdpo.runs.card import model_card
from sgdpo.runs.records import CHECKPOINTS, LOG, MODEL, Record, RunView, view_run
from sgdpo.runs.run import Run
from sgdpo.runs.summary import summarise
from sgdpo.runs.tracking import NoTracker, open_tracker
from sgdpo.store import read_seal, seal, write_whole
from sgdpo.training.checkpoints import prune, remove_newer

log = logging.getLogger("sgdpo")


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

    def sample(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write answers to the fixed prompts."""

    def mark(self) -> dict[str, Any]:
        """Return what a checkpoint's manifest keeps of the record, whose rows are then on the disk."""
        return {}

    def close(self, write_pairs: Callable[[Path], None], *, keep_checkpoints: bool, **fields: Any) -> None:
        """Write what a person looks at, then close the record as finished.

        write_pairs: writes the tokens' rewards into a file. fields: of the record.
        """


class Attempt(SilentAttempt):
    """Tell everything. Use `open_attempt`."""

    def __init__(self, record: Record):
        self._record, self.tracker = record, NoTracker()

    def say(self, text: str) -> None:
        print(text, flush=True)
        self.note(text)

    def note(self, text: str) -> None:
        line = f"{datetime.now().isoformat(' ', 'seconds')} {text}\n"
        with (self._record.folder / LOG).open("a", encoding="utf-8") as file:
            file.write(line)
        self.tracker.note(line)

    def plan(self, **fields: Any) -> None:
        self._record.note(**fields)

    def log(self, row: Mapping[str, Any]) -> None:
        self._record.log(row)
        self.tracker.log(row)

    def sample(self, rows: Sequence[Mapping[str, Any]]) -> None:
        self.tracker.table("samples", self._record.sample(rows))

    def mark(self) -> dict[str, Any]:
        return self._record.mark()

    def close(self, write_pairs: Callable[[Path], None], *, keep_checkpoints: bool, **fields: Any) -> None:
        folder = self._record.folder
        (folder / MODEL / "training_args.bin").unlink(missing_ok=True)  # a pickle; config.yaml says it all
        card = folder / MODEL / "README.md"
        card.unlink(missing_ok=True)  # of an attempt that did not come to its end
        seal(folder / MODEL)
        picture = folder / "reward_curves.png"
        draw_reward_curves(view_run(folder).metrics(), picture, title=folder.name)
        self.tracker.image("reward_curves", picture)
        write_pairs(folder / "pairs.json")
        # The card is the user's to go on with: it is written after the seal, which does not hold it.
        record, best = self._record, fields.get("best")
        made = {**record.fields, "final": record.final(best), "best": best, "seconds": record.seconds()}
        write_whole(card, model_card(RunView(folder, made, "finished")))
        self._record.finish(**fields)
        if not keep_checkpoints:
            prune(folder / CHECKPOINTS, keep=0)
        with suppress(OSError):  # the run is finished; the screen shows it too
            self.note(summarise(folder))
        self.tracker.finish(self._record.fields["final"]["train"])


@contextmanager
def open_attempt(run: Run, checkpoint: Path | None, rank: int) -> Iterator[SilentAttempt]:
    """Open the record, its log and the tracker on rank 0; close all of them whatever happens.

    checkpoint: what the attempt continues; None starts again.
    """
    if rank != 0:
        yield SilentAttempt()
        return
    config, manifest = run.config, read_seal(checkpoint) if checkpoint else None
    record = Record.open(
        run.folder, run.identity, phase=config.method["phase"], checkpoint=manifest, force=config.force
    )
    attempt = Attempt(record)
    handler = _Notes(attempt)
    logging.getLogger().addHandler(handler)
    try:
        # Beside them the next to be saved would count as older.
        if checkpoint and (removed := remove_newer(checkpoint)):
            log.warning("%d later checkpoints, which cannot be continued, are removed", removed)
        OmegaConf.save(OmegaConf.create(asdict(config)), run.folder / "config.yaml")
        again = config.force or config.resume == "never"
        attempt.tracker = open_tracker(config.tracking, record, asdict(config), again)
        yield attempt
    except Exception as error:
        with suppress(OSError):  # of a disk that stays full, which is then what the error says
            record.fail(f"{type(error).__name__}: {error}")
            attempt.note(traceback.format_exc())
        raise
    finally:
        record.leave()
        attempt.tracker.finish({"status": view_run(run.folder).status}, failed=True)
        logging.getLogger().removeHandler(handler)


class _Notes(logging.Handler):
    """Put what is logged into log.txt."""

    def __init__(self, attempt: Attempt):
        super().__init__()
        self._attempt = attempt

    def emit(self, record: logging.LogRecord) -> None:
        with suppress(OSError):  # of a full disk, which nobody can be told in a file
            self._attempt.note(f"{record.levelname} {self.format(record)}")
