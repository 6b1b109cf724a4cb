"""Long runs hold no more memory than their steps need: the holes that rows of many lengths leave are given back."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest

from sgdpo.models.allocator import OUTGROWN, Holes
from tiny_training import tiny_config, tiny_trainer

# Activations of many lengths, as of rows, each with something small that outlives it, as a gradient or a statistic.
HOLES = """
import random
import torch
from sgdpo.models.allocator import give_back, held_bytes, keep_freed_memory

assert keep_freed_memory()
draws, kept = random.Random(0), []
for step in range(20):
    rows = []
    for _ in range(8):
        rows.append(torch.ones(draws.randrange(1, 2000), 1000))
        kept.append(torch.ones(64))
    del rows
outgrown = held_bytes()
give_back()
print(outgrown // 2**20, held_bytes() // 2**20)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc gives memory back when asked to")
def test_what_was_freed_under_something_that_lives_goes_back_to_the_system() -> None:
    """In a process of its own: the allocator's settings hold for all that follows."""
    done = subprocess.run([sys.executable, "-c", HOLES], capture_output=True, text=True, check=True)
    outgrown, left = map(int, done.stdout.split())
    assert outgrown - left > 30, done.stdout


def test_memory_is_given_back_when_a_step_holds_more_than_steps_need_and_not_at_every_step() -> None:
    """A process that keeps growing, by a tenth of what a step needs: first 100, and 100 again after giving back."""
    held, given = [100], []

    def give_back() -> None:
        given.append(held[0])
        held[0] = 60

    holes = Holes(lambda: held[0], give_back)
    held[0] = 100
    for _ in range(40):
        holes.after_step()
        held[0] = 100 if held[0] < 100 else held[0] + 10
    assert given.pop(0) == 100, "before the first step"
    assert len(given) == 10
    assert set(given) == {130}, f"more than {OUTGROWN} times 100"


def test_steps_that_come_to_need_more_are_not_interrupted_for_it() -> None:
    """After a short first row the steps need twice as much: once is given back, then it is known."""
    needs, given = iter([100, *[200] * 20]), []
    holes = Holes(lambda: next(needs), lambda: given.append(1))
    for _ in range(21):
        holes.after_step()
    assert given == [1, 1], "before the first step and after it"


def test_a_trainer_looks_after_every_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[int] = []
    monkeypatch.setattr(Holes, "after_step", lambda self: looked.append(1))
    tiny_trainer(tiny_config("method=dpo"), tmp_path, steps=3).train()
    assert len(looked) == 3


def test_runs_of_one_process_do_not_add_up_their_holes() -> None:
    """A worker trains cell after cell: each needs 100, and leaves holes of 20 that are below the bound."""
    held = [100]

    def give_back() -> None:
        held[0] = 60

    for _ in range(20):
        holes = Holes(lambda: held[0], give_back)
        held[0] = 100
        holes.after_step()
        held[0] += 20
        holes.after_step()
    assert held[0] <= 100 * OUTGROWN
