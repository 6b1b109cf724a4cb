"""A Slurm that runs jobs on this machine: put links named sbatch, srun, sacct, squeue, scancel, scontrol to this file
on the PATH, and name a folder in SLURM_HERE.

What it does as Slurm does: numbers, arrays and how many of their tasks run at a time, dependencies (afterany), the
signal before the time limit and the kill at it, requeue on another host, cancel, states. Every start of a task has a
host name of its own, told to our code by SGDPO_HOST. SLURM_HERE_EVENT={"when": glob, "what": "limit" or "node_fail"}:
what happens to the first start of every task as soon as a file that is younger than it matches. It stands for a clock,
so that a test does not depend on how fast this machine is.
"""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from contextlib import suppress
from glob import glob
from pathlib import Path

HERE = Path(os.environ["SLURM_HERE"])
EVENT = json.loads(os.environ.get("SLURM_HERE_EVENT", "null"))
OVER = ("COMPLETED", "FAILED", "TIMEOUT", "CANCELLED")


def read(name: str, default=None):
    path = HERE / name
    return json.loads(path.read_text()) if path.exists() else default


def write(name: str, value) -> None:
    (HERE / f"{name}.{os.getpid()}").write_text(json.dumps(value))
    (HERE / f"{name}.{os.getpid()}").replace(HERE / name)


def states(job: str) -> dict[str, str]:
    """Return the state of each task of a job by its id, 7 or 7_0."""
    return {task: read(f"state-{task}", "PENDING") for task in read(f"job-{job}")["tasks"]}


def log(*words: object) -> None:
    with (HERE / "log").open("a") as file:
        print(f"{time.time():.2f}", *words, file=file, flush=True)


def sbatch(script: str) -> None:
    text = Path(script).read_text()
    flags = dict(re.findall(r"^#SBATCH --([a-z-]+)=(.*)$", text, re.M))
    flags = {key: shlex.split(value)[0] for key, value in flags.items()}
    job = str(1 + max([int(path.name[4:]) for path in HERE.glob("job-*")], default=6))
    array = flags.get("array")
    tasks = [f"{job}_{i}" for i in range(int(array.split("%")[0].split("-")[1]) + 1)] if array else [job]
    write(f"job-{job}", {"script": script, "flags": flags, "tasks": tasks})
    log("submitted", job, flags["job-name"], flags.get("dependency", ""), len(tasks))
    controller = subprocess.Popen(
        [sys.executable, __file__, "controller", job], start_new_session=True, stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL, stderr=(HERE / "errors").open("a"),
    )  # fmt: skip
    write(f"controller-{job}", controller.pid)
    print(f"Submitted batch job {job}")


def controller(job: str) -> None:
    """Run the tasks of a job as its flags say."""
    known = read(f"job-{job}")
    flags = known["flags"]
    if after := flags.get("dependency", "").removeprefix("afterany:"):
        while not all(state in OVER for state in states(after).values()):
            time.sleep(0.1)
    at_a_time = int(flags["array"].split("%")[1]) if "array" in flags else 1
    running: dict[str, tuple[subprocess.Popen, float]] = {}
    stopped: set[str] = set()
    while any(state not in OVER for state in states(job).values()):
        for task in known["tasks"]:
            state = read(f"state-{task}", "PENDING")
            if state == "PENDING" and len(running) < at_a_time:
                running[task] = (start(known, task), time.time())
            elif state == "RUNNING" and task in running:
                process, began = running[task]
                if process.poll() is not None:
                    del running[task]
                    end(task, process.returncode)
                elif read(f"attempt-{task}") == 0 and task not in stopped and is_time(task, began):
                    stopped.add(task)
                    happen(task, int(flags["signal"].split("@")[1]))
        time.sleep(0.05)


def is_time(task: str, began: float) -> bool:
    """Say whether the event's file is there: a checkpoint of this start, not of an earlier one."""
    if EVENT is None or not (HERE / f"step-{task}").exists():
        return False
    with suppress(FileNotFoundError):  # checkpoints are renamed and pruned
        return any(os.stat(path).st_ctime > began for path in glob(EVENT["when"]))
    return False


def happen(task: str, grace: int) -> None:
    """Do what Slurm does at the time limit (signal, kill after the grace) or when a node fails (kill, requeue)."""
    log(EVENT["what"], task)
    if EVENT["what"] == "node_fail":
        (HERE / f"requeue-{task}").touch()
        tell(task, signal.SIGKILL)
        return
    tell(task, signal.SIGUSR2)
    until = time.time() + grace
    while alive(task):
        if time.time() > until:
            write(f"over-{task}", "TIMEOUT")
            tell(task, signal.SIGKILL)
        time.sleep(0.05)


def alive(task: str) -> bool:
    status = Path(f"/proc/{read(f'step-{task}')}/status")
    return status.exists() and "State:\tZ" not in status.read_text()


def start(known: dict, task: str) -> subprocess.Popen:
    job, _, index = task.partition("_")
    attempt = read(f"attempt-{task}", -1) + 1
    write(f"attempt-{task}", attempt)
    host = f"node{attempt}-{task}"
    place = {
        "SLURM_JOB_ID": job, "SLURM_JOB_NUM_NODES": "1", "SLURM_NTASKS": "1", "SLURM_JOB_NODELIST": host,
        "SLURM_RESTART_COUNT": str(attempt), "SGDPO_HOST": host,
    }  # fmt: skip
    if index:
        place |= {"SLURM_ARRAY_JOB_ID": job, "SLURM_ARRAY_TASK_ID": index}
    write(f"state-{task}", "RUNNING")
    log("start", task, host)
    output = (HERE / f"batch-{task}").open("a")
    return subprocess.Popen(
        ["bash", known["script"]], env={**os.environ, **place, "SLURM_HERE_TASK": task}, stdin=subprocess.DEVNULL,
        stdout=output, stderr=output, start_new_session=True,
    )  # fmt: skip


def end(task: str, code: int) -> None:
    state = read(f"over-{task}") or ("COMPLETED" if code == 0 else "FAILED")
    requeue = HERE / f"requeue-{task}"
    if requeue.exists():
        requeue.unlink()
        state = "PENDING"
    log("end", task, code, state)
    write(f"state-{task}", state)


def tell(task: str, number: int) -> None:
    """Signal the step's processes, as slurmstepd does: the batch shell lives."""
    try:
        os.killpg(read(f"step-{task}"), number)
    except (ProcessLookupError, TypeError):
        return


def srun(*arguments: str) -> None:
    task = os.environ["SLURM_HERE_TASK"]
    words, files = list(arguments), {}
    while words[0].startswith("--"):
        flag = words.pop(0)
        if flag != "--unbuffered":
            job = task.partition("_")[0]
            name = words.pop(0).replace("%A_%a", task).replace("%j", job).replace("%t", "0")
            files[flag] = open(name, "a")  # noqa: SIM115 (until this process ends)
    place = {"SLURM_NODEID": "0", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
    process = subprocess.Popen(
        words, env={**os.environ, **place}, stdout=files["--output"], stderr=files["--error"],
        start_new_session=True,
    )  # fmt: skip
    write(f"step-{task}", process.pid)
    sys.exit(process.wait() & 0xFF)


def wanted(arguments: tuple[str, ...]) -> list[str]:
    """Return the tasks that the ids on a command line name."""
    ids = [
        i
        for word in arguments
        for i in word.removeprefix("--jobs=").split(",")
        if re.fullmatch(r"\d+(_\d+)?", i)
    ]
    return [task for i in ids for task in ([i] if "_" in i else read(f"job-{i}", {"tasks": []})["tasks"])]


def sacct(*arguments: str) -> None:
    print("JobID|State|NodeList")
    for task in wanted(arguments):
        print(f"{task}|{read(f'state-{task}', 'PENDING')}|{read(f'attempt-{task}', 0)}")


def squeue(*arguments: str) -> None:
    for task in wanted(arguments):
        if read(f"state-{task}", "PENDING") not in OVER:
            print(task)


def scancel(*arguments: str) -> None:
    for task in wanted(arguments):
        if read(f"state-{task}", "PENDING") == "PENDING":
            write(f"state-{task}", "CANCELLED")
        else:
            write(f"over-{task}", "CANCELLED")
            tell(task, signal.SIGKILL)
        log("cancelled", task)


def scontrol(what: str, *arguments: str) -> None:
    if what == "requeue":
        (HERE / f"requeue-{arguments[0]}").touch()
        log("requeue", arguments[0])
    else:
        print("\n".join(arguments[-1].split(",")))


if __name__ == "__main__":
    name, *rest = [Path(sys.argv[0]).name, *sys.argv[1:]]
    if name == Path(__file__).name:
        name, *rest = rest
    globals()[name](*rest)
