"""Run cells in worker processes, n at a time; whatever happens to one, the others go on.

One process, one thread: it hands cells to workers, waits for their answers, and shows progress in between. A
worker does cells until one fails or kills it; then a fresh one takes its place.
"""

import contextlib
import json
import os
import selectors
import subprocess
import time
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lab.sweeps.cells import Cell, SweepError
from sgdpo.console import ENVIRONMENT
from sgdpo.processes import how_it_ended, kill_tree, start_python
from sgdpo.runs.records import view_run
from sgdpo.runs.run import failed_since

OUTPUT = "output.log"
TICK_SECONDS = 0.25


@dataclass(frozen=True)
class Task:
    """Name the application's function: the script that defines it, and its name there."""

    script: Path
    function: str


@dataclass(frozen=True)
class Outcome:
    """Hold how a cell ended: its wall-clock seconds, and why it failed (None: it is finished).

    stopped: it did not fail, its sweep ended it.
    """

    cell: Cell
    seconds: float
    error: str | None
    stopped: bool = False


@dataclass
class Runner:
    """Run cells somewhere; the screen and the sweep's roster are told how they go.

    settings: of the launcher's YAML in conf/launcher.
    """

    task: Task
    settings: Mapping[str, Any]
    screen: Any
    roster: Any

    @abstractmethod
    def run(self, cells: Sequence[Cell]) -> list[Outcome]:
        """Return how every cell ended, in the order of their ends. On any exception nothing is left running."""

    def started(self, cell: Cell) -> None:
        self.screen.cell_started(cell)
        self.roster.note(cell.name, None)

    def ended(self, outcome: Outcome) -> None:
        self.screen.cell_ended(outcome)
        self.roster.note(outcome.cell.name, outcome.error)

    def tick(self) -> None:
        """Let both do what is due; several times a second."""
        self.screen.tick()
        self.roster.tick()


@dataclass
class Worker:
    """Hold one worker process and the cell it does. before: the attempts at the cell's SFT start until then."""

    process: subprocess.Popen
    cell: Cell | None = None
    since: float = 0.0
    before: Any = None
    unread: bytes = b""

    def give(self, cell: Cell) -> None:
        """Start a cell; a worker that died in the meantime shows at the next read."""
        self.cell, self.since = cell, time.monotonic()
        self.before = cell.run.start and view_run(cell.run.start.folder)["attempts"]
        job = {"config": asdict(cell.config), "output": str((cell.folder / OUTPUT).absolute())}
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps(job).encode() + b"\n")
            self.process.stdin.flush()

    def read(self) -> Outcome | None:
        """Return the outcome of the cell if there is one: an answer, or the end of the process."""
        received = os.read(self.process.stdout.fileno(), 1 << 16)
        self.unread += received
        if b"\n" in self.unread:
            line, self.unread = self.unread.split(b"\n", 1)
            error = json.loads(line)["error"]
            unfinished = f"it returned without a finished record in {self.cell.folder}"
        elif received:
            return None
        else:  # it ended without an answer
            returncode = self.process.wait()
            unfinished = how_it_ended(returncode)
            error = unfinished if returncode else None
        if error is None and view_run(self.cell.folder).status != "finished":
            error = unfinished
        return Outcome(self.cell, time.monotonic() - self.since, error)

    def end(self) -> None:
        kill_tree(self.process.pid)
        self.process.wait()


@dataclass
class Pool(Runner):
    """Run cells with one worker a slot, which is an environment, for example with GPUs of its own.

    no_start: {an SFT start that failed: why}; no other cell tries it again.
    """

    slots: Sequence[Mapping[str, str]] = ()
    workers: dict[int, Worker] = field(default_factory=dict)
    no_start: dict[str, str] = field(default_factory=dict)

    def run(self, cells: Sequence[Cell]) -> list[Outcome]:
        pending, outcomes = list(cells), []
        self.slots = self.slots or slots_for(cells, self.settings["n_jobs"])
        try:
            while True:
                for slot in set(range(len(self.slots))) - set(self._busy()):
                    while cell := self._next(pending):
                        if (why := self.no_start.get(start_of(cell))) is None:
                            self._start(slot, cell)
                            break
                        self.started(cell)
                        outcomes.append(Outcome(cell, 0.0, why))
                        self.ended(outcomes[-1])
                if not self._busy():
                    return outcomes
                outcomes += self._wait()
        finally:
            for worker in self.workers.values():
                worker.end()

    def further(self) -> Cell | None:
        """Give a further cell when there is room for one, None if there is none now."""
        return None

    def stop(self, cell: Cell, why: str) -> None:
        """End the worker of a running cell; one that finished before it could be ended is finished."""
        for slot, worker in self._busy().items():
            if worker.cell is cell:
                worker.end()
                stopped = view_run(cell.folder).status != "finished"
                error = why if stopped else None
                self._end(slot, Outcome(cell, time.monotonic() - worker.since, error, stopped))

    def _next(self, pending: list[Cell]) -> Cell | None:
        """Take the first cell whose SFT start nobody is training now: otherwise it would only wait for it."""
        if not pending and (further := self.further()):
            pending.append(further)
        taken = {start_of(worker.cell) for worker in self._busy().values()} - {None}
        free = (i for i, cell in enumerate(pending) if start_of(cell) not in taken)
        return pending.pop(next(free, 0)) if pending else None

    def _busy(self) -> dict[int, Worker]:
        return {slot: worker for slot, worker in self.workers.items() if worker.cell is not None}

    def _start(self, slot: int, cell: Cell) -> None:
        if slot not in self.workers or self.workers[slot].process.poll() is not None:
            self.workers[slot] = Worker(_spawn(self.task, self.slots[slot]))
        self.started(cell)
        self.workers[slot].give(cell)

    def _wait(self) -> list[Outcome]:
        outcomes = []
        with selectors.DefaultSelector() as selector:
            for slot, worker in self._busy().items():
                selector.register(worker.process.stdout, selectors.EVENT_READ, slot)
            for key, _ in selector.select(TICK_SECONDS):
                if (outcome := self.workers[key.data].read()) is not None:
                    outcomes.append(outcome)
                    self._end(key.data, outcome)
        self.tick()
        return outcomes

    def _end(self, slot: int, outcome: Outcome) -> None:
        worker = self.workers[slot]
        worker.cell = None
        start = outcome.cell.run.start
        if start and (why := failed_since(worker.before, start.folder)):
            self.no_start[start.identity.result_hash] = f"its SFT start {start.folder.name} failed: {why}"
        if outcome.error is not None:
            # It may have died, and what a failure left in it is nobody's to inherit.
            worker.end()
            del self.workers[slot]
        self.ended(outcome)


def start_of(cell: Cell | None) -> str | None:
    """Return what the SFT start of a cell is known by, None if it has none."""
    return cell.run.start.identity.result_hash if cell and cell.run.start else None


def _spawn(task: Task, slot: Mapping[str, str]) -> subprocess.Popen:
    """Start a worker in a session of its own: Ctrl-C reaches the launcher, which then kills the workers."""
    return start_python(
        "lab.sweeps.worker", str(task.script), task.function, env={**os.environ, **slot},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip


def slots_for(cells: Sequence[Cell], n_jobs: int) -> list[dict[str, str]]:
    """Return the environment of each slot: its share of the cores, its GPUs.

    They depend on n_jobs, not on how many cells are left: a continued sweep computes with the same threads.
    """
    on_gpus = any(cell.config.device != "cpu" for cell in cells)
    return slots(n_jobs, max(cell.config.engine.num_processes for cell in cells), on_gpus)[: len(cells)]


def slots(n_jobs: int, processes: int, on_gpus: bool) -> list[dict[str, str]]:
    """Return the environment of each of n_jobs slots of so many processes: its share of the cores, its GPUs."""
    gpus = visible_gpus() if on_gpus else []
    return [slot | share_of_cores(n_jobs) for slot in gpu_slots(gpus, n_jobs, processes)]


def share_of_cores(n_jobs: int) -> dict[str, str]:
    """Return the thread settings of one of n_jobs processes; the user's own settings stay.

    Idle threads soon sleep instead of spinning: beside other busy processes spinning made steps many times slower.
    """
    # Not every system can tell which cores a process may use.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = max(1, cores // n_jobs)
    ours = {"OMP_NUM_THREADS": str(threads), "GOMP_SPINCOUNT": ENVIRONMENT["GOMP_SPINCOUNT"]}
    return {key: value for key, value in ours.items() if key not in os.environ}


def visible_gpus() -> list[str]:
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        return [name for name in os.environ["CUDA_VISIBLE_DEVICES"].split(",") if name.strip()]
    import torch

    return [str(number) for number in range(torch.cuda.device_count())]


def gpu_slots(gpus: Sequence[str], n_jobs: int, processes: int) -> list[dict[str, str]]:
    """Return the environment of each of n_jobs slots, `processes` GPUs for a cell.

    One job keeps what is visible. Single-process cells may share a GPU when there are fewer GPUs than jobs.
    Raises SweepError if cells of several processes do not fit.
    """
    if not gpus or n_jobs == 1:
        return [{}] * n_jobs
    if n_jobs * processes > len(gpus) and processes > 1:
        raise SweepError(
            f"n_jobs={n_jobs} cells of {processes} processes need {n_jobs * processes} GPUs, "
            f"{len(gpus)} are visible; use n_jobs={max(1, len(gpus) // processes)}"
        )
    first = [slot * processes % len(gpus) for slot in range(n_jobs)]
    return [{"CUDA_VISIBLE_DEVICES": ",".join(gpus[i : i + processes])} for i in first]
