"""Check Theorems 1 to 3 against autograd, for random values and for a run's own, and draw f(u).

A run's rewards are beta log X, so in their unit beta is 1: X1 = exp(reward), Y1 = exp(pilot reward).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lab.report.entries import origin
from sgdpo import theory
from sgdpo.drawing.style import CHOSEN, INK, MARGIN, QUIET, REJECTED, Picture, captioned, styled
from sgdpo.drawing.table import Table
from sgdpo.runs.records import RunView, view_run
from sgdpo.values import Range

BETAS = (0.05, 0.1, 0.5, 1.0)
# Each case has a dash of its own for print: (label, p, q, colour, dash).
CASES = (
    ("p q = 4: grows", 2.0, 2.0, REJECTED, "-"),
    ("p q = 1: DPO's ratio", 2.0, 0.5, INK, "--"),
    ("p q = 1/4: falls", 0.5, 0.5, CHOSEN, "-."),
)
KEYS = ("rewards/chosen", "rewards/rejected", "pilot/chosen", "pilot/rejected", "pilot/log_balance")


@dataclass(frozen=True)
class RunValues:
    """Hold a run's training rows that carry pilots: steps, points (beta is 1) and the logged log f; and its origin."""

    name: str
    origin: dict[str, Any]
    steps: list[int]
    point: theory.Point
    log_balance: torch.Tensor


def theorems(
    runs: Sequence[RunView],
    *,
    run: str | None = None,
    count: Annotated[int, Range("[1, 10000000]")] = 10_000,
    seed: int = 0,
) -> list[Table | Picture]:
    """Show what holds at random points (`count` for each beta), and in a run: `run`, or the newest that turns it."""
    folder = Path(run) if run else newest_run(runs)
    values = run_values(folder) if folder else None
    errors, monotone = _random_points(count, seed)
    betas = f"{count} points for each beta of {', '.join(map(str, BETAS))}; seed {seed}"
    cases = _cases(count, seed)
    tables = [
        _table("errors", f"Autograd against the closed forms, float64 ({betas})", errors),
        _table("monotone", f"Theorem 2, Y larger by 1 % ({betas})", monotone, "held at"),
        _table("cases", "Theorem 3: |dl/dX1| / |dl/dX2| = (X2/X1) f(u)", cases, "held at"),
    ]
    if values:
        title = f"Values of the run {values.name} (mean rewards of {len(values.steps)} training steps)"
        closed = _small(theory.autograd_errors(values.point, 1.0))
        shown = _table("run", title, {**_balance(values), **closed}, "value")
        tables.append(replace(shown, origin=values.origin))
    return [*tables, draw(values)]


def run_values(folder: Path) -> RunValues:
    """Read a run's logged pilots. Raise ValueError if the folder holds none."""
    run = view_run(folder)
    rows = [row for row in run.metrics() if row.get("split") == "train"]
    rows = [row for row in rows if all(row.get(key) is not None for key in KEYS)]
    if not rows:
        raise ValueError(f"{folder} has no metrics.jsonl with pilots; give a run of method=sgdpo")
    columns = {key: torch.tensor([row[key] for row in rows], dtype=torch.float64) for key in KEYS}
    point = theory.Point(*(columns[key].exp() for key in KEYS[:4]))
    steps = [row["step"] for row in rows]
    return RunValues(folder.resolve().name, origin([run]), steps, point, columns["pilot/log_balance"])


def newest_run(runs: Sequence[RunView]) -> Path | None:
    """Find the folder of the newest finished run that logged pilots, or None.

    One at DPO's balance to its end (full pilots) shows nothing, and is taken only where there is no other.
    """
    finished = [run for run in runs if run.status == "finished"]
    ends = [(((run["final"] or {}).get("train") or {}).get("pilot/log_balance"), run) for run in finished]
    logged = [(bool(end), run["started"] or "", run.folder) for end, run in ends if end is not None]
    return max(logged)[2] if logged else None


def _table(name: str, title: str, values: dict[str, str], what: str = "largest relative error") -> Table:
    return Table(f"theorems-{name}", title, ["", what], list(values.items()))


def _random_points(count: int, seed: int) -> tuple[dict[str, str], dict[str, str]]:
    """Give the largest errors of the closed forms over all betas, and where Theorem 2's signs held."""
    errors: dict[str, float] = {}
    held = {"|dl/dX1| grows with Y2": 0, "|dl/dX2| falls as Y1 grows": 0}
    for beta in BETAS:
        point = theory.random_point(count, seed)
        for name, error in theory.autograd_errors(point, beta).items():
            errors[name] = max(errors.get(name, 0.0), error)
        grown = theory.Point(point.x1, point.x2, point.y1 * 1.01, point.y2 * 1.01)
        forms = (theory.chosen_gradient, theory.rejected_gradient)
        chosen, rejected = (form(grown, beta).abs() - form(point, beta).abs() for form in forms)
        held["|dl/dX1| grows with Y2"] += int((chosen > 0).sum())
        held["|dl/dX2| falls as Y1 grows"] += int((rejected < 0).sum())
    return _small(errors), {name: f"{number} of {count * len(BETAS)}" for name, number in held.items()}


def _cases(count: int, seed: int) -> dict[str, str]:
    """Take random p, q and u, sort them by the sign of log(p q), and count how f's slope behaves."""
    point = theory.random_point(count, seed + 1)
    p, q, u = point.x1, point.x2, point.y1
    up, down = p * q > 1, p * q < 1
    slope, flat = theory.balance_slope(p, q, u), theory.balance(p, 1 / p, u)
    return {
        "p q > 1: f grows with u": f"{int((slope[up] > 0).sum())} of {int(up.sum())}",
        "p q < 1: f falls with u": f"{int((slope[down] < 0).sum())} of {int(down.sum())}",
        "p q = 1: f is 1 everywhere": f"largest distance from 1: {(flat - 1).abs().max():.1e}",
    }


def _balance(values: RunValues) -> dict[str, str]:
    log_p, log_q, _ = theory.log_coordinates(values.point, 1.0)
    product, f = log_p + log_q, values.log_balance
    return {
        "steps with p q > 1, p q < 1": f"{int((product > 0).sum())}, {int((product < 0).sum())}",
        "logged log f: first, last": f"{f[0]:.4f}, {f[-1]:.4f}",
        "logged log f: least, mean, greatest": f"{f.min():.4f}, {f.mean():.4f}, {f.max():.4f}",
    }


def draw(values: RunValues | None) -> Picture:
    """Draw f(u) for the three cases of p q, and beside it, if there is a run, its log f against steps."""
    with styled():
        columns = 2 if values else 1
        figure = Figure(figsize=(5.2 * columns, 3.8), layout="constrained")
        axes = figure.subplots(1, columns, squeeze=False)[0]
        _draw_cases(axes[0])
        if values is not None:
            axes[1].axhline(0, color=QUIET, linestyle="--", linewidth=1.2)
            axes[1].plot(values.steps, values.log_balance, color=MARGIN, linewidth=2)
            axes[1].set(title="log f", xlabel="optimizer step", ylabel="mean log f, 0 is DPO's balance")
        title, facts = "Theorem 3: the balance f", [f"log f of {values.name}"] if values else []
        captioned(figure, title, "\n".join(facts))
    return Picture(figure, "theorems", title, facts, values.origin if values else {})


def _draw_cases(axes: Axes) -> None:
    u = torch.logspace(-3, 3, 241, dtype=torch.float64)
    for label, p, q, colour, dash in CASES:
        f = theory.balance(torch.tensor(p), torch.tensor(q), u)
        axes.plot(u, f, dash, color=colour, linewidth=2)
        offset = {"textcoords": "offset points", "xytext": (0, -13 if p * q < 1 else 5)}
        style = {"ha": "right", "color": colour, "fontweight": "bold", "fontsize": 9}
        axes.annotate(label, (u[-1], f[-1]), **offset, **style)
    axes.set(xscale="log", yscale="log", xlabel="u = (X1/X2)$^β$", ylabel="f(u), 1 is DPO's balance")
    axes.set_title("f in its three cases")
    axes.set_ylim(0.18, 6.5)
    axes.set_yticks([0.25, 0.5, 1, 2, 4], ["1/4", "1/2", "1", "2", "4"])
    axes.minorticks_off()


def _small(errors: dict[str, float]) -> dict[str, str]:
    return {name: f"{error:.1e}" for name, error in errors.items()}
