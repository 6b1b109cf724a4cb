"""Accept only complete checkpoints: a checkpoint is complete when its manifest says so, file by file.

The Trainer writes into checkpoint-<step>/ directly, so a kill can leave a folder that loads without a word
and trains on wrongly (no optimizer.pt, no random state). The manifest is written last, after all ranks saved
and everything is on disk; a folder whose files do not match it in size and SHA-256 is passed over.

Every rank must see the same folder: over several machines the run's folder lies on shared storage.
"""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch.distributed as dist

from sgdpo.config.schema import EngineConfig
from sgdpo.processes import wait_for_ranks
from sgdpo.store import MANIFEST, read_seal, seal, sync, what_is_wrong

PREFIX = "checkpoint-"
WHOLE = ("plain", "fsdp")  # layouts that any number of processes can continue
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def checkpoint_folder(checkpoints: Path, step: int) -> Path:
    """Return the folder of the checkpoint after `step` optimizer steps."""
    return checkpoints / f"{PREFIX}{step}"


def checkpoint_step(folder: Path) -> int:
    """Return how many optimizer steps a checkpoint has seen."""
    return int(folder.name.removeprefix(PREFIX))


@contextmanager
def complete_checkpoint(
    folder: Path, engine: EngineConfig, keep: int, mark: Callable[[], Mapping[str, Any]] = dict
) -> Iterator[None]:
    """Save a checkpoint inside the block, on every rank; it counts from the moment the block is left.

    mark: called on rank 0 once all is saved; returns what else the manifest holds.
    What an interrupted save left at this step goes first; older checkpoints go last, once this one counts.
    Raise ValueError on a full disk, with the torn folder removed and the earlier checkpoints untouched.
    """
    if _is_main():
        remove_checkpoint(folder)
    wait_for_ranks()
    with full_disk_named(folder, folder.parent):
        yield
        wait_for_ranks()
        if _is_main():
            mark_complete(folder, engine, **mark())
            prune(folder.parent, keep)
        wait_for_ranks()


@contextmanager
def full_disk_named(folder: Path, checkpoints: Path) -> Iterator[None]:
    """Raise ValueError, with the torn folder removed, if the disk is full while a folder is written."""
    try:
        yield
    except Exception as error:
        if not _disk_is_full(error):
            raise
        raise _full_disk_error(folder, checkpoints) from error


def mark_complete(folder: Path, engine: EngineConfig, **fields: Any) -> None:
    """Write the manifest: every file's size and SHA-256, who wrote them, and these fields; on disk, last.

    Call it on rank 0, after all ranks saved.
    """
    seal(
        folder,
        step=checkpoint_step(folder),
        engine=engine.name,
        state_layout=state_layout(engine),
        world_size=engine.world,
        **fields,
    )


def find_resumable(
    checkpoints: Path,
    engine: EngineConfig,
    why_foreign: Callable[[Mapping[str, Any]], str | None] = lambda manifest: None,
) -> tuple[Path | None, list[str]]:
    """Return the newest complete checkpoint, or None, and a note on each newer one that was passed over.

    why_foreign: says of a manifest why the run cannot go on there. Raise ValueError if that checkpoint holds
    another engine's state, which would load wrongly or not at all.
    """
    notes = []
    for folder in newest_first(checkpoints):
        manifest = read_seal(folder)
        if (foreign := why_foreign(manifest) if manifest else None) is not None:
            notes.append(f"{folder.name} is passed over: {foreign}")
        elif (wrong := what_is_wrong(folder)) is not None:
            notes.append(f"{folder.name} is not complete and is passed over: {wrong}")
        else:
            _check_fit(folder, engine)
            return folder, notes
    return None, notes


def prune(checkpoints: Path, keep: int) -> None:
    """Keep the `keep` newest complete checkpoints, and the best that each of them knows; remove everything older than
    the oldest of them; 0: all."""
    found = newest_first(checkpoints)
    marked = [folder for folder in found if (folder / MANIFEST).is_file()]
    if len(marked) < keep:
        return
    best = {(read_seal(folder) or {}).get("best_step") for folder in marked[:keep]}
    for folder in found[found.index(marked[keep - 1]) + 1 :] if keep else found:
        if checkpoint_step(folder) not in best:
            remove_checkpoint(folder)
    if not keep:
        shutil.rmtree(checkpoints, ignore_errors=True)


def remove_newer(checkpoint: Path) -> int:
    """Remove what was saved beyond the checkpoint that a run continues, and return how much: nothing goes on there."""
    step = checkpoint_step(checkpoint)
    newer = [folder for folder in newest_first(checkpoint.parent) if checkpoint_step(folder) > step]
    for folder in newer:
        remove_checkpoint(folder)
    return len(newer)


def remove_checkpoint(folder: Path) -> None:
    """Remove a checkpoint; its manifest goes first, so that one half removed is never taken for complete."""
    if folder.is_dir():
        (folder / MANIFEST).unlink(missing_ok=True)
        sync(folder)
        shutil.rmtree(folder)


def state_layout(engine: EngineConfig) -> str:
    """Return how the optimizer's state is laid out: `plain` or `fsdp`, both whole, or cut as a ZeRO stage does."""
    if not engine.deepspeed:
        return "fsdp" if engine.fsdp else "plain"
    zero = engine.deepspeed.get("zero_optimization", {})
    devices = [zero.get(key, {}).get("device", "none") for key in ("offload_optimizer", "offload_param")]
    return f"zero{zero.get('stage', 0)}" + ("_offload" if set(devices) != {"none"} else "")


def _check_fit(folder: Path, engine: EngineConfig) -> None:
    """Raise ValueError with both ways out if this engine cannot load the checkpoint's state."""
    manifest = read_seal(folder)
    assert manifest is not None, "only a complete checkpoint comes here"
    written = manifest["state_layout"], manifest["world_size"]
    wanted = state_layout(engine), engine.world
    if written == wanted or written[0] == wanted[0] in WHOLE:
        return
    raise ValueError(
        f"{folder} was written as {written[0]} by {written[1]} processes and cannot be continued as "
        f"{wanted[0]} by {wanted[1]}: the optimizer's state is kept differently. Continue with what wrote it "
        f"(engine={manifest['engine']}, {written[1]} processes in all), or start again with resume=never"
    )


def _full_disk_error(folder: Path, checkpoints: Path) -> ValueError:
    left = shutil.disk_usage(folder.parent).free / 2**20
    earlier = [str(f) for f in newest_first(checkpoints) if f != folder and (f / MANIFEST).is_file()]
    if _is_main():
        (folder / MANIFEST).unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)  # other ranks may still be writing into it
    intact = f"{earlier[0]} is intact" if earlier else "there is no earlier checkpoint"
    return ValueError(
        f"the disk was full while {folder} was saved ({left:.0f} MiB were left); {intact}. Free some space "
        "(or set trainer.keep_checkpoints=1) and run the same command again: it continues there"
    )


def _disk_is_full(error: Exception) -> bool:
    """Tell a full disk: safetensors hides the errno in a text, torch reports a short write."""
    if isinstance(error, OSError):
        return error.errno in NO_SPACE
    safetensors = any(f"(os error {number})" in str(error) for number in NO_SPACE)
    return safetensors or ("inline_container" in str(error) and "unexpected pos" in str(error))


def newest_first(checkpoints: Path) -> list[Path]:
    """Return the folders of checkpoints, whole or not."""
    found = [f for f in checkpoints.glob(f"{PREFIX}*") if f.is_dir() and f.name[len(PREFIX) :].isdigit()]
    return sorted(found, key=checkpoint_step, reverse=True)


def _is_main() -> bool:
    return not dist.is_initialized() or dist.get_rank() == 0
