"""The demonstration: SFT, SGDPO and DPO on the embedded world, judged by its checker, as a table and a picture."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from lab.answers.prompts import Sampling
from lab.benchmarks.verifiable import evaluate_verifiable
from sgdpo.config.compose import compose_run, to_run_config
from sgdpo.config.identity import run_identity, start_config
from sgdpo.config.schema import RunConfig
from sgdpo.drawing.curves import draw_method_curves
from sgdpo.runs.execute import execute
from sgdpo.runs.records import RunView, amend_record, find_result, view_run
from sgdpo.store import write_whole

BENCHMARK = "verifiable-checker"
METHODS = ("sgdpo", "dpo")
# Answers are sampled: greedy decoding would hide what imperfect demonstrations did.
TEMPERATURE, NEW_TOKENS = 1.0, 48


@dataclass(frozen=True)
class Shown:
    """Hold one line of the demonstration's table: a label, its run and what the checker found."""

    label: str
    run: RunView
    result: dict[str, Any]


def demonstrate(overrides: list[str]) -> str:
    """Train and judge what is missing, write outputs/demo/demo.{md,png}, and return the closing text."""
    configs = {name: _config([f"method={name}", *overrides]) for name in METHODS}
    folders = {name: execute(config) for name, config in configs.items()}
    config = next(iter(configs.values()))
    start = find_result(Path(config.outputs), run_identity(start_config(config)).result_hash)
    assert start is not None, "a preference run on a tiny model has trained its start"
    shown = [_judge("SFT start", start.folder, config, baseline=None)]
    for name, folder in folders.items():
        shown.append(_judge(name.upper(), folder, configs[name], baseline=_eval_folder(start.folder)))
    return _write(shown, Path(config.outputs) / "demo")


def _config(overrides: list[str]) -> RunConfig:
    return to_run_config(compose_run(["experiment=demo", *overrides]))


def _eval_folder(run: Path) -> Path:
    return run / "eval" / BENCHMARK


def _judge(label: str, folder: Path, config: RunConfig, baseline: Path | None) -> Shown:
    sampling = Sampling(temperature=TEMPERATURE, max_new_tokens=NEW_TOKENS, seed=config.seed)
    result = evaluate_verifiable(
        folder / "model",
        config.data,
        sampling,
        baseline=baseline,
        device=config.device,
        folder=_eval_folder(folder),
        cache=Path(config.cache),
    )
    result = {**result, "samples": f"eval/{BENCHMARK}/{result['samples']}"}
    amend_record(folder, eval={BENCHMARK: result})
    return Shown(label, view_run(folder), result)


def _write(shown: list[Shown], folder: Path) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    picture = folder / "demo.png"
    draw_method_curves({s.label: s.run.metrics() for s in shown[1:]}, picture)
    head, rows = _rows(shown)
    markdown = [head, ["---"] * len(head), *rows]
    write_whole(folder / "demo.md", "".join("| " + " | ".join(row) + " |\n" for row in markdown))
    table = Table(title=f"{shown[0].result['n']} held-out prompts, answers sampled at temperature 1")
    for index, name in enumerate(head):
        table.add_column(name, justify="right" if index else "left")
    for row in rows:
        table.add_row(*row)
    screen = Console(file=io.StringIO(), width=120)
    screen.print(table)
    return (
        screen.file.getvalue()
        + "score: mean of the checker's 0 to 10; win rate: against the SFT start's answers, ties count half\n"
        + "rewards: mean over the held-out pairs at the last step, nats\n"
        + f"table     {folder / 'demo.md'}\npicture   {picture}\n"
        + "\n".join(f"run       {s.run.folder}" for s in shown)
    )


def _rows(shown: list[Shown]) -> tuple[list[str], list[list[str]]]:
    head = ["", "score", "perfect", "win rate [95 %]", "tokens", "chosen reward", "rejected reward"]
    return head, [_row(line) for line in shown]


def _row(line: Shown) -> list[str]:
    # Held-out pairs: the last step's rewards are one batch's, which moves by more than the methods differ.
    result, final = line.result, (line.run["final"] or {}).get("eval", {})
    win = "–"
    if result["win_rate"] is not None:
        low, high = result["win_rate_low"], result["win_rate_high"]
        win = f"{result['win_rate']:.1f} % [{low:.1f}, {high:.1f}]"
    return [
        line.label,
        f"{result['score_mean']:.2f} ± {result['score_se']:.2f}",
        f"{result['perfect']:.1f} %",
        win,
        f"{result['tokens_mean']:.1f}",
        _number(final.get("rewards/chosen")),
        _number(final.get("rewards/rejected")),
    ]


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:+.3f}"
