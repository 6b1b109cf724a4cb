"""Search instead of a grid: Optuna proposes the values, our cells try them, and a journal file remembers every trial.

Each trial is a run like any other. The journal lies in the experiment's folder, so that a killed search goes on: what
was running is run to its end, from its own checkpoint, and what failed is tried again. A trial whose metric on the way
is bad beside the others' is ended early (pruned); its record says so.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from inspect import signature
from pathlib import Path
from typing import Annotated, Any

import optuna
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from omegaconf import OmegaConf
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState
from rich.console import Console

from lab.report.cells import last_metric
from lab.report.names import lower_is_better
from lab.sweeps.cells import (
    HOW,
    Cell,
    Composer,
    SweepError,
    check_cells,
    checked_cell,
    exact_count,
    grids_of,
    label_cells,
    label_runs,
    root_of,
)
from lab.sweeps.pool import Outcome, Pool, Task, slots_for
from lab.sweeps.screen import Screen, clock
from lab.sweeps.status import open_roster
from sgdpo.config.identity import NOT_SETTINGS
from sgdpo.config.schema import RunConfig
from sgdpo.keyed import fold
from sgdpo.processes import termination_as_exit
from sgdpo.runs.records import CHECKPOINTS, RECORD, view_run
from sgdpo.store import cut_jsonl, write_json
from sgdpo.training.checkpoints import prune
from sgdpo.values import OneOf, Range, schema_errors

JOURNAL = "search.journal"
AGAIN = "again"  # a trial's attribute: the number of the failed one that it tries again
LOOK_SECONDS = 1.0  # between two looks at what the running trials have measured
DONE = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)


@dataclass(frozen=True)
class SearchConfig:
    """Hold hydra.sweeper.search; conf/sweep/search.yaml says what each means."""

    trials: Annotated[int, Range("[1, 10000]")] = 20
    metric: str = "eval/rewards/margins"
    better: Annotated[str, OneOf("auto", "higher", "lower")] = "auto"
    sampler: dict[str, Any] = field(default_factory=lambda: {"class": "TPESampler"})
    pruner: dict[str, Any] = field(default_factory=lambda: {"class": "NopPruner"})

    @property
    def direction(self) -> str:
        lower = lower_is_better(self.metric) if self.better == "auto" else self.better == "lower"
        return "minimize" if lower else "maximize"


@dataclass(frozen=True)
class Space:
    """Hold what is searched over: the overrides that all trials share, and the values of each key."""

    fixed: Sequence[str]
    keys: Mapping[str, BaseDistribution]

    def overrides(self, values: Mapping[str, Any]) -> list[str]:
        """Return the overrides of a trial, with a label that tells it from the others."""
        own = [*self.fixed, *(f"{key}={_text(value, self.keys[key])}" for key, value in values.items())]
        (label, _) = label_runs([own, self.fixed])
        return [*own, f"label={label}"] if label else own

    def corners(self) -> list[list[str]]:
        """Return trials that hold every key's extremes or choices once, beside the others' first ones."""
        ends = {
            key: list(values.choices) if isinstance(values, CategoricalDistribution) else [values.low, values.high]
            for key, values in self.keys.items()
        }  # fmt: skip
        first = {key: values[0] for key, values in ends.items()}
        others = [
            {**first, key: value}
            for key, values in ends.items()
            for value in values[1:]
            if value != first[key]
        ]
        return [self.overrides(values) for values in [first, *others]]


def run_search(sweeper: Any, arguments: Sequence[str], task: Task, command: str) -> tuple[RunConfig, str]:
    """Run a search to its number of trials; return the settings of one, and the metric that the search is by.

    Raises SweepError before anything starts if it is not valid.
    """
    settings, composer = _settings(sweeper), Composer(sweeper.hydra_context.config_loader, sweeper.config)
    space = _space(
        OmegaConf.to_container(sweeper.config.hydra.sweeper, resolve=False)["params"], arguments, composer
    )
    corners = check_cells([(0, overrides) for overrides in space.corners()], composer)
    first = corners[0].config
    _refuse_metric(settings.metric, corners)
    if first.dry_run:
        print(f"{settings.trials} trials over {', '.join(space.keys)}, {settings.direction} {settings.metric}; "
              f"{len(corners)} runs at the ends are valid; nothing was started")  # fmt: skip
        return first, settings.metric
    with open_roster(corners[:1], command) as roster:
        roster.cells.clear()
        roster.write()
        study, n_jobs, began = _study(roster.folder, settings, space), sweeper.config.n_jobs, time.monotonic()
        screen = Screen(Console(highlight=False, soft_wrap=True), {}, 0, n_jobs, settings.trials)
        trials = Trials(
            task, sweeper.launcher.params, screen, roster, slots_for([corners[0]] * n_jobs, n_jobs)
        )
        trials.search(study, space, settings, composer)
        with termination_as_exit(), screen:
            trials.run([])
        print(trials.summary(time.monotonic() - began), flush=True)
    if not trials.counted(TrialState.COMPLETE):
        raise SystemExit(1)
    return first, settings.metric


class Trials(Pool):
    """A pool that asks the study for a cell whenever it has room, and tells it what came of it."""

    def search(self, study: optuna.Study, space: Space, wanted: SearchConfig, composer: Composer) -> None:
        """Say what is searched; trials that a kill left, and those that failed, are to be run first."""
        self.study, self.space, self.wanted, self.composer = study, space, wanted, composer
        self._exhausted = False
        self.running: dict[str, list[tuple[optuna.Trial, Cell]]] = {}
        left = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        self._left, self._looked = [optuna.Trial(study, trial._trial_id) for trial in left], 0.0
        for trial in self.counted(*DONE):
            if "name" in trial.user_attrs:
                self._show(trial.user_attrs["name"], trial.params)
                if trial.state == TrialState.FAIL:
                    study.enqueue_trial(trial.params, user_attrs={AGAIN: trial.number})
        self.screen.skipped = len(self.counted(*DONE))

    def further(self) -> Cell | None:
        while self._left or not (self._exhausted or self._enough()):
            trial = self._ask()
            cell = checked_cell(self.space.overrides(trial.params), self.composer)
            if not isinstance(cell, Cell):  # the ends are valid; what lies between them need not be
                print(f"trial {trial.number} is no run: {'; '.join(cell)}", flush=True)
                self._told(trial, TrialState.FAIL)
                continue
            trial.set_user_attr("name", cell.name)
            self._show(cell.name, trial.params)
            twins = self.running.setdefault(cell.name, [])
            twins.append((trial, cell))
            if len(twins) > 1:  # the same values are being tried: one run tells both
                continue
            if not cell.finished or cell.config.force:
                return cell
            self._tell(cell.name)
        return None

    def counted(self, *states: TrialState) -> list[FrozenTrial]:
        """Return the trials in these states, but for the failed ones that others try again."""
        trials = self.study.get_trials(deepcopy=False)
        again = {trial.user_attrs.get(AGAIN) for trial in trials}
        return [trial for trial in trials if trial.state in states and trial.number not in again]

    def _enough(self) -> bool:
        return len(self.counted(*DONE, TrialState.RUNNING)) >= self.wanted.trials

    def _ask(self) -> optuna.Trial:
        """Return a trial that was left, with the values that a kill may have cut off it, or else a new one."""
        try:
            if not self._left:
                return self.study.ask(dict(self.space.keys))
            trial = self._left.pop(0)
            for key, values in self.space.keys.items():
                trial._suggest(key, values)  # a value that is there stays
            return trial
        except ValueError as error:
            raise SweepError(
                f"{self.roster.folder / JOURNAL} is of a search over other values ({error}); use another experiment=..."
            ) from None

    def _show(self, name: str, params: Mapping[str, Any]) -> None:
        overrides = self.space.overrides(params)
        label = self.screen.labels[name] = label_cells([overrides, self.space.fixed])[0]
        self.roster.cells.setdefault(name, {"label": label, "overrides": overrides, "error": None})
        self.roster.write()

    def ended(self, outcome: Outcome) -> None:
        super().ended(outcome)
        if outcome.stopped:
            self._pruned(outcome.cell, str(outcome.error))
        self._tell(outcome.cell.name)

    def tick(self) -> None:
        """Report what the running trials measured since the last look, and end those that are hopeless."""
        super().tick()
        if time.monotonic() - self._looked < LOOK_SECONDS:
            return
        self._looked = time.monotonic()
        for twins in list(self.running.values()):
            trial, cell = twins[0]
            last = self._report(trial, cell)
            if last is not None and trial.should_prune():
                self.stop(cell, f"{self.wanted.metric} {last['value']:.4g} at step {last['step']}")

    def _report(self, trial: optuna.Trial, cell: Cell) -> dict[str, Any] | None:
        """Report what a trial's run measured on its way; return the last of it, None if there is nothing yet."""
        split, _, metric = self.wanted.metric.partition("/")
        rows = [row for row in view_run(cell.folder).metrics() if row["split"] == split]
        measured = [
            {"step": row["step"], "value": row[metric]} for row in rows if row.get(metric) is not None
        ]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a step that was reported before stays as it was
            for row in measured:
                trial.report(row["value"], row["step"])
        return measured[-1] if measured else None

    def _pruned(self, cell: Cell, why: str) -> None:
        for trial, _ in self.running.pop(cell.name):
            self._told(trial, TrialState.PRUNED)
        write_json(cell.folder / RECORD, {**view_run(cell.folder).record, "status": "pruned", "error": why})
        if not cell.config.trainer.keep_finished:
            prune(cell.folder / CHECKPOINTS, keep=0)

    def _tell(self, name: str) -> None:
        for trial, cell in self.running.pop(name, ()):
            run = view_run(cell.folder)
            self._report(trial, cell)
            value = last_metric(run, self.wanted.metric) if run.status == "finished" else None
            self._told(trial, TrialState.FAIL if value is None else TrialState.COMPLETE, value)

    def _told(self, trial: optuna.Trial, state: TrialState, value: float | None = None) -> None:
        try:
            self.study.tell(trial, value, state=state)
        except RuntimeError:  # told all the same; the sampler asks to stop, for it has no more values
            self._exhausted = True

    def summary(self, seconds: float) -> str:
        """Return the closing text: how the trials ended, and the best of them."""
        counts = [len(self.counted(state)) for state in DONE]
        lines = ["{} trials finished, {} pruned, {} failed, in {}".format(*counts, clock(seconds))]
        lines += [f"try the failed ones again: {self.roster.command}"] if counts[-1] else []
        if counts[0]:
            best = self.study.best_trial
            words = " ".join(
                f"{key}={_text(value, self.space.keys[key])}" for key, value in best.params.items()
            )
            lines.append(
                f"best: {self.wanted.metric} {best.value:.4g} of {best.user_attrs['name']}\n  {words}"
            )
        return "\n".join(lines)


def _settings(sweeper: Any) -> SearchConfig:
    given = OmegaConf.to_container(sweeper.config.hydra.sweeper.search, resolve=True)
    names = [each.name for each in fields(SearchConfig)]
    errors = [f"{key} is no setting; there are {', '.join(names)}" for key in given if key not in names]
    settings = SearchConfig(**{key: value for key, value in given.items() if key in names})
    errors += schema_errors(settings)
    if "n_jobs" not in sweeper.launcher.params:
        errors.append("it runs on this machine (launcher=local); a cluster's jobs can be W&B's agents")
    if sweeper.config.n_jobs < 1:
        errors.append(f"n_jobs must be at least 1, not {sweeper.config.n_jobs}")
    if errors:
        raise SweepError("\n".join(f"hydra.sweeper.search: {error}" for error in errors))
    _made(optuna.samplers, "sampler", settings.sampler, 0)
    _made(optuna.pruners, "pruner", settings.pruner, 0)
    return settings


def _space(params: Mapping[str, Any], arguments: Sequence[str], composer: Composer) -> Space:
    own = [f"{key}={value}" for key, value in grids_of({"params": params})[0].items()]
    given = {o.key_or_group: o for o in composer.parser.parse_overrides([*own, *arguments])}
    keys = {
        key: _distribution(o, OmegaConf.select(composer.master, key))
        for key, o in given.items()
        if o.is_sweep_override()
    }
    if not keys:
        raise SweepError(
            "there is nothing to search over; give some keys values: 'optimizer.lr=tag(log,interval(1e-5,1e-3))', "
            "'optimizer.batch_size=interval(8,64)' or method=dpo,sgdpo"
        )
    return Space([o.input_line for key, o in given.items() if key not in keys], keys)


def _distribution(override: Override, now: Any) -> BaseDistribution:
    """Return what an override sweeps over; an interval of a key whose value is a whole number holds whole numbers."""
    sweep: Any = override.value()
    steps = exact_count(override) - 1 if isinstance(sweep, RangeSweep) else 0
    try:
        known = {"log"} if isinstance(sweep, IntervalSweep) else set()
        if unknown := getattr(sweep, "tags", known) - known:
            raise ValueError(
                f"tag {', '.join(sorted(unknown))} says nothing here; there is tag(log,interval(a,b))"
            )
        if isinstance(sweep, IntervalSweep):
            ends = (sweep.start, sweep.end)
            whole = type(now) is int and all(float(end).is_integer() for end in ends)
            if whole or isinstance(sweep.start, int):
                return IntDistribution(*map(int, ends), log="log" in sweep.tags)
            return FloatDistribution(*ends, log="log" in sweep.tags)
        if isinstance(sweep, RangeSweep):
            whole = all(isinstance(number, int) for number in (sweep.start, sweep.step))
            kind = IntDistribution if whole else FloatDistribution
            return kind(sweep.start, sweep.start + steps * sweep.step, step=sweep.step)
        return CategoricalDistribution(list(override.sweep_string_iterator()))
    except ValueError as error:
        raise SweepError(f"{override.input_line}: {error}") from None


def _text(value: Any, values: BaseDistribution) -> str:
    """Write a value as an override: four digits tell trials apart, and an interval stays of numbers with a point."""
    if not isinstance(values, FloatDistribution):
        return str(value)
    short = float(f"{value:.4g}")
    return repr(short if values.low <= short <= values.high else float(value))


def _refuse_metric(metric: str, cells: Sequence[Cell]) -> None:
    from sgdpo.runs.validate import logged_metrics  # torch

    known = set.intersection(*(set(logged_metrics(cell.config)) for cell in cells))
    if metric not in known:
        raise SweepError(
            f"hydra.sweeper.search.metric={metric} is not logged by every run of this search; there are: "
            f"{', '.join(sorted(known))}"
        )


def _study(folder: Path, settings: SearchConfig, space: Space) -> optuna.Study:
    """Open the experiment's study; its journal is this process's alone, which holds the lock of the sweep."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    path = folder / JOURNAL
    path.with_name(f"{JOURNAL}.lock").unlink(missing_ok=True)  # a killed search's
    cut_jsonl(path)
    storage = optuna.storages.JournalStorage(JournalFileBackend(str(path)))
    asked = {"metric": settings.metric, "direction": settings.direction, "keys": sorted(space.keys)}
    asked["beside"] = sorted(word for word in space.fixed if root_of(word) not in (*HOW, *NOT_SETTINGS))
    study = optuna.create_study(
        study_name="search", storage=storage, direction=settings.direction, load_if_exists=True
    )
    if (before := {**asked, **study.user_attrs.get("asked", {})}) != asked:
        beside = f" with {' '.join(before['beside'])}" if before["beside"] else ""
        words = (
            f"a search over {', '.join(before['keys'])} to {before['direction']} {before['metric']}{beside}"
        )
        raise SweepError(f"{path} is of {words}; use another experiment=...")
    study.set_user_attr("asked", asked)
    study.sampler = _made(optuna.samplers, "sampler", settings.sampler, len(study.trials))
    study.pruner = _made(optuna.pruners, "pruner", settings.pruner, 0)
    return study


def _made(module: Any, what: str, given: Mapping[str, Any], trials: int) -> Any:
    """Make one of Optuna's samplers or pruners; a continued search draws on, and not the same values again."""
    more = {key: value for key, value in given.items() if key != "class"}
    if "seed" in more and trials:
        more["seed"] = fold(more["seed"], trials) & 0xFFFFFFFF
    try:
        kind = getattr(module, str(given.get("class")))
        if "constant_liar" in signature(kind).parameters:
            more.setdefault("constant_liar", True)  # trials that run count as bad: others go elsewhere
        return kind(**more)
    except (AttributeError, TypeError, ValueError) as error:
        raise SweepError(f"hydra.sweeper.search.{what}: {error}") from None
