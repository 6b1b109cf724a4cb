"""Reproduce a table or figure: train what is missing, judge what is missing, then make it.

Every step is a command that a user could type, and is printed before it runs. A failed cell does not keep a
table from being made, it says "failed" there; the exit code says so too. The same command after a crash does
only what is missing, because training and judging skip what is finished.
"""

import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lab.asked import (
    EVERYTHING,
    SAMPLING,
    Options,
    data_words,
    judged_by,
    option_errors,
    taken,
    twice_judged,
)
from lab.evaluation.settings import compose_evaluation, results_asked
from lab.report.cells import choose_evaluation, evaluation_keys
from lab.report.exhibit import Exhibit, exhibit_names, find_exhibit
from lab.report.league import TUNING, best_values
from sgdpo.places import ROOT
from sgdpo.processes import run_shown
from sgdpo.runs.records import RunView, read_runs

Command = list[str]
FIRST_SEED = 42
REFUSED = 2  # exit code of a command that did not begin (sgdpo.console)


def before_commands(exhibit: Exhibit, options: Options) -> list[Command]:
    """Give the commands that make what the sweep reads; `sample.KEY=VALUE` among the arguments is of the sampling."""
    places = {"outputs": options.outputs, "experiment": options.experiment(exhibit)}
    commands = [[word.format(**places) for word in shlex.split(command)] for command in exhibit.before]
    asked = [a.removeprefix(SAMPLING) for a in options.arguments if a.startswith(SAMPLING)]
    return [[*c, *asked] if c[0] == "scripts/sample.py" else c for c in commands]


def train_command(
    exhibit: Exhibit, options: Options, seeds: Sequence[int] = (), best: Mapping[str, Any] | None = None
) -> Command | None:
    """Give the sweep that trains the exhibit's runs, None if it needs none.

    seeds: these instead of the exhibit's. best: {method: value of the tuned key}, in place of the sweep's own grid.
    """
    if not exhibit.sweep:
        return None
    models = options.models or tuple(options.of_scale["models"])
    models = models[:1] if exhibit.models == "first" else models
    return [
        "src/train.py",
        f"sweep={exhibit.sweep}",
        f"experiment={options.experiment(exhibit)}",
        *([] if exhibit.models == "own" else [f"model={','.join(models)}"]),
        f"seed={','.join(map(str, seeds or range(FIRST_SEED, FIRST_SEED + max(options.seeds, exhibit.seeds))))}",
        f"n_jobs={exhibit.n_jobs or options.n_jobs}",
        f"outputs={options.outputs}",
        *data_words(options),
        *(
            argument
            for argument in options.arguments
            if argument not in options.judging
            and not argument.startswith(SAMPLING)
            and not (best and argument.partition("=")[0] in ("method", exhibit.tuned["key"]))
        ),
        *(_grids(exhibit.tuned["key"], best) if best else []),
        *(["dry_run=true"] if options.dry_run else []),
    ]


def _grids(key: str, best: Mapping[str, Any]) -> list[str]:
    """Give the sweep's grids: methods of one value share a grid."""
    first, *others = (
        f"{{method: '{','.join(m for m in best if best[m] == value)}', {key}: '{value}'}}"
        for value in sorted(set(best.values()))
    )
    return [f"hydra.sweeper.params={first}", f"hydra.sweeper.also=[{','.join(others)}]"]


def tune(exhibit: Exhibit, options: Options, call: Callable[[Command], int]) -> dict[str, Any] | None:
    """Train and judge the tuning runs; return {method: its best value}, None if the judging failed.

    What failed to train is no candidate. Raises ValueError if none has a judged run.
    """
    tuned = exhibit.tuned or {}
    trial = replace(exhibit, experiment=TUNING + str(exhibit.experiment), judged=tuned["judged"])
    train = train_command(trial, options, tuned["seeds"])
    assert train is not None, "an exhibit that is tuned has a sweep"
    _begun(train, call)
    if options.dry_run:
        print(
            f"then: the tuning runs judged by {tuned['judged']}, each method's best {tuned['key']} on fresh seeds"
        )
        return {}
    if (folders := runs_to_judge(trial, options)) and call(judge_command(trial, options, folders)) != 0:
        return None  # the best of those that were judged is not the best
    runs = finished_runs(trial, options)
    key = asked_key(trial, options, runs) or choose_evaluation(runs, [tuned["judged"]])
    if best := best_values(runs, tuned["key"], f"{key}:{tuned['metric']}"):
        return best
    raise ValueError(
        f"no tuning run of {trial.experiment} was trained and judged; its records say why (make status)"
    )


def judging_words(exhibit: Exhibit, options: Options) -> list[str]:
    benchmark, judge = judged_by(exhibit, options)
    return [f"benchmark={benchmark}", f"judge={judge}", *options.judging, *options.places]


def judge_command(exhibit: Exhibit, options: Options, runs: Sequence[str]) -> Command:
    return ["scripts/evaluate.py", *runs, *judging_words(exhibit, options), f"n_jobs={options.n_jobs}"]


def asked_key(exhibit: Exhibit, options: Options, runs: Sequence[RunView]) -> str | None:
    """Name the results that have the settings asked for, where the runs have several results; else None."""
    config = compose_evaluation(judging_words(exhibit, options))
    there = evaluation_keys(runs)
    own = [key for key in there if key.startswith(f"{config.benchmark['name']}-")]
    if len(own) < 2:  # the benchmark's files need not be at hand
        return own[0] if own and len(there) > 1 else None
    found = {key for keys in results_asked(runs, config) for key in keys}
    return found.pop() if len(found) == 1 else None


def variance_command(exhibit: Exhibit, options: Options, run: str) -> Command:
    command = ["scripts/judge_variance.py", run, f"judge={options.judge or options.of_scale['judge']}"]
    command += [*options.places, *options.of_scale.get("variance_settings", []), *options.judging]
    return [*command, "--benchmarks", *twice_judged(options), "--output", variance_file(exhibit, options)]


def variance_file(exhibit: Exhibit, options: Options) -> str:
    return f"{options.folder(exhibit)}/judge_variance.json"


def finished_runs(exhibit: Exhibit, options: Options) -> list[RunView]:
    """List the finished runs of the exhibit's experiment, SFT runs first: the others are compared with them."""
    runs = read_runs(Path(options.outputs), options.experiment(exhibit))
    finished = [run for run in runs if run.status == "finished"]
    return sorted(finished, key=lambda run: (run["phase"] != "sft", run.name))


def run_to_judge_twice(exhibit: Exhibit, options: Options) -> str:
    """Choose the run whose answers are judged twice: the first seed of the first method with ratios.

    Raises ValueError if there is none.
    """
    found = [run for run in finished_runs(exhibit, options) if run["ratio"]]
    if not found:
        raise ValueError(f"{exhibit.name} needs a finished run with ratios of {options.experiment(exhibit)}")
    return str(min(found, key=lambda run: (run["model"], run["seed"])).folder)


def runs_to_judge(exhibit: Exhibit, options: Options) -> list[str]:
    """List the runs to judge.

    A judge's results come from the caches of the evaluation; the checker's are skipped where they stand.
    """
    config = compose_evaluation(judging_words(exhibit, options))
    checked = judged_by(exhibit, options)[1] in options.of_scale["judges"].values()
    runs = finished_runs(exhibit, options)
    there = results_asked(runs, config) if checked else [[] for _ in runs]
    return [str(run.folder) for run, keys in zip(runs, there, strict=True) if not keys]


def make_commands(exhibit: Exhibit, options: Options) -> list[Command]:
    """Give the commands that make the exhibit, and those that come with it."""
    shown = options.evaluation
    if exhibit.judged and not options.dry_run:
        shown = shown or asked_key(exhibit, options, finished_runs(exhibit, options)) or ""
    commands = []
    for made in (exhibit, *map(find_exhibit, exhibit.beside)):
        command = ["scripts/exhibit.py", made.name, "--outputs", options.outputs]
        command += ["--into", options.folder(made), "--made-by", options.command]
        command += ["--experiment", options.experiment(made)] if made.experiment else []
        command += [f"data={variance_file(made, options)}"] if made.twice else []
        command += [f"evaluation={shown}"] if exhibit.judged and shown else []
        commands.append(command)
    return commands


def _after_training(exhibit: Exhibit, options: Options) -> Iterator[Command]:
    """Give the commands that follow the training; what they name is looked up as each is asked for."""
    if exhibit.twice:
        run = "RUN" if options.dry_run else run_to_judge_twice(exhibit, options)
        yield variance_command(exhibit, options, run)
    if exhibit.judged:
        runs = ["RUN..."] if options.dry_run else runs_to_judge(exhibit, options)
        if runs:
            yield judge_command(exhibit, options, runs)
    yield from make_commands(exhibit, options)


def reproduce(options: Options, call: Callable[[Command], int] | None = None) -> int:
    """Do every step of the target; return 0, or 1 if any step failed. `call` runs one command.

    A dry run only says what follows the training: it cannot be counted before the runs exist.
    Raises ValueError with everything wrong with the options.
    """
    if errors := option_errors(options):
        raise ValueError("; ".join(errors))
    call = call or call_python
    if options.target == EVERYTHING:
        return _everything(options, call)
    exhibit = find_exhibit(options.target)
    before = before_commands(exhibit, options)
    if options.dry_run and before:  # what the sweep reads is not there yet
        call = say_python
    if any(call(command) != 0 for command in before):
        return 1
    best = tune(exhibit, options, call) if exhibit.tuned else None
    if exhibit.tuned and best is None:
        return 1
    # A dry run knows no best values.
    train = None if best == {} else train_command(exhibit, options, best=best)
    failed = _begun(train, call) != 0 if train else False
    for command in _after_training(exhibit, options):
        if options.dry_run:
            say_python(command)
        elif call(command) != 0:
            failed = True
            if exhibit.twice:
                break  # the figure shows what this command was to make
    return int(failed)


def _begun(train: Command, call: Callable[[Command], int]) -> int:
    """Run a training to its exit code. Raises ValueError if it refused what it was given: older runs are no answer."""
    code = call(train)
    if code == REFUSED:
        raise ValueError("nothing was trained, judged or made: what is wrong stands above")
    return code


def _everything(options: Options, call: Callable[[Command], int]) -> int:
    failed = []
    for name in exhibit_names():
        exhibit = find_exhibit(name)
        if exhibit.order is None:
            continue
        print(f"\n== {name}", flush=True)
        checked = exhibit.judged and judged_by(exhibit, options)[1] != options.judge
        try:
            judge, arguments = "" if checked else options.judge, taken(exhibit, options)
            code = reproduce(replace(options, target=name, judge=judge, arguments=arguments), call)
        except ValueError as error:
            print(f"error: {error}")
            code = 1
        failed += [name] if code else []
    if not options.dry_run and call(["scripts/report.py", "--outputs", options.outputs]):
        failed.append("report")
    if failed:
        print(f"not complete: {', '.join(failed)}")
    return int(bool(failed))


def say_python(command: Command) -> int:
    """Print a command that a dry run does not run."""
    print(f"then: {shlex.join(['python', *command])}")
    return 0


def call_python(command: Command) -> int:
    """Print a command as a user would type it, run it with this Python, and return its exit code.

    It ends with this process, however this process ends: no sweep is left running behind a `make` that is gone.
    """
    print(f"$ {shlex.join(['python', *command])}", flush=True)
    arguments = [sys.executable, str(ROOT / command[0]), *command[1:]]
    return run_shown(arguments)
