"""One rank of a run: read the composed run, train, leave a result or a report.

python -m sgdpo.runs.worker FOLDER          (started by sgdpo.engine.agent, never by hand)
"""

import contextlib
import faulthandler
import logging
import os
import signal
import sys
import time
import traceback
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

from sgdpo.config.schema import RunConfig
from sgdpo.engine.agent import AGENT_PID
from sgdpo.engine.ranks import RankFiles
from sgdpo.processes import die_with_parent, send_output_to, wait_for_ranks
from sgdpo.store import read_json, write_json
from sgdpo.store.life import ALIVE


def main() -> None:
    """Train as one rank, then end without the interpreter's shutdown.

    gloo aborts now and then while the interpreter shuts down, after all work is done; so everything is
    flushed, the process ends by `os._exit`, and rank 0's result file tells that all ranks came that far.
    """
    files, rank = RankFiles(Path(sys.argv[1])), int(os.environ["RANK"])
    die_with_parent(int(os.environ[AGENT_PID]))
    send_output_to(files.log(rank))
    os.environ[ALIVE] = str(files.alive(rank))
    faulthandler.register(
        signal.SIGUSR1, all_threads=False
    )  # the launcher asks where a run stands that hangs
    try:
        folder = _train(files)
        wait_for_ranks()
        if rank == 0:
            write_json(files.result, {"folder": str(folder), "time": time.time()})
        code = 0
    except BaseException as error:
        _report(files, rank, error)
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _train(files: RankFiles) -> Path:
    import torch

    from sgdpo.console import set_up_process
    from sgdpo.runs.run import Run

    logging.basicConfig(format="%(message)s", stream=sys.stdout)
    set_up_process()
    run = Run.from_json(read_json(files.order))
    if run.config.device == "auto" and not torch.cuda.is_available():
        run = replace(run, config=replace(run.config, device="cpu"))  # accelerate asks to be told
    _join(run.config)
    from sgdpo.runs.train import train

    train(run)
    return run.folder


def _join(config: RunConfig) -> None:
    """Join the ranks' process group. A collective waits as long as it takes: a rank may wait for another run's work
    in it, and the launcher ends a run that shows no sign of life.

    DeepSpeed must open the group itself: it partitions models as they load, before there is a trainer.
    """
    import torch

    backend = "gloo" if config.device == "cpu" else "nccl"
    timeout = timedelta(days=24)  # the most that 32 bits of milliseconds hold
    if not config.engine.deepspeed:
        torch.distributed.init_process_group(backend, timeout=timeout)
        return
    import deepspeed
    from deepspeed.ops import __compatible_ops__

    # Its shared-memory collectives for CPUs would be compiled at every first start, for 75 s.
    __compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(backend, timeout=timeout, verbose=False)


def _report(files: RankFiles, rank: int, error: BaseException) -> None:
    """Write when and why this rank failed; the launcher shows the first one of all."""
    traceback.print_exc()
    report = {
        "rank": rank,
        "time": time.time(),
        "expected": isinstance(error, ValueError),
        "error": f"{type(error).__name__}: {error}",
        "message": str(error),
        "traceback": traceback.format_exc(),
    }
    with contextlib.suppress(OSError):
        write_json(files.error(rank), report)


if __name__ == "__main__":
    main()
