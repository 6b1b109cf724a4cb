"""W&B as code: a workspace and a report with the panels of figures 2 and 3, the grid, speed and memory.

Both are built and validated without a network; `push` sends them to the user's entity. Built on
wandb-workspaces 0.4.13, whose pydantic models refuse a panel that W&B would not understand.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import wandb_workspaces.reports.v2 as wr
import wandb_workspaces.workspaces as ws

TITLE = "SGDPO: rewards, ratios and speed"
HALF, HEIGHT = 12, 9  # W&B's grid is 24 wide


@dataclass(frozen=True)
class Theme:
    """Hold one group of panels, the same for the workspace and the report: its title, a sentence, the panels."""

    title: str
    text: str
    panels: list[Any]


def themes() -> list[Theme]:
    return [
        Theme(
            "Figure 2: rewards by method",
            "Chosen and rejected training rewards, mean over seeds, the band their range.",
            _rewards("method.name"),
        ),
        Theme(
            "Figure 3: rewards by ratio.chosen (r1)",
            "SGDPO's rewards grouped by the chosen pilot's ratio, over all rejected ratios.",
            _rewards("ratio.chosen"),
        ),
        Theme(
            "Figure 3: rewards by ratio.rejected (r2)",
            "SGDPO's rewards grouped by the rejected pilot's ratio, over all chosen ratios.",
            _rewards("ratio.rejected"),
        ),
        Theme("Ratio grid", "Every run is a line through its ratios to where it ended.", _grid()),
        Theme(
            "Held-out pairs and the gradient's balance",
            "DPO's balance is log f = 0 (Theorem 3).",
            [
                _line("held-out accuracy", "eval/rewards/accuracies", "method.name", 0, range_y=(0.0, 1.0)),
                _line("log f", "train/pilot/log_balance", "ratio.chosen", 1),
            ],
        ),
        Theme(
            "Speed and memory",
            "Pairs and tokens a second while training; memory of the machine.",
            [
                _line("pairs per second", "train/pairs_per_second", "method.name", 0),
                _line("tokens per second", "train/tokens_per_second", "method.name", 1),
                _line("process memory in use, MB", "system/proc.memory.rssMB", None, 2),
                _line("GPU memory allocated, %", "system/gpu.0.memoryAllocated", None, 3),
            ],
        ),
    ]


def _line(title: str, metric: str, group: str | None, at: int, **options: Any) -> wr.LinePlot:
    if group:
        options |= {"groupby": wr.Config(group), "groupby_aggfunc": "mean", "groupby_rangefunc": "minmax"}
    smooth = {"smoothing_factor": 0.6, "smoothing_type": "exponential"}
    return wr.LinePlot(title=title, x="step", y=[metric], layout=_place(at), **smooth, **options)


def _rewards(group: str) -> list[Any]:
    return [
        _line(f"{side} reward", f"train/rewards/{side}", group, at, title_y="nats")
        for at, side in enumerate(("chosen", "rejected"))
    ]


def _grid() -> list[Any]:
    r1, r2 = wr.Config("ratio.chosen"), wr.Config("ratio.rejected")
    accuracy = wr.SummaryMetric("eval/rewards/accuracies")
    shown = {
        "r1": r1,
        "r2": r2,
        "chosen": wr.SummaryMetric("train/rewards/chosen"),
        "rejected": wr.SummaryMetric("train/rewards/rejected"),
        "accuracy": accuracy,
    }
    columns = [wr.ParallelCoordinatesPlotColumn(metric=m, display_name=name) for name, m in shown.items()]
    return [
        wr.ParallelCoordinatesPlot(title="ratios and final rewards", columns=columns, layout=_place(0)),
        wr.ScatterPlot(title="held-out accuracy over the grid", x=r1, y=r2, z=accuracy, layout=_place(1)),
    ]


def _place(index: int) -> wr.Layout:
    return wr.Layout(x=HALF * (index % 2), y=HEIGHT * (index // 2), w=HALF, h=HEIGHT)


def build_workspace(entity: str, project: str) -> ws.Workspace:
    sections = [ws.Section(name=theme.title, panels=theme.panels, is_open=True) for theme in themes()]
    return ws.Workspace(entity=entity, project=project, name=TITLE, sections=sections)


def build_report(project: str, entity: str = "") -> wr.Report:
    where = {"entity": entity, "project": project} if entity else {}
    blocks: list[Any] = [wr.TableOfContents()]
    for theme in themes():
        runset = wr.Runset(name="all runs", **where)
        blocks += [wr.H2(theme.title), wr.P(theme.text)]
        blocks.append(wr.PanelGrid(runsets=[runset], panels=theme.panels))
    description = "Built by scripts/wandb_views.py from the runs of this project."
    return wr.Report(entity=entity, project=project, title=TITLE, description=description, blocks=blocks)


def validated(entity: str, project: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return (workspace, report) as what W&B would be sent, built and validated without a network."""
    workspace = build_workspace(entity or "entity", project)._to_model()
    report = build_report(project)._to_model()
    return workspace.model_dump(by_alias=True), report.model_dump(by_alias=True)


def push(entity: str, project: str) -> list[str]:
    """Send workspace and report to W&B and return their addresses; a report stays a draft.

    Raises ValueError if there is no key or no entity.
    """
    import wandb

    if not wandb.login(prompt=False, verify=False):
        raise ValueError("no W&B key: set WANDB_API_KEY or run `wandb login`, then --push again")
    entity = entity or wandb.Api().default_entity
    if not entity:
        raise ValueError("no W&B entity: give --entity NAME")
    return [build_workspace(entity, project).save().url, build_report(project, entity).save(draft=True).url]
