"""The evaluation command: the verifiable benchmark, records, errors, generators beside transformers, lm-eval."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from omegaconf import OmegaConf

import evaluate as command
from evaluation_fixtures import finished_run
from killed_run import EVERY_SPOIL, SPOILS, spoiled
from lab.answers.generate import Generator
from lab.answers.prompts import Sample
from lab.benchmarks.benchmark import Subject
from lab.benchmarks.verifiable import Verifiable
from lab.evaluation.command import show
from lab.evaluation.evaluate import answer, evaluate, judge_samples, lengths, read_config, sample_rows
from lab.evaluation.settings import (
    EvaluateConfig,
    compose_evaluation,
    evaluation_errors,
    is_usual,
    runs_first,
)
from lab.judging.judges import Checker
from lab.report.cells import Repeats, read_metric
from lab.report.entries import number_entry
from lab.sampling.settings import model_of
from sgdpo.config.compose import compose_alone
from sgdpo.runs.records import RunView
from sgdpo.store import read_json, read_jsonl, write_jsonl
from sgdpo.world.checker import check
from sgdpo.world.verifiable import held_out_prompts, world_of

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """Write an experiment: an SFT start and two runs that began there."""
    outputs = tmp_path_factory.mktemp("outputs")
    finished_run(outputs / "exp" / "sft", prompts=12)
    finished_run(outputs / "exp" / "dpo", start="sft", seed=1, prompts=12)
    finished_run(outputs / "exp" / "sgdpo", start="sft", seed=2, prompts=12)
    return outputs


def composed(outputs: Path, *names: str, words: tuple[str, ...] = ()):
    folders = [str(outputs / "exp" / name) for name in names]
    short = [] if "benchmark=lm_eval" in words else ["benchmark.max_new_tokens=8"]
    settings = [f"outputs='{outputs}'", *short, *words]
    return compose_evaluation(runs_first([*folders, *settings]))


def key_of(result: dict) -> str:
    return Path(result["samples"]).parts[1]


class Scripted(Generator):
    """Answer each prompt with what a function of the prompt's text says."""

    def __init__(self, say):
        self.say = say

    def identity(self):
        return {"generator": repr(self.say)}

    def answers(self, prompts, sampling):
        yield [Sample(p.prompt_id, self.say(p.messages[-1]["content"]), 4, False) for p in prompts]


def test_runs_are_evaluated_against_their_start_and_the_result_is_in_the_record(runs):
    results = evaluate(composed(runs, "dpo", "sgdpo"))
    for name, result in zip(("dpo", "sgdpo"), results.values(), strict=True):
        folder = runs / "exp" / name
        assert json.loads((folder / "record.json").read_text())["eval"][key_of(result)] == result
        assert result["win_rate_low"] <= result["win_rate"] <= result["win_rate_high"]
        assert len(read_jsonl(folder / result["samples"])) == result["n"] == 12
    start = json.loads((runs / "exp" / "sft" / "record.json").read_text())["eval"][key_of(result)]
    assert start["win_rate"] is None, "the start has no start of its own"


def test_samples_and_judgments_agree_with_the_checker(runs):
    result = next(iter(evaluate(composed(runs, "dpo")).values()))
    folder = runs / "exp" / "dpo" / "eval" / key_of(result)
    tasks = {
        task.task_id: task
        for task in held_out_prompts(world_of(read_config(runs / "exp" / "dpo").data.settings["world"]))
    }
    theirs = {row["prompt_id"]: row for row in read_jsonl(runs / "exp" / "sft" / result["samples"])}
    samples = {row["prompt_id"]: row for row in read_jsonl(folder / "samples.jsonl")}
    for row in read_jsonl(folder / "judgments.jsonl"):
        key = row["prompt_id"]
        assert row["score"] == samples[key]["score"] == check(tasks[key], samples[key]["response"]).total
        difference = row["score"] - theirs[key]["score"]
        assert row["preference"] == (1.0 if difference > 0 else 0.0 if difference < 0 else 0.5)


def checked(generator: Generator, run: Path, folder: Path, **settings) -> dict:
    """Fold the benchmark over what a generator answers, as an evaluation does, without a trained model."""
    benchmark = Verifiable(subject=Subject("scripted", config=read_config(run)), **settings)
    prompts = benchmark.prompts()
    samples = answer(generator, prompts, benchmark.sampling(), folder)
    rows = [benchmark.row(judgment, "checker") for judgment in judge_samples(benchmark, samples, Checker())]
    write_jsonl(folder / "samples.jsonl", sample_rows(prompts, samples, rows))
    return {**benchmark.summarise(rows), **lengths(samples)}


def test_a_perfect_model_wins_and_the_numbers_are_what_they_say(runs, tmp_path):
    """Perfect answers score 10 and win every prompt over empty ones; over themselves they tie."""
    run = runs / "exp" / "dpo"
    ideal = {
        task.prompt: task.ideal
        for task in held_out_prompts(world_of(read_config(run).data.settings["world"]))
    }
    checked(Scripted(lambda text: ""), run, tmp_path / "empty", baseline=None)
    perfect = Scripted(ideal.__getitem__)
    result = checked(perfect, run, tmp_path / "ideal", baseline=str(tmp_path / "empty"))
    assert (result["score_mean"], result["score_se"], result["perfect"]) == (10.0, 0.0, 100.0)
    assert (result["win_rate"], result["win_rate_high"]) == (100.0, 100.0)
    assert 60 < result["win_rate_low"] < 90, "twelve wins leave doubt"
    assert "12 prompts are lost" in result["lc_form"]
    notes = " ".join(show({}, {"ideal": result}).facts)
    assert "12 prompts are lost" in notes, "why it has no LC rate"
    assert f"win rates are over {tmp_path / 'empty'}, not over the SFT start" in notes
    view = RunView(run, {"eval": {"checked": result}, "seed": 1}, "finished")
    entry = number_entry(Repeats([view]), read_metric("checked:lc_win_rate"), 2, [1], "checked")
    assert "12 prompts are lost" in entry.note
    assert result["characters_mean"] == pytest.approx(sum(map(len, ideal.values())) / len(ideal))
    tie = checked(perfect, run, tmp_path / "tie", baseline=str(tmp_path / "ideal"))
    assert tie["win_rate"] == 50.0


def test_a_baseline_of_other_prompts_is_refused_before_the_model_answers(runs, tmp_path):
    run = runs / "exp" / "dpo"
    checked(Scripted(lambda text: "x"), run, tmp_path / "few", baseline=None, limit=5)
    with pytest.raises(ValueError, match="no answer to 7 of 12 prompts"):
        checked(Generator(), run, tmp_path / "b", baseline=str(tmp_path / "few"))
    with pytest.raises(ValueError, match="no answers of the baseline"):
        checked(Generator(), run, tmp_path / "b", baseline=str(tmp_path / "none"))
    for wrong in ({"score": "9"}, {"score": None}, {"score": 11}, {"characters": "3"}, {"prompt_id": 1}):
        write_jsonl(tmp_path / "wrong", [{"prompt_id": "p", "score": 1.0, "characters": 3, **wrong}])
        with pytest.raises(ValueError, match="wrong, line 1: not a scored answer"):
            checked(Generator(), run, tmp_path / "b", baseline=str(tmp_path / "wrong"))


def test_a_run_of_other_data_is_named_before_the_first_is_evaluated(runs, tmp_path):
    other = finished_run(tmp_path / "exp" / "other")
    config = OmegaConf.load(other / "config.yaml")
    config.data.name, config.data.settings = "local", {}
    OmegaConf.save(config, other / "config.yaml")
    with pytest.raises(ValueError, match=r"other: benchmark=verifiable needs the world .*'local'"):
        evaluate(compose_evaluation(runs_first([str(runs / "exp" / "dpo"), str(other), "benchmark.seed=77"])))
    found = [read_json(file)["identity"]["settings"]["seed"] for file in (runs / "exp").rglob("result.json")]
    assert 77 not in found


def test_everything_wrong_is_said_at_once(runs):
    config = composed(
        runs, "dpo", "nowhere", words=("judge=openai", "judge.budget_dollars=1", "benchmark.top_p=2")
    )
    with pytest.raises(ValueError) as caught:  # noqa: PT011 the lines are checked below
        evaluate(config)
    lines = str(caught.value).splitlines()
    for words in (
        "nowhere is not a run",
        "judged by its checker",
        "budget_dollars needs price",
        "top_p must lie",
    ):
        assert [line for line in lines if words in line], words
    assert len(lines) == 4


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("benchmark=mt_bench",), "judge=checker judges nothing by itself"),
        (("benchmark=mt_bench", "judge=cached"), "judge.file=None is none"),
        (("benchmark=lm_eval",), "needs benchmark.tasks"),
        (("benchmark.limit=0",), "limit must be at least 1"),
        (("generator=file",), "path"),
        (
            ("benchmark=mt_bench", "judge=local", "+benchmark.weighted=false"),
            "benchmark.weighted is not a setting",
        ),
        (("benchmark=mt_bench", "judge=local", "+benchmark.temperature=0.5"), "temperature is not a setting"),
        (("benchmark.temperature=nan",), "benchmark.temperature must"),
        (("benchmark.limit=many",), "benchmark.limit='many' does not fit"),
        (("device=tpu",), "device must be auto, cpu or cuda"),
        (("device=cudas",), "device must be auto, cpu or cuda"),
        (("device='cuda:99'", "benchmark.seed=9"), "device=cuda:99, but . CUDA devices are visible"),
        (("generator=openai",), "base_url must look like"),
    ],
)
def test_settings_that_do_not_fit_are_refused(runs, words, message):
    with pytest.raises(ValueError, match=message):
        evaluate(composed(runs, "dpo", words=words))


def test_a_run_without_a_model_is_not_finished(runs, tmp_path):
    run = finished_run(tmp_path / "exp" / "half")
    (run / "model" / "config.json").unlink()
    with pytest.raises(ValueError, match="holds no model; it is not finished"):
        evaluate(compose_evaluation(runs_first([str(run)])))


@pytest.mark.parametrize("spoil", EVERY_SPOIL)
def test_weights_that_are_not_whole_are_neither_evaluated_nor_sampled_from(tmp_path, spoil):
    start = finished_run(tmp_path / "exp" / "start", seed=1)
    run = finished_run(tmp_path / "exp" / "run", start=start.name)
    for file in spoiled(run / "model", spoil):
        said = evaluation_errors(compose_evaluation([f"runs=['{run}']", f"cache={tmp_path}/cache"]))
        assert re.search(f"{file.name}|holds no model", "".join(said)), (file, said)
        with pytest.raises(ValueError, match=f"{file.name}|holds no model"):
            model_of(str(run), f"{tmp_path}/cache")
    SPOILS[spoil](start / "model" / "model.safetensors")
    with pytest.raises(ValueError, match=r"start has weights that are not whole .*model\.safetensors"):
        evaluate(composed(tmp_path, "run", words=(f"cache={tmp_path}/cache",)))


GROUPS = {
    name: sorted(file.stem for file in (ROOT / "conf" / name).glob("*.yaml"))
    for name in ("benchmark", "judge", "generator")
}


@pytest.mark.parametrize(
    ("group", "name"), [(group, name) for group, names in GROUPS.items() for name in names]
)
def test_every_option_composes_under_its_own_name_and_every_key_has_a_comment(group, name):
    config = compose_evaluation([f"{group}={name}"])
    assert getattr(config, group)["name"] == name
    assert is_usual(config) == (group != "generator" or name == "transformers"), (
        "its results have plain names"
    )
    lines = (ROOT / "conf" / group / f"{name}.yaml").read_text().splitlines()
    bare = [
        line for before, line in pairwise(lines) if ":" in line and line[0] not in "# " and before[0] != "#"
    ]
    assert not bare


@pytest.mark.parametrize("word", ["+typo=1", "benchmark.typo=1", "judge.key=sk-1"])
def test_unknown_keys_are_errors(word):
    with pytest.raises(Exception, match=r"typo|key"):
        compose_evaluation([word])


def test_run_folders_come_before_the_overrides_on_the_command_line(tmp_path):
    assert runs_first(["outputs/a/b,c=1", "x=1"]) == ["outputs/a/b,c=1", "x=1"], "an override stays one"
    words = ["out/a", "x=1", "--config-dir", "mine", "y=2", "--cfg", "job", "out/b"]
    assert runs_first(words) == [
        "--config-dir",
        "mine",
        "--cfg",
        "job",
        "x=1",
        "y=2",
        "runs=['out/a','out/b']",
    ]
    (there := tmp_path / "lr=1e-4").mkdir()
    config = compose_evaluation(
        runs_first(["out/a b", "out/it's", str(there), "benchmark=mt_bench", "judge=local"])
    )
    assert config.runs == ["out/a b", "out/it's", str(there)]


@pytest.mark.slow
def test_the_command_prints_a_table_and_leaves_nothing_beside_the_outputs(runs, tmp_path):
    """A real process, in an empty folder: exit code 0, a table, no folder of Hydra's."""
    command = [sys.executable, str(ROOT / "scripts" / "evaluate.py"), str(runs / "exp" / "sft")]
    done = subprocess.run(
        [*command, f"outputs='{runs}'", "benchmark.max_new_tokens=8"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "score" in done.stdout
    (folder,) = re.findall(r"^result    (.*)$", done.stdout, re.M)
    assert (Path(folder) / "result.json").is_file()
    assert "Loading weights" not in done.stderr, "one bar at a time, and that is ours"
    assert not list(tmp_path.iterdir())
    failed = subprocess.run([*command[:2], "nowhere"], cwd=tmp_path, capture_output=True, text=True)
    assert failed.returncode == 2
    assert failed.stderr.strip().splitlines()[-1].startswith("error: nowhere is not a run")


def test_a_missing_key_is_bad_input_and_nothing_is_begun(runs, monkeypatch, capsys):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    words = [f"runs=['{runs / 'exp' / 'dpo'}']", "benchmark=alpaca_eval", "judge=openai"]
    with pytest.raises(SystemExit) as ended:
        command.main(compose_alone("evaluate", EvaluateConfig, words))
    assert ended.value.code == 2
    assert "https://api.openai.com/v1 needs a key: export OPENAI_API_KEY" in capsys.readouterr().err


@pytest.mark.parametrize(("paid", "said"), [(0.0, "7 tokens"), (1.5, "7 tokens, 1.5000 dollars")])
def test_a_bill_without_prices_names_no_dollars_and_one_prompt_has_no_error(paid, said):
    cost = {"requests": 3, "prompt_tokens": 6, "completion_tokens": 1, "dollars": paid}
    alone = Verifiable().summarise([{"score": 10.0}])
    table = show({}, {"run": {**alone, "cost": cost}})
    assert table.facts == [f"run: 3 judgments paid for now, {said}"]
    assert [entry.text for entry in table.rows[0]] == ["run", "10.00", "0", "1"]


def test_files_of_one_name_are_told_apart():
    results = {f"results/{name}/annotations.json": {"score_mean": 1.0, "won_over": name} for name in "ab"}
    table = show({}, results)
    assert [row[0].text for row in table.rows] == ["a/annotations.json", "b/annotations.json"]
    assert [fact.split(":")[0] for fact in table.facts] == ["a/annotations.json", "b/annotations.json"]


def test_a_missing_number_is_a_dash():
    results = {
        "a": {"score_mean": 1.0, "score_se": 0.5, "win_rate": None},
        "b": {"score_mean": 2.0, "win_rate": 3.0},
    }
    table = show(compose_evaluation([]).benchmark, results).console()
    assert "1.00 ± 0.50" in table
    assert "–" in table
