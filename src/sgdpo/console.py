"""What a command says on the screen and how it behaves among others."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from typing import NoReturn

from sgdpo.config.schema import RunConfig


class ConfigError(SystemExit):
    """End the program with code 1 after its errors were printed; a sweep counts the cell as failed."""

    def __init__(self, errors: list[str]) -> None:
        super().__init__(1)
        self.errors = errors


def fail(errors: list[str]) -> NoReturn:
    """Print every error, one a line, and end with exit code 1."""
    for error in errors:
        print(f"error: {error}", file=sys.stderr)
    raise ConfigError(errors)


def greet(run: RunConfig) -> None:
    """Say in one line what is about to happen."""
    ratio = f" ratio={run.ratio.chosen},{run.ratio.rejected}" if run.ratio.chosen is not None else ""
    print(
        f"{run.method['name']}{ratio} on {run.data.name} with {run.model.name}, seed {run.seed}, "
        f"{run.precision.name}, engine {run.engine.name}",
        flush=True,
    )


def set_up_process() -> None:
    """Make the process a good neighbour, let our messages through, keep the libraries' chatter out.

    Call it before torch is imported: its threads read their wait policy once.
    """
    # Threads that spin for long while they wait make a step many times slower on a busy machine; threads that
    # do not spin at all make it slower on a quiet one.
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("DS_ACCELERATOR_QUIET", "1")
    logging.getLogger("sgdpo").setLevel(logging.INFO)
    for name in ("accelerate", "transformers", "datasets", "filelock", "wandb", "matplotlib", "httpx"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # DeepSpeed sets its own level when it is imported; a filter stays.
    logging.getLogger("DeepSpeed").addFilter(lambda record: record.levelno >= logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=UserWarning, module="torch|transformers|accelerate")
