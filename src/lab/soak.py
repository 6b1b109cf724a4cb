"""Kill a run again and again at random moments, and hold what it ends with against one that was left alone.

`make soak` prints the table. The moments are drawn from a seed: after a random number of further steps, plus a
random fraction of a second, so that some fall into the writing of a checkpoint. Now and then the run goes on under
another host name, as after a requeue.
"""

import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sgdpo.places import ROOT
from sgdpo.processes import start
from sgdpo.runs.provenance import HOST
from sgdpo.store import hash_file, read_json, read_jsonl, what_is_wrong
from sgdpo.training.checkpoints import newest_first

# 28 pairs are 7 steps of 4: the last 5 of 12 steps are of the second epoch.
STEPS, SAVE_EVERY, MOST_STEPS_AHEAD = 12, 2, 9
SPEED = ("pairs_per_second", "tokens_per_second")
PATIENCE = 300
MOVES = 0.1  # of the kills; whoever comes from another host first watches for a sign of life, half a minute
SMALL = (
    "device=cpu", "tracking=off", "init=pretrained", "model.tiny.num_hidden_layers=2", "data.world.pairs=28",
    "data.world.test_pairs=8", "data.world.demonstrations=16", "optimizer.batch_size=4", "optimizer.lr=1e-3",
    f"optimizer.max_steps={STEPS}", f"trainer.save_steps={SAVE_EVERY}", "trainer.eval_steps=5",
)  # fmt: skip
TWO = "engine.num_processes=2"
CASES = {
    "single, float32": (),
    "single, bf16": ("precision=bf16",),
    "single, lean": ("precision=lean",),
    "accumulation": ("trainer.max_tokens_per_row=100",),
    "single, BCO": ("method=bco", "trainer.log_steps=3"),
    "ddp": ("engine=ddp", TWO),
    "ddp, BCO": ("engine=ddp", TWO, "method=bco", "trainer.log_steps=3"),
    "zero2": ("engine=zero2", TWO),
    "zero3": ("engine=zero3", TWO),
    "zero3, bf16": ("engine=zero3", TWO, "precision=bf16"),
    "fsdp": ("engine=fsdp", TWO),
    "fsdp, bf16": ("engine=fsdp", TWO, "precision=bf16"),
}


@dataclass
class Outcome:
    """Hold what became of one case.

    kills: SIGKILLs. torn: how many left a checkpoint half written. moved: after how many the run went on under
    another host name. runs: how often the run was killed and
    continued to its end. differences: what such a run had that the one left alone had not; empty is the promise.
    """

    case: str
    kills: int = 0
    torn: int = 0
    moved: int = 0
    runs: int = 0
    differences: list[str] = field(default_factory=list)


def soak(
    case: str, kills: int, seed: int, folder: Path, after_kill: Callable[[], object] = lambda: None
) -> Outcome:
    draw, outcome = random.Random(f"{seed} {case}"), Outcome(case)
    overrides = [*SMALL, *CASES[case], f"cache={folder}/cache"]
    alone = _finish(overrides, folder / "alone")
    while outcome.kills < kills:
        outputs, host = folder / "killed", ""
        shutil.rmtree(outputs, ignore_errors=True)
        while outcome.kills < kills and _kill(overrides, outputs, host, draw, outcome):
            after_kill()
            if draw.random() < MOVES:
                outcome.moved += 1
                host = f"host-{outcome.moved}"
        outcome.differences += differences(alone, _finish(overrides, outputs, host))
        outcome.runs += 1
    return outcome


def differences(alone: Path, killed: Path) -> list[str]:
    """Return how two finished runs differ in weights or metrics, bit for bit, speed aside."""
    found = []
    for file in sorted((alone / "model").glob("*.safetensors")):
        if hash_file(file) != hash_file(killed / "model" / file.name):
            found.append(f"{file.name} differs")
    answers = [run / "samples.jsonl" for run in (alone, killed)]
    if len({file.exists() and file.read_bytes() for file in answers}) > 1:
        found.append("samples.jsonl differs")
    wanted, got = metrics(alone), metrics(killed)
    if [(row["step"], row["split"]) for row in wanted] != [(row["step"], row["split"]) for row in got]:
        found.append("metrics.jsonl has gaps or duplicates")
    found += [f"step {a['step']} ({a['split']}) differs" for a, b in zip(wanted, got, strict=False) if a != b]
    return found


def metrics(run: Path) -> list[dict]:
    """Return a run's rows without the fields that measure speed."""
    rows = read_jsonl(run / "metrics.jsonl")
    return [{key: value for key, value in row.items() if key not in SPEED} for row in rows]


def render(outcomes: Sequence[Outcome]) -> str:
    lines = [f"{'case':<22}{'kills':>6}{'torn':>6}{'moved':>7}{'runs':>6}  result"]
    for outcome in outcomes:
        result = "bit-identical" if not outcome.differences else "; ".join(outcome.differences[:3])
        counts = f"{outcome.kills:>6}{outcome.torn:>6}{outcome.moved:>7}{outcome.runs:>6}"
        lines.append(f"{outcome.case:<22}{counts}  {result}")
    return "\n".join(lines)


def _start(overrides: Sequence[str], outputs: Path, host: str = "") -> subprocess.Popen:
    outputs.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, str(ROOT / "src" / "train.py"), *overrides, f"outputs={outputs}"]
    with (outputs / "console.txt").open("ab") as console:
        return start(command, cwd=ROOT, env={**os.environ, HOST: host}, stdout=console, stderr=console)


def _finish(overrides: Sequence[str], outputs: Path, host: str = "") -> Path:
    if _start(overrides, outputs, host).wait(PATIENCE) != 0:
        raise ValueError(f"the run did not end well. Its last words:\n{_last_words(outputs)}")
    return _run_folder(outputs)


def _kill(overrides: Sequence[str], outputs: Path, host: str, draw: random.Random, outcome: Outcome) -> bool:
    """Start or continue a run and kill it at a random moment; return False if it ended before that."""
    target = _last_step(outputs) + draw.randint(1, MOST_STEPS_AHEAD)
    delay, until = draw.uniform(0, 0.3), time.monotonic() + PATIENCE
    process = _start(overrides, outputs, host)
    while _last_step(outputs) < target and process.poll() is None and time.monotonic() < until:
        time.sleep(0.002)
    time.sleep(delay)
    if process.poll() is not None:
        if process.returncode != 0:
            raise ValueError(f"the run failed by itself. Its last words:\n{_last_words(outputs)}")
        return False
    process.kill()
    process.wait()
    _wait_until_gone(_run_folder(outputs))
    outcome.kills += 1
    outcome.torn += any(map(what_is_wrong, newest_first(_run_folder(outputs) / "checkpoints")[:1]))
    return True


def _last_words(outputs: Path) -> str:
    return "\n".join((outputs / "console.txt").read_text(errors="replace").splitlines()[-60:])


def _wait_until_gone(run: Path) -> None:
    """Wait for the process that keeps the record: a rank dies a moment after its launcher."""
    keeper = Path("/proc") / str(read_json(run / "record.json")["pid"])
    while keeper.is_dir() and "State:\tZ" not in (keeper / "status").read_text():
        time.sleep(0.01)


def _run_folder(outputs: Path) -> Path:
    return next(outputs.glob("*/*/record.json")).parent


def _last_step(outputs: Path) -> int:
    for file in outputs.glob("*/*/metrics.jsonl"):
        rows = read_jsonl(file, torn_end=True)
        return rows[-1]["step"] if rows else 0
    return 0
