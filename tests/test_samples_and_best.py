"""A run answers the same prompts at every evaluation and ends with its best weights; neither costs training a bit."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from lab.report.page import _samples
from sgdpo.config.compose import compose_run, to_run_config
from sgdpo.data.conversation import stop_ids
from sgdpo.overlap import repetition
from sgdpo.runs.card import model_card
from sgdpo.runs.records import view_run
from sgdpo.runs.run import Run, _take_over, execute
from sgdpo.runs.validate import run_errors
from sgdpo.store import read_json, read_jsonl, write_json
from sgdpo.training.samples import REPEATED, sample_means
from sgdpo.world.checker import check
from sgdpo.world.tasks import task_of
from sgdpo.world.verifiable import held_out_prompts, world_of
from sweep_fixtures import cells_of, composer_for
from test_tracking import entries
from tiny_training import tiny_config

ROOT = Path(__file__).resolve().parents[1]
SPEED = ("pairs_per_second", "tokens_per_second")
METRIC = "eval/rewards/accuracies"
SMALL = [
    "device=cpu", "init=pretrained", "model.tiny.num_hidden_layers=1", "model.tiny.hidden_size=32", "seed=3",
    "model.tiny.intermediate_size=64", "data.world.pairs=64", "data.world.test_pairs=8", "data.world.demonstrations=8",
    "optimizer.batch_size=4", "optimizer.lr=3e-2", "optimizer.max_steps=16", "trainer.eval_steps=2",
    "trainer.save_steps=5", "trainer.keep_checkpoints=1", "trainer.samples=3", "trainer.sample_tokens=12",
]  # fmt: skip
BEST = [f"trainer.best={METRIC}", "trainer.keep_finished=true"]
ODD = ["method=dpo", "method.name=odd", "method.function=odd.odd"]
ODD_METHOD = """from torch.nn.functional import logsigmoid
from sgdpo.pairs import PairLoss, rewards

def odd(pair, *, beta: float):
    margin_B = beta * (pair.chosen.ratio_B - pair.rejected.ratio_B)
    return PairLoss(-logsigmoid(margin_B), *rewards(pair, beta), metrics={"odd": margin_B * float("nan")})
"""


def config(folder: Path, *more: str, tracking: str = "off"):
    return to_run_config(compose_run([*SMALL, f"outputs={folder}", f"tracking={tracking}", *more]))


def metrics(run: Path, *without: str) -> list[dict]:
    rows = [row for row in read_jsonl(run / "metrics.jsonl") if row["split"] not in without]
    return [{key: value for key, value in row.items() if key not in SPEED} for row in rows]


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing happens to, with answers and a metric that decides; tracked offline."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        return execute(config(tmp_path_factory.mktemp("alone"), *BEST, tracking="wandb"))


def test_every_evaluation_answers_the_same_prompts(alone: Path) -> None:
    rows = read_jsonl(alone / "samples.jsonl")
    assert [(row["step"], row["number"]) for row in rows] == [
        (s, n) for s in range(2, 17, 2) for n in range(3)
    ]
    for number in range(3):
        assert len({row["prompt"] for row in rows if row["number"] == number}) == 1
    written = {row["step"]: row for row in metrics(alone) if row["split"] == "samples"}
    assert written.keys() == set(range(2, 17, 2))
    means = sample_means([row for row in rows if row["step"] == 8])
    assert means == {key: written[8][key] for key in means}


def test_an_answer_is_what_the_saved_weights_say_to_one_prompt_alone(alone: Path) -> None:
    """Neither the taught head, nor padding, nor training mode changes it."""
    step = view_run(alone)["best"]["step"]
    model = AutoModelForCausalLM.from_pretrained(alone / "model").eval()
    tokenizer = AutoTokenizer.from_pretrained(alone / "model")
    for row in (row for row in read_jsonl(alone / "samples.jsonl") if row["step"] == step):
        turns = [{"role": "user", "content": row["prompt"]}]
        ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
        new: list[int] = []
        while len(new) < 12 and not set(new) & set(stop_ids(tokenizer)):
            with torch.no_grad():
                new.append(int(model(torch.tensor([ids + new])).logits[0, -1].argmax()))
        assert row["response"] == tokenizer.decode(new, skip_special_tokens=True)


def test_a_benchmarks_score_chooses_the_weights(tmp_path: Path) -> None:
    """Its prompts are answered, its checker's score is logged, and the best one's step is what the run ends with."""
    words = (
        "trainer.benchmark=verifiable",
        "trainer.samples=6",
        "trainer.best=samples/score",
        "init=pretrained",
    )
    run = config(tmp_path, *words)
    folder = execute(run)
    rows, world = read_jsonl(folder / "samples.jsonl"), world_of(run.data.settings["world"])
    assert {row["prompt"] for row in rows} == {task.prompt for task in held_out_prompts(world)[:6]}
    assert [row["score"] for row in rows] == [
        check(task_of(row["prompt"]), row["response"]).total for row in rows
    ]
    means = {row["step"]: row["score"] for row in metrics(folder) if row["split"] == "samples"}
    best = view_run(folder)["best"]
    assert (best["value"], best["step"]) == (max(means.values()), max(means, key=means.__getitem__))


def test_a_run_that_was_cut_short_in_another_layout_is_told_and_left_alone(
    alone: Path, tmp_path: Path, caplog
) -> None:
    shutil.copytree(alone, left := tmp_path / alone.parent.name / alone.name)
    write_json(left / "record.json", {**read_json(left / "record.json"), "status": "failed"})
    for more in ("trainer.max_tokens_per_row=4096", "engine=ddp"):
        caplog.clear()
        _take_over(Run.of(config(tmp_path, *BEST, more)))
        (said,) = caplog.messages
        assert f"{left} was cut short; with other settings this is another run and begins anew: " in said
        assert "is 8192 there, 4096 here" in said or "engine.name is single there, ddp here" in said


def test_the_answers_cost_training_no_bit(alone: Path, tmp_path: Path) -> None:
    """The same steps, numbers and random states without answers, and without a metric that decides."""
    plain = execute(config(tmp_path, "trainer.samples=0", "trainer.keep_finished=true"))
    assert not (plain / "samples.jsonl").exists()
    assert metrics(plain) == metrics(alone, "samples")
    last = "checkpoints/checkpoint-16"
    assert weights(plain / last) == weights(alone / last)
    states = [torch.load(run / last / "rng_state.pth", weights_only=False) for run in (plain, alone)]
    assert torch.equal(states[0]["cpu"], states[1]["cpu"])


def test_what_is_asked_for_more_rarely_than_there_are_steps_comes_once_at_the_end(
    alone: Path, tmp_path: Path
) -> None:
    """A sweep that reads only what runs end with says so, and gets the same numbers."""
    rare = execute(
        config(
            tmp_path, "trainer.eval_steps=1000000", "trainer.save_steps=1000000", "trainer.keep_finished=true"
        )
    )
    assert metrics(rare) == [row for row in metrics(alone) if row["split"] == "train" or row["step"] == 16]
    assert [path.name for path in (rare / "checkpoints").iterdir()] == ["checkpoint-16"]


def test_the_run_ends_with_its_best_weights_and_says_so(alone: Path) -> None:
    view, rows = view_run(alone), [row for row in metrics(alone) if row["split"] == "eval"]
    best = max(rows, key=lambda row: row["rewards/accuracies"])
    assert view["best"] == {"metric": METRIC, "value": best["rewards/accuracies"], "step": best["step"]}
    assert best["step"] < 16, "the last weights are not the best, or this test shows nothing"
    assert view["final"]["eval"]["step"] == best["step"]
    kept = alone / "checkpoints" / f"checkpoint-{best['step']}"
    assert {path.name for path in kept.parent.iterdir()} == {"checkpoint-16", kept.name}  # one, and the best
    saved, there = (load_file(folder / "model.safetensors") for folder in (alone / "model", kept))
    assert saved.keys() == there.keys()
    assert all(torch.equal(saved[key], there[key]) for key in saved)
    assert (
        f"{METRIC} {best['rewards/accuracies']:.4f} at step {best['step']}" in (alone / "log.txt").read_text()
    )


def test_the_models_card_says_what_the_record_says(alone: Path) -> None:
    """Written before the record is closed, it tells the same metrics, of the best step, and the same time."""
    card = (alone / "model" / "README.md").read_text("utf-8")
    seconds = re.search(r"steps, (\d+) s\.\n", card)[1]
    told = model_card(view_run(alone))
    assert card == re.sub(r"\d+ s\.\n", f"{seconds} s.\n", told)
    assert abs(int(seconds) - view_run(alone)["seconds"]) < 1.5


@pytest.mark.proof
def test_a_killed_run_ends_with_the_same_answers_and_the_same_best(alone: Path, tmp_path: Path) -> None:
    """Killed after the step-10 checkpoint, with answers of later steps on the disk: none is there twice."""
    command = [
        sys.executable,
        str(ROOT / "src" / "train.py"),
        *SMALL,
        *BEST,
        f"outputs={tmp_path}",
        "tracking=off",
    ]
    process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL)
    while not list(tmp_path.glob("default/*/checkpoints/checkpoint-10/manifest.json")):
        assert process.poll() is None
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    (folder,) = tmp_path.glob("default/sgdpo-*")
    with (folder / "samples.jsonl").open("a") as file:  # as a later kill would have left it
        file.write(
            '{"step": 12, "number": 0, "prompt": "", "response": "of a step that comes again"}\n{"step": 1'
        )
    assert execute(config(tmp_path, *BEST)) == folder
    for name in ("samples.jsonl", "model/model.safetensors"):
        assert (folder / name).read_bytes() == (alone / name).read_bytes(), name
    assert metrics(folder) == metrics(alone)
    assert view_run(folder)["best"] == view_run(alone)["best"]


def test_patience_stops_the_run_and_the_record_says_where(alone: Path, tmp_path: Path) -> None:
    """And a run that was killed after it had stopped, with a checkpoint of that step, takes no step more."""
    patient = config(tmp_path, *BEST, "trainer.patience=2", "trainer.save_steps=2")
    done = execute(patient)
    best, text, made = view_run(done)["best"], (done / "metrics.jsonl").read_text(), weights(done / "model")
    assert best["stopped_early"] == best["step"] + 4 < 16
    assert metrics(done) == [row for row in metrics(alone) if row["step"] <= best["stopped_early"]]
    assert view_run(done).status == "finished"
    assert f"seen      {4 * best['stopped_early']} of 64 examples" in (done / "log.txt").read_text()
    assert f", {best['stopped_early']} steps, " in (done / "model" / "README.md").read_text("utf-8")
    record = (done / "record.json").read_text()
    (done / "record.json").write_text(record.replace('"status": "finished"', '"status": "failed"', 1))
    assert execute(patient) == done
    assert len(view_run(done)["attempts"]) == 2
    assert (view_run(done)["best"], weights(done / "model")) == (best, made)
    assert (done / "metrics.jsonl").read_text() == text


def test_lost_best_weights_are_an_error_and_not_the_last_ones(alone: Path, tmp_path: Path) -> None:
    shutil.copytree(alone.parent.parent, tmp_path / "outputs")
    (folder,) = (tmp_path / "outputs" / "default").glob("sgdpo-*")
    record = folder / "record.json"
    record.write_text(record.read_text().replace('"status": "finished"', '"status": "interrupted"', 1))
    shutil.rmtree(folder / "checkpoints" / f"checkpoint-{view_run(alone)['best']['step']}")
    with pytest.raises(ValueError, match="the best weights are lost"):
        execute(config(tmp_path / "outputs", *BEST, f"cache={tmp_path}/cache"))


def test_what_does_not_change_the_result_is_no_part_of_a_runs_identity() -> None:
    """And what decides which weights a run ends with is one, of its weights too; but not of its start's."""

    def identity(*more: str):
        run = Run.of(tiny_config("method=dpo", *more))
        return run.identity.run_hash, run.identity.result_hash, run.start.identity.result_hash

    plain, best = identity(), identity("trainer.best=eval/loss")
    assert identity("trainer.samples=0", "trainer.sample_tokens=9") == plain
    assert (best[0] != plain[0], best[1] != plain[1], best[2] == plain[2]) == (True, True, True)
    assert identity("trainer.best=eval/loss", "trainer.samples=2") == best
    answers = "trainer.best=samples/end_rate"
    assert identity(answers) != identity(answers, "trainer.samples=2")
    assert identity("trainer.best=eval/loss", "trainer.eval_steps=7")[1] != best[1]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["trainer.best=eval/margin"], "trainer.best=eval/margin is no metric of this run; there are: eval/displaced,"),
        (["trainer.best=eval/rewards/margins", "method=sft"], "there are: eval/lengths/chosen, eval/logps/chosen, "),
        (["trainer.best=samples/length", "trainer.samples=0"], "trainer.best=samples/length is no metric"),
        (["trainer.best=eval/loss", "data.world.test_pairs=0"], "data 'verifiable' has no held-out rows"),
        (["trainer.patience=3"], "say by which metric with trainer.best"),
        (["trainer.best=samples/score"], "trainer.best=samples/score is no metric"),
        (["trainer.benchmark=mt_bench"], "trainer.benchmark=mt_bench has no checker of answers"),
        (["trainer.benchmark=nothing"], "there is no conf/benchmark/nothing.yaml"),
        (["trainer.benchmark=verifiable", "trainer.samples=0"], "asks trainer.samples prompts, and that is 0"),
        (["trainer.benchmark=verifiable", "data.world.test_pairs=0"], "data 'verifiable' has no held-out rows"),
        (["trainer.benchmark=verifiable", "trainer.asked_by=os.system"], "trainer.asked_by: cannot import 'os.system'"),
        (["trainer.better=more"], "trainer.better must be one of auto, higher, lower"),
    ],
)  # fmt: skip
def test_a_metric_that_is_never_logged_is_refused_before_anything_loads(
    overrides: list[str], words: str
) -> None:
    (error,) = run_errors(tiny_config(*overrides))
    assert words in error


@pytest.mark.parametrize(
    ("method", "said"),
    [([], "is no metric of this run; there are: eval/displaced"), (ODD, "is nan at the first evaluation")],
)
def test_a_metric_that_only_the_run_can_tell_is_refused_at_the_first_evaluation(
    tmp_path: Path, method: list[str], said: str
) -> None:
    """The run would end with its last weights and say nothing of the best."""
    (tmp_path / "odd.py").write_text(ODD_METHOD)
    with pytest.raises(ValueError, match=f"trainer.best=eval/odd {said}"):
        execute(config(tmp_path, "trainer.best=eval/odd", f"extra=[{tmp_path}/odd.py]", *method))


def test_repetition_is_the_share_of_runs_of_four_tokens_that_stood_there_before() -> None:
    assert repetition([1, 2, 3], REPEATED) == 0
    assert repetition(list(range(20)), REPEATED) == 0
    assert repetition([7] * 13, REPEATED) == pytest.approx(0.9)  # ten runs, one of them new


def test_wandb_has_one_table_with_the_step_as_a_column(alone: Path) -> None:
    tables = [
        item
        for entry in entries(alone_record(alone), "history")
        if "samples._type" in (item := entry["item"])
    ]
    assert [table["_step"] for table in tables] == list(range(2, 17, 2))
    assert tables[-1]["samples.nrows"] == 24, "the last one holds all steps"
    (file,) = alone.glob(f"wandb/offline-run-*/files/{tables[-1]['samples.path']}")
    assert '"step"' in file.read_text()


def alone_record(folder: Path):
    return type("Folder", (), {"folder": folder})


def test_the_page_shows_how_an_answer_changed(alone: Path) -> None:
    first, *_ = _samples(view_run(alone))
    assert first["response"].splitlines()[0].startswith("step 2: ")
    assert first["response"].splitlines()[-1].startswith("step 16: ")


def test_a_sweep_answers_nothing_unless_it_is_asked() -> None:
    assert [cell.config.trainer.samples for cell in cells_of("seed=1,2")] == [0, 0]
    assert [cell.config.trainer.samples for cell in cells_of("seed=1,2", "trainer.samples=5")] == [5, 5]
    (cell, _) = cells_of("seed=1,2", "trainer.best=samples/end_rate")
    assert cell.config.trainer.samples > 0


def test_a_sweeps_own_file_asks_for_answers_too(tmp_path: Path) -> None:
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "mine.yaml").write_text("# @package _global_\ntrainer: {samples: 4}\n")
    composer = composer_for(f"hydra.searchpath=[file://{tmp_path}]", "sweep=mine")
    samples = [
        composer.cell(words).config.trainer.samples
        for words in (["sweep=mine"], ["sweep=mine", "trainer=large"], ["trainer=large"], ["seed=1"])
    ]
    assert samples == [4, 4, 0, 0]
