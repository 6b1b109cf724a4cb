"""Run cells as jobs of a Slurm cluster (submitit): the SFT starts first, in an array that the cells depend on."""

import shutil
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import submitit
from hydra_plugins.hydra_submitit_launcher.config import BaseQueueConf
from omegaconf import OmegaConf
from submitit.core.utils import FailedJobError, FailedSubmissionError

from lab.sweeps.cells import Cell, SweepError, missing_starts
from lab.sweeps.pool import OUTPUT, Outcome, Runner
from lab.sweeps.worker import Job
from sgdpo.processes import ask
from sgdpo.runs.records import view_run
from sgdpo.runs.run import Run, failed_since

# What says how we wait for the jobs, not what they are.
OURS = ("submitit_folder", "max_num_timeout", "poll_seconds")
TICK_SECONDS = 0.5


class SlurmQueue(Runner):
    """Submit cells, wait for them, and cancel them if this process is told to end.

    The roster keeps the jobs' ids, so that they are not submitted twice.
    """

    def run(self, cells: Sequence[Cell]) -> list[Outcome]:
        """Return how every cell ended. Raises SweepError if there is no Slurm, or jobs of an earlier sweep wait."""
        self._refuse_what_cannot_be(cells[0].config.experiment)
        poll = float(self.settings["poll_seconds"])
        submitit.SlurmJob.watcher = submitit.slurm.slurm.SlurmInfoWatcher(delay_s=poll)
        name, starts = str(self.settings["name"]), missing_starts(cells)
        before = {cell.name: view_run(cell.folder)["attempts"] for cell in cells}
        try:
            first = self._submit(f"{name}-start", starts, None) if starts else []
            jobs = self._submit(name, [cell.run for cell in cells], first[0].job_id if first else None)
            return self._wait(dict(zip(jobs, cells, strict=True)), before)
        except BaseException:
            if self.roster.jobs:
                ask("scancel", *self.roster.jobs)
            raise
        finally:
            self._note_jobs([])

    def _refuse_what_cannot_be(self, experiment: str) -> None:
        if missing := [name for name in ("sbatch", "srun", "sacct", "squeue") if shutil.which(name) is None]:
            raise SweepError(f"launcher=slurm needs {', '.join(missing)} on the PATH; use launcher=local")
        jobs = self.roster.jobs
        asked = ("squeue", "--noheader", "--format=%i", f"--jobs={','.join(jobs)}")
        if jobs and (waiting := ask(*asked).split()):
            raise SweepError(
                f"jobs of the last sweep of {experiment!r} are in the queue still: {', '.join(waiting)}. "
                f"Wait for them (make status), or end them: scancel {' '.join(jobs)}"
            )

    def _submit(self, name: str, runs: Sequence[Run], after: str | None) -> list[submitit.Job]:
        """Submit one array; `after` is a job of the array that has to end first, however it ends."""
        executor = self._executor()
        executor.update_parameters(name=name)
        if after is not None:
            executor.update_parameters(slurm_dependency=f"afterany:{after.split('_')[0]}")
        script, function = str(self.task.script), self.task.function
        jobs = [
            Job(script, function, asdict(run.config), str((run.folder / OUTPUT).absolute())) for run in runs
        ]
        # A Ctrl-C between the two would leave jobs that nobody knows: it waits.
        held = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
        try:
            submitted = executor.submit_array(jobs)
        except (FailedJobError, FailedSubmissionError) as error:  # of a partition, or a limit of the cluster
            words = "; ".join(str(error).splitlines())
            raise SweepError(
                f"sbatch took no jobs: {words} (its settings are hydra.launcher.KEY=..., see conf/launcher/slurm.yaml)"
            ) from None
        else:
            self._note_jobs([*self.roster.jobs, submitted[0].job_id.split("_")[0]])
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, held)
        return submitted

    def _executor(self) -> submitit.AutoExecutor:
        folder, timeouts = self.settings["submitit_folder"], self.settings["max_num_timeout"]
        executor = submitit.AutoExecutor(folder=folder, cluster="slurm", slurm_max_num_timeout=timeouts)
        shared = OmegaConf.structured(BaseQueueConf).keys()
        given = {key: value for key, value in self.settings.items() if key not in OURS}
        executor.update_parameters(**{k if k in shared else f"slurm_{k}": v for k, v in given.items()})
        return executor

    def _wait(self, left: dict[submitit.Job, Cell], before: Mapping[str, Any]) -> list[Outcome]:
        began, running, outcomes = time.monotonic(), {}, []
        while left:
            for job, cell in list(left.items()):
                done = job.done()
                if cell.name not in running and (done or job.state == "RUNNING"):
                    running[cell.name] = time.monotonic()
                    self.started(cell)
                if done:
                    del left[job]
                    seconds = time.monotonic() - running.get(cell.name, began)
                    outcomes.append(
                        Outcome(cell, seconds, why_it_failed(job, cell.folder, before[cell.name]))
                    )
                    self.ended(outcomes[-1])
            self.tick()
            time.sleep(TICK_SECONDS)
        return outcomes

    def _note_jobs(self, ids: list[str]) -> None:
        self.roster.jobs = ids
        self.roster.write()


def why_it_failed(job: submitit.Job, folder: Path, before: Any) -> str | None:
    """Judge a job that ended by the record of its run; Slurm's word and the job's last output where it has none.

    before: the run's attempts when the job was submitted; the error of one of them is not the job's.
    """
    if view_run(folder).status == "finished":
        return None
    if error := failed_since(before, folder):
        return error
    raised = job.exception() if job.paths.result_pickle.exists() else None
    return str(raised) if raised else f"its job {job.job_id} ended as {job.state} before the run was finished"
