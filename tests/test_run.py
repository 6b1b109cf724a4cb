"""One command does the whole job: the start is trained once, the run is recorded, skipped, resumed, mirrored."""

import json
import math
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from killed_run import SPOILS, spoiled
from lab.evaluation.evaluate import read_config
from lab.sampling.settings import model_of
from sgdpo.config.compose import compose_run, method_of, to_run_config
from sgdpo.data.batching import StepSampler
from sgdpo.data.prepare import prepare
from sgdpo.models.load import load_tokenizer
from sgdpo.runs.records import read_runs, view_run
from sgdpo.runs.run import Run, execute
from sgdpo.runs.summary import summarise
from sgdpo.runs.train import Parts, check_fit, plan_steps
from sgdpo.store import read_jsonl, write_json

ROOT = Path(__file__).resolve().parents[1]
QUICK = [
    "device=cpu", "model.tiny.num_hidden_layers=1", "model.tiny.hidden_size=32", "model.tiny.intermediate_size=64",
    "data.world.pairs=48", "data.world.demonstrations=32", "data.world.test_pairs=8", "data.world.prompts=8",
    "optimizer.sft.max_steps=3", "optimizer.sft.batch_size=8", "optimizer.batch_size=8", "optimizer.lr=1e-3",
]  # fmt: skip
SPEED = {"pairs_per_second", "tokens_per_second"}


def quick(folder: Path, *overrides: str) -> list[str]:
    return [*QUICK, f"outputs={folder}/outputs", *overrides]


def run(folder: Path, *overrides: str) -> Path:
    return execute(to_run_config(compose_run(quick(folder, "tracking=off", *overrides))))


def train(folder: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    """Run the entrypoint as a user does."""
    command = [sys.executable, str(ROOT / "src" / "train.py"), *quick(folder, *overrides)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "WANDB_MODE": "offline"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def curve(folder: Path) -> list[dict]:
    return [
        {k: v for k, v in row.items() if k not in SPEED}
        for row in read_jsonl(folder / "metrics.jsonl", torn_end=True)
        if row["split"] != "samples"
    ]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished SGDPO run of the default world in small, made by the command line, tracked offline."""
    folder = tmp_path_factory.mktemp("finished")
    done = train(folder)
    assert done.returncode == 0, done.stdout + done.stderr
    runs = {view["method"]: view for view in read_runs(folder / "outputs")}
    assert set(runs) == {"sft", "sgdpo"}
    (folder / "screen.txt").write_text(done.stdout)
    return runs["sgdpo"].folder


def test_one_command_trains_the_start_first_and_records_both(finished: Path) -> None:
    view = view_run(finished)
    start = view_run(finished.parent / view["start"])
    assert (view.status, start.status) == ("finished", "finished")
    assert (view["phase"], start["phase"]) == ("preference", "sft")


def test_the_first_row_holds_the_step_0_identities(finished: Path) -> None:
    first = read_jsonl(finished / "metrics.jsonl", torn_end=True)[0]
    assert first["step"] == 1
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert first["rewards/margins"] == pytest.approx(0, abs=1e-4)


def test_every_row_has_the_fields_keys(finished: Path) -> None:
    rows = read_jsonl(finished / "metrics.jsonl", torn_end=True)
    both = {"loss", "rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies", "logps/chosen",
            "logps/rejected", "lengths/chosen", "lengths/rejected", "pilot/chosen", "pilot/log_balance"}  # fmt: skip
    train_only = {"grad_norm", "learning_rate", *SPEED}
    assert all(both <= row.keys() for row in rows if row["split"] != "samples")
    assert all(train_only <= row.keys() for row in rows if row["split"] == "train")
    assert [row["step"] for row in rows if row["split"] == "train"] == [1, 2, 3, 4, 5, 6]


def test_the_record_says_what_was_trained_on_and_with_what(finished: Path) -> None:
    view = view_run(finished)
    assert view["data"]["counts"]["train"]["kept"] == 48
    assert view["versions"]["torch"].startswith("2.")
    assert view["ratio"] == {"chosen": 0.6, "rejected": 0.9}
    assert view["seconds"] > 0
    assert view["peak_memory_mb"] > 0
    assert view["final"]["eval"]["step"] == 6


def test_the_final_model_loads_by_from_pretrained_with_its_tokenizer(finished: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(finished / "model")
    tokenizer = AutoTokenizer.from_pretrained(finished / "model")
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Sort: cab"}], add_generation_prompt=True, return_tensors="pt"
    )["input_ids"]
    assert model(ids).logits.isfinite().all()
    assert not list((finished / "model").glob("*.bin"))


def test_a_finished_run_keeps_its_weights_and_no_checkpoints(finished: Path, tmp_path: Path) -> None:
    """Checkpoints are for going on; a grid of 8B models would fill terabytes with them."""
    assert (finished / "model" / "model.safetensors").is_file()
    assert not (finished / "checkpoints").exists()
    kept = run(tmp_path, "method=sft", "trainer.keep_finished=true")
    assert len(list((kept / "checkpoints").iterdir())) == 2


def test_the_closing_words_name_the_files_and_how_to_browse_an_offline_run(finished: Path) -> None:
    screen = (finished.parents[2] / "screen.txt").read_text()
    for expected in ("rewards/margins", "reward_curves.png", "metrics.jsonl", "wandb leet", "wandb sync"):
        assert expected in screen
    assert (finished / "reward_curves.png").stat().st_size > 10_000


@pytest.mark.proof
def test_a_sweeps_process_tells_a_run_on_an_ascii_terminal(finished: Path, tmp_path: Path) -> None:
    """What a command starts prints as the command itself does, and fails no finished cell by its closing words."""
    outputs = finished.parents[1]
    job = {
        "config": asdict(to_run_config(compose_run(quick(outputs.parent)))),
        "output": str(tmp_path / "log"),
    }
    worker = ["-m", "lab.sweeps.worker", str(ROOT / "src" / "train.py"), "main", str(os.getpid())]
    done = subprocess.run(
        [sys.executable, *worker], input=json.dumps(job) + "\n", capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONIOENCODING": "ascii:strict"},
    )  # fmt: skip
    assert json.loads(done.stdout) == {"error": None}
    assert "\\u2013" in (tmp_path / "log").read_text()


def test_the_tokens_rewards_of_a_pair_add_up_to_its_reward(finished: Path) -> None:
    pairs = json.loads((finished / "pairs.json").read_text())["pairs"]
    assert pairs
    assert any(token["pilot"] for token in pairs[0]["chosen"])
    assert all(math.isfinite(token["reward"]) for pair in pairs for token in pair["rejected"])


def test_a_run_writes_only_into_outputs(finished: Path) -> None:
    assert {path.name for path in finished.parents[2].iterdir()} == {"outputs", "screen.txt"}


def test_a_finished_run_is_not_trained_again_unless_forced(tmp_path: Path) -> None:
    first = run(tmp_path)
    written = (first / "record.json").stat().st_mtime_ns
    assert run(tmp_path) == first
    assert (first / "record.json").stat().st_mtime_ns == written
    assert run(tmp_path, "force=true") == first
    assert (first / "record.json").stat().st_mtime_ns != written


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A place with a finished run and its SFT start, made in this process."""
    return run(tmp_path_factory.mktemp("started")).parents[2]


@pytest.mark.proof
@pytest.mark.parametrize("spoil", SPOILS)
def test_a_start_with_any_file_damaged_is_never_used(
    started: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, spoil: str
) -> None:
    """It is named and trained again to the same bits; a record that cannot be read waits for the user's word."""
    shutil.copytree(started, tmp_path, dirs_exist_ok=True)
    start = Run.of(to_run_config(compose_run(quick(tmp_path, "tracking=off")))).start
    whole, weights = start.result().folder, start.folder / "model" / "model.safetensors"
    before = weights.read_bytes()
    for file in spoiled(whole / "model", spoil):
        assert start.result() is None, file
        assert file.name in caplog.text
        caplog.clear()
    SPOILS[spoil](weights)
    assert view_run(run(tmp_path, "method=dpo"))["shared"]["start"] == "trained"
    assert weights.read_bytes() == before
    SPOILS[spoil](whole / "record.json")
    try:
        run(tmp_path, "method=ipo")
    except ValueError as error:
        assert re.search(r"record\.json.*force=true", str(error))  # noqa: PT017
        run(tmp_path, "method=ipo", "force=true")
    assert start.result() is not None
    assert weights.read_bytes() == before


def test_two_methods_share_one_start_and_one_tokenised_set_and_one_reference(tmp_path: Path) -> None:
    for method in ("dpo", "sgdpo", "bco"):
        run(tmp_path, f"method={method}")
    views = {view["method"]: view for view in read_runs(tmp_path / "outputs")}
    assert len(views) == 4
    assert len({view["start"] for name, view in views.items() if name != "sft"}) == 1
    assert views["dpo"]["shared"] == {**views["dpo"]["shared"], "start": "trained", "reference": "built"}
    assert views["bco"]["shared"] == {"start": "found", "tokens": "hit", "reference": "hit",
                                      "reference_forward_tokens": 0,
                                      "reference_examples": {"computed": 0, "reused": 56}}  # fmt: skip


def test_the_reference_cached_or_live_gives_one_curve(tmp_path: Path) -> None:
    cached = curve(run(tmp_path, "experiment=cached"))
    live = curve(run(tmp_path, "experiment=live", "reference=live"))
    for a, b in zip(cached, live, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], abs=1e-6)


@pytest.mark.proof
def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not(tmp_path: Path) -> None:
    first, again = run(tmp_path, "experiment=a"), run(tmp_path, "experiment=b")
    other = run(tmp_path, "experiment=c", "seed=1")
    assert curve(first) == curve(again)
    assert curve(first) != curve(other)


def test_rows_serve_all_steps_and_too_few_held_out_ones_are_named_before_the_reference(
    tmp_path: Path,
) -> None:
    """Twelve steps are two epochs; the budget is the longest step of the first, and the second has a longer one."""
    small = quick(tmp_path, "init=pretrained", "data.world.test_pairs=2", "optimizer.max_steps=12")
    config = to_run_config(compose_run([*small, "optimizer.batch_size=8"]))
    tokenizer = load_tokenizer(config.model)
    prepared = prepare(config.data, "preference", tokenizer, tmp_path)
    epoch = StepSampler(prepared.train.lengths, 8, 1, 1, config.seed, "shared_prefix")
    config.trainer.max_tokens_per_row = int(max(epoch.tokens[row].sum() for row in epoch))
    parts = Parts(Run.of(config), method_of(config), prepared, tokenizer, None, 1)
    assert plan_steps(parts).rows == 2
    with pytest.raises(ValueError, match="2 held-out rows cannot be dealt to 4 processes"):
        check_fit(replace(parts, world=4))


def test_a_failed_run_says_so_in_its_record_and_with_its_exit_code(tmp_path: Path) -> None:
    """The data is fine, the batch is larger than what is left of it: one line, no traceback."""
    done = train(tmp_path, "method=sft", "tracking=off", "optimizer.batch_size=33")
    assert done.returncode == 1
    assert "error: 32 training examples are left but a step takes 33" in done.stderr
    assert "set optimizer.batch_size (optimizer.sft.batch_size if this is another run's start)" in done.stderr
    assert "Traceback" not in done.stderr
    assert [view.status for view in read_runs(tmp_path / "outputs")] == ["failed"]


def test_bad_settings_stop_before_anything_is_written(tmp_path: Path) -> None:
    done = train(tmp_path, "ratio.chosen=1.5", "method.beta=-1")
    assert done.returncode == 2
    assert done.stderr.count("error:") == 2
    assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize(
    ("steps", "batch", "said"),
    [
        (6, 8, None),
        (5, 8, "seen      40 of 48 examples, less than an epoch"),
        (9, 10, "left out  8 of 48 examples in each epoch, others each time: a step takes exactly 10"),
    ],
)
def test_the_summary_says_what_the_steps_do_not_reach(
    finished: Path, tmp_path: Path, steps: int, batch: int, said: str | None
) -> None:
    record = json.loads((finished / "record.json").read_text())
    record["steps"], record["settings"]["optimizer"]["batch_size"] = steps, batch
    write_json(tmp_path / "record.json", record)
    lines = [line for line in summarise(tmp_path).splitlines() if line.startswith(("seen", "left out"))]
    assert lines == ([said] if said else [])
    left_out = 48 - len(StepSampler(np.ones((48, 3)), batch, 1, 1, seed=0, layout="separate")) * batch
    assert not said or str(left_out) in said or "less" in said


def pair(capsys: pytest.CaptureFixture, *words: str | Path) -> str:
    runpy.run_path(str(ROOT / "scripts" / "pair.py"))["main"]([str(word) for word in words])
    return capsys.readouterr().out


def test_a_pair_is_shown_by_its_id_with_its_row_and_the_rewards_that_the_run_logged(
    finished: Path, capsys: pytest.CaptureFixture
) -> None:
    """The rewards of the held-out pairs that the run itself wrote are what the command computes again."""
    written = json.loads((finished / "pairs.json").read_text())["pairs"]
    data = read_config(finished).data
    prepared = prepare(
        data, "preference", load_tokenizer(read_config(finished).model), finished.parents[1] / "cache"
    )
    index = 3
    wanted = str(prepared.test.ids[index])
    shown = pair(capsys, "--run", finished, wanted[:12])
    assert f"pair {wanted}: row {prepared.test.rows[index]} (from 0) of the generated test set, test" in shown
    assert written[index]["prompt"] in shown
    for side, ids in (("chosen", "chosen_ids"), ("rejected", "rejected_ids")):
        reward = sum(token["reward"] for token in written[index][side])
        (line,) = re.findall(rf"^{side}: (\d+) tokens, reward (-?[\d.]+)$", shown, re.MULTILINE)
        assert int(line[0]) == len(getattr(prepared.test[index], ids))
        assert float(line[1]) == pytest.approx(reward, abs=2e-4)


def test_the_row_of_a_pair_is_the_sources_though_others_were_dropped(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    rows = [
        {"prompt": f"Say {n}", "chosen": f"{n}", "rejected": f"{n if n == 2 else n + 1}"} for n in range(4)
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["data=local", f"data.train={tmp_path}/pairs.jsonl", f"cache={tmp_path}/cache"]
    config = to_run_config(compose_run(words))
    train = prepare(config.data, "preference", load_tokenizer(config.model), Path(config.cache)).train
    assert train.rows.tolist() == [0, 1, 3]
    assert "row 3 (from 0)" in pair(capsys, str(train.ids[2]), *words)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["x12"], "an id is a number"),
        (["99999999999999999999"], "none of the"),
        ([""], "an id is a number"),
        (["1", "--run", "nowhere"], "holds no config.yaml"),
        (["1", "--run", "nowhere", "seed=1"], "not both"),
        (["1", "--run", "nowhere", "extra=[nowhere.py]"], "nowhere.py is no Python file"),
        (["1", "data.world.pairs=-1"], "data.world.pairs"),
    ],
)
def test_what_names_no_pair_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture, words: list[str], said: str
) -> None:
    with pytest.raises((ValueError, SystemExit)) as refused:
        pair(capsys, *words, *([f"cache={tmp_path}"] if "--run" not in words else []))
    assert said in str(refused.value) + " ".join(getattr(refused.value, "errors", []))


def test_a_run_from_elsewhere_runs_no_code_that_the_command_does_not_name(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Neither what its model brings nor a file that its settings name."""
    shutil.copytree(finished, tmp_path / "run")
    settings, evil = tmp_path / "run" / "config.yaml", tmp_path / "evil.py"
    evil.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\ndef evil(pair): ...\n")
    text = settings.read_text()
    settings.write_text(text.replace("trust_remote_code: false", "trust_remote_code: true"))
    with pytest.raises(SystemExit):
        pair(capsys, "1", "--run", tmp_path / "run")
    assert "say model.trust_remote_code=true on this command" in capsys.readouterr().err
    with pytest.raises(ValueError, match="say trust_remote_code=true on this command"):
        model_of(str(tmp_path / "run"), str(tmp_path / "cache"))
    assert model_of(str(tmp_path / "run"), str(tmp_path / "cache"), trusted=True).trust_remote_code
    function = re.search(r"function: (sgdpo\.methods\.sgdpo\S*)", text)[1]
    settings.write_text(text.replace("extra: []", f"extra: [{evil}]").replace(function, "evil.evil"))
    with pytest.raises(ValueError, match=r"evil"):
        pair(capsys, "1", "--run", tmp_path / "run")
    assert not (tmp_path / "ran").exists()


@pytest.mark.proof
def test_a_run_killed_in_the_middle_continues_to_the_same_bits(tmp_path: Path) -> None:
    longer = [
        "optimizer.preference.max_steps=30",
        "trainer.save_steps=5",
        "tracking=off",
        "data.world.pairs=240",
    ]
    whole = run(tmp_path, "experiment=whole", *longer)
    command = [sys.executable, str(ROOT / "src" / "train.py"), *quick(tmp_path, "experiment=killed", *longer)]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    killed = tmp_path / "outputs" / "killed" / whole.name
    while not (killed / "checkpoints" / "checkpoint-10" / "manifest.json").exists():
        assert process.poll() is None, "the run ended before it could be killed"
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert view_run(killed).status == "interrupted"
    continued = run(tmp_path, "experiment=killed", *longer)
    assert curve(continued) == curve(whole)
    assert (continued / "model" / "model.safetensors").read_bytes() == (
        whole / "model" / "model.safetensors"
    ).read_bytes()
