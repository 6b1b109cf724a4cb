"""A judge and a generator of one's own: two new files each, as the README prints them, used by its command."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from evaluation_fixtures import baseline_rows, finished_run
from lab.answers.generate import generator_errors
from lab.judging.judges import judge_errors

ROOT = Path(__file__).parents[1]
RECIPE = (ROOT / "tests" / "fixtures" / "adding_judges.md").read_text()
ERRORS = {"judge": judge_errors, "generator": generator_errors}
YAMLS = [path for group in ERRORS for path in sorted((ROOT / "conf" / group).glob("*.yaml"))]


def test_two_files_make_a_judge_and_two_a_generator(tmp_path):
    """20 answers that repeat their question meet the baseline's; the shorter wins, and a wrong setting is named."""
    for name in ("conf", "src", "scripts"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for path, text in re.findall(r"```(?:python|yaml)\n# ((?:src|conf)/\S+)\n(.*?)```", RECIPE, re.DOTALL):
        assert not (tmp_path / path).exists(), f"{path} would edit a file"
        (tmp_path / path).write_text(text)
    run = finished_run(tmp_path / "outputs" / "EXPERIMENT" / "RUN")
    rows = baseline_rows()
    (tmp_path / "baseline.json").write_text(json.dumps(rows))
    (command,) = re.findall(r"^    python (scripts/.*)$", RECIPE, re.MULTILINE)
    files = ["benchmark.baseline=baseline.json", "benchmark.difficulties=null", "benchmark.gamed=null"]

    def evaluate(*more: str) -> subprocess.CompletedProcess:
        environment = os.environ | {"PYTHONPATH": str(tmp_path / "src"), "COLUMNS": "200"}
        words = [sys.executable, *command.split(), *files, *more]
        return subprocess.run(
            words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200, check=False
        )

    done = evaluate()
    assert done.returncode == 0, done.stdout + done.stderr
    (result,) = run.glob("eval/alpaca_eval-shorter*/result.json")
    judged = json.loads((result.parent / "annotations.json").read_text())
    assert [row["output_2"] for row in judged] == [row["instruction"] for row in rows]
    won = [row["preference"] > 1.5 for row in judged]
    gaps = [len(row["output_2"]) - len(row["output_1"]) for row in judged]
    assert all(gap <= 10 if wins else gap >= -10 for gap, wins in zip(gaps, won, strict=True))
    assert 0 < sum(won) < 20
    assert json.loads(result.read_text())["identity"]["judge"]["margin"] == 10
    wrong = evaluate("generator.times=99")
    assert wrong.returncode == 2
    assert "generator.times must be at most 10, not 99 (conf/generator/echo.yaml)" in wrong.stderr
    assert "Traceback" not in wrong.stderr


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: f"{path.parent.name}={path.stem}")
def test_every_number_of_a_judge_or_generator_has_a_range_and_every_setting_a_type(path):
    group = path.parent.name
    settings = OmegaConf.to_container(OmegaConf.create({group: OmegaConf.load(path)}), resolve=True)[group]
    given = {"file": __file__, "path": __file__, "base_url": "https://host/v1", "model": "m"}
    settings |= {
        key: value for key, value in given.items() if key in settings and settings[key] in (None, "")
    }
    sound = [error for error in ERRORS[group](settings) if "needs the package" not in error]
    assert not sound
    optional = {"budget_dollars", "budget_tokens", "price_prompt", "price_completion", "temperature", "seed"}
    for key, value in settings.items():
        number = (isinstance(value, int | float) and not isinstance(value, bool)) or key in optional
        hostile = [math.nan, math.inf, -math.inf, -1, 1e300, 10**400, "text", True] if number else []
        for bad in [*hostile, *([["a"], {"a": 1}] if key not in ("name", "class", "label") else [])]:
            (error,) = ERRORS[group]({**settings, key: bad})
            assert error.startswith(f"{group}.{key}"), (bad, error)
            assert f"conf/{group}/{path.name}" in error
    (error,) = ERRORS[group]({**settings, "temprature": 1})
    assert f"{group}.temprature is not a setting of {path.stem!r}" in error


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"budget_dollars": 1.0}, "budget_dollars needs price_prompt and price_completion"),
        ({"budget_dollars": 1.0, "price_prompt": 1.0}, "budget_dollars needs price_prompt and"),
        ({"budget_dollars": 1.0, "price_completion": 1.0}, "budget_dollars needs price_prompt and"),
        ({"base_url": "http://host:99999/v1"}, "base_url must look like"),
        ({"base_url": "https://[::1/v1"}, "base_url must look like"),
        ({"unusable": "maybe"}, "judge.unusable='maybe' does not fit one of count, again, error"),
        ({"class": "lab.judging.judges.NoJudge"}, "defines no function or class 'NoJudge'"),
        ({"class": "lab.judging.requests.JudgeRequest"}, "lacks ['ask']; a judge has ['ask']"),
        ({"class": "os.system"}, "os is neither of sgdpo and lab nor a file named on this command"),
    ],
)
def test_settings_that_do_not_go_together_are_one_error(changes, words):
    settings = OmegaConf.to_container(OmegaConf.load(ROOT / "conf/judge/openai.yaml"), resolve=False)
    (error,) = judge_errors({**settings, **changes})
    assert words in error
