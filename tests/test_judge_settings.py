"""Settings of judges and generators: every number has a range, and what does not go together is one error."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from lab.answers.generate import generator_errors
from lab.judging.judges import judge_errors

ROOT = Path(__file__).parents[1]
ERRORS = {"judge": judge_errors, "generator": generator_errors}
YAMLS = [path for group in ERRORS for path in sorted((ROOT / "conf" / group).glob("*.yaml"))]


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: f"{path.parent.name}={path.stem}")
def test_every_number_of_a_judge_or_generator_has_a_range_and_every_setting_a_type(path):
    group = path.parent.name
    settings = OmegaConf.to_container(OmegaConf.create({group: OmegaConf.load(path)}), resolve=True)[group]
    given = {"file": __file__, "path": __file__, "base_url": "https://host/v1", "model": "m"}
    settings |= {
        key: value for key, value in given.items() if key in settings and settings[key] in (None, "")
    }
    # A package, or what `make judge` installs, may be absent; that is said beside every other error.
    absent = ERRORS[group](settings)
    assert all("needs the package" in error or "`make judge`" in error for error in absent)
    optional = {"budget_dollars", "budget_tokens", "price_prompt", "price_completion", "temperature", "seed"}
    for key, value in settings.items():
        number = (isinstance(value, int | float) and not isinstance(value, bool)) or key in optional
        hostile = [math.nan, math.inf, -math.inf, -1, 1e300, 10**400, "text", True] if number else []
        for bad in [*hostile, *([["a"], {"a": 1}] if key not in ("name", "class", "label") else [])]:
            (error,) = set(ERRORS[group]({**settings, key: bad})) - set(absent)
            assert error.startswith(f"{group}.{key}"), (bad, error)
            assert f"conf/{group}/{path.name}" in error
    (error,) = set(ERRORS[group]({**settings, "temprature": 1})) - set(absent)
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
        ({"label": "../../x"}, "judge.label"),
        ({"label": "/x"}, "judge.label"),
        ({"class": "lab.judging.judges.NoJudge"}, "defines no function or class 'NoJudge'"),
        ({"class": "lab.judging.judges.JudgeRequest"}, "lacks ['ask']; a judge has ['ask']"),
        ({"class": "os.system"}, "os is neither of sgdpo and lab nor a file named on this command"),
    ],
)
def test_settings_that_do_not_go_together_are_one_error(changes, words):
    settings = OmegaConf.to_container(OmegaConf.load(ROOT / "conf/judge/openai.yaml"), resolve=False)
    (error,) = judge_errors({**settings, "label": "m", **changes})
    assert words in error
