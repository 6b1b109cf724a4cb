"""Killed runs against everything that may have happened since: no run goes on with what it did not begin with."""

from __future__ import annotations

import json
import math
import os
import re
import resource
import shutil
import subprocess
import time
import timeit
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from killed_run import (
    CHANGES,
    DAMAGES,
    EVERY_SPOIL,
    KILLED_AT,
    ROOT,
    SAVE_STEPS,
    SPOILS,
    STEPS,
    edit,
    forget_the_last_pair,
    kill_in_the_middle,
    newest,
    rows,
    run_of,
    spoiled,
    start,
    weights,
    write_inputs,
)
from marks import proofs_but
from sgdpo.runs import provenance
from sgdpo.runs.contents import hash_code
from sgdpo.runs.records import Record, view_run
from sgdpo.runs.run import Run, _take_over, execute
from sgdpo.runs.train import find_checkpoint
from sgdpo.store import read_seal, write_json


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nothing happened to."""
    place = tmp_path_factory.mktemp("alone") / "place"
    write_inputs(place)
    process = start(place)  # not in this process: a module of the user's has one file in a process
    said = process.communicate()[0]
    assert process.returncode == 0, said
    return killed_folder(place)


@pytest.fixture(scope="module")
def once_killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("killed") / "place"
    write_inputs(place)
    kill_in_the_middle(place)
    return place


@pytest.fixture
def place(once_killed: Path) -> Path:
    """The killed run's place, as the kill left it: paths are part of a run's settings, so it is put back there."""
    kept = once_killed.with_name("kept")
    if not kept.exists():
        shutil.copytree(once_killed, kept)
    shutil.rmtree(once_killed)
    shutil.copytree(kept, once_killed)
    return once_killed


def killed_folder(place: Path) -> Path:
    (folder,) = (place / "outputs").glob("default/mine-*")
    return folder


def decision(place: Path, **word: Any) -> str:
    """Return what the next command would do: the step it goes on at, or what it says."""
    try:
        run = run_of(place, **word)
        _take_over(run)
        checkpoint = find_checkpoint(run)
        Record.open(run.folder, run.identity, phase="preference", force=run.config.force).leave()
    except ValueError as error:
        return str(error)
    return checkpoint.name if checkpoint else "start"


WORDS = {"auto": {}, "anyway": {"resume": "anyway"}, "never": {"resume": "never"}, "force": {"force": True}}
STILL = ("none", "record lost", "newest torn")  # damages that every `make test` tries


@pytest.mark.parametrize("change", proofs_but(CHANGES, "nothing", "data", "method", "comment"))
def test_every_damage_on_every_host_with_every_word_is_decided_as_it_must(
    place: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    """8 changes x 10 damages x 2 hosts x 4 words: 640 decisions."""
    kept, folder = place.with_name("kept") / "outputs", killed_folder(place)
    monkeypatch.setattr(provenance, "FEW_BEATS", 0.0)  # nobody lives: a beat of long ago need not be watched
    CHANGES[change][0](place)
    for damage, moved, word in product(DAMAGES, (False, True), WORDS):
        monkeypatch.setenv("SGDPO_HOST", "another" if moved else "")
        shutil.rmtree(place / "outputs")
        shutil.copytree(kept, place / "outputs")
        expected = expect(change, damage, word, newest(folder))
        DAMAGES[damage][0](folder)
        os.utime(folder / ".heartbeat", (1, 1))
        got = decision(place, **WORDS[word])
        assert re.search(expected, got, re.DOTALL), (change, damage, moved, word, got)


def test_a_run_that_made_no_checkpoint_has_nothing_to_go_on_from(place: Path) -> None:
    """It failed on its first step, say, and what it read was mended since: the next command asks nothing."""
    CHANGES["data"][0](place)
    for checkpoint in (killed_folder(place) / "checkpoints").iterdir():
        shutil.rmtree(checkpoint)
    assert decision(place) == "start"


def expect(change: str, damage: str, word: str, checkpoint: Path) -> str:
    """Return what the next command must do, as a pattern of what `decision` returns."""
    said, then = CHANGES[change][1], DAMAGES[damage][1]
    known = damage not in ("record lost", "record half")
    if word == "force":
        return "^start$"
    if said and (word == "never" or not known or then == "start"):
        return "^start$"  # another run, and nothing is left that asks to go on as it
    if said and word == "auto":
        return f"{said}.*resume=anyway.*resume=never"
    if damage == "record half":
        return "record.json.*force=true"
    if word == "never" or then == "start":
        return "^start$"
    step = int(checkpoint.name.split("-")[1]) - (SAVE_STEPS if then == "older" else 0)
    return f"^checkpoint-{step}$" if then in ("newest", "older") else then


@pytest.mark.parametrize("damage", proofs_but((*STILL, "torn last line", "metrics cut", "all torn"), *STILL))
def test_a_killed_run_that_goes_on_ends_as_one_left_alone(place: Path, alone: Path, damage: str) -> None:
    folder = killed_folder(place)
    DAMAGES[damage][0](folder)
    assert execute(run_of(place).config) == folder
    assert rows(folder) == rows(alone)
    assert weights(folder) == weights(alone)
    record = view_run(folder)
    assert record.status == "finished"
    assert len(record["attempts"]) == (1 if damage == "record lost" else 2)
    assert record["seconds"] == pytest.approx(sum(attempt["seconds"] for attempt in record["attempts"]))
    assert not (folder / "checkpoints").exists()


@pytest.mark.parametrize("damage", proofs_but(("record half", "metrics lost", "inner line"), "record half"))
def test_what_cannot_go_on_trains_again_on_the_users_word(place: Path, alone: Path, damage: str) -> None:
    folder = killed_folder(place)
    DAMAGES[damage][0](folder)
    before = sorted(folder.rglob("*"))
    with pytest.raises(ValueError, match="force=true" if damage == "record half" else "resume=never"):
        execute(run_of(place).config)
    assert [path for path in before if not path.exists()] == [], "an error must cost nothing"
    execute(run_of(place, force=True).config)
    assert (rows(folder), weights(folder)) == (rows(alone), weights(alone))


@pytest.mark.proof
@pytest.mark.parametrize("word", ["resume=never", "force=true"])
def test_a_run_that_starts_again_and_is_killed_again_never_meets_its_old_checkpoints(
    place: Path, alone: Path, word: str
) -> None:
    """The old steps are further than the new kill: the plain command must go on from the new ones."""
    folder = killed_folder(place)
    old = view_run(folder)["training"]
    process = start(place, word)
    while view_run(folder)["training"] == old:
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.002)
    process.kill()
    process.wait()
    execute(run_of(place).config)
    record = view_run(folder)
    assert record["training"] != old
    assert [row["step"] for row in rows(folder)] == list(range(1, STEPS + 1))
    assert (rows(folder), weights(folder)) == (rows(alone), weights(alone))


def test_changed_rows_are_another_run_and_the_summary_says_so(place: Path) -> None:
    first = execute(run_of(place).config)
    forget_the_last_pair(place)
    second = execute(run_of(place).config)
    assert first != second
    assert view_run(second)["differs_from"] == {first.name: ["data.train has another content"]}
    assert f"{first.name}: data.train has another content" in (second / "log.txt").read_text()
    assert rows(first) != rows(second)
    assert execute(run_of(place).config) == second


def test_anyway_goes_on_and_the_record_holds_both_attempts(place: Path) -> None:
    folder = killed_folder(place)
    forget_the_last_pair(place)
    done = execute(run_of(place, resume="anyway").config)
    assert done != folder
    assert not folder.exists()
    record = view_run(done)
    assert [row["step"] for row in rows(done)] == list(range(1, STEPS + 1))
    assert len(record["attempts"]) == 2
    assert record["attempts"][1]["from_step"] >= KILLED_AT
    assert record.name == record["name"] == done.name
    assert execute(run_of(place).config) == done


@pytest.mark.parametrize(("old", "new", "asks"), [
    ("self.method_state.advance(", "self.method_state.advance(  # a comment", False),
    pytest.param("self.skipped_steps += 1", "self.skipped_steps += 2", True, marks=pytest.mark.proof),
])  # fmt: skip
def test_changed_code_asks_and_a_comment_does_not(
    place: Path, tmp_path: Path, old: str, new: str, asks: bool
) -> None:
    """Nor what an editor leaves among the modules, and no half-written one is in the way of a run without it."""
    root = tmp_path / "checkout"
    for name in ("src", "conf"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    room = root / "src" / "sgdpo" / "training"
    edit(room / "trainer.py", old, new)
    (room / ".#trainer.py").symlink_to("user@host.1:2")
    (room / "trainer-checkpoint.py").write_text("def half(")
    assert hash_code([room / "trainer-checkpoint.py"])
    process = start(place, root=root)
    said = process.communicate()[0]
    assert (process.returncode == 1) == asks, said
    assert ("the code has changed" in said) == asks
    if asks:
        assert "Traceback" not in said
        assert start(place, "resume=anyway", root=root).communicate()[0]
    assert view_run(killed_folder(place)).status == "finished"


def test_another_torch_asks(place: Path) -> None:
    """What the checkpoint says of its maker is what is compared."""
    from sgdpo.training.checkpoints import mark_complete

    checkpoint = newest(killed_folder(place))
    manifest = read_seal(checkpoint)
    manifest["made_by"]["versions"]["torch"] = "2.0.0"
    kept = {key: manifest[key] for key in ("training", "metrics", "made_by")}
    mark_complete(checkpoint, run_of(place).config.engine, **kept)
    assert "torch is 2.0.0 there" in decision(place)


def test_a_kill_between_the_finished_record_and_the_pruning_leaves_nothing(place: Path) -> None:
    folder = execute(run_of(place).config)
    (folder / "checkpoints" / "checkpoint-40").mkdir(parents=True)
    execute(run_of(place).config)
    assert not (folder / "checkpoints").exists()


@pytest.mark.parametrize("spoil", EVERY_SPOIL)
def test_a_finished_run_whose_weights_are_not_whole_trains_again(
    place: Path, alone: Path, caplog: pytest.LogCaptureFixture, spoil: str
) -> None:
    folder = execute(run_of(place).config)
    for file in spoiled(folder / "model", spoil):
        assert run_of(place).finished() is None, file
        assert file.name in caplog.text
        caplog.clear()
    assert run_of(place).finished() is not None
    SPOILS[spoil](folder / "model" / "model.safetensors")
    assert execute(run_of(place).config) == folder
    assert weights(folder) == weights(alone)


@pytest.mark.parametrize("policy", ["stop", "skip"])
def test_a_last_update_that_leaves_no_finite_weights_never_counts_as_finished(
    place: Path, policy: str
) -> None:
    """An embedding that no row uses: no loss, no gradient and no later step tells of it."""
    file = place / "base" / "model.safetensors"
    tensors, tokenizer = load_file(file), AutoTokenizer.from_pretrained(place / "base")
    used = set(tokenizer((place / "pairs.jsonl").read_text()).input_ids) | set(tokenizer.all_special_ids)
    unused = next(token for token in range(len(tokenizer)) if token not in used)
    tensors["model.embed_tokens.weight"][unused] = 3e38
    save_file(tensors, file, metadata={"format": "pt"})
    config = run_of(place).config
    optimizer = replace(config.optimizer, lr=100.0, weight_decay=1000.0, schedule="constant", max_steps=1)
    run = Run.of(
        replace(
            config, optimizer=optimizer, trainer=replace(config.trainer, on_nonfinite=policy), label="decay"
        )
    )
    with pytest.raises(
        ValueError, match=r"step 1: its update left weights that are not finite.*Lower optimizer\.lr"
    ):
        execute(run.config)
    assert view_run(run.folder).status == "failed"
    assert math.isfinite(rows(run.folder)[-1]["loss"])
    assert not (run.folder / "model").exists()
    assert run.finished() is None


# ---- the disk is full ----------------------------------------------------------------------------------------


def ends_in_one_line(process: subprocess.Popen, words: str) -> None:
    said = process.communicate(timeout=120)[0]
    assert process.returncode == 1, said
    (line,) = [line for line in said.splitlines() if line.startswith("error: ")]
    assert re.search(words, line), line
    assert "Traceback" not in said, said


def limit_files(size: int) -> None:
    """What becomes larger cannot be written: of this process, for good."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


@pytest.mark.proof
@pytest.mark.parametrize(
    ("every", "words"),
    [(4, "the disk was full while .*checkpoint-4"), (1000, "the disk was full while .*checkpoint-40")],
)
def test_weights_that_do_not_fit_on_the_disk_end_in_a_record_that_says_so(
    place: Path, every: int, words: str
) -> None:
    """Of a checkpoint in mid-run or of the last one."""
    folder = killed_folder(place)
    shutil.rmtree(folder)
    process = start(place, f"trainer.save_steps={every}", preexec_fn=partial(limit_files, 60_000))
    ends_in_one_line(process, words)
    (record,) = [json.loads(path.read_text()) for path in place.glob("outputs/default/*/record.json")]
    assert record["status"] == "failed"
    assert re.search(words, record["error"])
    assert record["final"]["train"]["step"] == (every if every < STEPS else STEPS)
    assert not [path for path in place.glob("outputs/default/*/.*") if path.name != ".heartbeat"]


@pytest.mark.proof
def test_a_disk_that_others_fill_in_mid_run_has_room_for_the_records_end(place: Path, alone: Path) -> None:
    """A small file system of its own; when there is room again the same command goes on to the same bits."""
    folder = killed_folder(place)
    shutil.rmtree(place / "outputs")
    (place / "outputs").mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=80m", "tmpfs", place / "outputs"], check=False
    )
    if mounted.returncode != 0:
        pytest.skip("mounting needs rights that these tests have not got")
    filler = place / "outputs" / "filler"
    try:
        process = start(place, f"cache={place}/cache")
        while not list(folder.glob("checkpoints/checkpoint-8/manifest.json")):
            assert process.poll() is None, process.stdout.read()
            time.sleep(0.002)
        with suppress(OSError), filler.open("wb") as file:
            while True:
                file.write(bytes(512))
                file.flush()
        ends_in_one_line(process, "disk was full|No space left on device")
        assert view_run(folder).status == "failed"
        assert re.search("disk was full|No space left on device", view_run(folder).error)
        filler.unlink()
        assert start(place, f"cache={place}/cache").wait(120) == 0
        assert (rows(folder), weights(folder)) == (rows(alone), weights(alone))
    finally:
        subprocess.run(["umount", "-l", place / "outputs"], check=True)


def test_an_interrupted_copy_that_sorts_first_does_not_stand_in_for_the_run(place: Path) -> None:
    folder = execute(run_of(place).config)
    copy = folder.with_name(f"0-{folder.name}")
    shutil.copytree(folder, copy)
    write_json(copy / "record.json", {**json.loads((copy / "record.json").read_text()), "status": "failed"})
    assert run_of(place).folder == folder
    assert run_of(place).finished() is not None


def test_a_lookup_among_a_thousand_finished_runs_takes_under_10_ms(place: Path) -> None:
    run = run_of(place)
    folder = execute(run.config)
    record = json.loads((folder / "record.json").read_text())
    for number in range(1000):
        other = folder.with_name(f"mine-local-local-s{number}-{number:08x}")
        other.mkdir()
        (other / "record.json").write_text(json.dumps({**record, "run_hash": f"{number:064x}"}, indent=2))
    assert run.finished() is not None  # the weights' hash is remembered from here on
    seconds = timeit.repeat(run.finished, number=1, repeat=5)
    assert run.finished() is not None
    assert min(seconds) < 0.010, seconds
