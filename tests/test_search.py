"""A search asks Optuna for values and our cells what they are worth; it goes on after a kill and ends what is bad."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import optuna
import pytest
import yaml
from omegaconf import OmegaConf
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState

from lab.report.names import lower_is_better
from lab.sweeps.cells import SweepError, check_cells
from lab.sweeps.search import JOURNAL, SearchConfig, Space, _refuse_metric, _space, _study, _text
from lab.sweeps.status import experiment_status
from sgdpo.config.compose import CONF
from sgdpo.config.schema import TrainerConfig
from sgdpo.runs.records import read_runs
from sgdpo.training.arguments import higher_is_better
from sweep_fixtures import composer_for, run_app, start_app

SEARCH = ("sweep=search", "experiment=x", "init=pretrained", "tracking=off")


def number(trials: int) -> str:
    return f"hydra.sweeper.search.trials={trials}"


def trials_in(folder: Path) -> list[optuna.trial.FrozenTrial]:
    storage = optuna.storages.JournalStorage(
        optuna.storages.journal.JournalFileBackend(str(folder / "outputs" / "x" / JOURNAL))
    )
    return optuna.load_study(study_name="search", storage=storage).trials


def test_a_search_finds_the_best_and_more_trials_go_on_from_there(
    tmp_path: Path,
) -> None:
    space = (*SEARCH, "seed=interval(0,1000)", "n_jobs=2")
    code, screen = run_app(tmp_path, *space, number(3))
    assert code == 0, screen
    first = trials_in(tmp_path)
    assert [trial.state for trial in first] == [TrialState.COMPLETE] * 3
    assert {trial.params["seed"] for trial in first} == {
        run["seed"] for run in read_runs(tmp_path / "outputs", "x")
    }
    assert f"best: eval/rewards/margins {max(t.value for t in first):.4g} of sgdpo-" in screen
    assert "held-out margin" in screen
    code, screen = run_app(tmp_path, *space, number(4))
    values = [trial.params["seed"] for trial in trials_in(tmp_path)]
    assert (code, values[:3], len(set(values))) == (0, [t.params["seed"] for t in first], 4), (
        "it draws on, not again"
    )


@pytest.mark.proof
def test_a_killed_search_goes_on_with_the_trials_that_ran(tmp_path: Path) -> None:
    """Nobody is left running, no trial is lost and none is counted twice; a torn line of the journal is cut off."""
    space = (*SEARCH, "seed=3,4", "n_jobs=2", number(4))
    process = start_app(tmp_path, *space, todo={3: "hang", 4: "hang"})
    while not list((tmp_path / "outputs").glob("hangs-*")):
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    with (tmp_path / "outputs" / "x" / JOURNAL).open("a") as file:
        file.write('{"op_code": 4, "wor')
    (tmp_path / "outputs" / "x" / f"{JOURNAL}.lock").touch()
    began = [trial.params for trial in trials_in(tmp_path)]
    assert began
    code, screen = run_app(tmp_path, *space)
    trials = trials_in(tmp_path)
    assert (code, [trial.state for trial in trials]) == (0, [TrialState.COMPLETE] * 4), screen
    assert [trial.params for trial in trials][: len(began)] == began
    assert all(trial.value == float(trial.params["seed"]) for trial in trials)


@pytest.mark.proof
def test_a_trial_whose_values_a_kill_cut_off_is_given_them_before_it_runs(tmp_path: Path) -> None:
    """It would be a run of the key's default, told as one of the search."""
    folder = tmp_path / "outputs" / "x"
    folder.mkdir(parents=True)
    _study(folder, SearchConfig(), Space(SEARCH, {"seed": IntDistribution(1000, 2000)})).ask()
    code, screen = run_app(tmp_path, *SEARCH, "seed=interval(1000,2000)", number(1))
    assert code == 0, screen
    assert [run["seed"] for run in read_runs(tmp_path / "outputs", "x")] == [
        trials_in(tmp_path)[0].params["seed"]
    ]


@pytest.mark.proof
def test_what_is_bad_on_its_way_is_ended_and_its_record_says_so(tmp_path: Path) -> None:
    """And a run that fails is a trial that failed; one that has just finished as it is ended is finished."""
    pruner = "+hydra.sweeper.search.pruner.n_startup_trials=1"
    grid = "+hydra.sweeper.search.sampler.search_space.seed=['9','1','5','2']"
    sampler = ("hydra.sweeper.search.sampler.class=GridSampler", grid)
    todo = {1: "bad", 5: "fail", 2: "late"}
    code, screen = run_app(
        tmp_path, *SEARCH, "seed=9,1,5,2", number(4), "n_jobs=4", pruner, *sampler, todo=todo
    )
    assert (tmp_path / "outputs").exists(), screen
    states = {trial.params["seed"]: trial.state for trial in trials_in(tmp_path)}
    statuses = {run["seed"]: run.status for run in read_runs(tmp_path / "outputs", "x")}
    assert (code, states.get("9"), states.get("5")) == (0, TrialState.COMPLETE, TrialState.FAIL), screen
    assert statuses[5] == "failed"
    assert (states["1"], statuses[1]) == (TrialState.PRUNED, "pruned")
    assert (states["2"], statuses[2]) == (TrialState.COMPLETE, "finished")
    assert "eval/rewards/margins -1 at step 4" in screen
    assert "1 pruned" in experiment_status(tmp_path / "outputs", "x")


@pytest.mark.proof
def test_what_failed_or_was_killed_is_tried_again_by_the_same_command(tmp_path: Path) -> None:
    """As a sweep's cells are; it counts once. A search of which nothing came out has failed."""
    grid = "+hydra.sweeper.search.sampler.search_space.seed=['5','6']"
    words = (
        *SEARCH,
        "seed=5,6",
        number(2),
        "n_jobs=2",
        "hydra.sweeper.search.sampler.class=GridSampler",
        grid,
    )
    code, screen = run_app(tmp_path, *words, todo={5: "fail", 6: "die"})
    assert (code, "0 trials finished, 0 pruned, 2 failed" in screen) == (1, True), screen
    code, screen = run_app(tmp_path, *words)
    assert (code, "2 trials finished, 0 pruned, 0 failed" in screen) == (0, True), screen
    assert {run["seed"]: run.status for run in read_runs(tmp_path / "outputs", "x")} == dict.fromkeys(
        (5, 6), "finished"
    )


def test_a_search_does_not_go_on_beside_other_settings(tmp_path: Path) -> None:
    keys = {"seed": IntDistribution(1, 9)}
    for words in (["data.limit=9", "n_jobs=1"], ["n_jobs=2", "data.limit=9"]):
        _study(tmp_path, SearchConfig(), Space(words, keys))
    with pytest.raises(SweepError, match=r"search over seed to maximize .* with data.limit=9; use another"):
        _study(tmp_path, SearchConfig(), Space(["data.limit=8"], keys))


def corners(*arguments: str):
    composer = composer_for("sweep=search")
    space = _space({}, arguments, composer)
    return space, check_cells([(0, overrides) for overrides in space.corners()], composer)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["optimizr.lr=interval(1e-5,1e-3)"], "unknown key 'optimizr.lr': did you mean optimizer.lr?"),
        (["seed=1"], "there is nothing to search over"),
        (["optimizer.lr=interval(-1,1e-3)"], "optimizer.lr must be a positive number, not -1.0"),
        (["optimizer.lr=interval(1e-3,1e-4)"], "`low <= high` must hold"),
        (["optimizer.batch_size=interval(2.5,8)"], "could not be converted to Integer"),
        (["method=dpo,nothing"], "Could not find 'method/nothing'"),
        (["method=dpo", "ratio.chosen=interval(0,1)"], "method 'dpo' takes no ratio"),
        (["optimizer.lr=range(1e-5,inf,1e-5)"], "a range needs finite numbers"),
        (["optimizer.lr=tag(lgo,interval(1e-5,1e-3))"], "tag lgo says nothing here; there is tag(log,"),
        (["seed=tag(log,range(1,9))"], "tag log says nothing here"),
        (["trainer.save_steps=interval(1,5)"], "does not depend on trainer.save_steps"),
    ],
)
def test_what_cannot_be_searched_over_is_said_before_anything_runs(arguments: list[str], words: str) -> None:
    with pytest.raises(SweepError) as error:
        corners(*arguments)
    assert words in str(error.value)


def test_the_values_of_a_key_are_of_its_kind_and_the_ends_are_tried() -> None:
    space, cells = corners(
        "optimizer.lr=tag(log,interval(1e-5,1e-3))", "optimizer.batch_size=interval(8,64)",
        "ratio.chosen=range(0.2,1.0,0.2)", "model=tiny_llama,tiny_qwen2", "data.limit=99",
    )  # fmt: skip
    assert space.keys == {
        "optimizer.lr": FloatDistribution(1e-5, 1e-3, log=True),
        "optimizer.batch_size": IntDistribution(8, 64),
        "ratio.chosen": FloatDistribution(0.2, 0.8, step=0.2),
        "model": CategoricalDistribution(["tiny_llama", "tiny_qwen2"]),
    }
    assert {cell.config.optimizer.lr for cell in cells} == {1e-5, 1e-3}
    assert {cell.config.model.name for cell in cells} == {"tiny_llama", "tiny_qwen2"}
    assert {cell.config.data.limit for cell in cells} == {99}
    assert _text(0.000123456, space.keys["optimizer.lr"]) == "0.0001235"
    assert _text(0.00099999, space.keys["optimizer.lr"]) == "0.001"
    assert corners("method=glob([dpo,ip*])")[0].keys == {"method": CategoricalDistribution(["dpo", "ipo"])}
    with pytest.raises(
        SweepError, match="eval/nothing is not logged by every run of this search; there are: eval/dis"
    ):
        _refuse_metric("eval/nothing", cells)


def test_the_trainer_and_the_search_take_the_same_values_of_a_metric_for_better() -> None:
    known = [*OmegaConf.load(CONF / "metrics.yaml"), "samples/end_rate", "train/loss", "eval/rewards/chosen"]
    assert not higher_is_better(TrainerConfig(best="samples/repetition")), "the loop is the best run"
    for metric in known:
        assert higher_is_better(TrainerConfig(best=metric)) != lower_is_better(metric), metric


def test_the_yaml_of_a_wandb_sweep_composes_what_its_agents_run(tmp_path: Path) -> None:
    """With W&B's own code between: what its server proposes becomes the command that its agent starts."""
    from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

    from sgdpo.config.compose import compose_run
    from sgdpo.runs.validate import config_errors

    sweep = yaml.safe_load((CONF / "wandb_sweep.yaml").read_text())
    assert (CONF.parent / sweep["program"]).is_file()
    for end in ("min", "max"):
        proposed = {key: {"value": each[end]} for key, each in sweep["parameters"].items()}
        command = create_sweep_command(sweep["command"])
        macros = create_sweep_command_args({"args": proposed})
        words = [
            word
            for part in command
            for word in (macros.get(part[2:-1], [part]) if part[:2] == "${" else [part])
        ]
        overrides = [word for word in words if "=" in word]
        config = compose_run(overrides)
        assert config_errors(config) == []
        assert all(OmegaConf.select(config, key) == each[end] for key, each in sweep["parameters"].items())
    assert higher_is_better(TrainerConfig(best=sweep["metric"]["name"])) == (
        sweep["metric"]["goal"] == "maximize"
    )
