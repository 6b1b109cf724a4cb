"""Reproduce a table or figure: train what is missing, judge what is missing, then make it.

Every step is a command that a user could type, and is printed before it runs. A failed cell does not keep a
table from being made, it says "failed" there; the exit code says so too. The same command after a crash does
only what is missing, because training and judging skip what is finished.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from lab.report.build import FIGURES, JUDGE_VARIANCE
from sgdpo.config.compose import CONF
from sgdpo.processes import die_with_parent
from sgdpo.runs.records import read_runs

Command = list[str]
FIRST_SEED = 42


@dataclass(frozen=True)
class Options:
    """Hold what is asked for; an empty value takes the scale's own.

    seeds: how many, from 42 on. arguments: further overrides of the training runs ("optimizer.max_steps=50").
    evaluation: which judge's results a table shows, if the runs have several.
    """

    target: str
    scale: str = "tiny"
    seeds: int = 1
    n_jobs: int = 1
    dry_run: bool = False
    models: tuple[str, ...] = ()
    benchmark: str = ""
    judge: str = ""
    evaluation: str = ""
    train_rows: str = ""
    test_rows: str = ""
    outputs: str = "outputs"
    arguments: tuple[str, ...] = ()

    @property
    def suffix(self) -> str:
        """Return what keeps the experiments of other scales apart."""
        return "" if self.scale == "tiny" else f"-{self.scale}"


def load_targets() -> dict[str, Any]:
    """Read conf/report/reproduction.yaml."""
    return yaml.safe_load((CONF / "report" / "reproduction.yaml").read_text("utf-8"))


def option_errors(options: Options) -> list[str]:
    """List everything wrong with the options."""
    known = load_targets()
    errors = []
    if options.target not in (*known["targets"], "paper"):
        errors.append(f"unknown target {options.target!r}; there are: {', '.join(known['targets'])}, paper")
    if options.scale not in known["scales"]:
        errors.append(f"SCALE is {options.scale!r}; it is one of {', '.join(known['scales'])}")
    if options.seeds < 1 or options.n_jobs < 1:
        errors.append(f"SEEDS ({options.seeds}) and N_JOBS ({options.n_jobs}) must be 1 or more")
    return errors


def train_command(target: Mapping[str, Any], options: Options) -> Command | None:
    """Return the sweep that trains the target's runs, None if it needs none."""
    if "sweep" not in target:
        return None
    scale = load_targets()["scales"][options.scale]
    models = options.models or tuple(scale["models"])
    models = models[:1] if target["models"] == "first" else models
    return [
        "src/train.py",
        f"sweep={target['sweep']}",
        f"experiment={target['experiment']}{options.suffix}",
        f"model={','.join(models)}",
        f"seed={','.join(str(FIRST_SEED + k) for k in range(options.seeds))}",
        f"n_jobs={target.get('n_jobs', options.n_jobs)}",
        f"outputs={options.outputs}",
        *_data(scale["settings"], options),
        *options.arguments,
        *(["dry_run=true"] if options.dry_run else []),
    ]


def _data(settings: Sequence[str], options: Options) -> list[str]:
    if not options.train_rows:
        return list(settings)
    rows = ["data=local", f"data.train={options.train_rows}"]
    rows += [f"data.test={options.test_rows}"] if options.test_rows else []
    return rows + [setting for setting in settings if not setting.startswith("data=")]


def judge_command(target: Mapping[str, Any], options: Options, runs: Sequence[str]) -> Command:
    """Return the command that judges these runs by the target's benchmark."""
    benchmark, judge = judged_by(target, options)
    return [
        "scripts/evaluate.py",
        *runs,
        f"benchmark={benchmark}",
        f"judge={judge}",
        f"outputs={options.outputs}",
        f"cache={options.outputs}/cache",
    ]


def judged_by(target: Mapping[str, Any], options: Options) -> tuple[str, str]:
    """Return (benchmark, judge) of a target: what was asked for, its own, or the scale's."""
    scale = load_targets()["scales"][options.scale]
    own = target["judged"] if isinstance(target["judged"], str) else ""
    benchmark = own or options.benchmark or scale["benchmark"]
    return benchmark, "checker" if benchmark == "verifiable" else options.judge or scale["judge"]


def variance_command(options: Options, run: str) -> Command:
    """Return the command that judges one run's answers twice."""
    scale = load_targets()["scales"][options.scale]
    command = ["scripts/judge_variance.py", run, f"judge={options.judge or scale['judge']}"]
    command += [f"outputs={options.outputs}", f"cache={options.outputs}/cache"]
    command += scale.get("variance_settings", [])
    command += ["--benchmarks", *([options.benchmark] if options.benchmark else scale["variance"])]
    return [*command, "--output", f"{options.outputs}/figure1{options.suffix}/{JUDGE_VARIANCE}"]


def run_to_judge_twice(target: Mapping[str, Any], options: Options) -> str:
    """Return the finished run whose answers figure 1 has judged twice: SGDPO's first seed.

    Raises ValueError if there is none.
    """
    runs = read_runs(Path(options.outputs), f"{target['experiment']}{options.suffix}")
    found = [run for run in runs if run.status == "finished" and run["ratio"]]
    if not found:
        raise ValueError(f"figure 1 needs a finished SGDPO run of {target['experiment']}{options.suffix}")
    return str(min(found, key=lambda run: (run["model"], run["seed"])).folder)


def runs_to_judge(target: Mapping[str, Any], options: Options) -> list[str]:
    """Return the finished runs to judge, SFT runs first: the others are compared with them.

    The checker's results are skipped where they stand; other judges' come from the caches of the evaluation,
    which know the judge's settings.
    """
    benchmark, judge = judged_by(target, options)
    experiment = f"{target['experiment']}{options.suffix}"
    runs = [run for run in read_runs(Path(options.outputs), experiment) if run.status == "finished"]
    if judge == "checker":
        runs = [run for run in runs if f"{benchmark}-{judge}" not in (run["eval"] or {})]
    return [str(run.folder) for run in sorted(runs, key=lambda run: (run["phase"] != "sft", run.name))]


def make_commands(target: Mapping[str, Any], options: Options) -> list[Command]:
    """Return the commands that make the target's tables and figures."""
    commands = []
    for name in target["makes"]:
        command = [
            f"scripts/{'figures' if name in FIGURES else 'tables'}.py",
            name,
            "--outputs",
            options.outputs,
        ]
        command += ["--into", f"{options.outputs}/{name}{options.suffix}"]
        if "experiment" in target and name != "figure1":
            command += ["--experiment", f"{target['experiment']}{options.suffix}"]
        if options.evaluation and name in ("table3", "mtbench"):
            command += ["--evaluation", options.evaluation]
        commands.append(command)
    return commands


def reproduce(options: Options, call: Callable[[Command], int] | None = None) -> int:
    """Do every step of the target; return 0, or 1 if any step failed. `call` runs one command.

    Raises ValueError with everything wrong with the options.
    """
    if errors := option_errors(options):
        raise ValueError("; ".join(errors))
    call = call or call_python
    if options.target == "paper":
        return _paper(options, call)
    target = load_targets()["targets"][options.target]
    failed = 0
    train = train_command(target, options)
    if train:
        failed |= call(train) != 0
    if options.dry_run:
        return _announce(target, options) or failed
    for before in target.get("before", []):
        failed |= call([before, "--outputs", options.outputs]) != 0
    if target.get("twice"):
        failed |= call(variance_command(options, run_to_judge_twice(target, options))) != 0
    if target.get("judged"):
        runs = runs_to_judge(target, options)
        failed |= bool(runs) and call(judge_command(target, options, runs)) != 0
    for command in make_commands(target, options):
        failed |= call(command) != 0
    return int(failed)


def _announce(target: Mapping[str, Any], options: Options) -> int:
    """Print the steps after training; they cannot be counted before the runs exist."""
    for before in target.get("before", []):
        print(f"then: python {before} --outputs {options.outputs}")
    if target.get("twice"):
        print(f"then: {shlex.join(['python', *variance_command(options, 'RUN')])}")
    if target.get("judged"):
        print(f"then: {shlex.join(['python', *judge_command(target, options, ['RUN...'])])}")
    for command in make_commands(target, options):
        print(f"then: {shlex.join(['python', *command])}")
    return 0


def _paper(options: Options, call: Callable[[Command], int]) -> int:
    failed = []
    for name in load_targets()["paper"]:
        print(f"\n== {name}", flush=True)
        try:
            code = reproduce(replace(options, target=name), call)
        except ValueError as error:
            print(f"error: {error}")
            code = 1
        failed += [name] if code else []
    if not options.dry_run and call(["scripts/report.py", "--outputs", options.outputs]):
        failed.append("report")
    if failed:
        print(f"not complete: {', '.join(failed)}")
    return int(bool(failed))


def call_python(command: Command) -> int:
    """Print a command as a user would type it, run it with this Python, and return its exit code.

    It ends with this process, however this process ends: no sweep is left running behind a `make` that is gone.
    """
    print(f"$ {shlex.join(['python', *command])}", flush=True)
    arguments = [sys.executable, str(CONF.parent / command[0]), *command[1:]]
    return subprocess.call(arguments, preexec_fn=partial(die_with_parent, os.getpid()))
