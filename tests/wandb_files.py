"""A run's record with a real offline W&B run beside it, and that run's file read back by W&B's own reader."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from wandb.sdk.lib import wbauth

from sgdpo.config.identity import Identity
from sgdpo.runs.records import Record, RunView
from sgdpo.runs.tracking import wandb_row

SETTINGS = {
    "method": {"name": "dpo"},
    "model": {"name": "tiny_llama"},
    "data": {"name": "verifiable"},
    "seed": 1,
}
CONFIG = {"optimizer": {"lr": 1e-5, "name": "tiny"}, "ratio": {"chosen": 0.6, "rejected": 0.9}}


def without_key(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    """Leave no key, no mode, no home of the person who runs the tests, and no key that W&B kept for the process."""
    wbauth.unauthenticate_session(update_settings=True)
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("NETRC", str(home / "netrc"))


def open_record(folder: Path, checkpoint: dict | None = None) -> Record:
    identity = Identity(folder.name, SETTINGS, {}, *["a"] * 4)
    return Record.open(folder, identity, phase="preference", checkpoint=checkpoint)


def rows(steps: range) -> list[dict]:
    found = []
    for step in steps:
        keys = {"loss": 0.7 / step, "rewards/chosen": -0.01 * step, "learning_rate": 1e-5}
        found.append({"step": step, "epoch": step / 8, "split": "train", **keys})
        if step % 2 == 0:
            found.append({"step": step, "epoch": step / 8, "split": "eval", "loss": 0.8 / step})
    return found


def log(record: Record, tracker, new: list[dict]) -> None:
    for row in new:
        record.log(row)
        tracker.log(row)


def offline_file(record: Record | RunView) -> Path:
    (path,) = (record.folder / "wandb").glob("offline-run-*/run-*.wandb")
    return path


def entries(record: Record | RunView, kind: str) -> list[dict]:
    """Read the run's one offline file with W&B's own reader; return the entries of one kind."""
    command = [
        str(Path(sys.executable).parent / "wandb"),
        "leet",
        "inspect",
        "--json",
        str(offline_file(record)),
    ]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return [entry[kind] for entry in map(json.loads, lines) if entry["type"] == kind]


def history(record: Record | RunView) -> dict[int, dict]:
    """Return {step: values} without W&B's own fields and the picture."""
    items = [entry["item"] for entry in entries(record, "history")]
    own = ("_", "reward_curves", "samples.")
    return {item["_step"]: {k: v for k, v in item.items() if not k.startswith(own)} for item in items}


def mirrored(new: list[dict]) -> dict[int, dict]:
    steps: dict[int, dict] = {}
    for row in new:
        steps.setdefault(row["step"], {}).update(wandb_row(row))
    return steps
