"""A stand-in for src/train.py: same conf, same records, but a cell takes milliseconds and does as it is told.

The environment variable STANDIN maps a seed to what its cell does: "fail", "exit", "die", "hang", "bad" (measure
something bad and go on for long), "late" (the same, with a finished record), "start" (fail at its SFT start) or "lazy"
(return without a record). Every other cell writes a finished record.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from omegaconf import DictConfig

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from sgdpo.config.compose import to_run_config
from sgdpo.console import hydra_command, run_command
from sgdpo.runs.records import Record
from sgdpo.runs.run import Run
from sgdpo.store import seal


def main(config: DictConfig) -> None:
    """Write the record of one pretended run."""
    whole = Run.of(to_run_config(config))
    run, identity = whole.config, whole.identity
    todo = json.loads(os.environ.get("STANDIN", "{}")).get(str(run.seed), "")
    print(f"cell {identity.name} in process {os.getpid()} with {os.environ.get('OMP_NUM_THREADS')} threads")
    if todo == "lazy":
        return
    if todo == "start":
        Record.open(whole.start.folder, whole.start.identity, phase="sft").fail("ValueError: too few rows")
        raise ValueError("too few rows")
    record = Record.open(whole.folder, identity, phase="preference")
    record.note(steps=4, shared={"start": "found" if run.seed else "trained"})
    record.log({"step": 1, "epoch": 0.25, "split": "train", "loss": 0.5, "pairs_per_second": 32.0})
    if todo == "fail":
        record.fail("ValueError: the loss is not finite")
        raise ValueError("the loss is not finite")
    if todo == "exit":
        sys.exit("no room on the disk")
    if todo == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if todo == "bad":
        record.log({"step": 4, "epoch": 1.0, "split": "eval", "rewards/margins": -1.0})
        time.sleep(600)
    if todo == "hang":
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        Path(run.outputs, f"hangs-{os.getpid()}-{child.pid}").touch()
        time.sleep(600)
    margin = -1.0 if todo == "late" else float(run.seed)
    record.log({"step": 4, "epoch": 1.0, "split": "eval", "rewards/margins": margin})
    (whole.folder / "model").mkdir(exist_ok=True)
    seal(whole.folder / "model")
    record.finish()
    time.sleep(600 if todo == "late" else 0)


if __name__ == "__main__":
    run_command(hydra_command("config", __doc__, main))
