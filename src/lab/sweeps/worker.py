"""A worker process of the local launcher: it does one cell after the other, so that torch is imported once.

It reads one JSON line a cell from stdin, {"config": {...}, "output": path}, sends everything that the cell
prints to that file, and answers one JSON line, {"ok": bool, "error": text}. Runs in one process after each
other give the same bits as runs in fresh processes. It dies with the launcher.

    python -m lab.sweeps.worker SCRIPT FUNCTION PARENT_PID
"""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from sgdpo.processes import die_with_parent


def main(script: str, function: str, parent: str) -> None:
    """Serve cells until stdin closes."""
    die_with_parent(int(parent))
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    task: Callable[[Any], Any] | None = None
    for line in sys.stdin:
        job = json.loads(line)
        _send_output_to(Path(job["output"]))
        environment = dict(os.environ)
        error = None
        try:
            task = task or _load(script, function)
            task(OmegaConf.create(job["config"]))
        except SystemExit as ended:
            error = _reason(ended)
        except BaseException:
            error = traceback.format_exc()
        if error:
            print(error, file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
        os.environ.clear()
        os.environ.update(environment)
        answers.write(json.dumps({"ok": error is None, "error": error}) + "\n")


def _load(script: str, function: str) -> Callable[[Any], Any]:
    """Import the application's script by its path; calling its main with a config skips Hydra."""
    spec = importlib.util.spec_from_file_location("sgdpo_sweep_task", script)
    assert spec is not None, f"{script} is not a Python file"
    assert spec.loader is not None, f"{script} is not a Python file"
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(Path(script).resolve().parent))
    spec.loader.exec_module(module)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    return getattr(module, function)


def _send_output_to(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    output = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)


def _reason(ended: SystemExit) -> str | None:
    """Return why a cell called sys.exit; None for a normal end."""
    if ended.code in (None, 0):
        return None
    errors = getattr(ended, "errors", None) or [
        ended.code if isinstance(ended.code, str) else f"it ended with exit code {ended.code}"
    ]
    return "\n".join(str(error) for error in errors)


if __name__ == "__main__":
    main(*sys.argv[1:])
