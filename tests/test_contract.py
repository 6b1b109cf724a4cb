"""The contract of a function or class and its YAML: every mistake is one sentence, and nothing runs to find it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest

from lab.answers.generate import GENERATOR
from lab.judging.judges import JUDGE as A_JUDGE
from lab.sampling.scorers import SCORER
from sgdpo.contract import Kind, binding_errors, build, load, settings_of
from sgdpo.source import find
from sgdpo.values import Range, marks_of, value_error

JUDGE = """
import nowhere_to_be_found  # reading the file does not run it

from dataclasses import dataclass, field
from typing import Annotated, Literal

import torch

from sgdpo.pilot import Draw
from sgdpo.values import Range

Share = Annotated[float, Range("(0, 1]")]


@dataclass
class Base:
    top_p: Share = 1.0

    def read(self, reply):
        return reply


@dataclass(kw_only=True)
class Judge(Base):
    label: str
    votes: Annotated[int, Range("[1, 100]")] = 1
    order: Literal["fixed", "random"] = "fixed"
    limit: "int | None" = None
    draw: Draw = "shared"
    words: list[str] = field(default_factory=list)
    tensor: torch.Tensor | None = None

    def questions(self, samples):
        return samples


class Careless:
    def __init__(self, *, votes: int, cache: str):
        self.votes, self.cache = votes, cache


def judge(*, votes: int) -> None: ...
"""
KIND = Kind("judge", key="class", parts=("questions", "read"), reserved=("title",), given=("cache",))


@pytest.fixture
def extra(tmp_path: Path) -> list[str]:
    (tmp_path / "a_judge.py").write_text(JUDGE)
    return [str(tmp_path / "a_judge.py")]


def judged(extra: list[str], **changes: Any) -> list[str]:
    config = {"name": "mine", "class": "a_judge.Judge", "title": "Mine", "label": "x"} | changes
    return binding_errors(KIND, {key: value for key, value in config.items() if value != "left out"}, extra)


def test_a_class_and_its_yaml_bind_without_running_the_file(extra: list[str]) -> None:
    assert (
        judged(extra, top_p=0.5, votes=3, order="random", limit=None, draw="independent", words=["a"]) == []
    )
    assert "a_judge" not in sys.modules


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"top_p": 0}, "judge.top_p must lie in (0, 1], not 0"),  # of the base class, through a name
        ({"votes": 0}, "judge.votes must be at least 1, not 0"),
        ({"votes": 101}, "judge.votes must be at most 100, not 101"),
        ({"votes": 1.0}, "judge.votes=1.0 does not fit int"),
        ({"votes": True}, "judge.votes=True does not fit int"),
        ({"order": "any"}, "judge.order='any' does not fit one of fixed, random"),
        ({"limit": "all"}, "judge.limit='all' does not fit int or null"),
        ({"draw": 1}, "judge.draw=1 does not fit one of shared, independent"),  # through an import
        ({"words": [1]}, "judge.words=[1] does not fit list[str]"),
        ({"tensor": 1}, "judge.tensor=1 does not fit a YAML's values"),
        ({"typo": 1}, "judge.typo is not a setting of 'mine'; it has ["),
        ({"label": "left out"}, "judge 'mine' lacks ['label'] in its YAML"),
        ({"class": "left out"}, "judge 'mine' lacks ['class']; see conf/judge/"),
        ({"class": "a_judge.Judg"}, "a_judge defines no function or class 'Judg'"),
        ({"class": "a_judge.judge"}, "a_judge.judge is no class"),
        ({"class": "sgdpo.nowhere.Judge"}, "there is no module sgdpo.nowhere"),
        (
            {"class": "subprocess.Popen"},
            "subprocess is neither of sgdpo and lab nor a file named on this command",
        ),
        ({"class": "other.Judge"}, "extra=[path/to/other.py]"),
        ({"class": 3}, "cannot import 3: it must be package.module.name"),
        ({"class": "../evil.Judge"}, "it must be package.module.name"),
        ({"class": "a_judge.Careless"}, "a_judge.Careless lacks ['questions', 'read']; a judge has ["),
    ],
)
def test_each_mistake_is_one_sentence(extra: list[str], changes: dict, error: str) -> None:
    errors = judged(extra, **changes)
    assert len(errors) == 1, errors
    assert error in errors[0]


@pytest.mark.parametrize(
    ("kind", "base", "part"),
    [
        (A_JUDGE, "lab.judging.judges.Judge", "ask"),
        (GENERATOR, "lab.answers.generate.Generator", "answers"),
        (SCORER, "lab.sampling.scorers.Scorer", "scores"),
    ],
)
def test_a_part_that_the_base_leaves_open_and_the_class_misspells_is_lacking(
    kind: Kind, base: str, part: str, tmp_path: Path
) -> None:
    module, _, name = base.rpartition(".")
    source = f"from {module} import {name}\n\nclass Mine({name}):\n    def {part}_them(self): ...\n"
    (file := tmp_path / "misspelt.py").write_text(source)
    config = {"name": "mine", "class": "misspelt.Mine", "label": "mine"}
    (error,) = binding_errors(kind, config, [str(file)])
    assert f"misspelt.Mine lacks ['{part}']" in error


def test_keyword_parameters_of_init_serve_as_settings(tmp_path: Path) -> None:
    (tmp_path / "b_judge.py").write_text(JUDGE.replace("import nowhere_to_be_found", "import math"))
    kind, extra = (
        Kind("judge", key="class", parts=("votes",), given=("cache",)),
        [str(tmp_path / "b_judge.py")],
    )
    config = {"name": "mine", "class": "b_judge.Careless", "votes": 2}
    assert binding_errors(kind, config | {"cache": "x"}, extra) != []  # the caller's to give
    made = build(kind, config, extra, cache="here")
    assert (made.votes, made.cache) == (2, "here")
    assert settings_of(kind, config) == {"votes": 2}
    with pytest.raises(ValueError, match="votes"):
        load(kind, config | {"votes": None}, extra)


@pytest.mark.parametrize(
    ("text", "words"), [(b"def judge(:", "line 1"), (b"\xff\xfe", "cannot be read"), (None, "neither of")]
)
def test_a_file_that_is_no_python_is_named(tmp_path: Path, text: bytes | None, words: str) -> None:
    path = tmp_path / "broken_judge.py"
    path.mkdir() if text is None else path.write_bytes(text)
    with pytest.raises(ValueError, match=words):
        find("broken_judge.judge", [str(path)])


def test_a_file_named_as_an_installed_module_is_refused(tmp_path: Path) -> None:
    (tmp_path / "colorsys.py").write_text("def judge(*, a: int): ...")
    with pytest.raises(ValueError, match="rename the file"):
        find("colorsys.judge", [str(tmp_path / "colorsys.py")])


def test_two_yamls_of_one_name_are_refused_and_one_is_named_in_errors(
    extra: list[str], tmp_path: Path
) -> None:
    folders = [tmp_path / "first", tmp_path / "second"]
    config = {"name": "mine", "class": "a_judge.Judge", "label": "x", "votes": 0}
    (folders[0] / "judge").mkdir(parents=True)
    (folders[0] / "judge" / "mine.yaml").write_text("name: mine # a comment")
    assert binding_errors(KIND, config, extra, folders) == [
        f"judge.votes must be at least 1, not 0 ({folders[0]}/judge/mine.yaml)"
    ]
    (folders[1] / "judge").mkdir(parents=True)
    (folders[1] / "judge" / "other.yaml").write_text("name: 'mine'")
    (error,) = binding_errors(KIND, config, extra, [*folders, tmp_path])
    assert "is the name of" in error
    assert all(str(folder) in error for folder in folders)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_number_without_a_range_must_be_finite(value: float) -> None:
    assert "must" in value_error(value, float)
    assert "must" in value_error(value, Annotated[float, Range("[0, inf)")] | None)


@pytest.mark.parametrize(
    ("interval", "inside", "outside"),
    [
        ("(0, 1]", (1e-9, 1, 1.0), (0, 1.1, -1)),
        ("[1, 8)", (1, 7.9), (0, 8, 10**400)),
        ("[-1, inf)", (-1, 9e300), (-2,)),
    ],
)
def test_a_range_holds_its_ends_as_mathematics_writes_them(
    interval: str, inside: tuple, outside: tuple
) -> None:
    assert all(value in Range(interval) for value in inside)
    assert not any(value in Range(interval) for value in outside)
    assert marks_of(Annotated[int, Range(interval)] | None) == [Range(interval)]
    assert marks_of(Literal[1, 2]) == []


def test_checking_every_method_imports_nothing_heavy() -> None:
    code = (
        "import sys, yaml, pathlib; from sgdpo.method import method_errors; "
        "[method_errors(yaml.safe_load(p.read_text()), {}) for p in pathlib.Path('conf/method').glob('*.yaml')]; "
        "print(sorted({'torch', 'transformers', 'hydra', 'numpy'} & set(sys.modules)))"
    )
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
