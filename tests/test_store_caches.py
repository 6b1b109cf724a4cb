"""The shared cache can be looked at and cleaned; what a run writes stays, and what no run made is not touched."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock

from sgdpo.store import build_once, hash_text, write_jsonl
from sgdpo.store.caches import entries, listing, prune
from sgdpo.store.stretches import Stretches

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "cache.py"
WHOLE, TORN, HALF, SET, PAID = (hash_text(word) for word in ("whole", "torn", "half", "set", "paid"))


@pytest.fixture
def cache(tmp_path):
    """A whole table, a torn one, a half-written set, a tokenised set of 1 MiB from ten days ago, paid answers."""
    for name in (WHOLE, TORN):
        table = Stretches(tmp_path / "reference" / name, 3)
        table.open({"weights": "abc", "dtype": "float32"}, "the reference log-probs")
        table.add([(0, 3)], [np.zeros(3, np.float32)])
    (tmp_path / "reference" / TORN / "values.f32").write_bytes(bytes(11) + b"1")
    (tmp_path / "tokens" / f".{HALF}.partial").mkdir(parents=True)
    tokens = tmp_path / "tokens" / SET
    build_once(
        tokens, lambda folder: (folder / "a.arrow").write_bytes(b"1" * 2**20) and {}, what="the tokens"
    )
    old = time.time() - 10 * 86_400
    os.utime(tokens, (old, old))
    write_jsonl(tmp_path / "served" / f"judge-{PAID}.jsonl", [{"key": 1}])
    return tmp_path


def names(found) -> set[str]:
    return {entry.path.name for entry in found}


ALL = {WHOLE, TORN, f".{HALF}.partial", SET, f"judge-{PAID}.jsonl"}


def test_everything_is_listed_the_largest_first(cache) -> None:
    found = entries(cache)
    assert names(found) == ALL
    assert found[0].path.name == SET
    text = listing(found)
    assert "1 examples, weights abc, float32" in text
    assert "half written" in text
    assert "the tokens" in text
    assert "5 entries, 1.0 MB" in text


def test_nothing_is_deleted_unless_asked(cache) -> None:
    assert len(prune(entries(cache), kind=None, older_than=None, broken=False, delete=False)) == 4
    assert names(entries(cache)) == ALL


@pytest.mark.parametrize(
    ("conditions", "gone"),
    [
        ({}, {WHOLE, TORN, f".{HALF}.partial", SET}),
        ({"kind": "served"}, {f"judge-{PAID}.jsonl"}),
        ({"kind": "tokens"}, {SET, f".{HALF}.partial"}),
        ({"older_than": 9.0}, {SET}),
        ({"older_than": 11.0}, set()),
        ({"broken": True}, {TORN, f".{HALF}.partial"}),
        ({"kind": "reference", "older_than": 9.0}, set()),
    ],
)
def test_pruning_takes_what_matches_every_condition(cache, conditions, gone) -> None:
    wanted = {"kind": None, "older_than": None, "broken": False, **conditions}
    assert names(prune(entries(cache, check=True), **wanted, delete=True)) == gone
    assert names(entries(cache)) == ALL - gone


def test_a_table_that_a_run_computes_now_stays(cache) -> None:
    with FileLock(cache / "tokens" / f"{HALF}.lock"), FileLock(cache / "reference" / f"{WHOLE}.lock"):
        gone = prune(entries(cache), kind=None, older_than=None, broken=False, delete=True)
    assert names(gone) == {TORN, SET}
    assert {f".{HALF}.partial", WHOLE} <= names(entries(cache))


def test_what_no_run_made_is_neither_shown_nor_touched(cache, tmp_path) -> None:
    """A user's own model, notes and links beside ours, and another folder's content behind a link."""
    kept = [
        cache / "models" / "mine" / "model.safetensors",
        cache / "tokens" / "notes.txt",
        cache / "x" / SET,
    ]
    for path in kept:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")
    (cache / "reference" / "link").symlink_to(cache / "x")
    (cache / "generations").symlink_to(cache / "x")
    assert names(entries(cache)) == ALL
    prune(entries(cache), kind=None, older_than=None, broken=False, delete=True)
    assert all(path.read_text() == "mine" for path in kept)


def command(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, SCRIPT, *map(str, arguments)], capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("where", ["outputs", "", "missing", "file"])
def test_a_folder_that_is_no_cache_is_one_clear_error(tmp_path, where) -> None:
    """`--cache outputs` holds runs, `--cache ~` whatever a home holds: nothing of it is listed or deleted."""
    run = tmp_path / "outputs" / "cache-of-mine" / f"dpo-s42-{WHOLE[:8]}" / "record.json"
    run.parent.mkdir(parents=True)
    run.write_text("{}")
    (tmp_path / "file").write_text("")
    for arguments in (["list"], ["prune", "--yes"]):
        done = command("--cache", tmp_path / where, *arguments)
        assert done.returncode != 0
        assert done.stderr.startswith("error: ")
        assert "is no cache folder" in done.stderr
        assert len(done.stderr.splitlines()) == 1
    assert run.exists()


@pytest.mark.parametrize("bad", ["nan", "inf", "-1", "soon"])
def test_a_number_of_days_is_checked(cache, bad) -> None:
    done = command("--cache", cache, "prune", f"--older-than={bad}", "--yes")
    assert done.returncode != 0
    assert "--older-than" in done.stderr
    assert names(entries(cache)) == ALL


def test_the_command_lists_and_prunes(cache) -> None:
    assert "5 entries" in command("--cache", cache, "list", "--check").stdout
    assert "nothing is deleted" in command("--cache", cache, "prune", "--broken").stdout
    assert command("--cache", cache, "prune", "--broken", "--yes").returncode == 0
    assert names(entries(cache)) == ALL - {TORN, f".{HALF}.partial"}
