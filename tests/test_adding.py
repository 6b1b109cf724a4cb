"""Adding is two new files and no edit: each recipe's files, written as printed, are used by its commands."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

import judge_variance
import recipes
from evaluation_fixtures import baseline_rows, chat, chat_server, finished_run, http_judge
from lab.evaluation.command import show
from lab.evaluation.comparison import compare_runs
from lab.evaluation.evaluate import evaluate
from lab.evaluation.settings import compose_evaluation, runs_first
from report_fixtures import write_run
from sgdpo.config.compose import CONF, register_schema, to_run_config
from sgdpo.data.sources import load_rows
from sgdpo.drawing.table import Table
from sgdpo.runs.validate import config_errors
from sgdpo.store import read_json, read_jsonl

KINDS = (
    "method", "model", "data source", "benchmark", "judge", "generator", "kind of constraint", "scorer", "pilot",
    "table", "figure",
)  # fmt: skip
BESIDE = ("model", "data source", "pilot")  # in a folder of one's own, and used by training
TINY = (
    "optimizer.max_steps=2", "optimizer.sft.max_steps=2", "optimizer.batch_size=16", "tracking=off", "device=cpu",
)  # fmt: skip


@pytest.fixture(scope="module")
def house(tmp_path_factory) -> Path:
    """A copy of the checkout with all files of all recipes."""
    return recipes.write(recipes.copy_house(tmp_path_factory.mktemp("house")), *KINDS)


def run(house: Path, *command: str, code: int = 0, limit: int = 300) -> str:
    environment = os.environ | {"PYTHONPATH": str(house / "src"), "WANDB_MODE": "disabled", "COLUMNS": "200"}
    done = subprocess.run(
        command, cwd=house, env=environment, capture_output=True, text=True, timeout=limit, check=False
    )
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


def python(house: Path, *words: str, code: int = 0, limit: int = 300) -> str:
    return run(house, sys.executable, *words, code=code, limit=limit)


def make(house: Path, *words: str) -> str:
    """Run make with the environment of the tests, which is installed already."""
    return run(house, "make", "--no-print-directory", "-o", "setup", f"PY={sys.executable}", *words)


def records(folder: Path) -> list[dict]:
    return [read_json(path) for path in sorted(folder.rglob("record.json"))]


def test_every_kind_has_two_files_and_a_command():
    assert set(recipes.SECTIONS) == set(KINDS)
    for kind in KINDS:
        assert len(recipes.files(kind)) == 2, kind
        assert "```bash" in recipes.SECTIONS[kind], kind


def test_what_is_printed_is_as_lint_wants_it(house):
    shutil.copy(recipes.ROOT / "pyproject.toml", house)
    scripts = [path for kind in KINDS for path in recipes.files(kind) if path.endswith(".py")]
    run(house, sys.executable, "-m", "ruff", "check", *scripts)
    run(house, sys.executable, "-m", "ruff", "format", "--check", *scripts)


@pytest.mark.slow
def test_a_method_is_trained_swept_and_shown_in_a_table_and_a_figure(house):
    """Its scale is not called beta, and every run of it shows the rewards of its tokens."""
    small = ("experiment=methods", "data.world.pairs=64", "data.test_limit=16", *TINY)
    one, sweep = recipes.commands("method", "python src/train.py")
    python(house, "src/train.py", *one, *small)
    python(house, "src/train.py", *sweep, *small)
    done = [record["method"] for record in records(house / "outputs" / "methods")]
    assert sorted(done) == ["dpo", "sft", "squared_hinge"], "one start, and nothing twice"
    (shown,) = (house / "outputs" / "methods").glob("squared_hinge*/pairs.json")
    assert any(token["reward"] for token in json.loads(shown.read_text())["pairs"][0]["chosen"])
    for kind in ("table", "figure"):
        python(house, *recipes.commands(kind, "python")[0])
    table = Table.read(house / "outputs" / "ranking" / "ranking.json")
    assert [row[0].text for row in table.rows] == ["DPO", "Squared hinge"]
    assert all(row[1].value is not None for row in table.rows)
    assert "Squared hinge" in (house / "outputs" / "lengths" / "lengths.svg").read_text()


@pytest.mark.proof
def test_a_model_a_data_source_and_a_pilot_train_together(house):
    words = [word for kind in BESIDE for word in recipes.commands(kind, "python src/train.py")[0]]
    extra = [word.removeprefix("extra=[").rstrip("]") for word in words if word.startswith("extra=")]
    rest = [w for w in dict.fromkeys(words) if not w.startswith(("extra=", "method=dpo"))]
    said = python(
        house,
        "src/train.py",
        *rest,
        f"extra=[{','.join(extra)}]",
        "experiment=beside",
        "init=pretrained",
        *TINY,
    )
    assert "640 rows read from sums (train), 640 kept" in said
    (record,) = [r for r in records(house / "outputs" / "beside") if r["method"] == "sgdpo"]
    assert record["status"] == "finished"
    assert record["settings"]["model"]["tiny"]["model_type"] == "mistral"
    (shown,) = (house / "outputs" / "beside").glob("sgdpo*/pairs.json")
    first = json.loads(shown.read_text())["pairs"][0]
    assert "user: 640 + 7" in first["prompt"], "rendered by the recipe's own template"
    taken = [token["pilot"] for token in first["rejected"]]
    size = sum(taken)
    assert size
    assert taken == [True] * (size - size // 2) + [False] * (len(taken) - size) + [True] * (size // 2)


@pytest.mark.parametrize("kind", BESIDE)
def test_each_alone_is_accepted(house, monkeypatch, kind):
    monkeypatch.chdir(house)
    ((folder, *words),) = recipes.commands(kind, "python src/train.py")
    register_schema()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        searched = f"hydra.searchpath=[file://{house / folder.removeprefix('--config-dir=')}]"
        config = compose("config", [searched, *words])
    assert config_errors(config) == []
    run = to_run_config(config)
    rows = load_rows(run.data, "preference", "train", run.extra)
    assert rows is not None
    assert rows.count() >= max(run.optimizer.sft.batch_size, run.optimizer.preference.batch_size), (
        "a step's worth"
    )


def test_a_wrong_setting_of_a_data_source_is_one_error_before_anything_loads(house):
    ((*words,),) = recipes.commands("data source", "python src/train.py")
    said = python(house, "src/train.py", *words, "data.count=many", "+data.typo=1", code=2)
    assert "data.count='many' does not fit int" in said
    assert "data.typo is not a setting of 'sums'; it has ['count', 'mistakes']" in said


def test_a_judge_and_a_generator_are_used_together(house):
    """20 answers that repeat their question meet the baseline's; the shorter wins, and a wrong setting is named."""
    folder = finished_run(house / "outputs" / "EXPERIMENT" / "RUN")
    rows = baseline_rows()
    (house / "baseline.json").write_text(json.dumps(rows))
    (judged,) = recipes.commands("judge", "python")
    (command,) = recipes.commands("generator", "python")
    assert command == [*judged, "generator=echo"]
    files = ["benchmark.baseline=baseline.json", "benchmark.difficulties=null", "benchmark.gamed=null"]
    python(house, *command, *files)
    (result,) = folder.glob("eval/alpaca_eval-shorter*/result.json")
    annotations = json.loads((result.parent / "annotations.json").read_text())
    assert [row["output_2"] for row in annotations] == [row["instruction"] for row in rows]
    won = [row["preference"] > 1.5 for row in annotations]
    gaps = [len(row["output_2"]) - len(row["output_1"]) for row in annotations]
    assert all(gap <= 10 if wins else gap >= -10 for gap, wins in zip(gaps, won, strict=True))
    assert 0 < sum(won) < 20
    assert json.loads(result.read_text())["identity"]["judge"]["margin"] == 10
    wrong = python(house, *command, *files, "generator.times=99", code=2)
    assert "generator.times must be at most 10, not 99 (conf/generator/echo.yaml)" in wrong


def test_a_benchmark_is_answered_judged_repeated_and_compared(house, monkeypatch, capsys, tmp_path):
    """The judge gives the number of letters e, at most 10; nothing is asked twice."""
    monkeypatch.chdir(house)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test-123456")
    evaluated, varied, compared = (
        recipes.commands("benchmark", f"python scripts/{name}.py")[0]
        for name in ("evaluate", "judge_variance", "compare")
    )
    runs = [house / name for name in compared]
    for number, folder in enumerate(runs):
        if not folder.exists():
            finished_run(folder, seed=number)

    def rate(request, number):
        return chat(str(min(10, request["messages"][0]["content"].split("\n\n")[1].count("e") + 5)))

    short = "benchmark.max_new_tokens=4"
    with chat_server(rate) as server:
        command = runs_first([*compared, *evaluated[1:], short, *http_judge(server)])
        results = evaluate(compose_evaluation(command))
        again = evaluate(compose_evaluation(command))
        output = ["--output", str(tmp_path / "variance.json")]
        judge_variance.main([*compared, *output, short, *http_judge(server), *varied[1:]])
    for folder, result in results.items():
        rows = read_jsonl(Path(folder) / result["samples"])
        assert [row["prompt"] for row in rows][:2] == ["Ask me to close the door.", "Ask me to lend a book."]
        assert result["score_mean"] == sum(row["score"] for row in rows) / 4
        assert again[folder]["score_mean"] == result["score_mean"]
        assert again[folder]["cost"]["requests"] == 0
    (verdict,) = compare_runs(runs, None)
    assert verdict.comparison.wins + verdict.comparison.losses + verdict.comparison.ties == 4
    found = json.loads((tmp_path / "variance.json").read_text())["politeness-m1"]
    assert (found["scale"], found["repeats"], found["n"]) == (10.0, 2, 8)
    assert "politeness-m1" in capsys.readouterr().out
    shown = show(compose_evaluation(command).benchmark, results).console()
    assert re.search(r"RUN.* 4\b", shown)


def test_a_kind_of_constraint_in_a_folder_of_ones_own_is_refused_by_every_command(house, tmp_path):
    """Whether it is asked for by name or not: it is said where it is read from, before anything is done."""
    mine = tmp_path / "constraint"
    mine.mkdir()
    shutil.copy(house / "conf" / "constraint" / "short_words.yaml", mine / "rhymes.yaml")
    folder = finished_run(tmp_path / "outputs" / "exp" / "run")
    for command in (
        ["scripts/sample.py", f"policy={folder}", "data=constraints", "data.kinds=[rhymes]"],
        ["scripts/evaluate.py", str(folder), "benchmark=constraints"],
        ["scripts/evaluate.py", str(folder), "benchmark=constraints", "benchmark.kinds=[rhymes]"],
    ):
        said = python(house, *command, f"--config-dir={tmp_path}", code=2)
        errors = [line for line in said.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1, said
        assert f"{mine / 'rhymes.yaml'}: kinds of constraint are read from conf/constraint alone" in errors[0]


def test_a_kind_of_constraint_and_a_scorer_make_pairs_of_answers(house):
    """Instructions of this kind alone, answered by a random model; the scorer decides which answer is better."""
    (asked,), (scored,) = (recipes.commands(kind, "python") for kind in ("kind of constraint", "scorer"))
    folder = house / asked[1].removeprefix("policy=")
    if not folder.exists():
        finished_run(folder)
    small = [
        "data.limit=6",
        "splits=train",
        "max_new_tokens=64",
        "temperature=1.0",
        "device=cpu",
        "into=made",
    ]
    python(house, *dict.fromkeys([*asked, *scored]), *small)
    rows = read_jsonl(house / "made" / "train.jsonl")
    assert rows
    for row in rows:
        prompt, chosen, rejected = (str(row[key]) for key in ("prompt", "chosen", "rejected"))
        assert re.search(r"no word of more than [678] letters|every word to [678] letters", prompt)
        assert len(chosen.split()) < len(rejected.split())
        assert row["score_rejected"] == -(len(rejected.split()) - 1)


def test_a_table_and_a_figure_are_made_from_records_alone(tmp_path):
    """By the documented command with another metric; make names both, and the page shows them."""
    house = recipes.write(recipes.copy_house(tmp_path), "table", "figure")
    for seed in (42, 43):
        for method in ("sft", "dpo", "ipo"):
            write_run(house / "outputs", "methods", method, seed=seed)
    (write_run(house / "outputs", "methods", "nca") / "record.json").write_text("{")
    assert "Methods by a metric of your choice." in make(house, "exhibits")
    targets = [words[0] for kind in ("table", "figure") for words in recipes.commands(kind, "make")]
    planned = re.sub(" +", " ", make(house, *targets, "SEEDS=2", "-n"))
    assert all(f"--seeds 2 --n-jobs 1 {name}" in planned for name in targets)
    for kind in ("table", "figure"):
        (command,) = recipes.commands(kind, "python")
        python(house, *command)
    table = Table.read(house / "outputs" / "ranking" / "ranking.json")
    assert (table.title, table.origin["seeds"]) == ("Methods by held-out accuracy", [42, 43])
    assert [row[0].text for row in table.rows] == ["DPO", "IPO"]
    svg = (house / "outputs" / "lengths" / "lengths.svg").read_text()
    assert "IPO" in svg
    assert "seeds 42, 43" in svg
    page = (house / python(house, "scripts/report.py").split()[-1]).read_text()
    assert "Methods by held-out accuracy" in page
    assert "The loss over training" in page


@pytest.mark.proof
def test_no_test_of_the_house_turns_red_through_the_added_files(house, tmp_path):
    """The tests that walk the folders, run on a checkout with all recipes in it."""
    copy = shutil.copytree(house, tmp_path / "house", ignore=shutil.ignore_patterns("outputs"))
    shutil.copytree(recipes.ROOT / "tests", copy / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    for path in (path for path in recipes.ROOT.iterdir() if path.is_file() and path.name != ".git"):
        shutil.copy(path, copy)
    shutil.copytree(recipes.ROOT / ".github", copy / ".github")
    walks = re.compile(r'glob\("\*\.yaml"\)|toy_pairs|exhibit_names')
    tests = [path for path in sorted((copy / "tests").glob("test_*.py")) if path.name != Path(__file__).name]
    walking = [str(path.relative_to(copy)) for path in tests if walks.search(path.read_text())]
    shutil.copytree(recipes.ROOT / "outputs" / "published", copy / "outputs" / "published")
    python(copy, "-m", "pytest", "-n", "2", "-m", "not slow and not proof", *walking, limit=1100)
