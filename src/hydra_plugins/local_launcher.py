"""Hydra finds this launcher here: cells in processes of their own on this machine; see lab.sweeps.pool."""

from collections.abc import Sequence
from dataclasses import dataclass

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


@dataclass
class LocalLauncherConf:
    """Type conf/launcher/local.yaml. n_jobs: how many cells run at a time."""

    _target_: str = "hydra_plugins.local_launcher.LocalLauncher"
    n_jobs: int = 1


ConfigStore.instance().store(
    group="hydra/launcher", name="local_processes", node=LocalLauncherConf, provider="sgdpo"
)


class LocalLauncher(Launcher):
    """Run `n_jobs` cells at a time, each in a process of its own."""

    def __init__(self, n_jobs: int):
        self.n_jobs = n_jobs

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep what `launch` needs."""
        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run the cells; a failed one is a JobReturn with the failure, the others go on."""
        from lab.sweeps.local import launch_cells  # heavy, and Hydra imports this file in every process

        return launch_cells(self, job_overrides, initial_job_idx)
