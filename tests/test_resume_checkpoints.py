"""Only complete checkpoints are ever picked up, and older ones go only once a newer one counts."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from sgdpo.config.schema import EngineConfig
from sgdpo.training import checkpoints
from sgdpo.training.checkpoints import (
    MANIFEST,
    complete_checkpoint,
    find_resumable,
    mark_complete,
    prune,
    remove_newer,
)

FILES = (
    "model.safetensors",
    "optimizer.pt",
    "scheduler.pt",
    "rng_state_0.pth",
    "global_step3/bf16_rank_0.pt",
)
SINGLE = EngineConfig()


def zero(stage: int, processes: int) -> EngineConfig:
    deepspeed = {"zero_optimization": {"stage": stage}}
    return EngineConfig(name=f"zero{stage}", num_processes=processes, deepspeed=deepspeed)


def save(folder: Path, engine: EngineConfig = SINGLE) -> Path:
    """Write what a checkpoint looks like from outside: files of known content, then the manifest."""
    for name in FILES:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(f"{name} of {folder.name}".encode() * 7)
    mark_complete(folder, engine)
    return folder


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    for step in (3, 20, 100):
        save(tmp_path / f"checkpoint-{step}")
    return tmp_path


def test_the_newest_complete_checkpoint_is_found_by_number_not_by_name(saved: Path) -> None:
    assert find_resumable(saved, SINGLE) == (saved / "checkpoint-100", [])


def test_no_checkpoint_is_no_error(tmp_path: Path) -> None:
    assert find_resumable(tmp_path / "nothing", SINGLE) == (None, [])


def remove(path: Path) -> None:
    path.unlink()


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [remove, truncate, flip_a_bit])
@pytest.mark.parametrize("name", [*FILES, MANIFEST])
def test_a_torn_checkpoint_is_passed_over_with_a_note(saved: Path, name: str, damage) -> None:
    damage(saved / "checkpoint-100" / name)
    found, notes = find_resumable(saved, SINGLE)
    assert found == saved / "checkpoint-20"
    assert len(notes) == 1
    assert "checkpoint-100" in notes[0]
    assert name in notes[0] or name == MANIFEST


def test_a_manifest_with_any_bit_flipped_is_not_believed(saved: Path) -> None:
    manifest = saved / "checkpoint-100" / MANIFEST
    content = manifest.read_bytes()
    for position in range(len(content)):
        manifest.write_bytes(content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :])
        assert find_resumable(saved, SINGLE)[0] == saved / "checkpoint-20", content[
            position - 9 : position + 9
        ]


def test_a_save_without_its_manifest_never_counts(saved: Path) -> None:
    """SIGKILL between the last file and the manifest: everything is there, and still it is not trusted."""
    folder = saved / "checkpoint-200"
    save(folder)
    (folder / MANIFEST).rename(folder / f"{MANIFEST}.part")
    assert find_resumable(saved, SINGLE)[0] == saved / "checkpoint-100"


def test_pruning_keeps_the_newest_complete_ones_and_never_counts_a_torn_one(saved: Path) -> None:
    """Of 3, 20, 100 complete and 200 torn, keep 2: 20 and 100 stay, 200 is left alone, 3 goes."""
    (saved / "checkpoint-200").mkdir()
    prune(saved, keep=2)
    assert sorted(f.name for f in saved.iterdir()) == ["checkpoint-100", "checkpoint-20", "checkpoint-200"]


def test_pruning_before_enough_are_complete_removes_nothing(saved: Path) -> None:
    prune(saved, keep=4)
    assert len(list(saved.iterdir())) == 3


@pytest.mark.parametrize("damage", [remove, truncate, flip_a_bit])
@pytest.mark.parametrize("name", [FILES[0], MANIFEST])
def test_what_is_saved_after_a_damaged_checkpoint_was_passed_over_is_kept(
    saved: Path, name: str, damage
) -> None:
    """Of 3, 20 and 100 the run goes on at 20 and keeps one: 24, and not 100, which counts by its number alone."""
    damage(saved / "checkpoint-100" / name)
    (saved / "checkpoint-200").mkdir()
    assert remove_newer(find_resumable(saved, SINGLE)[0]) == 2
    with complete_checkpoint(saved / "checkpoint-24", SINGLE, keep=1):
        save(saved / "checkpoint-24")
    assert [f.name for f in saved.iterdir()] == ["checkpoint-24"]
    assert find_resumable(saved, SINGLE) == (saved / "checkpoint-24", [])


def test_keeping_none_leaves_no_folder(saved: Path) -> None:
    prune(saved, keep=0)
    assert not saved.exists()


def test_a_torn_save_is_cleared_before_the_step_is_saved_again(saved: Path) -> None:
    """A file of the torn save must not end up in the manifest of the next one."""
    torn = saved / "checkpoint-200"
    torn.mkdir()
    (torn / "rng_state_7.pth").write_text("from a run of eight ranks")
    with complete_checkpoint(torn, SINGLE, keep=9):
        assert not torn.exists()
        save(torn)
    assert "rng_state_7.pth" not in checkpoints.read_seal(torn)["files"]


@pytest.mark.parametrize("wanted", [zero(3, 4), zero(2, 2), EngineConfig("ddp", 2)])
def test_a_zero_checkpoint_of_another_process_count_or_stage_is_refused(tmp_path: Path, wanted) -> None:
    save(tmp_path / "checkpoint-5", zero(3, 2))
    assert find_resumable(tmp_path, zero(3, 2))[0] == tmp_path / "checkpoint-5"
    with pytest.raises(ValueError, match=r"zero3 by 2 processes.*resume=never"):
        find_resumable(tmp_path, wanted)


def test_a_plain_checkpoint_does_not_care_how_many_processes_continue_it(tmp_path: Path) -> None:
    save(tmp_path / "checkpoint-5", EngineConfig("ddp", 2))
    assert find_resumable(tmp_path, SINGLE)[0] == tmp_path / "checkpoint-5"


def test_fsdp2s_checkpoint_is_for_any_number_of_processes_and_for_no_other_engine(tmp_path: Path) -> None:
    save(tmp_path / "checkpoint-5", EngineConfig("fsdp", 2, fsdp={"version": 2}))
    four = EngineConfig("fsdp", 4, fsdp={"version": 2})
    assert find_resumable(tmp_path, four)[0] == tmp_path / "checkpoint-5"
    with pytest.raises(ValueError, match=r"fsdp by 2 processes.*resume=never"):
        find_resumable(tmp_path, SINGLE)


def test_another_error_while_saving_is_not_called_a_full_disk(saved: Path) -> None:
    with pytest.raises(KeyError), complete_checkpoint(saved / "checkpoint-200", SINGLE, keep=2):
        raise KeyError("No space left for doubt")


WRITERS = {
    "torch": "torch.save(state, folder / 'optimizer.pt')",
    "safetensors": "save_file(state, folder / 'model.safetensors')",
    "plain": "(folder / 'trainer_state.json').write_bytes(bytes(1 << 21))",
}
FILL = """
import sys
from pathlib import Path
import torch
from safetensors.torch import save_file
from sgdpo.training.checkpoints import complete_checkpoint
from sgdpo.config.schema import EngineConfig
folder, state = Path(sys.argv[1]), {{"w": torch.zeros(1 << 19)}}
try:
    with complete_checkpoint(folder, EngineConfig(), keep=1):
        folder.mkdir()
        {write}
except ValueError as error:
    print(error)
"""


@pytest.mark.parametrize("writer", WRITERS)
def test_a_full_disk_is_one_clear_error_and_the_earlier_checkpoint_stays(saved: Path, writer: str) -> None:
    """A file-size limit of 1 MiB makes real writes of 2 MiB end short, as a full disk does."""
    folder = saved / "checkpoint-200"
    out = subprocess.run(
        [sys.executable, "-c", FILL.format(write=WRITERS[writer]), str(folder)],
        capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": "src"},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20)),
    ).stdout  # fmt: skip
    assert "the disk was full" in out
    assert "checkpoint-100 is intact" in out
    assert not folder.exists()
    assert find_resumable(saved, SINGLE) == (saved / "checkpoint-100", [])
