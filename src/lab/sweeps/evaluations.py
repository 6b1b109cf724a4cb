"""Evaluate many runs in processes, n at a time; each takes the next run when it has done one.

What several runs are compared with is evaluated once: the first process that needs it does it, the others wait.

    python -m lab.sweeps.evaluations FOLDER PARENT_PID     a line of JSON a run in, a line out
"""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, suppress
from dataclasses import asdict, replace
from pathlib import Path
from queue import SimpleQueue
from tempfile import TemporaryDirectory
from threading import Thread
from typing import Any

from tqdm import tqdm

from lab.evaluation.evaluate import evaluate, opened
from lab.evaluation.settings import EvaluateConfig, evaluation_errors
from lab.sweeps.pool import slots
from sgdpo.console import is_advice, set_up_process
from sgdpo.processes import die_with_parent, how_it_ended, kill_tree, start_python


def evaluate_all(config: EvaluateConfig) -> dict[str, dict[str, Any]]:
    """Evaluate every run, n_jobs at a time, and return {run folder: result} in the order asked.

    Raises ValueError with all that is wrong, before, or naming the first run that fails; nothing is left running.
    """
    if config.n_jobs == 1 or len(config.runs) < 2:
        return evaluate(config)
    if errors := evaluation_errors(config):
        raise ValueError("\n".join(errors))
    shares, workers = slots(config.n_jobs, 1, config.device != "cpu")[: len(config.runs)], []
    said: list[Thread] = []
    with TemporaryDirectory() as done, ThreadPoolExecutor(len(shares)) as threads:
        idle: SimpleQueue[subprocess.Popen[str]] = SimpleQueue()
        try:
            for share in shares:
                # In a session of its own: Ctrl-C reaches this process, which then kills the workers.
                workers.append(start_python(
                    __name__, done, env={**os.environ, **share, "TQDM_DISABLE": "1"},
                    stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                    start_new_session=True,
                ))  # fmt: skip
                said.append(Thread(target=_pass_on, args=(workers[-1].stderr,), daemon=True))
                said[-1].start()
                # One run of them, for the form: all of them were checked here.
                _tell(workers[-1], asdict(replace(config, runs=config.runs[:1])))
                idle.put(workers[-1])
            asked = {run: threads.submit(_ask, idle, run) for run in config.runs}
            for answer in tqdm(as_completed(asked.values()), total=len(asked), desc="runs", unit="run"):
                answer.result()
            return {run: answer.result() for run, answer in asked.items()}
        finally:
            threads.shutdown(wait=False, cancel_futures=True)
            for worker in workers:
                kill_tree(worker.pid)
                worker.wait()
            for thread in said:  # what a worker said last is why it died
                thread.join(timeout=5)


def _pass_on(lines: Iterable[str]) -> None:
    """Write a worker's lines where they do not run into the bar."""
    for line in lines:
        tqdm.write(line.rstrip("\n"), file=sys.stderr)


def _ask(idle: "SimpleQueue[subprocess.Popen[str]]", run: str) -> dict[str, Any]:
    """Have an idle worker evaluate a run. Raise ValueError that names it if it fails."""
    worker = idle.get()
    try:
        _tell(worker, run)
        line = worker.stdout.readline()
        answer = json.loads(line) if line else {"error": how_it_ended(worker.wait())}
    finally:
        idle.put(worker)
    if "error" in answer:
        raise ValueError(f"{run}: {answer['error']}")
    return answer["result"]


def _tell(worker: "subprocess.Popen[str]", what: Any) -> None:
    with suppress(BrokenPipeError):  # that it died shows at the next read
        print(json.dumps(what), file=worker.stdin, flush=True)


def main(done: str, parent: str) -> None:
    """Evaluate the runs that come in; what a bug raises goes to stderr with its traceback, and ends this process."""
    die_with_parent(int(parent))
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print is no answer
    set_up_process()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    config = EvaluateConfig(**json.loads(sys.stdin.readline()))
    with ExitStack() as stack:
        evaluation = None
        for line in sys.stdin:
            try:
                evaluation = evaluation or stack.enter_context(opened(config, Path(done)))
                answer = {"result": evaluation.of(Path(json.loads(line)))}
            except (OSError, ValueError) as error:
                if isinstance(error, ValueError) and not is_advice(error):
                    raise
                answer = {"error": str(error)}
            answers.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
