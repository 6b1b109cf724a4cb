"""A rank for the launcher's tests: the real worker around an act in place of training.

`experiment` names the act; the ranks meet over gloo first, so that a failure of one is felt by the others.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist

from sgdpo.engine.ranks import RankFiles
from sgdpo.runs import worker


def train(files: RankFiles) -> Path:
    config = json.loads(files.order.read_text())["config"]
    rank = int(os.environ["RANK"])
    (files.folder / f"pid{rank}").write_text(str(os.getpid()))
    dist.init_process_group("gloo")
    total = torch.tensor([rank + 1])
    dist.all_reduce(total)
    print(f"rank {rank} of {dist.get_world_size()} sees the sum {int(total)}")
    ACTS[config["experiment"]](rank)
    return files.folder.parent


def done(rank: int) -> None:
    pass


def raises(rank: int) -> None:
    if rank == 1:
        raise KeyError("what rank 1 could not find")
    dist.barrier()  # rank 0 waits for rank 1, and fails only because it is gone


def bad_input(rank: int) -> None:
    raise ValueError("the disk was full while something was saved")


def killed(rank: int) -> None:
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    dist.barrier()


def hangs(rank: int) -> None:
    time.sleep(600)


def stuck(rank: int) -> None:
    """Rank 1 fails; rank 0 stands still and does not even hear the signal that asks it to end."""
    if rank == 1:
        time.sleep(2)
        raise KeyError("what rank 1 could not find")
    os.kill(os.getpid(), signal.SIGSTOP)


def aborts_at_exit(rank: int) -> None:
    """Do as gloo does now and then: abort after all work is done."""
    leave = os._exit
    os._exit = lambda code: os.abort() if rank == 1 else leave(code)


ACTS = {act.__name__: act for act in (done, raises, bad_input, killed, hangs, stuck, aborts_at_exit)}
if __name__ == "__main__":
    worker._train = train
    sys.exit(worker.main())
