"""A table and a figure of one's own: two new files each, as the README prints them, made by `make`."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from report_fixtures import write_run
from sgdpo.drawing.table import Table

ROOT = Path(__file__).parents[1]
RECIPE = (ROOT / "tests" / "fixtures" / "adding_exhibits.md").read_text()


@pytest.fixture
def house(tmp_path) -> Path:
    """A copy of the checkout with the recipe's files in it; each block begins with its path."""
    for name in ("conf", "src", "scripts"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("Makefile", "pyproject.toml", "requirements.txt"):
        shutil.copy(ROOT / name, tmp_path / name)
    blocks = re.findall(r"```(?:python|yaml)\n# ((?:src|conf)/\S+)\n(.*?)```", RECIPE, re.S)
    assert len(blocks) == 4
    for path, text in blocks:
        assert not (tmp_path / path).exists(), f"{path} would edit a file"
        (tmp_path / path).write_text(text)
    return tmp_path


def run(house: Path, *command: str) -> str:
    environment = os.environ | {"PYTHONPATH": str(house / "src"), "WANDB_MODE": "disabled"}
    done = subprocess.run(command, cwd=house, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def make(house: Path, *words: str) -> str:
    """Run make with the environment of the tests, which is installed already."""
    python = f"PY={sys.executable}"
    return run(house, "make", "--no-print-directory", "-o", "setup", python, *words)


def test_two_files_make_a_table_and_two_a_figure(house):
    for seed in (42, 43):
        for method in ("sft", "dpo", "ipo"):
            write_run(house / "outputs", "methods", method, seed=seed)
    assert "Methods by a metric of your choice." in make(house, "exhibits")
    planned = make(house, "ranking", "lengths", "SEEDS=2", "-n")
    assert [
        f"--seeds 2 --n-jobs 1 {name}" in re.sub(" +", " ", planned) for name in ("ranking", "lengths")
    ] == [True, True]
    shown = run(house, sys.executable, "scripts/exhibit.py", "ranking")
    assert re.search(r"IPO\s*│\s*0\.900 ± 0\.000", shown)
    table = Table.read(house / "outputs" / "ranking" / "ranking.json")
    assert (table.title, table.origin["seeds"]) == ("Methods by held-out accuracy", [42, 43])
    run(house, sys.executable, "scripts/exhibit.py", "lengths", "metric=rewards/margins")
    svg = (house / "outputs" / "lengths" / "lengths.svg").read_text()
    assert "IPO" in svg
    assert "seeds 42, 43" in svg
    page = run(house, sys.executable, "scripts/report.py").split()[-1]
    assert "Methods by held-out accuracy" in (house / page).read_text()
    assert "The loss over training" in (house / page).read_text()


@pytest.mark.slow
def test_make_trains_what_is_missing_and_makes_it(house):
    settings = (
        "method=dpo optimizer.max_steps=2 optimizer.sft.max_steps=2 data.world.pairs=64 data.test_limit=16"
    )
    said = make(house, "ranking", f"ARGS={settings}")
    assert "DPO" in said
    assert Table.read(house / "outputs" / "ranking" / "ranking.json").rows[0][1].value is not None
