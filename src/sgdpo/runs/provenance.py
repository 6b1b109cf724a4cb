"""Say what made a result: versions, commit, process and memory, without naming the machine."""

from __future__ import annotations

import hashlib
import os
import platform
import resource
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from importlib import metadata
from typing import Any

import psutil

from sgdpo.places import ROOT

PACKAGES = ("torch", "transformers", "accelerate", "deepspeed", "datasets", "hydra-core", "wandb", "numpy")


def peak_memory_mb() -> float:
    """Return the largest resident memory of this process so far, MiB."""
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit, 1)


def this_process() -> dict[str, Any]:
    """Return what tells later whether this process still lives: pid, start time, machine fingerprint."""
    return {"pid": os.getpid(), "pid_started": psutil.Process().create_time(), "machine": _machine()}


@cache
def _machine() -> str:
    """Return a fingerprint that tells this machine from another, without its name."""
    return hashlib.sha256(f"sgdpo {platform.node()}".encode()).hexdigest()[:12]


def process_is_gone(fields: Mapping[str, Any]) -> bool:
    """Tell whether the process of a record has ended; a process of another machine counts as alive."""
    if fields.get("machine") != _machine():
        return False
    try:
        process = psutil.Process(fields["pid"])
        alive = process.status() != psutil.STATUS_ZOMBIE
        return not alive or abs(process.create_time() - fields["pid_started"]) > 2.0
    except psutil.NoSuchProcess:
        return True


@cache
def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that decide the numbers."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


@cache
def git_state() -> dict[str, Any]:
    """Return the commit of this code and whether src, conf or scripts differ from it; nulls without git."""
    try:
        changed = _git("status", "--porcelain", "--", "src", "conf", "scripts")
        return {"commit": _git("rev-parse", "HEAD"), "dirty": bool(changed)}
    except (OSError, subprocess.SubprocessError):
        return {"commit": None, "dirty": None}


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(ROOT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
