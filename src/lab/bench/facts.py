"""What a benchmark's table states above itself: the command, the machine, the model, the pairs."""

from __future__ import annotations

import argparse
import platform
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import psutil
import torch

from sgdpo.data.example import Example


def facts(target: str, options: argparse.Namespace, examples: Sequence[Example] = ()) -> str:
    """Return the line above a table; `target` is the make target that gave the command line."""
    words = shlex.join(options.words)
    command = f'`make {target} BENCH="{words}"`' if words else f"`make {target}`"
    parts = [
        f"{command}: {Path(options.model).name} on {_machine(options.device)}, torch {torch.__version__}"
    ]
    if examples:
        lengths = np.array([[len(e.prompt_ids), len(e.chosen_ids), len(e.rejected_ids)] for e in examples])
        prompt, chosen, rejected = lengths.mean(0)
        parts += [
            f"{options.batch} pairs a step, {options.steps} timed steps in each of {options.rounds} rounds",
            f"on average {prompt:.0f} prompt, {chosen:.0f} chosen and {rejected:.0f} rejected tokens",
        ]
    return "; ".join(parts) + ".\n\n"


def _machine(device: str) -> str:
    if device != "cpu":
        return torch.cuda.get_device_name()
    return f"{psutil.cpu_count()} cores of {_processor()}"


def _processor() -> str:
    """Return the processor's name, or its architecture where the system does not say."""
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.machine()
