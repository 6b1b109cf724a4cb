"""What the tests of sweeps share: the stand-in application as a command, grids composed in this process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from functools import cache, partial
from pathlib import Path

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import create_config_search_path
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import OmegaConf

from lab.sweeps.cells import Cell, Composer, check_cells, expand
from sgdpo.config.compose import CONF, register_schema
from sgdpo.runs.records import RunView, read_runs

APP = Path(__file__).with_name("standin_app.py")
SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"
# Sweeping without an SFT start, at the least cost.
PLAIN = ("-m", "experiment=x", "init=pretrained", "tracking=off")


def start_app(folder: Path, *arguments: str, todo: dict[int, str] | None = None) -> subprocess.Popen:
    """Start the stand-in application in a folder; `todo` maps seeds to what their cells do."""
    environment = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    return subprocess.Popen(
        [sys.executable, str(APP), *arguments],
        cwd=folder,
        env={**environment, "STANDIN": json.dumps({str(k): v for k, v in (todo or {}).items()})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # A shell starts what runs in the background deaf to Ctrl-C, and children inherit that: so may these tests.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )


def run_app(folder: Path, *arguments: str, todo: dict[int, str] | None = None) -> tuple[int, str]:
    """Run the stand-in application to its end; return exit code and everything on the screen."""
    process = start_app(folder, *arguments, todo=todo)
    output, _ = process.communicate(timeout=240)
    return process.returncode, output


def runs_by_seed(folder: Path, experiment: str = "x") -> dict[int, RunView]:
    """Return the runs of a stand-in sweep by their seed."""
    return {run["seed"]: run for run in read_runs(folder / "outputs", experiment)}


def composer_for(*arguments: str) -> Composer:
    """Return a composer as Hydra's application would make it for these arguments."""
    register_schema()
    loader = ConfigLoaderImpl(create_config_search_path(str(CONF)))
    master = loader.load_configuration(
        "config", list(arguments), RunMode.MULTIRUN, from_shell=False, validate_sweep_overrides=False
    )
    return Composer(loader, master)


@cache
def cells_of(*arguments: str) -> list[Cell]:
    """Return the checked cells of `train.py <arguments>`, without starting anything."""
    composer = composer_for(*arguments)
    grids = OmegaConf.to_container(composer.master.hydra.sweeper, resolve=False)
    parser = OverridesParser.create(config_loader=composer.loader)
    return check_cells(expand(grids["params"], grids["also"], arguments, parser), composer)
