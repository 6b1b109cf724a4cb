"""A small run on files of its own (rows, model, method), killed in the middle; and ways to change or damage it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from marks import proofs_but
from sgdpo.config.compose import compose_run, to_run_config
from sgdpo.config.schema import RunConfig
from sgdpo.models.load import load_model, load_tokenizer
from sgdpo.runs.run import Run
from sgdpo.world.verifiable import make_pairs, world_of

ROOT = Path(__file__).resolve().parents[1]
STEPS, KILLED_AT, SAVE_STEPS = 40, 8, 4
SPEED = ("pairs_per_second", "tokens_per_second")
METHOD = '''"""A method of the user's own, whose scale has a name of its own."""

from torch.nn.functional import logsigmoid

from sgdpo.pairs import Pair, PairLoss, rewards


def mine(pair: Pair, *, sharpness: float) -> PairLoss:
    """Return DPO's loss."""
    margin_B = sharpness * (pair.chosen.ratio_B - pair.rejected.ratio_B)
    return PairLoss(-logsigmoid(margin_B), *rewards(pair, sharpness))
'''


def write_inputs(place: Path) -> None:
    """Write what the run reads."""
    place.mkdir()
    config = to_run_config(compose_run(["model.tiny.hidden_size=32", "model.tiny.num_hidden_layers=1"]))
    config.model.tiny["intermediate_size"] = 64
    load_model(config.model, seed=1).save_pretrained(place / "base")
    load_tokenizer(config.model).save_pretrained(place / "base")
    rows = islice(make_pairs(world_of(config.data.settings["world"]), held_out=False), 32)
    (place / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (place / "mine.py").write_text(METHOD)


def overrides(place: Path) -> list[str]:
    return [
        "device=cpu", "tracking=off", "init=pretrained", f"outputs={place}/outputs", f"extra=[{place}/mine.py]",
        "method=dpo", "method.name=mine", "method.function=mine.mine", "~method.beta", "+method.sharpness=0.1",
        "data=local", f"data.train={place}/pairs.jsonl", "data.max_length=256", "data.max_prompt_length=128",
        "model=local", f"model.path={place}/base", "model.init=pretrained", "optimizer=tiny", "optimizer.batch_size=4",
        "optimizer.lr=1e-3", f"optimizer.max_steps={STEPS}", f"trainer.save_steps={SAVE_STEPS}",
        "trainer.keep_checkpoints=3",
    ]  # fmt: skip


@cache
def composed(place: Path) -> RunConfig:
    return to_run_config(compose_run(overrides(place)))


def run_of(place: Path, **changes: Any) -> Run:
    """Return the run as it is now: what it reads may have changed."""
    return Run.of(replace(composed(place), **changes))


def start(
    place: Path,
    *more: str,
    root: Path = ROOT,
    preexec_fn: Callable[[], None] | None = None,
    **environment: str,
) -> subprocess.Popen:
    """Start the run as a user does, with the code of `root`."""
    command = [sys.executable, str(root / "src" / "train.py"), *overrides(place), *more]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root / "src"), **environment}
    return subprocess.Popen(command, cwd=root, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                            text=True, preexec_fn=preexec_fn)  # fmt: skip


def kill_in_the_middle(place: Path, *more: str, **environment: str) -> Path:
    """Run until a checkpoint is whole, then kill; return the run's folder."""
    process = start(place, *more, **environment)
    reached = f"*/mine-*/checkpoints/checkpoint-{KILLED_AT}/manifest.json"
    while not list((place / "outputs").glob(reached)):
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    (folder,) = (place / "outputs").glob("*/mine-*")
    return folder


def rows(folder: Path) -> list[dict]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in SPEED} for line in lines]


def weights(folder: Path) -> bytes:
    return (folder / "model" / "model.safetensors").read_bytes()


def newest(folder: Path) -> Path:
    return max(folder.glob("checkpoints/checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text, path
    path.write_text(text.replace(old, new))


def other_weights(place: Path) -> None:
    file = place / "base" / "model.safetensors"
    tensors = load_file(file)
    name = sorted(tensors)[0]
    tensors[name] = tensors[name] + 1e-3
    save_file(tensors, file, metadata={"format": "pt"})


def forget_the_last_pair(place: Path) -> None:
    lines = (place / "pairs.jsonl").read_text().splitlines(keepends=True)
    (place / "pairs.jsonl").write_text("".join([*lines[:-1], lines[0]]))


# What may happen to what a run reads between its kill and the next command, and what is then said of it.
CHANGES = {
    "nothing": (lambda place: None, None),
    "data": (forget_the_last_pair, "data.train has another content"),
    "weights": (other_weights, "model.weights has another content"),
    "model config": (lambda place: edit(place / "base/config.json", "1e-06", "1e-05"), "model.config has another"),
    "tokenizer": (lambda place: edit(place / "base/tokenizer_config.json", "{", '{"note": 1,'), "model.tokenizer has"),
    "method": (lambda place: edit(place / "mine.py", "-logsigmoid", "-2 * logsigmoid"), "method.code"),
    "comment": (lambda place: edit(place / "mine.py", "DPO's loss", "a loss # of DPO"), None),
    "touched": (lambda place: os.utime(place / "pairs.jsonl", (1, 1)), None),
}  # fmt: skip


def cut_metrics(folder: Path, keep: int) -> None:
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text("".join(lines[:keep]))


def damage_line(folder: Path) -> None:
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text("".join([lines[0], '{"st\n', *lines[2:]]))


def append(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)


# What may happen to what the run wrote; what is then done: go on at the newest checkpoint or an older one, or an error.
DAMAGES = {
    "none": (lambda folder: None, "newest"),
    "torn last line": (lambda folder: append(folder / "metrics.jsonl", '{"step": 99, "sp'), "newest"),
    "record lost": (lambda folder: (folder / "record.json").unlink(), "newest"),
    "record half": (lambda folder: os.truncate(folder / "record.json", 200), "record.json"),
    "metrics lost": (lambda folder: (folder / "metrics.jsonl").unlink(), "cannot be continued without gaps"),
    "metrics empty": (
        lambda folder: os.truncate(folder / "metrics.jsonl", 0),
        "cannot be continued without gaps",
    ),
    "metrics cut": (lambda folder: cut_metrics(folder, int(newest(folder).name.split("-")[1]) - 1), "older"),
    "inner line": (damage_line, "cannot be continued without gaps"),
    "newest torn": (lambda folder: os.truncate(newest(folder) / "optimizer.pt", 100), "older"),
    "all torn": (lambda folder: shutil.rmtree(folder / "checkpoints"), "start"),
}


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


# What may happen to any file that is said to be whole.
SPOILS: dict[str, Callable[[Path], object]] = {
    "gone": Path.unlink,
    "empty": lambda file: os.truncate(file, 0),
    "cut": lambda file: os.truncate(file, file.stat().st_size - 1),
    "flipped": flip,
    "zeros": lambda file: file.write_bytes(bytes(file.stat().st_size)),
}
EVERY_SPOIL = proofs_but(SPOILS, "flipped")


def spoiled(folder: Path, spoil: str) -> Iterator[Path]:
    """Spoil one file of a folder after the other; each is whole again when the next one is asked for.

    A model's card is left out: it is its user's.
    """
    for file in sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "README.md"):
        content = file.read_bytes()
        SPOILS[spoil](file)
        yield file
        file.write_bytes(content)
