"""Every bad engine setting is one clear error before anything loads."""

from __future__ import annotations

import importlib.util
import os
import re
import socket
from pathlib import Path

import pytest

from sgdpo.config.compose import compose_run, to_run_config
from sgdpo.engine import checks
from sgdpo.engine.checks import engine_errors
from sgdpo.engine.nodes import this_node
from sgdpo.runs.validate import config_errors


@pytest.fixture(autouse=True)
def _no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "MASTER_ADDR",
        "MASTER_PORT",
        "NODE_RANK",
        "SLURM_JOB_NODELIST",
        "SLURM_JOB_ID",
        "SLURM_NODEID",
        "SLURM_STEP_NODELIST",
    ):
        monkeypatch.delenv(name, raising=False)


def errors(*overrides: str) -> list[str]:
    return engine_errors(to_run_config(compose_run(list(overrides))))


def only(found: list[str]) -> str:
    assert len(found) == 1, found
    return found[0]


@pytest.mark.parametrize("engine", ["single", "ddp", "zero2", "zero3", "zero3_offload", "fsdp"])
def test_every_engine_is_fine_on_a_cpu(engine: str) -> None:
    assert errors(f"engine={engine}", "device=cpu") == []


def test_more_processes_than_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "visible_gpus", lambda: 2)
    assert "but 2 GPUs are visible" in only(errors("engine=zero3"))
    assert errors("engine=zero3", "engine.num_processes=2") == []
    assert errors("engine=zero3", "device=cpu") == []
    assert errors("engine=zero3", "dry_run=true") == []  # a plan may be for another machine


def test_cuda_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "visible_gpus", lambda: 0)
    assert "no CUDA device is visible" in only(errors("device=cuda"))


def test_a_batch_that_cannot_be_dealt_out_names_the_nearest_that_can() -> None:
    """32 pairs over 3 processes: 30 and 33 divide; so must the start's batch of 64: 63 and 66."""
    found = errors("engine=ddp", "engine.num_processes=3", "device=cpu")
    assert "optimizer.batch_size=32" in found[0]
    assert "30 and 33" in found[0]
    assert "optimizer.sft.batch_size=64" in found[1]
    assert "63 and 66" in found[1]
    small = errors(
        "engine=ddp", "engine.num_processes=3", "device=cpu", "optimizer.batch_size=2", "init=pretrained"
    )
    assert only(small).endswith("the nearest that are: 3")


def test_an_engine_without_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "deepspeed" else find(name))
    assert "needs the package deepspeed" in only(errors("engine=zero2", "device=cpu"))
    assert errors("engine=ddp", "device=cpu") == []


def test_a_port_in_use_and_a_port_that_is_none() -> None:
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert f"port {port} is in use" in only(errors("engine=ddp", "device=cpu", f"engine.port={port}"))
    assert "between 1024 and 65535" in only(errors("engine=ddp", "device=cpu", "engine.port=80"))


def test_several_machines_need_to_be_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    two = ("engine=ddp", "device=cpu", "engine.num_nodes=2")
    assert "nothing says which machine this is" in only(errors(*two))
    monkeypatch.setenv("MASTER_ADDR", "10.0.0.1")
    monkeypatch.setenv("NODE_RANK", "1")
    assert errors(*two) == []
    engine = to_run_config(compose_run(list(two))).engine
    assert this_node(engine).arguments(engine) == [
        "--nnodes=2", "--node-rank=1", "--nproc-per-node=4", "--master-addr=10.0.0.1", "--master-port=29500",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ({"SLURM_JOB_NODELIST": "n[1-2]", "SLURM_JOB_ID": "7"}, "nothing says which machine this is.*srun"),
        ({"MASTER_ADDR": "a", "NODE_RANK": "2"}, "NODE_RANK=2 .*counted from 0 to 1"),
        ({"MASTER_ADDR": "a", "NODE_RANK": "-1"}, "NODE_RANK='-1' .*whole number"),
        ({"MASTER_ADDR": "a", "NODE_RANK": "0", "MASTER_PORT": "x"}, "MASTER_PORT='x' .*whole number"),
        (
            {"SLURM_JOB_NODELIST": "n", "SLURM_JOB_ID": "7", "SLURM_NODEID": "3"},
            "SLURM_NODEID=3 .*counted from 0",
        ),
        (
            {"SLURM_JOB_NODELIST": "n", "SLURM_JOB_ID": "7", "SLURM_NODEID": "1", "PATH": ""},
            "scontrol.*MASTER_ADDR",
        ),
        (
            {"MASTER_ADDR": "a", "NODE_RANK": "1", "MASTER_PORT": "99999"},
            "99999 must lie between 1024 and 65535",
        ),
    ],
)
def test_a_place_among_machines_that_is_none_is_told(
    monkeypatch: pytest.MonkeyPatch, place: dict[str, str], said: str
) -> None:
    for variable, value in place.items():
        monkeypatch.setenv(variable, value)
    assert re.search(said, only(errors("engine=ddp", "device=cpu", "engine.num_nodes=2")))


def test_the_machines_of_a_step_meet_at_its_own_first_host(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """`srun --nodes=2` in a job of four: the job's first host takes no part, and all would wait for it."""
    (tmp_path / "scontrol").write_text('#!/bin/sh\nshift 2; echo "$1" | tr , "\\n"\n')
    (tmp_path / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    place = {"SLURM_JOB_NODELIST": "n1,n2,n3,n4", "SLURM_JOB_ID": "7", "SLURM_NODEID": "1"}
    for variable, value in place.items():
        monkeypatch.setenv(variable, value)
    engine = to_run_config(compose_run(["engine=ddp", "engine.num_nodes=2"])).engine
    assert this_node(engine).address == "n1"
    monkeypatch.setenv("SLURM_STEP_NODELIST", "n3,n4")
    assert this_node(engine).address == "n3"


def test_nonsense_counts_and_timeouts() -> None:
    assert "engine.num_processes must be at least 1" in only(
        config_errors(compose_run(["engine.num_processes=0"]))
    )
    assert "engine.timeout_minutes must be a positive number" in only(
        config_errors(compose_run(["engine.timeout_minutes=0"]))
    )


def test_skipping_a_step_is_refused_where_deepspeed_has_taken_it_already() -> None:
    assert "on_nonfinite=skip" in only(errors("engine=zero3", "device=cpu", "trainer.on_nonfinite=skip"))
    assert errors("engine=ddp", "device=cpu", "trainer.on_nonfinite=skip") == []
