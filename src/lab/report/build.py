"""Make one table or figure by name: read its experiment, build it, write it, say what it says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lab.report import beyond, claim, figures, heat, tables, timing
from lab.report.paper import Paper, load_paper
from sgdpo.drawing.table import Table
from sgdpo.runs.records import RunView, require_runs

# Whose runs a table or figure reads: figure 2's methods are table 3's, figure 3's ratios are table 1's.
EXPERIMENTS = {
    "table1": "table1",
    "table3": "table3",
    "table4": "table4",
    "mtbench": "table3",
    "figure2": "table3",
    "figure3": "table1",
    "ratio_grid": "table1",
    "balance": "table1",
    "learning_rate": "learning_rate",
}
TABLES = ("table1", "table2", "table3", "table4", "mtbench")
FIGURES = ("figure1", "figure2", "figure3", "ratio_grid", "balance", "learning_rate")
JUDGE_VARIANCE = "judge_variance.json"


@dataclass(frozen=True)
class Request:
    """Hold what is asked for: the name, where records are, whose runs, where it goes, and by which number.

    metric: what table 1, the grid and the learning-rate figure show. evaluation: which judge's results,
    "<benchmark>-<judge>". None: the default of the table or figure.
    """

    name: str
    outputs: Path = Path("outputs")
    experiment: str | None = None
    into: Path | None = None
    metric: str | None = None
    evaluation: str | None = None

    @property
    def folder(self) -> Path:
        """Return where the files go: outputs/<name> unless said otherwise."""
        return self.into or self.outputs / self.name

    def runs(self) -> list[RunView]:
        """Read the runs; ValueError naming the command that makes them if there are none."""
        experiment = self.experiment or EXPERIMENTS[self.name]
        return require_runs(self.outputs, experiment, f"make {self.name}")


def build(request: Request) -> tuple[list[Path], str]:
    """Write the table or figure; return its files and what to print.

    Raises ValueError if there are no records, or they do not belong into one table.
    """
    paper = load_paper()
    if request.name in TABLES:
        table = _table(request, paper)
        return table.write(request.folder), table.markdown()
    return _figure(request, paper)


def _table(request: Request, paper: Paper) -> Table:
    made: dict[str, Callable[[], Table]] = {
        "table1": lambda: tables.table1(request.runs(), paper, request.metric),
        "table2": lambda: tables.table2(paper),
        "table3": lambda: tables.table3(request.runs(), paper, request.evaluation),
        "table4": lambda: timing.table4(request.runs(), paper),
        "mtbench": lambda: tables.mtbench(request.runs(), paper, request.evaluation),
    }
    return made[request.name]()


def _figure(request: Request, paper: Paper) -> tuple[list[Path], str]:
    name, folder = request.name, request.folder
    if name == "figure1":
        return _said(figures.figure1(folder / JUDGE_VARIANCE, folder))
    runs = request.runs()
    if name == "figure2":
        return _said(figures.figure2(runs, paper, folder))
    if name == "figure3":
        return _figure3(runs, paper, folder)
    if name == "balance":
        return _said(beyond.balance_figure(runs, paper, folder))
    metric = request.metric or (tables.default_metric(runs) if name == "ratio_grid" else _quality(runs))
    draw = heat.ratio_heat_maps if name == "ratio_grid" else beyond.learning_rate_figure
    return _said(draw(runs, metric, paper, folder))


def _figure3(runs: list[RunView], paper: Paper, folder: Path) -> tuple[list[Path], str]:
    """Draw figure 3 and check its claim: a number, an interval, and whether it held."""
    claims = claim.check_claim(runs)
    paths = figures.figure3(runs, paper, folder) + claim.write_claims(claims, folder)
    said = [found.text() for found in claims] or ["The claim needs finished runs of three ratios at least."]
    return paths, "\n\n".join([*said, *map(str, paths)])


def _quality(runs: list[RunView]) -> str:
    """Return the measure of quality the runs have: the checker's score, else the evaluation accuracy."""
    checked = tables.default_metric(runs).startswith("verifiable")
    return "verifiable-checker:score_mean" if checked else "eval/rewards/accuracies"


def _said(paths: list[Path]) -> tuple[list[Path], str]:
    return paths, "\n".join(map(str, paths))
