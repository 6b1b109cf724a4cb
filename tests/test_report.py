"""The commands: every target of `make`, tables and figures by name, and what a reproduction runs in which order."""

from __future__ import annotations

import json
import os
import re
import runpy
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from lab.evaluation.settings import build_benchmark, compose_evaluation
from lab.report.exhibit import exhibit_names, find_exhibit, make, publish
from lab.reproduce import (
    Options,
    before_commands,
    judge_command,
    make_commands,
    option_errors,
    reproduce,
    runs_to_judge,
    train_command,
)
from report_fixtures import build, grid_runs, table3_runs, write_run
from sgdpo.runs.records import amend_record, read_runs

ROOT = Path(__file__).parents[1]
EXHIBITS = exhibit_names()


def make_targets() -> list[str]:
    return re.findall(r"^([a-zA-Z0-9_-]+):.*## ", (ROOT / "Makefile").read_text(), re.M) + exhibit_names()


def make_dry(*arguments: str) -> str:
    command = ["make", "-n", "--no-print-directory", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("target", make_targets())
def test_make_can_plan_every_target(target):
    """`make -n` expands every recipe; the scripts that it names must exist."""
    scripts = re.findall(r"((?:scripts|src)/\w+\.py)", make_dry(target))
    assert all((ROOT / script).is_file() for script in scripts)


def test_every_target_of_the_reproduction_is_a_target_of_make():
    assert {*EXHIBITS, "paper", "report", "publish", "sync", "wandb-views"} <= set(make_targets())


def test_make_hands_its_variables_on():
    planned = make_dry(
        "table3", "SCALE=smollm2", "SEEDS=3", "DRY_RUN=1", "JUDGE=local", "ARGS=optimizer.lr=1e-6"
    )
    for part in ("--scale smollm2", "--seeds 3", "--dry-run", "--judge local", "table3 optimizer.lr=1e-6"):
        assert part in planned
    assert "--metric eval/loss" in make_dry("results", "METRIC=eval/loss")
    assert "--metric" not in make_dry("results")
    searched = make_dry("search", "SPACE=seed=range(0,9) optimizer.lr=interval(1e-5,1e-4)", "N_JOBS=2")
    assert '"seed=range(0,9)" "optimizer.lr=interval(1e-5,1e-4)" n_jobs=2 ' in searched


def test_the_sweep_command_names_models_seeds_and_experiment():
    """Table 4 times one model, one cell at a time, whatever N_JOBS says."""
    options = Options("table3", seeds=3, n_jobs=2, arguments=("optimizer.lr=1e-5",))
    command = train_command(find_exhibit("table3"), options)
    assert command[:2] == ["src/train.py", "sweep=table3"]
    for part in ("model=tiny_llama,tiny_qwen2", "seed=42,43,44", "n_jobs=2", "optimizer.lr=1e-5"):
        assert part in command
    timed = train_command(find_exhibit("table4"), Options("table4", n_jobs=2))
    assert "n_jobs=1" in timed
    assert "model=tiny_llama" in timed


def test_other_scales_keep_their_own_experiments_and_rows():
    options = Options("table3", scale="smollm2", train_rows="rows.parquet")
    command = train_command(find_exhibit("table3"), options)
    assert "experiment=table3-smollm2" in command
    assert {"data=local", "data.train=rows.parquet", "precision=bf16"} <= set(command)
    assert "data=ultrafeedback" not in command
    assert "table3-smollm2" in make_commands(find_exhibit("table3"), options)[0]


def test_a_reproduction_trains_judges_and_makes_in_this_order(tmp_path):
    table3_runs(tmp_path)
    write_run(tmp_path, "table3", "nca", evaluated=False)
    ran = []
    assert reproduce(Options("table3", outputs=str(tmp_path)), lambda command: ran.append(command) or 0) == 0
    assert [command[0] for command in ran] == ["src/train.py", "scripts/evaluate.py", "scripts/exhibit.py"]
    judged = [part for part in ran[1] if str(tmp_path) in part and "=" not in part]
    assert judged == [str(tmp_path / "table3" / "nca-tiny_llama-verifiable-lr2e-05-s42")], (
        "only what is missing"
    )


@pytest.mark.parametrize("name", [name for name in EXHIBITS if find_exhibit(name).judged is True])
def test_an_exhibit_shows_the_results_that_were_asked_for_where_there_are_others(name, tmp_path):
    """The usual ones, and those of a changed setting, each with the win rates of its own."""
    table3_runs(tmp_path)
    options = Options(name, outputs=str(tmp_path), arguments=("benchmark.limit=7",))
    exhibit = replace(find_exhibit(name), experiment="table3")
    identity = {
        "benchmark": "verifiable",
        "generator": {"generator": "transformers", "dtype": "float32", "long_prompts": "cut"},
        "settings": build_benchmark(compose_evaluation(["benchmark.limit=7"])).settings(),
    }
    for run in read_runs(tmp_path):
        for result in (run["eval"] or {}).values():
            changed = {**result, "identity": identity, "judge": "checker"}
            amend_record(run.folder, eval={"verifiable-checker-7": changed})
    asked = {changed: replace(options, arguments=options.arguments * changed) for changed in (False, True)}
    assert [runs_to_judge(exhibit, one) for one in asked.values()] == [[], []]
    keys = [make_commands(exhibit, one)[0][-1] for one in asked.values()]
    assert keys == ["evaluation=verifiable-checker", "evaluation=verifiable-checker-7"]
    for key in keys:
        assert make(find_exhibit(name, [key]), tmp_path, "table3")[0]
    # One result of the benchmark beside one of another: it is the asked one that is shown.
    for run in read_runs(tmp_path):
        both = {key.replace("-7", "-8").replace("verifiable-checker-8", "alpaca_eval-judge"): result
                for key, result in (run["eval"] or {}).items()}  # fmt: skip
        (run.folder / "record.json").write_text(json.dumps({**run.record, "eval": both}))
    assert make_commands(exhibit, options)[0][-1] == "evaluation=verifiable-checker"


def test_what_was_asked_for_is_the_command_that_the_results_name(tmp_path):
    """Through the script that makes it: other models, rows and settings are not lost on the way."""
    table3_runs(tmp_path)
    asked = Options(
        "table3", models=("tiny_llama",), outputs=str(tmp_path), arguments=("optimizer.lr=1e-5", "seed=1,2")
    )
    (command,) = make_commands(find_exhibit("table3"), asked)
    runpy.run_path(str(ROOT / command[0]))["main"](command[1:])
    said = "make table3 MODELS=tiny_llama 'ARGS=optimizer.lr=1e-5 seed=1,2'"
    assert json.loads((tmp_path / "table3" / "table3.json").read_text())["origin"]["command"] == said
    publish(tmp_path)
    assert f"`{said}`" in (tmp_path / "published" / "RESULTS.md").read_text()


def test_a_failed_cell_does_not_keep_the_table_from_being_made(tmp_path):
    table3_runs(tmp_path)
    ran = []
    code = reproduce(Options("table3", outputs=str(tmp_path)), lambda command: ran.append(command[0]) or 1)
    assert code == 1
    assert ran[-1] == "scripts/exhibit.py"


def test_a_dry_run_trains_nothing_and_says_what_would_follow(tmp_path, capsys):
    ran = []
    reproduce(
        Options("table1", dry_run=True, outputs=str(tmp_path)), lambda command: ran.append(command) or 0
    )
    assert len(ran) == 1
    assert "dry_run=true" in ran[0]
    said = capsys.readouterr().out
    assert "then: python scripts/evaluate.py RUN..." in said
    assert "exhibit.py ratio_grid" in said


def test_sft_runs_are_judged_first_as_the_others_are_compared_with_them(tmp_path):
    for method in ("dpo", "sft", "bco"):
        write_run(tmp_path, "table3", method, evaluated=False)
    order = [
        Path(run).name.split("-")[0]
        for run in runs_to_judge(find_exhibit("table3"), Options("t", outputs=str(tmp_path)))
    ]
    assert order == ["sft", "bco", "dpo"]


def test_a_judge_without_its_key_is_named_before_anything_trains(tmp_path, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    far = ("judge.base_url=https://judge.invalid/v1", "judge.model=m")
    options = Options(
        "figure1", judge="openai", benchmark="alpaca_eval", outputs=str(tmp_path), arguments=far
    )
    with pytest.raises(ValueError, match="needs a key: export OPENAI_API_KEY"):
        reproduce(options, pytest.fail)
    with pytest.raises(ValueError, match="finished run with ratios"):
        reproduce(
            replace(options, judge="openai", arguments=(*far, "judge.key_variable=HOME")), lambda command: 0
        )


def test_figure1_judges_one_run_of_table3_twice(tmp_path):
    write_run(tmp_path, "table3", "dpo")
    ran = []
    # A judge that needs no package: `make judge` need not have run here.
    served = ("judge.base_url=http://127.0.0.1:9/v1", "judge.model=m", "judge.key_variable=''")
    options = Options(
        "figure1", judge="openai", benchmark="alpaca_eval", outputs=str(tmp_path), arguments=served
    )
    with pytest.raises(ValueError, match="finished run with ratios of table3"):
        reproduce(options, lambda command: ran.append(command) or 0)
    folder = write_run(tmp_path, "table3", "sgdpo", ratio=(0.6, 0.9))
    reproduce(options, lambda command: ran.append(command) or 0)
    twice, drawn = ran[-2:]
    assert twice[:3] == ["scripts/judge_variance.py", str(folder), "judge=openai"]
    assert "benchmark.limit=20" in twice
    assert twice[-1] == f"{tmp_path}/figure1/judge_variance.json"
    assert drawn[:2] == ["scripts/exhibit.py", "figure1"]
    assert drawn[-1] == f"data={tmp_path}/figure1/judge_variance.json"
    assert reproduce(options, lambda command: ran.append(command) or int("variance" in command[0])) == 1
    assert ran[-1] == twice  # nothing is drawn of what was not measured


def test_paper_goes_on_after_a_failure_and_names_it(tmp_path, capsys):
    def call(command):
        return int(command[0] == "src/train.py" and "sweep=table4" in command)

    options = Options("paper", judge="local", outputs=str(tmp_path), arguments=("optimizer.max_steps=5",))
    assert reproduce(options, call) == 1
    assert "not complete: table4, figure1" in capsys.readouterr().out


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel ends orphans on Linux")
def test_a_killed_reproduction_leaves_no_sweep_behind(tmp_path):
    note, sweep = tmp_path / "pid", tmp_path / "sweep.py"
    sweep.write_text(
        f"import os, pathlib, time\npathlib.Path({str(note)!r}).write_text(f'{{os.getpid()}}\\n')\ntime.sleep(60)\n"
    )
    code = f"from lab.reproduce import call_python; call_python([{str(sweep)!r}])"
    with subprocess.Popen(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT / "src")}
    ) as parent:
        wait_until(lambda: note.is_file() and note.read_text().endswith("\n"))
        parent.kill()
    wait_until(lambda: not Path(f"/proc/{note.read_text().strip()}").exists())


def test_ctrl_c_waits_until_the_command_has_cleaned_up(tmp_path):
    """A sweep that is told to end cancels its jobs of a queue, which takes seconds."""
    note, sweep = tmp_path / "note", tmp_path / "sweep.py"
    sweep.write_text(
        f"import pathlib, time\nnote = pathlib.Path({str(note)!r})\ntry:\n    note.touch()\n    time.sleep(60)\n"
        "except KeyboardInterrupt:\n    time.sleep(0.6)\n    note.write_text('cancelled')\n"
    )
    code = f"from lab.reproduce import call_python; call_python([{str(sweep)!r}])"
    with subprocess.Popen(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT / "src")}, start_new_session=True,
        stderr=subprocess.DEVNULL, preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    ) as parent:  # fmt: skip
        wait_until(note.is_file)
        os.killpg(parent.pid, signal.SIGINT)
    assert note.read_text() == "cancelled"


def test_a_folder_with_a_space_is_one_word_of_what_comes_before():
    options = Options("smollm2-ultrafeedback", outputs="my runs")
    assert before_commands(find_exhibit(options.target), options) == [
        ["scripts/smollm2.py", "--cache", "my runs/cache"]
    ]


def wait_until(holds, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def test_wrong_options_are_named_together():
    errors = option_errors(Options("tabel3", scale="huge", seeds=0))
    assert len(errors) == 3


@pytest.mark.parametrize(
    ("target", "changes", "said"),
    [
        ("table3", {"judge": "nope", "benchmark": "mt_bench"}, "judge=nope"),
        (
            "table3",
            {"judge": "openai"},
            "JUDGE=openai: table3 is judged by benchmark=verifiable judge=checker",
        ),
        ("league", {"benchmark": "verifiable"}, "BENCHMARK=verifiable: league is judged by"),
        ("study1", {"models": ("tiny_qwen2",)}, "MODELS=tiny_qwen2: study1 has models of its own"),
        ("study1", {"seeds": 2}, "SEEDS=2: study1 takes 5 or more"),
        ("table2", {"seeds": 3}, "SEEDS=3: nothing is trained for table2"),
        ("constraints", {"scale": "smollm2"}, "SCALE=smollm2: constraints has models and data of its own"),
        (
            "table3",
            {"benchmark": "constraints"},
            "BENCHMARK=constraints: table3 shows alpaca_eval or verifiable",
        ),
        (
            "league",
            {"scale": "smollm2"},
            "needs the world of data=verifiable; the run's data is 'ultrafeedback'",
        ),
        ("table3", {"benchmark": "nope"}, "benchmark=nope"),
        ("figure1", {"judge": "nope"}, "judge=nope"),
        ("table3", {"evaluation": "nope"}, "EVALUATION is 'nope'"),
        ("table3", {"test_rows": "x.jsonl"}, "TEST_ROWS=x.jsonl: held-out rows go with rows to train on"),
        ("table3", {"arguments": ("sample.data.limit=5",)}, "ARGS=sample.data.limit=5: nothing that is done"),
        ("figure2", {"arguments": ("seed=1", "judge.budget=5")}, "ARGS=judge.budget=5: nothing that is done"),
        ("table2", {"arguments": ("optimizer.lr=1e-4",)}, "ARGS=optimizer.lr=1e-4: nothing that is done"),
        ("table3", {"arguments": ("benchmark.limit=0",)}, "benchmark.limit"),
        ("table3", {"arguments": ("benchmark.limit_=1",)}, "limit_"),
        ("table3", {"benchmark": "mt_bench", "arguments": ("benchmark.folder=nowhere",)}, "nowhere"),
        (
            "table3",
            {"benchmark": "alpaca_eval", "arguments": ("benchmark.gamed=nowhere.csv",)},
            "nowhere.csv",
        ),
    ],
)
def test_a_wrong_judge_is_found_before_anything_is_trained_in_a_dry_run_too(tmp_path, target, changes, said):
    """The class: whatever the judging would refuse later is refused first."""
    ran = []
    for dry_run in (True, False):
        options = Options(target, outputs=str(tmp_path), dry_run=dry_run, **changes)
        with pytest.raises(ValueError, match=said):
            reproduce(options, lambda command: ran.append(command) or 0)
    assert ran == []


def test_settings_of_the_judge_reach_the_judge_and_the_others_the_training():
    arguments = ("optimizer.lr=1e-5", "judge.budget_dollars=20", "judge.price_prompt=10")
    options = Options("table3", judge="openai", benchmark="mt_bench", arguments=arguments)
    table3 = find_exhibit("table3")
    train, judge = train_command(table3, options), judge_command(table3, options, ["RUN"])
    assert [part in train for part in arguments] == [True, False, False]
    assert [part in judge for part in arguments] == [False, True, True]


def test_an_unknown_target_and_scale_list_what_there_is():
    errors = option_errors(Options("tabel3", scale="huge", seeds=0))
    assert "table3" in errors[0]
    assert "smollm2" in errors[1]


@pytest.mark.parametrize("name", ["table1", "table3", "table4", "figure3", "ratio_grid", "balance"])
def test_every_table_and_figure_is_made_by_name(name, tmp_path):
    table3_runs(tmp_path)
    grid_runs(tmp_path, seeds=(42,))
    experiment = "table3" if name == "table4" else None
    paths, said = build(name, tmp_path, experiment)
    assert paths
    assert all(path.is_file() for path in paths)
    assert said


def script(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "scripts" / arguments[0]), *arguments[1:]]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)


def test_no_records_yet_names_the_command_and_the_exit_code_is_not_0(tmp_path):
    done = script("exhibit.py", "table3", "--outputs", str(tmp_path))
    assert done.returncode == 2
    assert "make table3" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_experiment_that_does_not_exist_lists_those_that_do(tmp_path):
    write_run(tmp_path, "mine", "dpo")
    done = script("exhibit.py", "figure2", "--outputs", str(tmp_path), "--experiment", "mein")
    assert done.returncode == 2
    assert "'mein'" in done.stderr
    assert "there: mine" in done.stderr


def test_a_metric_that_no_run_has_is_an_error_and_one_that_some_lack_is_a_dash(tmp_path):
    grid_runs(tmp_path, seeds=(42,))
    for name in ("ratio_grid", "table1"):
        for metric in ("eval/rewards/typo", "verifiable-checker:samples"):
            with pytest.raises(ValueError, match=metric):
                build(name, tmp_path, None, f"metric={metric}")
    write_run(tmp_path, "table1", "sgdpo", "tiny_qwen2", ratio=(0.6, 0.9), evaluated=False)
    _, said = build("table1", tmp_path)
    assert "no ratio has verifiable-checker:win_rate on every seed" in said
