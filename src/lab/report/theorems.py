"""Check Theorems 1 to 3 against autograd, for random values and for a run's own, and draw f(u).

A run's rewards are beta log X, so in their unit beta is 1: X1 = exp(reward), Y1 = exp(pilot reward).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes

from sgdpo import theory
from sgdpo.runs.records import read_runs, view_run
from sgdpo.store import write_whole

BETAS = (0.05, 0.1, 0.5, 1.0)
# Okabe and Ito's colours, each with a dash of its own for print: (label, p, q, colour, dash).
CASES = (
    ("p q = 4: grows", 2.0, 2.0, "#D55E00", "-"),
    ("p q = 1: DPO's ratio", 2.0, 0.5, "#000000", "--"),
    ("p q = 1/4: falls", 0.5, 0.5, "#0072B2", "-."),
)
KEYS = ("rewards/chosen", "rewards/rejected", "pilot/chosen", "pilot/rejected", "pilot/log_balance")


@dataclass(frozen=True)
class RunValues:
    """Hold a run's training rows that carry pilots: steps, points (beta is 1) and the logged log f."""

    name: str
    steps: list[int]
    point: theory.Point
    log_balance: torch.Tensor


def run_values(folder: Path) -> RunValues:
    """Read a run's logged pilots. Raise ValueError if the folder holds none."""
    rows = [row for row in view_run(folder).metrics() if row.get("split") == "train"]
    rows = [row for row in rows if all(row.get(key) is not None for key in KEYS)]
    if not rows:
        raise ValueError(f"{folder} has no metrics.jsonl with pilots; give a run of method=sgdpo")
    columns = {key: torch.tensor([row[key] for row in rows], dtype=torch.float64) for key in KEYS}
    point = theory.Point(*(columns[key].exp() for key in KEYS[:4]))
    return RunValues(
        folder.resolve().name, [row["step"] for row in rows], point, columns["pilot/log_balance"]
    )


def newest_run(outputs: Path) -> Path | None:
    """Return the folder of the newest finished run that logged pilots, or None."""
    finished = [run for run in read_runs(outputs) if run.status == "finished"]
    runs = [run for run in finished if "pilot/log_balance" in ((run["final"] or {}).get("train") or {})]
    return max(runs, key=lambda run: run["started"] or "").folder if runs else None


def report(out: Path, run: Path | None, count: int, seed: int) -> str:
    """Write theorems.{md,png,svg} under `out` and return the Markdown. count: random points for each beta."""
    values = run_values(run) if run else None
    sections = [_random_section(count, seed), _cases_section(count, seed), _run_section(values)]
    text = "# Theorems 1 to 3: autograd against the closed forms, float64\n\n" + "\n".join(sections)
    out.mkdir(parents=True, exist_ok=True)
    write_whole(out / "theorems.md", text)
    draw(out, values)
    return text


def _random_section(count: int, seed: int) -> str:
    errors: dict[str, float] = {}
    signs = {"|dl/dX1| grows with Y2": 0, "|dl/dX2| falls as Y1 grows": 0}
    for beta in BETAS:
        point = theory.random_point(count, seed)
        for name, error in theory.autograd_errors(point, beta).items():
            errors[name] = max(errors.get(name, 0.0), error)
        grown = theory.Point(point.x1, point.x2, point.y1 * 1.01, point.y2 * 1.01)
        forms = (theory.chosen_gradient, theory.rejected_gradient)
        chosen, rejected = (form(grown, beta).abs() - form(point, beta).abs() for form in forms)
        signs["|dl/dX1| grows with Y2"] += int((chosen > 0).sum())
        signs["|dl/dX2| falls as Y1 grows"] += int((rejected < 0).sum())
    title = f"## Random values ({count} points for each beta of {', '.join(map(str, BETAS))}; seed {seed})\n"
    held = [(f"Theorem 2: {name}", f"{n} of {count * len(BETAS)}") for name, n in signs.items()]
    return (
        title
        + _table(("closed form", "largest relative error"), _scientific(errors))
        + _table(("monotonicity, Y larger by 1 %", "held at"), held)
    )


def _cases_section(count: int, seed: int) -> str:
    """Take random p, q and u, sort them by the sign of log(p q), and count how f's slope behaves."""
    point = theory.random_point(count, seed + 1)
    p, q, u = point.x1, point.x2, point.y1
    up, down = p * q > 1, p * q < 1
    slope, flat = theory.balance_slope(p, q, u), theory.balance(p, 1 / p, u)
    rows = [
        ("p q > 1", "f grows with u", f"{int((slope[up] > 0).sum())} of {int(up.sum())}"),
        ("p q < 1", "f falls with u", f"{int((slope[down] < 0).sum())} of {int(down.sum())}"),
        ("p q = 1", "f is 1 everywhere", f"largest distance from 1: {(flat - 1).abs().max():.1e}"),
    ]
    return "## Theorem 3: |dl/dX1| / |dl/dX2| = (X2/X1) f(u)\n" + _table(("case", "claim", "held at"), rows)


def _run_section(values: RunValues | None) -> str:
    if values is None:
        return "## Values of a run\n\nNone: no finished SGDPO run was found or given (`--run FOLDER`).\n"
    log_p, log_q, _ = theory.log_coordinates(values.point, 1.0)
    product, f = log_p + log_q, values.log_balance
    rows = [
        ("steps with p q > 1, p q < 1", f"{int((product > 0).sum())}, {int((product < 0).sum())}"),
        ("logged log f: first, last", f"{f[0]:.4f}, {f[-1]:.4f}"),
        ("logged log f: least, mean, greatest", f"{f.min():.4f}, {f.mean():.4f}, {f.max():.4f}"),
    ]
    errors = _scientific(theory.autograd_errors(values.point, 1.0))
    head = f"## Values of the run {values.name} (mean rewards of {len(values.steps)} training steps)\n"
    return (
        head + _table(("closed form", "largest relative error"), errors) + _table(("balance", "value"), rows)
    )


def draw(out: Path, values: RunValues | None) -> None:
    """Draw f(u) for the three cases of p q, and beside it, if there is a run, its log f against steps."""
    style = {"font.size": 10, "svg.hashsalt": "sgdpo", "svg.fonttype": "none"}
    with plt.rc_context(style):
        columns = 1 if values is None else 2
        figure, axes = plt.subplots(
            1, columns, figsize=(4.8 * columns, 3.4), squeeze=False, layout="constrained"
        )
        _draw_cases(axes[0, 0])
        if values is not None:
            _draw_run(axes[0, 1], values)
        figure.savefig(out / "theorems.png", dpi=200)
        figure.savefig(out / "theorems.svg", metadata={"Date": None})
        plt.close(figure)


def _draw_cases(axes: Axes) -> None:
    u = torch.logspace(-3, 3, 241, dtype=torch.float64)
    for label, p, q, colour, dash in CASES:
        f = theory.balance(torch.tensor(p), torch.tensor(q), u)
        axes.plot(u, f, dash, color=colour, linewidth=2)
        offset = {"textcoords": "offset points", "xytext": (0, -13 if p * q < 1 else 5)}
        axes.annotate(label, (u[-1], f[-1]), **offset, ha="right", color=colour)
    axes.set(xscale="log", yscale="log", xlabel="u = (X1/X2)$^β$", ylabel="f(u), 1 is DPO's balance")
    axes.set_ylim(0.18, 6.5)
    axes.set_yticks([0.25, 0.5, 1, 2, 4], ["1/4", "1/2", "1", "2", "4"])
    axes.minorticks_off()
    axes.spines[["top", "right"]].set_visible(False)


def _draw_run(axes: Axes, values: RunValues) -> None:
    axes.axhline(0, color="#000000", linestyle="--", linewidth=1)
    axes.plot(values.steps, values.log_balance, color="#009E73", linewidth=2)
    axes.set(xlabel="step", ylabel="mean log f, 0 is DPO's balance")
    axes.set_title(values.name, fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)


def _scientific(errors: dict[str, float]) -> list[tuple[str, str]]:
    return [(name, f"{error:.1e}") for name, error in errors.items()]


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    cells = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    return "\n" + "\n".join("| " + " | ".join(line) + " |" for line in cells) + "\n"
