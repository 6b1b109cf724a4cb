"""A benchmark is a class and a YAML: one of a user's own works everywhere; a result is known by its identity."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import recipes
from evaluation_fixtures import alpaca_setup, chat, chat_server, fair_judge, finished_run, http_judge
from lab.benchmarks.verifiable import Verifiable
from lab.evaluation.command import score_files, show
from lab.evaluation.comparison import compare_runs
from lab.evaluation.evaluate import evaluate, read_config
from lab.evaluation.settings import compose_evaluation, runs_first
from sgdpo.places import CONF
from sgdpo.runs.records import read_runs
from sgdpo.source import load_dotted
from sgdpo.store import read_jsonl, write_jsonl

POLITENESS_PY, POLITENESS_YAML = recipes.files("benchmark").values()


@pytest.fixture(scope="module")
def own(tmp_path_factory) -> tuple[Path, list[str]]:
    """Write the two files into a folder of the user's; return it and the words that name it."""
    folder = tmp_path_factory.mktemp("mine")
    (folder / "benchmark").mkdir()
    (folder / "politeness.py").write_text(POLITENESS_PY)
    (folder / "benchmark" / "politeness.yaml").write_text(POLITENESS_YAML)
    return folder, [f"--config-dir={folder}", f"extra=['{folder / 'politeness.py'}']"]


@pytest.fixture
def runs(tmp_path, monkeypatch) -> list[Path]:
    """Write two finished runs of random models."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test-123456")
    return [
        finished_run(tmp_path / "outputs" / "exp" / name, seed=n) for n, name in enumerate(("one", "two"))
    ]


def words_of(runs: list[Path], *words: str) -> list[str]:
    return runs_first(
        [*map(str, runs), f"outputs='{runs[0].parents[1]}'", "benchmark.max_new_tokens=4", *words]
    )


def keys(run: Path) -> list[str]:
    return sorted(json.loads((run / "record.json").read_text())["eval"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("class: politeness.Politeness", "class: politeness.Rudeness"), "no function or class 'Rudeness'"),
        (("class: politeness.Politeness", "class: os.path.join"), "cannot import"),
        (("max_new_tokens: 16", "max_new_tokens: 0"), "max_new_tokens must be at least 1"),
        (("errands: [close the door, lend a book, pay the bill, move the car]", ""), r"lacks \['errands'\]"),
        (("max_new_tokens: 16", "words: 16"), "benchmark.words is not a setting of 'politeness'"),
    ],
)
def test_what_does_not_fit_is_said_by_name(runs, own, tmp_path, change, message):
    _, (_, extra) = own
    (tmp_path / "benchmark").mkdir()
    (tmp_path / "benchmark" / "politeness.yaml").write_text(POLITENESS_YAML.replace(*change))
    words = [f"--config-dir={tmp_path}", extra, "benchmark=politeness"]
    with pytest.raises(ValueError, match=message):
        evaluate(compose_evaluation([*runs_first([str(runs[0])]), *words]))


@pytest.mark.slow
def test_a_benchmark_of_ones_own_is_asked_while_a_run_trains(tmp_path):
    """Its YAML is known to the command alone: the run keeps what it sets, for the processes that train."""
    (tmp_path / "benchmark").mkdir()
    (tmp_path / "benchmark" / "mine.yaml").write_text("defaults: [verifiable]\nname: mine\n")
    words = [
        "method=dpo", "init=pretrained", "optimizer.max_steps=1", "trainer.benchmark=mine", "trainer.samples=2",
        "trainer.best=samples/score", "trainer.sample_tokens=4", "optimizer.batch_size=8", "engine=ddp",
        "engine.num_processes=2", f"outputs='{tmp_path / 'o'}'", "tracking=off", "device=cpu",
    ]  # fmt: skip
    command = [sys.executable, str(CONF.parent / "src" / "train.py"), *words, f"--config-dir={tmp_path}"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    (run,) = read_runs(tmp_path / "o")
    assert run["best"]["metric"] == "samples/score"
    assert [row["score"] for row in read_jsonl(run.folder / "samples.jsonl")]


def test_results_of_another_identity_stand_beside_each_other(runs, monkeypatch):
    """Another generator, limit, seed or length: the run's own result stays as it was, to the last digit."""
    run = runs[0]
    words = runs_first([str(run), f"outputs='{run.parents[1]}'"])
    usual = evaluate(compose_evaluation(words))[str(run)]
    assert keys(run) == ["verifiable-checker"], "the usual settings have the short name"
    with chat_server(lambda request, number: chat("1")) as server:
        for other in (["benchmark.limit=3"], ["benchmark.seed=1"], ["generator.dtype=bfloat16"],
                      ["generator=openai", f"generator.base_url={server.base_url}", "generator.model=m"]):  # fmt: skip
            before = keys(run)
            result = evaluate(compose_evaluation([*words, *other]))[str(run)]
            assert len(keys(run)) == len(before) + 1, other
            assert result["identity"] != usual["identity"]
    assert json.loads((run / "record.json").read_text())["eval"]["verifiable-checker"] == usual
    assert len(read_jsonl(run / usual["samples"])) == usual["n"] == 6
    assert evaluate(compose_evaluation([*words, "generator.batch_tokens=4096"]))[str(run)] == usual, (
        "no other identity"
    )


def test_two_judges_of_one_name_are_two_evaluations(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test-123456")
    run, words = alpaca_setup(tmp_path)
    with (
        chat_server(fair_judge) as first,
        chat_server(lambda r, n: chat("m", top={"m": -1.0, "M": -1.0})) as second,
    ):
        results = [evaluate(compose_evaluation([*words, *http_judge(s)]))[str(run)] for s in (first, second)]
    assert len(keys(run)) == 2
    assert results[0]["win_rate"] != results[1]["win_rate"]
    assert results[0]["identity"]["judge"] != results[1]["identity"]["judge"]
    assert results[0]["identity"]["settings"] == results[1]["identity"]["settings"]


def test_evaluations_of_another_identity_are_not_compared(tmp_path):
    """The same key, another world: one of the runs answered other prompts."""
    outputs = tmp_path / "outputs"
    runs = [finished_run(outputs / "exp" / f"p{n}", prompts=n) for n in (6, 7)]
    evaluate(compose_evaluation(runs_first([*map(str, runs), f"outputs='{outputs}'"])))
    assert keys(runs[0]) == keys(runs[1])
    with pytest.raises(ValueError, match=r"different evaluations named verifiable-checker \(prompts"):
        compare_runs(runs, None)


def test_a_run_that_brings_code_says_so_before_it_runs(runs):
    text = (runs[0] / "config.yaml").read_text()
    assert "trust_remote_code: false" in text
    (runs[0] / "config.yaml").write_text(text.replace("trust_remote_code: false", "trust_remote_code: true"))
    with pytest.raises(ValueError, match="trust_remote_code=true"):
        evaluate(compose_evaluation(words_of(runs)))


def alpaca_file(file: Path, wins: int, models: tuple[str, ...] = ("ours",)) -> Path:
    rows = [
        {"instruction": f"i{n}", "output_1": "a b", "output_2": "a" * (n % 5 + 1), "generator_2": model,
         "preference": 1.9 if n < wins else 1.1, "annotator": "j"}
        for model in models for n in range(40)
    ]  # fmt: skip
    file.write_text(json.dumps(rows))
    return file


PLAIN = ["benchmark.difficulties=null", "benchmark.gamed=null"]


def test_published_alpaca_eval_files_are_scored_without_a_run(tmp_path, monkeypatch):
    """30 of 40 at 0.9 and 10 at 0.1: 70 %, discretely 75 %."""
    files = [alpaca_file(tmp_path / "a.json", 30), alpaca_file(tmp_path / "b.json", 10)]
    benchmark, results = score_files(files, None, ["benchmark=alpaca_eval", *PLAIN])
    first, second = results.values()
    assert (first["win_rate"], first["discrete_win_rate"]) == (pytest.approx(70.0), 75.0)
    assert second["win_rate"] == pytest.approx(30.0)
    assert first["lc_form"] == "plain"
    monkeypatch.setenv("COLUMNS", "200")
    shown = show(benchmark, results).console()
    assert "discrete win rate" in shown
    assert "70.00 ± " in shown


def test_a_file_of_two_models_needs_one_of_them(tmp_path):
    file = alpaca_file(tmp_path / "a.json", 30, ("one", "two"))
    with pytest.raises(ValueError, match="holds 2 models; choose one: one, two"):
        score_files([file], None, ["benchmark=alpaca_eval", *PLAIN])
    _, results = score_files([file], "two", ["benchmark=alpaca_eval", *PLAIN])
    assert results[str(file)]["n"] == 40
    with pytest.raises(ValueError, match="holds no model 'three'"):
        score_files([file], "three", ["benchmark=alpaca_eval", *PLAIN])


def test_fastchats_file_of_two_models_is_scored_and_recognised(tmp_path):
    """FastChat keeps all models' judgments in one file: 8 and 4 of one, an unparsable one of the other."""
    scores = {"vicuna": [8, 4] * 20, "alpaca": [3, 5] * 19 + [7, -1]}
    rows = [
        {"question_id": 81 + n // 2, "model": model, "turn": n % 2 + 1, "score": score, "judge": ["gpt-4", "p"]}
        for model, values in scores.items() for n, score in enumerate(values)
    ]  # fmt: skip
    file = tmp_path / "gpt-4_single.jsonl"
    write_jsonl(file, rows)
    with pytest.raises(ValueError, match="choose one: alpaca, vicuna"):
        score_files([file], None, [])
    benchmark, results = score_files([file], "vicuna", [])
    assert benchmark["name"] == "mt_bench"
    result = results[str(file)]
    assert (result["overall"], result["turn1"], result["turn2"], result["n"]) == (6.0, 8.0, 4.0, 20)
    other = score_files([file], "alpaca", [])[1][str(file)]
    assert other["overall"] == pytest.approx((4 * 38 + 7) / 39)
    assert other["unparsable"] == 1


def test_a_file_of_no_benchmark_is_said_so(tmp_path):
    (tmp_path / "x.json").write_text("[1]")
    with pytest.raises(ValueError, match="no benchmark's file of judgments"):
        score_files([tmp_path / "x.json"], None, [])


def test_an_evaluation_reaches_the_runs_wandb_run(runs, monkeypatch):
    """A real offline run of W&B is continued under its id, with the win rate and a table of samples."""
    import wandb

    monkeypatch.delenv("WANDB_MODE", raising=False)
    run = runs[0]
    settings = wandb.Settings(console="off", silent=True)
    first = wandb.init(mode="offline", id="abc123", dir=str(run), project="p", settings=settings)
    first.finish()
    record = json.loads((run / "record.json").read_text())
    record["tracker"] = {"id": "abc123", "mode": "offline", "folder": "wandb", "url": None}
    (run / "record.json").write_text(json.dumps(record))
    before = set(run.glob("wandb/offline-run-*"))
    result = evaluate(compose_evaluation(words_of(runs[:1])))[str(run)]
    (added,) = set(run.glob("wandb/offline-run-*")) - before
    assert added.name.endswith("abc123")
    (file,) = added.glob("*.wandb")
    assert b"score_mean" in file.read_bytes()
    told = [str(Path(sys.executable).parent / "wandb"), "leet", "inspect", "--json", str(file)]
    lines = map(json.loads, subprocess.run(told, capture_output=True, check=True).stdout.splitlines())
    (continued,) = [line["run"] for line in lines if line["type"] == "run"]
    assert (continued["run_id"], continued["project"]) == ("abc123", read_config(run).tracking.project)
    (table,) = added.rglob("*.table.json")
    assert len(json.loads(table.read_text())["data"]) == result["n"]
    assert math.isfinite(result["score_mean"])


def test_a_checkers_code_and_a_files_content_are_part_of_a_results_identity(
    monkeypatch, tmp_path: Path
) -> None:
    """Results of a changed checker, or over a changed baseline, are of another identity: no table mixes them."""
    classes = {yaml.safe_load(path.read_text()).get("class") for path in (CONF / "benchmark").glob("*.yaml")}
    checked = [made() for name in classes - {None} if (made := load_dotted(name)).decides == "checker"]
    assert {"Constraints", "Verifiable"} <= {type(benchmark).__name__ for benchmark in checked}
    before = [benchmark.settings() for benchmark in checked]
    read = Path.read_text
    changed = lambda path, *how: read(path, *how) + "# changed\n" * (path.name == "checker.py")  # noqa: E731
    with monkeypatch.context() as patched:
        patched.setattr(Path, "read_text", changed)
        after = [benchmark.settings() for benchmark in checked]
    assert all(one != other for one, other in zip(before, after, strict=True))
    assert before == [benchmark.settings() for benchmark in checked]

    rows, answers = tmp_path / "samples.jsonl", {"prompt_id": "a", "score": 1.0, "characters": 3}
    found = []
    for score in (1.0, 9.0):
        write_jsonl(rows, [{**answers, "score": score}])
        found.append(Verifiable(baseline=str(tmp_path)).settings())
    assert found[0] != found[1]
