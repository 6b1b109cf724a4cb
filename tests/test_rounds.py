"""Rounds on a policy's own answers: each a run of its own, from where and against what was asked; a chain goes on."""

from __future__ import annotations

import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from evaluation_fixtures import finished_run
from lab.report.exhibit import find_exhibit
from lab.report.rounds import rounds
from lab.sampling.rounds import Chain
from report_fixtures import write_run
from sgdpo.config.compose import compose_run, to_run_config
from sgdpo.runs.records import read_runs, view_run
from sgdpo.runs.untrained import untrained
from sgdpo.runs.validate import config_errors, run_errors
from sgdpo.store import read_json, write_json

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> Path:
    return finished_run(tmp_path_factory.mktemp("first") / "exp" / "start") / "model"


def words(start: Path, outputs: Path, *more: str) -> list[str]:
    """Two rounds of two steps of DPO for a model that is there already."""
    return [
        "rounds=2", "method=dpo", "model=local", f"model.path='{start}'", "data=verifiable", "tracking=off",
        "device=cpu", "optimizer.lr=1e-3", "optimizer.batch_size=3", "optimizer.max_steps=2",
        f"outputs='{outputs}'", "sample.data.limit=12", "sample.splits=train",
        "sample.scorer=verifiable", "sample.temperature=1.0", "sample.max_new_tokens=12",
        "evaluate.benchmark=verifiable", "evaluate.benchmark.baseline=null", "evaluate.benchmark.max_new_tokens=8",
        "evaluate.benchmark.limit=5",
        *more,
    ]  # fmt: skip


def test_a_start_has_the_seed_that_was_given_and_none_is_made_before_all_are_sound(start, tmp_path) -> None:
    main = runpy.run_path(str(ROOT / "scripts" / "start.py"))["main"]
    given = ["model=local", f"model.path='{start}'", "data=verifiable", "tracking=off", "device=cpu",
             f"outputs='{tmp_path / 'o'}'"]  # fmt: skip
    for wrong in (["--seeds", "1,4294967296"], ["--seeds", "1", "seed=2"]):
        with pytest.raises(SystemExit):
            main([*given, *wrong])
        assert read_runs(tmp_path / "o") == []
    with pytest.raises(ValueError, match="nothing to plan"):
        main([*given, "dry_run=true"])
    main([*given, "seed=7"])
    main([*given, "--seeds", "8,9"])
    assert [run["seed"] for run in read_runs(tmp_path / "o")] == [7, 8, 9]


def test_runs_that_only_train_otherwise_stand_on_one_start(start, tmp_path) -> None:
    """The chains of two methods at rates of their own once made two starts, which a table refuses as one cell."""
    given = [*words(start, tmp_path)[2:], "init=pretrained"]
    given = [word for word in given if not word.startswith(("sample.", "evaluate."))]
    ways = (
        ["method=sgdpo", "optimizer.lr=8e-5"],
        ["method=dpo", "optimizer.lr=2e-5", "optimizer.max_steps=3"],
        ["method=dpo", "adapter=lora", "label=wide"],
        ["method=simpo", "trainer.layout=separate", "trainer.best=eval/loss"],
        ["method=dpo", "engine=ddp"],
    )
    made = {untrained(to_run_config(compose_run([*given, *way]))) for way in ways}
    assert len(made) == 1
    assert untrained(to_run_config(compose_run([*given, "method=dpo", "seed=7"]))) not in made


def test_a_method_of_which_no_round_is_judged_yet_has_no_curve(tmp_path: Path) -> None:
    for method, judged in (("dpo", True), ("bco", False)):
        folder = write_run(tmp_path, "rounds", method, evaluated=judged)
        write_json(folder / "record.json", read_json(folder / "record.json") | {"round": {"number": 1}})
    table, picture = rounds(read_runs(tmp_path, "rounds"), **find_exhibit("rounds").settings)
    assert [row[0].text for row in table.rows] == ["BCO", "BCO", "DPO", "DPO"]
    assert [text.get_text() for text in picture.figure.axes[0].texts] == ["DPO"]


def test_rounds_of_sft_are_no_starts_and_a_broken_record_is_named(tmp_path: Path) -> None:
    write_run(tmp_path, "rounds", "sft")
    folder = write_run(tmp_path, "rounds", "sft", lr=1e-3, quality=60.0)
    write_json(folder / "record.json", read_json(folder / "record.json") | {"round": {"number": 1}})
    (write_run(tmp_path, "rounds", "dpo") / "record.json").write_text("{")
    table, _ = rounds(read_runs(tmp_path, "rounds"), **find_exhibit("rounds").settings)
    assert [(row[1].text, row[2].value) for row in table.rows] == [("start", 5.0), ("1", 6.0)]
    assert "Left out, unreadable record: rounds/dpo-" in "\n".join(table.facts)


def test_each_round_answers_with_the_last_policy_and_a_chain_goes_on_where_it_was(
    start, tmp_path, monkeypatch
) -> None:
    """The second start of the chain, after one round, trains one run more; the third none. Its model is the hub's."""
    kept = tmp_path / "models--org--name"
    start = shutil.copytree(start, kept / "snapshots" / ("0" * 40))
    (kept / "refs").mkdir()
    (kept / "refs" / "main").write_text(start.name)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    given = words(Path("org/name"), tmp_path / "o", "refer_to=first", "model.trust_remote_code=true")
    chain = Chain.of(given)
    steps = chain.go()
    begun, first = next(steps), next(steps)
    steps.close()  # the chain ends after its first round
    before = Path(first[0], "record.json").read_bytes()
    results = dict(Chain.of(given).go())
    assert list(results)[:2] == [begun[0], first[0]]
    assert Path(first[0], "record.json").read_bytes() == before
    assert len(results) == 3
    assert all(0 <= result["score_mean"] <= 10 for result in results.values())
    views = [view_run(Path(folder)) for folder in results]
    assert [view["steps"] for view in views] == [0, 2, 2]
    assert (Path(begun[0]) / "model").resolve() == start.resolve()
    second = views[2]["settings"]
    assert second["model"]["path"] == str(Path(first[0]) / "model")
    assert second["reference_weights"] == str(start)
    assert "reference_weights" not in views[1]["settings"], "the first round's reference is its own start"
    pairs = [
        read_json(Path(view["settings"]["data"]["settings"]["folder"]) / "pairs.json") for view in views[1:]
    ]
    assert pairs[0]["identity"]["generator"]["weights"] != pairs[1]["identity"]["generator"]["weights"]
    metrics = views[2].metrics()
    assert metrics[0]["rewards/margins"] != 0, "against the first policy the second round begins away from 0"
    assert [view["round"] and view["round"]["number"] for view in views] == [None, 1, 2]
    table, picture = rounds(views, benchmarks=("verifiable",), metrics={"score": "score_mean"})
    assert [(row[1].text, row[2].value) for row in table.rows] == [
        (number, result["score_mean"])
        for number, result in zip(("start", "1", "2"), results.values(), strict=True)
    ]
    assert picture.figure.axes
    records = {folder: Path(folder, "record.json").read_bytes() for folder in results}
    assert list(dict(Chain.of(given).go())) == list(results)
    assert {folder: Path(folder, "record.json").read_bytes() for folder in results} == records


def test_every_round_may_begin_at_the_first_policy_with_prompts_of_its_own(start, tmp_path) -> None:
    more = ["begin_from=first", "refer_to=first", "prompts=parts", "sample.data.limit=40", "method=simpo"]
    results = dict(Chain.of(words(start, tmp_path / "o", *more)).go())
    views = [view_run(Path(folder)) for folder in results][1:]
    assert {view["settings"]["model"]["path"] for view in views} == {str(start)}
    pairs = [read_json(Path(view["settings"]["data"]["settings"]["folder"]) / "pairs.json") for view in views]
    assert [each["splits"]["train"]["prompts"] for each in pairs] == [20, 20]
    assert pairs[0]["identity"]["prompts"] != pairs[1]["identity"]["prompts"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["rounds=0"], "rounds must be at least 1, not 0"),
        (["begin_from=last"], "begin_from must be one of previous, first, not 'last'"),
        (["sample.scorer=constraints"], "is no instruction"),
        (["data=local", "data.train={file}"], "has no prompts: it needs the column prompt"),
        (["sample.answers=1"], "answers must be at least 2"),
        (["sample.generator=openai", "sample.generator.base_url=https://a/v1", "sample.generator.model=m"],
         "answers for another model than the rounds train"),
        (["method=simpo", "refer_to=first"], "method=simpo has no reference"),
        (["model.path=no/such/place"], "model.path=no/such/place does not exist"),
        (["evaluate.benchmark=alpaca_eval"], "judge=checker judges nothing by itself"),
        (["evaluate.benchmark=alpaca_eval", "evaluate.benchmark.baseline=hub:a/b/c", "evaluate.judge=openai"],
         "needs a key: export OPENAI_API_KEY"),
        (["sample.scorer=judge", "sample.judge=openai"], "needs a key: export OPENAI_API_KEY"),
        (["data=constraints", "sample.scorer=constraints"],
         "evaluate.benchmark=verifiable needs the world of data=verifiable; the run's data is 'constraints'"),
        (["model=tiny_llama", "model.path=null", "sample.scorer=constraints"], "is no instruction"),
        (["model=tiny_llama", "model.path=null", "init=pretrained"], "is random before it is trained: take init=sft"),
        (["prompts=parts", "rounds=13"], "12 train prompts cannot be divided into 13 parts"),
        (["dry_run=true"], "nothing can be planned before there are pairs"),
        (["trainer.best=eval/nonsense"], "is no metric of this run"),
        (["evaluate.benchmark=alpaca_eval", "evaluate.benchmark.baseline=hub:a/b/c", "evaluate.judge=openai",
          "evaluate.judge.base_url=https://a/v1", "evaluate.judge.model=m", "evaluate.judge.key_variable=NO_KEY"],
         "https://a/v1 needs a key: export NO_KEY"),
        (["trainer.best=eval/loss", "trainer.benchmark=verifiable", "adapter=lora"],
         "trainer.best=eval/loss and trainer.benchmark=verifiable: evaluations need held-out pairs, and "
         "sample.splits=train makes none; take sample.splits=both\n"
         "adapter=lora: a round leaves an adapter, and the next one goes on from whole weights"),
        *[([word], f"leave {word.split('=')[0]} out: every round has its own")
          for word in ("sample.policy=other", "sample.into=x", "sample.part=1", "sample.parts=2", "evaluate.runs=[a]")],
    ],
)  # fmt: skip
def test_bad_rounds_are_refused_before_the_first(start, tmp_path, monkeypatch, change, message) -> None:
    """A scorer that cannot score such prompts is found before anything is answered."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    file = tmp_path / "rows.jsonl"
    file.write_text('{"text": "no prompt"}\n')
    given = words(start, tmp_path / "o", *[word.format(file=f"'{file}'") for word in change])
    with pytest.raises(ValueError, match=re.escape(message)):
        list(Chain.of(given).go())
    assert not list((tmp_path / "o").rglob("generations/*.jsonl"))
    assert not read_runs(tmp_path / "o")


def test_the_prompts_are_the_runs_data_whether_it_is_named_or_not(start, tmp_path) -> None:
    given = [word for word in words(start, tmp_path) if word != "data=verifiable"]
    chain = Chain.of([*given, "++data.limit=7", f"++cache='{tmp_path / 'c'}'"])
    assert chain.sampling.data.name == chain.run.data.name == "verifiable"
    assert chain.run.data.limit == 7
    assert {each.cache for each in (chain.run, chain.sampling, chain.evaluation)} == {str(tmp_path / "c")}


def test_a_reference_of_other_weights_is_checked_and_has_a_place_in_the_identity(
    start, tmp_path, monkeypatch
) -> None:
    from sgdpo.runs.run import Run

    given = [
        "model=local",
        f"model.path='{start}'",
        "data=verifiable",
        f"outputs='{tmp_path}'",
        "tracking=off",
    ]
    bad = {
        f"reference_weights='{tmp_path}'": "holds no weights",
        f"reference_weights='{start}' method=simpo": "method=simpo takes no reference",
    }
    for word, message in bad.items():
        assert any(message in error for error in config_errors(compose_run([*given, *word.split()]))), message
    broken = tmp_path / "home" / "run"
    shutil.copytree(start.parent, broken)
    (broken / "model" / "manifest.json").unlink()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for place in (broken, broken / "model", "~/run"):
        found = config_errors(compose_run([*given, f"reference_weights='{place}'"]))
        assert any("weights that are not whole" in error for error in found), place
    plain, other, run = (
        to_run_config(compose_run([*given, *more]))
        for more in ([], [f"reference_weights='{start}'"], [f"reference_weights='{start.parent}'"])
    )
    assert not run_errors(other)
    assert Run.of(plain).identity.run_hash != Run.of(other).identity.run_hash
    assert (
        Run.of(other).identity.contents["model.reference"] == Run.of(run).identity.contents["model.reference"]
    )


@pytest.mark.proof
def test_a_killed_chain_ends_as_an_undisturbed_one(start, tmp_path) -> None:
    """SIGKILL at several moments of the chain; the table at the end is that of a chain that nobody killed."""

    def go(outputs: Path) -> subprocess.Popen:
        command = [sys.executable, str(ROOT / "scripts" / "rounds.py"), *words(start, outputs)]
        return subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
        )

    for seconds in (9, 12, 15, 18):
        killed = go(tmp_path / "killed")
        time.sleep(seconds)
        killed.send_signal(signal.SIGKILL)
        killed.communicate()
    tables = []
    for place in ("killed", "whole"):
        ended = go(tmp_path / place)
        said, _ = ended.communicate(timeout=300)
        assert ended.returncode == 0
        tables.append([line for line in said.splitlines() if line.startswith("│")])
    assert len(tables[0]) == 3
    assert [line.split("│")[2:] for line in tables[0]] == [line.split("│")[2:] for line in tables[1]]
