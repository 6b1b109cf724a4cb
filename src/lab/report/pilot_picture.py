"""The picture that explains a pilot: a pair, the tokens that the pilot took, and the two weights that follow."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import exp
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from lab.report.entries import origin
from lab.report.names import method_title
from lab.report.theorems import newest_run
from sgdpo.drawing.style import CHOSEN, GRID, INK, QUIET, REJECTED, Picture, styled
from sgdpo.runs.records import RunView, view_run
from sgdpo.store import read_json

PAIRS = "pairs.json"
SIDES = (("chosen", CHOSEN), ("rejected", REJECTED))
WIDTH = 62.0  # characters across the picture
SHOWN = {"\n": "⏎", " ": "␣", "<|end|>": "■"}


@dataclass(frozen=True)
class Weights:
    """Hold what pulls the chosen answer up and pushes the rejected one down, each a share of what it can at most be."""

    up: float
    down: float


def weights(pair: Mapping[str, Sequence[Mapping[str, Any]]], whole: bool) -> Weights:
    """Return sigma(P_l - R_w) and sigma(R_l - P_w) on the scale of rewards; `whole`: DPO's, whose pilots are whole."""
    reward = {side: sum(token["reward"] for token in pair[side]) for side, _ in SIDES}
    pilot = {side: sum(t["reward"] * (whole or t["pilot"]) for t in pair[side]) for side, _ in SIDES}
    return Weights(_sigma(pilot["rejected"] - reward["chosen"]), _sigma(reward["rejected"] - pilot["chosen"]))


def pilot_picture(
    runs: Sequence[RunView], *, method: str, baseline: str, run: str | None = None, pair: int = 0
) -> Picture:
    """Draw one of the pairs that a run shows (`pair`, from 0); run: the newest with pilots if null.

    method, baseline: whose pilots are parts, and whose are whole.
    """
    folder = Path(run) if run else newest_run(runs)
    pairs = _pairs(folder) if folder else []
    if folder is None or not any(
        token["pilot"] for each in pairs for side, _ in SIDES for token in each[side]
    ):
        where = folder or "any run"
        raise ValueError(
            f"{where} has no {PAIRS} with pilots; train one: python src/train.py data=verifiable_long"
        )
    if not 0 <= pair < len(pairs):
        raise ValueError(
            f"{folder / PAIRS} shows {len(pairs)} pairs; pair must be one of 0 to {len(pairs) - 1}"
        )
    with styled():
        figure = _draw(pairs[pair], method_title(method), method_title(baseline))
    facts = [f"A held-out pair of the run {folder.name}."]
    return Picture(figure, "pilot", "What a pilot is", facts, origin([view_run(folder)]))


def _pairs(folder: Path) -> list[dict[str, Any]]:
    return read_json(folder / PAIRS, default={"pairs": []}, advice="train the run again")["pairs"]


def _draw(pair: Mapping[str, Any], ours: str, theirs: str) -> Figure:
    figure = Figure(figsize=(10.6, 5.2))
    figure.set_layout_engine("none")  # every part has a place of its own
    tokens, bars = figure.add_axes((0.02, 0.4, 0.96, 0.5)), figure.add_axes((0.44, 0.11, 0.5, 0.25))
    prompt = pair["prompt"].replace("<|user|>", "").partition("<|end|>")[0]
    figure.text(0.02, 0.94, f"Asked: {prompt}", fontsize=12.5, fontweight="bold", parse_math=False)
    tokens.set(xlim=(0, WIDTH), ylim=(6.6, 0))
    tokens.set_axis_off()
    for row, (side, colour) in enumerate(SIDES):
        _draw_side(tokens, pair[side], side, colour, 3.4 * row)
    _draw_weights(bars, {ours: weights(pair, whole=False), theirs: weights(pair, whole=True)})
    said = f"{ours} puts a pilot\nin the place of the\nwhole rival answer,\nso pull and push differ."
    figure.text(0.02, 0.355, said, fontsize=10.5, va="top", linespacing=1.4)
    figure.text(0.02, 0.03, "␣ space   ⏎ line break   ■ end of the answer", fontsize=9, color=QUIET)
    return figure


def _draw_side(axes: Axes, tokens: Sequence[Mapping[str, Any]], side: str, colour: str, top: float) -> None:
    taken = [token for token in tokens if token["pilot"]]
    whole, pilot = (
        f"{sum(token['reward'] for token in some):+.2f}".replace("-", "−") for some in (tokens, taken)
    )
    axes.text(0, top + 0.55, side, color=colour, fontsize=12, fontweight="bold", va="center")
    about = f"R, the reward of all {len(tokens)} tokens: {whole}      P, the pilot (filled, {len(taken)}): {pilot}"
    axes.text(8.2, top + 0.55, about, fontsize=10.5, va="center")
    step = min(1.55, WIDTH / len(tokens))
    for at, token in enumerate(tokens):
        box = FancyBboxPatch(
            (at * step + 0.08, top + 1.2), step - 0.16, 1.25, boxstyle="round,pad=0,rounding_size=0.18",
            facecolor=colour if token["pilot"] else "white", edgecolor=colour, linewidth=1,
        )  # fmt: skip
        axes.add_patch(box)
        ink = "white" if token["pilot"] else INK
        text = SHOWN.get(token["token"], token["token"])
        axes.text((at + 0.5) * step, top + 1.83, text, ha="center", va="center", color=ink, fontsize=11,
                  family="DejaVu Sans Mono", parse_math=False)  # fmt: skip


def _draw_weights(axes: Axes, by_method: Mapping[str, Weights]) -> None:
    (ours, mine), (baseline, theirs) = by_method.items()
    axes.axvline(0.5, color=QUIET, linewidth=1, linestyle=":")
    axes.text(0.5, -0.52, "where both begin ", fontsize=8.5, color=QUIET, ha="right", va="bottom")
    plate = {"facecolor": "white", "edgecolor": "none", "pad": 1.2}
    for at, (own, other, colour) in enumerate(
        [(mine.up, theirs.up, CHOSEN), (mine.down, theirs.down, REJECTED)]
    ):
        axes.barh(at - 0.19, own, 0.34, color=colour)
        axes.barh(at + 0.19, other, 0.34, color=GRID, edgecolor=QUIET)
        for y, value, name in ((at - 0.19, own, ours), (at + 0.19, other, baseline)):
            axes.text(value + 0.01, y, f"{value:.3f}  {name}", va="center", fontsize=10, bbox=plate)
    longest = max(mine.up, mine.down, theirs.up, theirs.down)
    axes.set(ylim=(1.5, -0.5), xlim=(0, max(0.64, 1.3 * longest)))
    rows = (
        "pull on the chosen, dw\nσ(P rejected − R chosen)",
        "push on the rejected, dl\nσ(R rejected − P chosen)",
    )
    axes.set_yticks([0, 1], rows, fontsize=10, linespacing=1.35)
    axes.set_xlabel(f"weight, as a share of the largest; for {baseline} P is R", fontsize=9.5, color=QUIET)
    axes.grid(visible=False)


def _sigma(x: float) -> float:
    return 1 / (1 + exp(-x))
