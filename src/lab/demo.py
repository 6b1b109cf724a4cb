"""The demonstration: SFT, SGDPO and DPO on the embedded world, evaluated as every run is; a table and a picture."""

from collections.abc import Sequence
from pathlib import Path

from lab.benchmarks.benchmark import Subject
from lab.evaluation.evaluate import evaluate
from lab.evaluation.settings import build_benchmark, compose_evaluation
from lab.report.cells import last_metric
from lab.report.entries import facts, origin
from lab.report.names import method_title
from sgdpo.config.compose import compose_run, to_run_config
from sgdpo.config.identity import needs_start
from sgdpo.config.schema import RunConfig
from sgdpo.drawing.curves import method_curves
from sgdpo.drawing.style import Picture
from sgdpo.drawing.table import Entry, Table, number
from sgdpo.runs.records import RunView, view_run
from sgdpo.runs.run import execute
from sgdpo.runs.validate import config_errors

EVALUATION = "verifiable-checker"
JUDGED = ("benchmark=verifiable",)
METHODS = ("sgdpo", "dpo")
# Six times the default rate, where DPO overshoots; the README says how surely SGDPO leads there.
SETTINGS = ("experiment=demo", "optimizer.lr=6e-4")


def demonstrate(overrides: list[str]) -> str:
    """Train and judge what is missing, write outputs/demo/, and return the closing text.

    Raises ValueError, before anything is trained, for runs that cannot be or that have no SFT start to be held against.
    """
    composed = [compose_run([f"method={name}", *SETTINGS, *overrides]) for name in METHODS]
    if errors := list(dict.fromkeys(error for each in composed for error in config_errors(each))):
        raise ValueError("\n".join(errors))
    configs = [to_run_config(each) for each in composed]
    as_told = [config.method["name"] for config in configs] == list(METHODS)
    if not as_told or not all(map(needs_start, configs)) or configs[0].dry_run:
        raise ValueError(
            "the demonstration trains an SFT start, then SGDPO and DPO from it: it takes no other method, "
            "no init=pretrained or instruct model, and no dry_run=true; src/train.py does"
        )
    if errors := build_benchmark(compose_evaluation(JUDGED), Subject("", config=configs[0])).errors():
        raise ValueError("\n".join(errors))
    folders = [execute(config) for config in configs]
    config = configs[0]
    start = folders[0].parent / str(view_run(folders[0])["start"])
    start = start if start.is_dir() else next(Path(config.outputs).glob(f"*/{start.name}"))
    _evaluate(config, [start, *folders])
    runs = [view_run(folder) for folder in (start, *folders)]
    table, picture = demo_table(runs), demo_picture(runs[1:])
    written = [work.write(Path(config.outputs) / "demo")[0] for work in (table, picture)]
    where = [f"{path.suffix[1:]:9} {path}" for path in written] + [f"run       {run.folder}" for run in runs]
    return "\n".join([table.console(), *where])


def _evaluate(config: RunConfig, folders: Sequence[Path]) -> None:
    """Evaluate as scripts/evaluate.py does; answers that there are already come from the cache."""
    places = [f"{key}={getattr(config, key)}" for key in ("outputs", "cache", "device")]
    evaluation = compose_evaluation([*JUDGED, *places])
    evaluation.runs = [str(folder) for folder in folders]
    evaluate(evaluation)


def demo_table(runs: Sequence[RunView]) -> Table:
    """Show what the checker found of the start and of both methods, and the held-out rewards."""
    head = ["", "score", "perfect, %", "win rate [95 %]", "tokens", "chosen reward", "rejected reward"]
    notes = [
        "score: mean of the checker's 0 to 10 ± standard error over prompts; win rate: against the SFT start's "
        "answers, ties count half; rewards: mean over the held-out pairs at the last step, nats.",
        *facts(runs, EVALUATION),
    ]
    return Table("demo", "", head, [_row(run) for run in runs], 1, notes, {"exhibit": "demo", **origin(runs)})


def _row(run: RunView) -> list[Entry | str]:
    label = "SFT start" if run["phase"] == "sft" else method_title(run["method"], [run])
    names = ("score_mean", "score_se", "perfect", "win_rate", "win_rate_low", "win_rate_high", "tokens_mean")
    score, error, perfect, win, low, high, tokens = (
        last_metric(run, f"{EVALUATION}:{name}") for name in names
    )
    won = Entry() if win is None else Entry(f"{win:.1f} % [{low:.1f}, {high:.1f}]", value=win)
    rewards = [number(last_metric(run, f"eval/rewards/{side}"), 3) for side in ("chosen", "rejected")]
    return [label, number(score, 2, error), number(perfect, 1), won, number(tokens, 1), *rewards]


def demo_picture(runs: Sequence[RunView]) -> Picture:
    figure = method_curves({method_title(run["method"], [run]): run.metrics() for run in runs})
    return Picture(
        figure, "demo-rewards", "Rewards of the demonstration", [], {"exhibit": "demo", **origin(runs)}
    )
