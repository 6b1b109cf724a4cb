"""Where this machine stands among the machines of a run, from the environment.

By hand every machine runs the same command with MASTER_ADDR (the first machine), MASTER_PORT and NODE_RANK.
Under Slurm, one task a machine, all three come from the job: its first host, a port made from its number, and
SLURM_NODEID.
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
    """Return this machine's place. Raise ValueError if several machines are asked for and nothing tells."""
    if engine.num_nodes == 1:
        return Node(0, None, None) if engine.port is None else Node(0, "127.0.0.1", engine.port)
    if "MASTER_ADDR" in os.environ and "NODE_RANK" in os.environ:
        port = engine.port or int(os.environ.get("MASTER_PORT", DEFAULT_PORT))
        return Node(int(os.environ["NODE_RANK"]), os.environ["MASTER_ADDR"], port)
    if "SLURM_JOB_NODELIST" in os.environ:
        port = engine.port or SLURM_PORT + int(os.environ["SLURM_JOB_ID"]) % SLURM_PORTS
        return Node(int(os.environ["SLURM_NODEID"]), _first_slurm_host(), port)
    raise ValueError(
        f"engine.num_nodes={engine.num_nodes}, but nothing says which machine this is: run the same command "
        "on every machine with MASTER_ADDR=<first machine> MASTER_PORT=29500 NODE_RANK=<0, 1, ...>, or under "
        "Slurm with `srun --ntasks-per-node=1`"
    )


def _first_slurm_host() -> str:
    hosts = ask("scontrol", "show", "hostnames", os.environ["SLURM_JOB_NODELIST"]).split()
    if not hosts:
        raise ValueError(
            "`scontrol show hostnames` names no host of this job; set MASTER_ADDR and NODE_RANK instead"
        )
    return hosts[0]
