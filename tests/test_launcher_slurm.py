"""launcher=slurm: composes to submitit's launcher, whose jobs find the code and know the cells; no cluster needed."""

import submitit
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.core.utils import setup_globals
from hydra.types import HydraContext
from omegaconf import OmegaConf

from sweep_fixtures import composer_for


def test_it_composes_to_one_task_a_cell_with_a_gpu_for_each_process():
    setup_globals()
    config = composer_for("launcher=slurm", "engine.num_processes=4", "hydra.launcher.partition=gpu").master
    launcher = OmegaConf.to_container(config.hydra.launcher, resolve=False)
    assert launcher["_target_"].endswith("SlurmLauncher")
    assert (launcher["tasks_per_node"], launcher["partition"]) == (1, "gpu")
    assert config.hydra.launcher.gpus_per_node == 4
    assert "/src:$PYTHONPATH" in launcher["setup"][0]


def test_its_settings_are_ones_that_the_cluster_executor_takes(tmp_path, monkeypatch):
    """submitit refuses unknown parameters when they are set; the stand-in executor records what is submitted."""
    seen = {}

    def submit(self, task, *columns):
        seen.update(self._executor.parameters, cells=list(columns[0]))
        return []

    monkeypatch.setattr(submitit.AutoExecutor, "map_array", submit)
    monkeypatch.setattr("submitit.slurm.slurm.SlurmExecutor.affinity", classmethod(lambda cls: 1))
    setup_globals()
    composer = composer_for("launcher=slurm", f"outputs={tmp_path}", "hydra.runtime.cwd=/work")
    monkeypatch.setattr(HydraConfig.instance(), "cfg", composer.master)
    launcher = Plugins.instance().instantiate_launcher(
        config=composer.master, task_function=print, hydra_context=HydraContext(composer.loader, None)
    )
    assert launcher.launch([["seed=1"], ["seed=2"]], initial_job_idx=0) == []
    assert seen["cells"] == [["seed=1"], ["seed=2"]]
    assert seen["time"] == 720
    assert seen["array_parallelism"] == 16
