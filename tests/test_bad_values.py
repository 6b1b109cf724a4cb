"""Every value of every key: the schema is walked, and what a key may not be is tried through the real composition.

What is tried is counted; the suite tries at least 500 bad inputs.
"""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
import typing
from collections import Counter
from collections.abc import Iterator
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from lab.answers.generate import GENERATOR
from lab.benchmarks.benchmark import BENCHMARK
from lab.evaluation.settings import EvaluateConfig, compose_evaluation, evaluation_errors
from lab.judging.judges import JUDGE
from lab.sampling.rounds import RoundsConfig
from lab.sampling.scorers import SCORER
from lab.sampling.settings import SampleConfig
from sgdpo.config.compose import CONF, compose_run, composition_words, list_errors, to_run_config
from sgdpo.config.schema import RunConfig
from sgdpo.contract import Kind, binding_errors
from sgdpo.data.sources import DATA
from sgdpo.method import METHOD, PILOT
from sgdpo.runs.run import Run
from sgdpo.runs.validate import ASKED, config_errors
from sgdpo.source import find
from sgdpo.values import Name, OneOf, Place, Range, marks_of
from sgdpo.values import words as spelt
from sgdpo.world.verifiable import WorldConfig

ROOT = CONF.parent
BAD = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf, "-1": -1, "0": 0, "1e30": 1e30, "1e400": math.inf}
TRIED: Counter[str] = Counter()


def walk(schema: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every key with its annotation, through the nested dataclasses."""
    for key, hint in typing.get_type_hints(type(schema), include_extras=True).items():
        value = getattr(schema, key)
        nested = next((a for a in typing.get_args(hint) if isinstance(a, type) and is_dataclass(a)), None)
        if is_dataclass(value) or nested:
            yield from walk(nested() if nested else value, f"{prefix}{key}.")
        else:
            yield prefix + key, hint


def numeric(hint: Any) -> type | None:
    """Return int or float for the annotation of a number, an optional or ranged one too."""
    parts = [hint, *typing.get_args(hint)]
    found = [part for part in parts if part in (int, float)] or [numeric(p) for p in parts[1:]]
    return next((kind for kind in found if kind is not None), None)


KEYS = dict(walk(RunConfig()))
NUMBERS = {key: numeric(hint) for key, hint in KEYS.items() if numeric(hint)}
RATIOS = ("ratio.chosen", "ratio.rejected")


def refusal(*overrides: str) -> str:
    """Return what the composition, or the check after it, says of the overrides."""
    try:
        return "\n".join(config_errors(compose_run(list(overrides))))
    except (HydraException, OmegaConfBaseException) as error:
        return composition_words(error)


def range_of(key: str) -> Range:
    return next(mark for mark in marks_of(KEYS[key]) if isinstance(mark, Range))


# ---- the schema itself -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "schema",
    [RunConfig(), EvaluateConfig(), SampleConfig(), RoundsConfig()],
    ids=lambda schema: type(schema).__name__,
)
def test_every_number_has_a_finite_range_and_every_path_a_check(schema: Any) -> None:
    for key, hint in walk(schema):
        marks = marks_of(hint)
        if numeric(hint):
            assert any(isinstance(mark, Range) and math.isfinite(sum(mark.bounds)) for mark in marks), key
        if key in ("outputs", "cache"):
            assert any(isinstance(mark, Place) for mark in marks), key
        if key.endswith("name") or key == "experiment":
            assert any(isinstance(mark, (Name, OneOf)) for mark in marks), key


def test_the_defaults_of_conf_are_within_their_ranges() -> None:
    for group in ("model", "optimizer", "data", "trainer", "engine", "tracking"):
        for path in sorted((CONF / group).glob("*.yaml")):
            said = refusal(f"{group}={path.stem}")
            assert not any(f"{key} must" in said for key in NUMBERS), said


# ---- numbers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", list(BAD))
def test_a_bad_number_is_refused_on_every_float_at_once_each_by_name(text: str) -> None:
    """All keys bad in one run: each has its line, and the line says what was given."""
    keys = [key for key, kind in NUMBERS.items() if kind is float and BAD[text] not in range_of(key)]
    said = refusal(*(f"{key}={text}" for key in keys))
    lines = said.splitlines()
    for key in keys:
        # A phase's value reaches the phase in use too.
        assert any(line.startswith(f"{key} ") and "must" in line for line in lines), f"{key}={text}: {said}"
        TRIED["float"] += 1
    assert "Traceback" not in said


@pytest.mark.parametrize("text", ["-7", "0", "1" + "0" * 30])
def test_an_integer_out_of_range_is_refused_on_every_key_at_once_each_by_name(text: str) -> None:
    keys = [key for key, kind in NUMBERS.items() if kind is int and int(text) not in range_of(key)]
    lines = refusal(*(f"{key}={text}" for key in keys)).splitlines()
    for key in keys:
        assert any(line.startswith(f"{key} ") and text in line for line in lines), f"{key}={text}"
        TRIED["int"] += 1


@pytest.mark.parametrize("key", list(NUMBERS))
def test_what_is_no_number_is_refused_by_name(key: str) -> None:
    """Text; for an integer a fraction and NaN too. Each in a composition of its own, which stops at the first."""
    texts = ["many", *(["nan", "0.5"] if NUMBERS[key] is int else [])]
    for text in texts:
        said = refusal(f"{key}={text}")
        assert key.rsplit(".", 1)[-1] in said, f"{key}={text}: {said!r}"
        assert "\n" not in said, said
        TRIED["text"] += 1


# ---- words, names, paths, groups ---------------------------------------------------------------------------

NAMES = ["''", "../up", ".hidden", "'a b'", "x" * 300, "null"]


@pytest.mark.parametrize("key", [k for k, h in KEYS.items() if any(isinstance(m, Name) for m in marks_of(h))])
def test_a_name_that_cannot_be_a_folder_is_refused_on_every_key(key: str) -> None:
    for text in NAMES[marks_of(KEYS[key])[0].empty :]:
        if text == "null" and type(None) in typing.get_args(KEYS[key]):
            continue
        assert key.rsplit(".", 1)[-1] in refusal(f"{key}={text}"), f"{key}={text}"
        TRIED["name"] += 1


@pytest.mark.parametrize("name", ["../../evil", "/abs", "", "x" * 300, "a/b"])
def test_a_methods_name_is_a_plain_name_too(name: str) -> None:
    assert "method.name" in refusal(f"method.name='{name}'")
    assert "start: method.name" in refusal(f"start.name='{name}'")


@pytest.mark.parametrize(
    "words", [["method@start=nll"], ["method=dpo", "method@start=dpo"], ["start.phase=preference"]]
)
def test_a_start_that_would_need_a_start_is_refused_before_anyone_follows_it(words: list[str]) -> None:
    (said,) = config_errors(compose_run(words))
    with pytest.raises(ValueError, match="a run starts from an SFT run") as refused:
        Run.of(to_run_config(compose_run(words)))
    assert said == str(refused.value)


NULLABLE = [key for key, hint in KEYS.items() if spelt(hint) == "dict[str, typing.Any] or null"]


@pytest.mark.parametrize("inside", ["={a: 1}", "={a: {b: 1}}", ".a=1", ".a.b=1"])
def test_an_override_inside_a_mapping_that_is_null_is_refused_by_name(inside: str) -> None:
    said = list_errors(["-m", "model=smollm2_135m", *(f"++{key}{inside}" for key in NULLABLE)])
    assert [line.split(" is null here")[0] for line in said] == NULLABLE
    assert list_errors([f"{key}={value}" for key in NULLABLE for value in ("{}", "null")]) == []


@pytest.mark.parametrize("name", ["cache", "published", "report"])
def test_an_experiment_does_not_take_the_name_of_other_files(name: str) -> None:
    assert "is kept for other files" in refusal(f"experiment={name}")


@pytest.mark.parametrize(
    "key", [k for k, h in KEYS.items() if any(isinstance(m, OneOf) for m in marks_of(h))]
)
def test_a_word_that_is_no_option_is_refused_with_the_options(key: str) -> None:
    options = next(mark.options for mark in marks_of(KEYS[key]) if isinstance(mark, OneOf))
    for text in ("banana", "''", "3"):
        said = refusal(f"{key}={text}")
        assert all(option in said for option in (key, *options)), said
        TRIED["word"] += 1


@pytest.mark.parametrize("key", ["outputs", "cache"])
def test_a_place_that_is_none_is_refused(key: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for text in (
        "''",
        "null",
        "' '",
        "x" * 300,
        tmp_path / "file",
        tmp_path / "file" / "in",
        tmp_path / "link",
        "/dev/null",
    ):
        assert key in refusal(f"{key}={text}"), text
        TRIED["place"] += 1


def test_an_extra_file_that_is_none_is_refused(tmp_path: Path) -> None:
    for text in (tmp_path, tmp_path / "nowhere.py", CONF / "config.yaml", "''"):
        assert "extra" in refusal(f"extra=[{text}]")
        TRIED["place"] += 1


# ---- what a contract holds: methods, judges, generators ------------------------------------------------------


KINDS = (METHOD, PILOT, DATA, GENERATOR, JUDGE, BENCHMARK, SCORER, ASKED)


def bindings() -> Iterator[tuple[Kind, Path, dict[str, Any], dict[str, Any]]]:
    """Yield every YAML of every kind with its settings and the annotations of what it binds."""
    for kind in KINDS:
        for path in sorted((CONF / kind.group).glob("*.yaml")):
            config = yaml.safe_load(path.read_text())
            if kind.key not in config:
                continue  # a variant of another YAML, by its defaults
            hints = {
                key: hint
                for key, (hint, _) in find(config[kind.key]).parameters.items()
                if key not in kind.given
            }
            if kind in (DATA, ASKED):  # whose YAMLs hold what is true of every data set, or training, too
                own = {key: value for key, value in config.items() if key in (*hints, "name", kind.key)}
                config = {"name": path.stem, **own}
            yield kind, path, config, hints


def bound_numbers() -> Iterator[Any]:
    """Yield every numeric setting of every YAML of a kind."""
    for kind, path, config, hints in bindings():
        for key, hint in hints.items():
            if numeric(hint):
                yield pytest.param(kind, config, key, numeric(hint), id=f"{kind.group}/{path.stem}.{key}")


def test_the_kinds_are_all_that_the_code_declares() -> None:
    """A kind that this walk does not know would go untried; exhibits and constraints are drawn, not set."""
    declared = [
        word
        for file in (ROOT / "src").rglob("*.py")
        for word in re.findall(r"= Kind\(\s*\"(\w+)\"", file.read_text())
    ]
    assert {kind.group for kind in KINDS} == set(declared) - {"report", "constraint"}


WORLD = {
    key: hint
    for key, hint in typing.get_type_hints(WorldConfig, include_extras=True).items()
    if numeric(hint)
}


@pytest.mark.parametrize("text", ["nan", "inf", "-1", "1e30", "many", "[1]", "true"])
def test_a_bad_number_of_the_generated_world_is_refused_by_name(text: str) -> None:
    said = refusal(*(f"data.world.{key}={text}" for key in WORLD))
    for key in WORLD:
        assert f"data.world.{key}" in said, (key, said)
        TRIED["contract"] += 1


EVALUATION = {
    key: hint
    for key, hint in walk(EvaluateConfig())
    if not key.startswith(("benchmark", "judge", "generator"))
}


@pytest.mark.parametrize("key", list(EVALUATION))
def test_a_bad_value_of_an_evaluation_is_refused_by_name(key: str) -> None:
    bad = {"seed": "-1"}.get(key, "[1,{a: 1}]" if "list" not in str(EVALUATION[key]) else "1")
    try:
        said = "\n".join(evaluation_errors(compose_evaluation([f"{key}={bad}"]), runs=False))
    except (ValueError, HydraException) as error:
        said = composition_words(error)
    assert key in said, said
    TRIED["contract"] += 1


# ---- what the comments say ---------------------------------------------------------------------------------

INTERVAL = re.compile(r"\bin ([\[(]-?[\d.e]+, ?(?:inf|-?[\d.e]+)[\])])")


def commented() -> Iterator[tuple[str, str, list[str]]]:
    """Yield (file, key, the intervals of its comment) of every key of every YAML."""
    for path in sorted(CONF.rglob("*.yaml")):
        comment, parents = "", []
        for line in path.read_text().splitlines():
            if line.strip().startswith("#"):
                comment += line
                continue
            if found := re.match(r"( *)(\w+):", line):
                parents = [*parents[: len(found[1]) // 2], found[2]]
                yield (
                    str(path.relative_to(CONF)),
                    ".".join(parents),
                    INTERVAL.findall(comment + line.partition("#")[2]),
                )
            comment = ""


def test_a_range_that_a_comment_names_is_the_schemas() -> None:
    bound = {str(path.relative_to(CONF)): hints for _, path, _, hints in bindings()}
    schemas = {"config.yaml": RunConfig(), "evaluate.yaml": EvaluateConfig(), "sample.yaml": SampleConfig()}
    whole = {file: dict(walk(schema)) for file, schema in schemas.items()}
    checked = 0
    for file, key, intervals in commented():
        group = file.partition("/")[0]
        hint = bound.get(file, {}).get(key) or KEYS.get(f"{group}.{key}") or whole.get(file, {}).get(key)
        hint = hint or (WORLD.get(key.removeprefix("world.")) if group == "data" else None)
        for interval in intervals:
            ranges = [mark for mark in marks_of(hint) if isinstance(mark, Range)]
            assert ranges, f"conf/{file}: {key} says {interval}, and nothing holds it to that"
            wanted, got = Range(interval), ranges[0]
            ends = [each.interval[0] + each.interval[-1] for each in (wanted, got)]
            assert (wanted.bounds, ends[0]) == (got.bounds, ends[1]), (
                f"conf/{file}: {key} says {interval}, is {got}"
            )
            checked += 1
    assert checked > 10


@pytest.mark.parametrize(("kind", "config", "key", "number"), bound_numbers())
def test_every_number_of_a_contract_refuses_what_is_none(
    kind: Kind, config: dict, key: str, number: type
) -> None:
    for value in (math.nan, math.inf, -math.inf, -1e30 if number is float else -(10**30), "many", [1], True):
        errors = binding_errors(kind, config | {key: value})
        assert any(f"{kind.group}.{key}" in error for error in errors), f"{key}={value}"
        TRIED["contract"] += 1


# ---- through the real command line -------------------------------------------------------------------------
SAMPLE = [
    ["optimizer.lr=nan"],
    ["seed=1e400"],
    ["trainer.workers=-1", "n_jobs=0"],
    ["experiment=../../evil"],
    ["outputs="],
    ["model=null"],
    ["method=nonsense"],
    ["method.function=os.getcwd", "dry_run=true"],
    ["method.needs.state=subprocess.Popen"],
    ["+typo=1"],
    ["optimizer.typo=1"],
    ["optimizer.lr=["],
    ["engine.port=[1]"],
    ["--typo"],
    ["data.limit=-3"],
    ["+hydra.sweeper.params.seed='1,2'"],  # as a sweep's YAML without `hydra: {mode: MULTIRUN}`
]


@pytest.mark.parametrize("words", SAMPLE, ids=" ".join)
def test_the_command_answers_in_lines_with_code_2_and_loads_nothing_heavy(
    words: list[str], tmp_path: Path
) -> None:
    """The interpreter says what was imported, so that light is light on a busy machine too."""
    program = (
        "import json, runpy, sys\n"
        "try:\n    runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "finally:\n    print(json.dumps(sorted({'torch', 'transformers', 'datasets', 'wandb'} & set(sys.modules))))"
    )
    script = str(ROOT / "src" / "train.py")
    command = [sys.executable, "-c", f"import sys; sys.argv[:1] = [{script!r}]\n{program}", *words]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2, done.stderr
    assert all(line.startswith("error: ") for line in done.stderr.splitlines()), done.stderr
    assert json.loads(done.stdout) == []
    assert list(tmp_path.iterdir()) == []
    TRIED["command"] += 1


def test_at_least_500_bad_inputs_were_tried() -> None:
    """Runs last; with a selection of tests there is nothing to count."""
    print(dict(TRIED))
    if len(TRIED) == 8:
        assert TRIED.total() >= 500, TRIED
