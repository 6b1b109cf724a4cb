"""Hydra finds our launchers here: cells in processes of this machine, or as jobs of a Slurm cluster."""

from collections.abc import Sequence
from dataclasses import dataclass

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from hydra_plugins.hydra_submitit_launcher.config import SlurmQueueConf
from omegaconf import II, DictConfig


@dataclass
class LocalLauncherConf:
    """Type conf/launcher/local.yaml. n_jobs: how many cells run at a time."""

    _target_: str = "hydra_plugins.cell_launchers.LocalLauncher"
    n_jobs: int = II("n_jobs")


@dataclass
class SlurmLauncherConf(SlurmQueueConf):
    """Type conf/launcher/slurm.yaml. poll_seconds: how often Slurm is asked how the jobs stand."""

    _target_: str = "hydra_plugins.cell_launchers.SlurmLauncher"
    poll_seconds: float = 15.0


for _name, _node in (("local_processes", LocalLauncherConf), ("slurm_jobs", SlurmLauncherConf)):
    ConfigStore.instance().store(group="hydra/launcher", name=_name, node=_node, provider="sgdpo")


class CellLauncher(Launcher):
    """Keep what launching needs."""

    def __init__(self, **params: object):
        self.params = params

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config


# What launching takes is heavy, and Hydra imports this file in every process: it is imported in `launch`.
class LocalLauncher(CellLauncher):
    """Run `n_jobs` cells at a time, each in a process of its own."""

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from lab.sweeps.pool import Pool
        from lab.sweeps.sweep import launch

        return launch(self, job_overrides, self.params["n_jobs"], Pool)


class SlurmLauncher(CellLauncher):
    """Submit the cells as a job array and wait for it."""

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from lab.sweeps.slurm import SlurmQueue
        from lab.sweeps.sweep import launch

        return launch(self, job_overrides, self.params["array_parallelism"], SlurmQueue)
