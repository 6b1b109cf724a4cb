"""Do cells: a worker process of the local launcher does one after the other, a job of a queue does one.

A worker reads one JSON line a cell from stdin, {"config": {...}, "output": path}, sends everything that the cell
prints to that file, and answers one JSON line, {"error": why or null}. Runs in one process after each other
give the same bits as runs in fresh processes, and torch is imported once. It dies with the launcher.

    python -m lab.sweeps.worker SCRIPT FUNCTION PARENT_PID
"""

import importlib.util
import json
import logging
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from sgdpo.processes import die_with_parent, send_output_to
from sgdpo.runs.records import view_run


def main(script: str, function: str, parent: str) -> None:
    die_with_parent(int(parent))
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    task: Callable[[Any], Any] | None = None
    for line in sys.stdin:
        job, environment, error = json.loads(line), dict(os.environ), None
        send_output_to(Path(job["output"]))
        try:
            task = task or load_task(script, function)
            task(OmegaConf.create(job["config"]))
        except BaseException as ended:
            error = why_it_failed(ended)
        if error:
            print(error, file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
        os.environ.clear()
        os.environ.update(environment)
        answers.write(json.dumps({"error": error}) + "\n")


def load_task(script: str, function: str) -> Callable[[Any], Any]:
    """Import the application's script by its path; calling its main with a config skips Hydra."""
    spec = importlib.util.spec_from_file_location("sgdpo_sweep_task", script)
    assert spec is not None, f"{script} is not a Python file"
    assert spec.loader is not None, f"{script} is not a Python file"
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(Path(script).resolve().parent))
    spec.loader.exec_module(module)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    return getattr(module, function)


def why_it_failed(ended: BaseException) -> str | None:
    """Return why a cell ended by an exception; None for a normal `sys.exit()`."""
    if not isinstance(ended, SystemExit):
        return "".join(traceback.format_exception(ended))
    if ended.code in (None, 0):
        return None
    told = [ended.code if isinstance(ended.code, str) else f"it ended with exit code {ended.code}"]
    return "\n".join(str(error) for error in getattr(ended, "errors", None) or told)


class Job:
    """Do one cell as a job of a queue; submitit pickles it, and again if the job has to go back into the queue."""

    def __init__(self, script: str, function: str, config: Mapping[str, Any], output: str) -> None:
        self.script, self.function, self.config, self.output = script, function, dict(config), output
        self.before = self._training()

    def _training(self) -> Any:
        return view_run(Path(self.output).parent)["training"]

    def __call__(self) -> None:
        """Train; RuntimeError with what ended it otherwise."""
        config = dict(self.config)
        if self._training() != self.before:  # the words that start a run again would do so at each time limit
            config["force"] = False
            config["resume"] = "auto" if config["resume"] == "never" else config["resume"]
        send_output_to(Path(self.output))
        try:
            load_task(self.script, self.function)(OmegaConf.create(config))
        except SystemExit as ended:
            if ended.code == -1:  # submitit has put the job back into the queue
                raise
            if (error := why_it_failed(ended)) is not None:
                raise RuntimeError(error) from None

    def checkpoint(self) -> Any:
        """Return what goes back into the queue at the time limit: the same; the run finds its own checkpoint."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


if __name__ == "__main__":
    main(*sys.argv[1:])
