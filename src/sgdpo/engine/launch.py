"""Relaunch a composed run over several processes, watch it, and say what became of it.

Not torchrun around the whole command: a multirun's jobs would share process groups, and one rank's failed
job would let the next job's collectives meet the old one's. Each run starts its own ranks instead, so it
works the same in a single run, under a multirun and under every launcher.
"""

import contextlib
import logging
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

from sgdpo.config.schema import RunConfig
from sgdpo.engine.nodes import Node, this_node
from sgdpo.engine.ranks import RankFiles
from sgdpo.processes import start_python
from sgdpo.store import read_json, write_json

log = logging.getLogger("sgdpo")

POLL_SECONDS = 0.2
LAST_LINES = 15
STOP_SECONDS = 10
ANSWER_SECONDS = 1.0
# The agent ends the ranks that are left within 30 s; what ended so long after the first failure did not answer it.
UNANSWERED_SECONDS = 20


class LaunchError(ValueError):
    """Say which rank failed first, and why."""


def is_distributed(config: RunConfig) -> bool:
    """Say whether a run needs processes of its own."""
    return config.engine.world > 1 or config.engine.sharded


def launch(
    config: RunConfig, run_folder: Path, order: Mapping[str, Any], worker: str = "sgdpo.runs.worker"
) -> int:
    """Train a run over its processes; return 0.

    order: what every rank is handed, JSON-able. worker: the module that every rank runs. Raise LaunchError with
    the first failed rank and its traceback. No process outlives this call, or this
    process: ranks die with their agent, the agent with its parent.
    """
    node = this_node(config.engine)
    files = RankFiles(run_folder / "ranks" / (f"node{node.rank}" if config.engine.num_nodes > 1 else ""))
    files.clear()
    write_json(files.order, order)
    first_rank = node.rank * config.engine.num_processes
    code = _watch(_start(config, node, files, worker), files, run_folder, config, first_rank)
    if code != 0 if node.rank > 0 else not files.result.is_file():
        raise LaunchError(first_failure(files, code))
    if code != 0:
        log.warning("a process ended with code %d after all work was done; see %s", code, files.agent_log)
    return 0


def _start(config: RunConfig, node: Node, files: RankFiles, worker: str) -> subprocess.Popen[bytes]:
    arguments = [str(files.folder), *node.arguments(config.engine), "-m", worker, str(files.folder)]
    with files.agent_log.open("ab") as output:
        return start_python(
            "sgdpo.engine.agent", *arguments, env=_environment(config), stdin=subprocess.DEVNULL,
            stdout=output, stderr=output,
        )  # fmt: skip


def _environment(config: RunConfig) -> dict[str, str]:
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    if config.device == "cpu":
        environment |= {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
    return environment


def _watch(
    agent: subprocess.Popen[bytes], files: RankFiles, run_folder: Path, config: RunConfig, first_rank: int
) -> int:
    """Show rank 0's output until the agent ends; stop it if nothing has moved for too long."""
    shown = Tail(files.log(first_rank))
    limit = config.engine.timeout_minutes * 60
    signs, moved = signs_of_life(run_folder), time.monotonic()
    try:
        while agent.poll() is None:
            shown.copy()
            if (now := signs_of_life(run_folder)) != signs:
                signs, moved = now, time.monotonic()
            if time.monotonic() - moved > limit:
                raise LaunchError(
                    f"no rank has shown a sign of life for {limit / 60:.1f} minutes, so the run was stopped "
                    f"(engine.timeout_minutes={config.engine.timeout_minutes}); the logs: {files.folder}\n"
                    + "\n".join(where_ranks_are(agent.pid, files))
                )
            time.sleep(POLL_SECONDS)
        shown.copy()
        return agent.returncode
    finally:
        _stop(agent)


def _stop(agent: subprocess.Popen[bytes]) -> None:
    """End the agent and, with it, its ranks."""
    if agent.poll() is None:
        agent.terminate()
        try:
            agent.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            agent.kill()
            agent.wait()


def signs_of_life(folder: Path) -> set[tuple[str, int]]:
    """Return which files of a run's folder were written when: a sign of life, a log, a row, a checkpoint.

    What changes lives; no time is held against a clock, which may be set. A hidden file is a thread's and W&B's are its
    service's: they tell only that a process exists. Not `rglob`: it raises where a folder goes while it is read, and
    checkpoints are renamed and pruned all along.
    """
    signs = set()
    for parent, folders, names in os.walk(folder):
        if parent == str(folder) and "wandb" in folders:
            folders.remove("wandb")
        for name in (name for name in names if not name.startswith(".")):
            with contextlib.suppress(FileNotFoundError):
                path = os.path.join(parent, name)
                signs.add((path, os.stat(path).st_mtime_ns))
    return signs


def where_ranks_are(agent: int, files: RankFiles) -> list[str]:
    """Say of each rank of a run that does not move what it does: where its code is, or that it does not answer."""
    ranks = {}
    with contextlib.suppress(psutil.Error):
        for process in psutil.Process(agent).children(recursive=True):
            with contextlib.suppress(psutil.Error, KeyError):
                ranks[int(process.environ()["RANK"])] = process
    said = {rank: files.log(rank).stat().st_size for rank in ranks if files.log(rank).is_file()}
    for rank in said:
        ranks[rank].send_signal(signal.SIGUSR1)  # the worker then writes its stack into its log
    time.sleep(ANSWER_SECONDS)
    lines = []
    for rank, before in sorted(said.items()):
        answer = files.log(rank).read_bytes()[before:].decode(errors="replace")
        frame = re.search(r'File "([^"]+)", line (\d+) in (\w+)', answer)
        where = f"in {frame[3]} ({Path(frame[1]).name}:{frame[2]})" if frame else "does not answer: it hangs"
        lines.append(f"  rank {rank} {where}")
    return lines


class Tail:
    """Copy what is added to a log, from where it ends now, to this process's output."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._position = path.stat().st_size if path.is_file() else 0

    def copy(self) -> None:
        if not self._path.is_file():
            return
        with self._path.open("rb") as file:
            file.seek(self._position)
            added = file.read()
        self._position += len(added)
        if added:
            sys.stdout.write(added.decode(errors="replace"))
            sys.stdout.flush()


def first_failure(files: RankFiles, code: int) -> str:
    """Return what made a launch fail: the first rank that failed, and its traceback.

    A rank killed by a signal leaves no report, and the others then fail because it is gone: it comes first. One
    that the agent had to kill long after the first failure hung, and did not run out of memory.
    """
    failures = read_json(files.agent_report, default=[])
    reports = [read_json(path) for path in files.folder.glob("rank*.error.json")]
    reported = {report["rank"] for report in reports}
    began = min(
        [failure["time"] for failure in failures] + [report["time"] for report in reports], default=0.0
    )
    killed = [f for f in failures if f["exitcode"] < 0 and f["rank"] not in reported]
    hung = [f["rank"] for f in killed if f["signal"] == "SIGKILL" and f["time"] - began > UNANSWERED_SECONDS]
    for failure in killed:
        # SIGTERM is how the agent stops the ranks that are left.
        if failure["rank"] not in hung and not (reports and failure["signal"] == "SIGTERM"):
            return _killed(files, failure)
    if not reports:
        return f"the ranks ended with code {code} and left no report. {_last_lines(files.agent_log)}"
    first = min(reports, key=lambda report: report["time"])
    told = f"rank {first['rank']} failed first: "
    told += first["message"] + "\n" if first["expected"] else f"{first['error']}\n{first['traceback']}"
    told += "".join(f"rank {rank} hung: it did not answer and had to be killed\n" for rank in hung)
    return f"{told}(its log: {files.log(first['rank'])})"


def _killed(files: RankFiles, failure: dict) -> str:
    rank, name = failure["rank"], failure["signal"]
    hint = ": the machine may have run out of memory" if name == "SIGKILL" else ""
    return f"rank {rank} was ended by {name}{hint}. {_last_lines(files.log(rank))}"


def _last_lines(path: Path) -> str:
    lines = path.read_text(errors="replace").splitlines()[-LAST_LINES:] if path.is_file() else []
    return f"The last lines of {path}:\n" + "\n".join(lines)
