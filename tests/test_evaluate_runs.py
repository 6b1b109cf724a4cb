"""The evaluation command: the verifiable benchmark, records, errors, generators beside transformers, lm-eval."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from evaluation_fixtures import finished_run
from lab.answers.generate import Generator
from lab.answers.prompts import Sample, Sampling
from lab.benchmarks.verifiable import judge_verifiable
from lab.evaluation.command import runs_first, show
from lab.evaluation.evaluate import evaluate, read_config
from lab.evaluation.settings import compose_evaluation
from sgdpo.store import read_jsonl
from sgdpo.world.checker import check
from sgdpo.world.verifiable import held_out_prompts

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
    settings = [f"outputs='{outputs}'", "benchmark.max_new_tokens=8", *words]
    return compose_evaluation(runs_first([*folders, *settings]))


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
        assert json.loads((folder / "record.json").read_text())["eval"]["verifiable-checker"] == result
        assert result["win_rate_low"] <= result["win_rate"] <= result["win_rate_high"]
        assert len(read_jsonl(folder / result["samples"])) == result["n"] == 12
    start = json.loads((runs / "exp" / "sft" / "record.json").read_text())["eval"]["verifiable-checker"]
    assert start["win_rate"] is None, "the start has no start of its own"


def test_samples_and_judgments_agree_with_the_checker(runs):
    evaluate(composed(runs, "dpo"))
    folder = runs / "exp" / "dpo" / "eval" / "verifiable-checker"
    tasks = {task.task_id: task for task in held_out_prompts(read_config(runs / "exp" / "dpo").data.world)}
    theirs = {
        row["prompt_id"]: row for row in read_jsonl(runs / "exp/sft/eval/verifiable-checker/samples.jsonl")
    }
    samples = {row["prompt_id"]: row for row in read_jsonl(folder / "samples.jsonl")}
    for row in read_jsonl(folder / "judgments.jsonl"):
        key = row["prompt_id"]
        assert row["score"] == samples[key]["score"] == check(tasks[key], samples[key]["response"]).total
        difference = row["score"] - theirs[key]["score"]
        assert row["preference"] == (1.0 if difference > 0 else 0.0 if difference < 0 else 0.5)


def test_a_perfect_model_wins_and_the_numbers_are_what_they_say(runs, tmp_path):
    """Perfect answers score 10 and win every prompt over empty ones; over themselves they tie."""
    data = read_config(runs / "exp" / "dpo").data
    ideal = {task.prompt: task.ideal for task in held_out_prompts(data.world)}
    settings = {"data": data, "sampling": Sampling(), "cache": tmp_path}
    judge_verifiable(Scripted(lambda text: ""), baseline=None, folder=tmp_path / "empty", **settings)
    perfect = Scripted(ideal.__getitem__)
    result = judge_verifiable(perfect, baseline=tmp_path / "empty", folder=tmp_path / "ideal", **settings)
    assert (result["score_mean"], result["score_se"], result["perfect"]) == (10.0, 0.0, 100.0)
    assert (result["win_rate"], result["win_rate_high"]) == (100.0, 100.0)
    assert 60 < result["win_rate_low"] < 90, "twelve wins leave doubt"
    assert result["characters_mean"] == pytest.approx(sum(map(len, ideal.values())) / len(ideal))
    tie = judge_verifiable(perfect, baseline=tmp_path / "ideal", folder=tmp_path / "tie", **settings)
    assert tie["win_rate"] == 50.0


def test_a_baseline_of_other_prompts_is_refused_before_the_model_answers(runs, tmp_path):
    data = read_config(runs / "exp" / "dpo").data
    settings = {"data": data, "sampling": Sampling(), "cache": tmp_path}
    judge_verifiable(Scripted(lambda text: "x"), baseline=None, folder=tmp_path / "few", limit=5, **settings)
    with pytest.raises(ValueError, match="no answer to 7 of 12 prompts"):
        judge_verifiable(None, baseline=tmp_path / "few", folder=tmp_path / "b", **settings)
    with pytest.raises(ValueError, match="no answers of the baseline"):
        judge_verifiable(None, baseline=tmp_path / "none", folder=tmp_path / "b", **settings)


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
        (("benchmark=mt_bench",), "judge=checker knows only benchmark=verifiable"),
        (("benchmark=mt_bench", "judge=cached"), "judge.file=None is none"),
        (("benchmark=lm_eval",), "needs benchmark.tasks"),
        (("benchmark.limit=0",), "limit must be 1 or more"),
        (("generator=file",), "generator.path=None is none"),
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


GROUPS = {
    name: sorted(file.stem for file in (ROOT / "conf" / name).glob("*.yaml"))
    for name in ("benchmark", "judge", "generator")
}


@pytest.mark.parametrize(
    ("group", "name"), [(group, name) for group, names in GROUPS.items() for name in names]
)
def test_every_option_composes_under_its_own_name_and_every_key_has_a_comment(group, name):
    found = getattr(compose_evaluation([f"{group}={name}"]), group)
    assert (found["name"] if isinstance(found, dict) else found.name) == name
    lines = (ROOT / "conf" / group / f"{name}.yaml").read_text().splitlines()
    bare = [line for before, line in pairwise(lines) if ":" in line and line[0] != "#" and before[0] != "#"]
    assert not bare


@pytest.mark.parametrize("word", ["+typo=1", "benchmark.typo=1", "judge.key=sk-1", "benchmark.limit=many"])
def test_unknown_keys_and_wrong_types_are_errors(word):
    with pytest.raises(Exception, match=r"typo|key|many"):
        compose_evaluation([word])


def test_run_folders_come_before_the_overrides_on_the_command_line():
    assert runs_first(["outputs/a/b,c=1", "x=1"]) == ["outputs/a/b,c=1", "x=1"], "an override stays one"
    config = compose_evaluation(runs_first(["out/a b", "out/it's", "benchmark=mt_bench", "judge=local"]))
    assert config.runs == ["out/a b", "out/it's"]


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
    assert not list(tmp_path.iterdir())
    failed = subprocess.run([*command[:2], "nowhere"], cwd=tmp_path, capture_output=True, text=True)
    assert failed.returncode == 1
    assert failed.stderr.strip().splitlines()[-1].startswith("error: nowhere is not a run")


def test_a_missing_number_is_a_dash():
    table = show(
        {
            "a": {"score_mean": 1.0, "score_se": 0.5, "win_rate": None},
            "b": {"score_mean": 2.0, "win_rate": 3.0},
        }
    )
    assert "1.00 ± 0.50" in table
    assert "–" in table
