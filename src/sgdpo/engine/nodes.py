"""Where this machine stands among the machines of a run, from the environment.

By hand every machine runs the same command with MASTER_ADDR (the first machine), MASTER_PORT and NODE_RANK.
Under Slurm, one task a machine, all three come from the job: the first host of its step (`srun` may take a part of the
job's), a port made from its number, and SLURM_NODEID.
"""

import os
from dataclasses import dataclass

from sgdpo.config.schema import EngineConfig
from sgdpo.processes import ask

DEFAULT_PORT = 29500
# Jobs of one machine get different ports: 20000 + job number modulo 20000.
SLURM_PORT, SLURM_PORTS = 20000, 20000


@dataclass(frozen=True)
class Node:
    """Hold one machine's place: its number, and where all meet (None: on this machine, at a free port)."""

    rank: int
    address: str | None
    port: int | None

    def arguments(self, engine: EngineConfig) -> list[str]:
        """Return the arguments of torch.distributed.run for this machine."""
        ranks = [f"--nproc-per-node={engine.num_processes}"]
        if self.address is None:
            return ["--standalone", *ranks]
        place = [f"--nnodes={engine.num_nodes}", f"--node-rank={self.rank}"]
        return [*place, *ranks, f"--master-addr={self.address}", f"--master-port={self.port}"]


def this_node(engine: EngineConfig) -> Node:
    """Return this machine's place. Raise ValueError if several machines are asked for and nothing tells, or what tells
    does not fit."""
    if engine.num_nodes == 1:
        return Node(0, None, None) if engine.port is None else Node(0, "127.0.0.1", engine.port)
    if {"MASTER_ADDR", "NODE_RANK"} <= os.environ.keys():
        rank = _number("NODE_RANK", below=engine.num_nodes)
        port = engine.port or _number("MASTER_PORT", DEFAULT_PORT)
        return Node(rank, os.environ["MASTER_ADDR"], port)
    # Inside `salloc` alone there is a job, and no step of it that has a place.
    if {"SLURM_JOB_NODELIST", "SLURM_JOB_ID", "SLURM_NODEID"} <= os.environ.keys():
        rank = _number("SLURM_NODEID", below=engine.num_nodes)
        port = engine.port or SLURM_PORT + _number("SLURM_JOB_ID") % SLURM_PORTS
        return Node(rank, _first_slurm_host(), port)
    raise ValueError(
        f"engine.num_nodes={engine.num_nodes}, but nothing says which machine this is: run the same command "
        "on every machine with MASTER_ADDR=<first machine> MASTER_PORT=29500 NODE_RANK=<0, 1, ...>, or under "
        "Slurm with `srun --ntasks-per-node=1`"
    )


def _number(variable: str, default: int = 0, *, below: int | None = None) -> int:
    value = os.environ.get(variable, str(default))
    if not value.isdecimal():
        raise ValueError(f"{variable}={value!r} in the environment must be a whole number from 0")
    if below is not None and int(value) >= below:
        raise ValueError(
            f"{variable}={value} in the environment, but the machines of engine.num_nodes={below} are counted from 0 to"
            f" {below - 1}; set engine.num_nodes to the number of machines, or correct {variable}"
        )
    return int(value)


def _first_slurm_host() -> str:
    names = os.environ.get("SLURM_STEP_NODELIST") or os.environ["SLURM_JOB_NODELIST"]
    hosts = ask("scontrol", "show", "hostnames", names).split()
    if not hosts:
        raise ValueError(
            "`scontrol show hostnames` names no host of this job; set MASTER_ADDR and NODE_RANK instead"
        )
    return hosts[0]
