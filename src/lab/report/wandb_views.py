"""W&B as code: a workspace and a report with the groups of panels that conf/report/wandb_views.yaml lists.

Both are built and validated without a network; `push` sends them to the user's entity. Built on
wandb-workspaces 0.4.13, whose pydantic models refuse a panel that W&B would not understand.
"""

from collections.abc import Mapping
from functools import cache
from typing import Any

import wandb_workspaces.reports.v2 as wr
import wandb_workspaces.workspaces as ws
import yaml

from sgdpo.places import CONF

HALF, HEIGHT = 12, 9  # W&B's grid is 24 wide


@cache
def views() -> dict[str, Any]:
    return yaml.safe_load((CONF / "report" / "wandb_views.yaml").read_text("utf-8"))


def _panels(theme: Mapping[str, Any]) -> list[Any]:
    return [_panel(at, **panel) for at, panel in enumerate(theme["panels"])]


def _panel(at: int, title: str, **shown: Any) -> Any:
    layout = wr.Layout(x=HALF * (at % 2), y=HEIGHT * (at // 2), w=HALF, h=HEIGHT)
    if "columns" in shown:
        columns = [
            wr.ParallelCoordinatesPlotColumn(metric=_value(key), display_name=name)
            for name, key in shown["columns"].items()
        ]
        return wr.ParallelCoordinatesPlot(title=title, columns=columns, layout=layout)
    if "z" in shown:
        axes = {axis: _value(key) for axis, key in shown.items()}
        return wr.ScatterPlot(title=title, layout=layout, **axes)
    options: dict[str, Any] = {"smoothing_factor": 0.6, "smoothing_type": "exponential"}
    if "by" in shown:
        options |= {
            "groupby": wr.Config(shown["by"]),
            "groupby_aggfunc": "mean",
            "groupby_rangefunc": "minmax",
        }
    options |= {"title_y": shown["unit"]} if "unit" in shown else {}
    options |= {"range_y": tuple(shown["range"])} if "range" in shown else {}
    return wr.LinePlot(title=title, x="step", y=[shown["metric"]], layout=layout, **options)


def _value(key: str) -> Any:
    """Give a run's ratio, which is a setting, or a metric as it ended."""
    return wr.Config(key) if key.startswith("ratio.") else wr.SummaryMetric(key)


def build_workspace(entity: str, project: str) -> ws.Workspace:
    sections = [
        ws.Section(name=theme["title"], panels=_panels(theme), is_open=True) for theme in views()["themes"]
    ]
    return ws.Workspace(entity=entity, project=project, name=views()["title"], sections=sections)


def build_report(project: str, entity: str = "") -> wr.Report:
    where = {"entity": entity, "project": project} if entity else {}
    blocks: list[Any] = [wr.TableOfContents()]
    for theme in views()["themes"]:
        runset = wr.Runset(name="all runs", **where)
        blocks += [wr.H2(theme["title"]), wr.P(theme["text"])]
        blocks.append(wr.PanelGrid(runsets=[runset], panels=_panels(theme)))
    description = "Built by scripts/wandb_views.py from the runs of this project."
    return wr.Report(
        entity=entity, project=project, title=views()["title"], description=description, blocks=blocks
    )


def validated(entity: str, project: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return (workspace, report) as what W&B would be sent, built and validated without a network."""
    workspace = build_workspace(entity or "entity", project)._to_model()
    report = build_report(project)._to_model()
    return workspace.model_dump(by_alias=True), report.model_dump(by_alias=True)


def push(entity: str, project: str) -> list[str]:
    """Send workspace and report to W&B and return their addresses; a report stays a draft.

    Raises ValueError if there is no key or no entity, or if W&B does not take them.
    """
    import wandb

    try:
        if not wandb.login(prompt=False, verify=False):
            raise ValueError("no W&B key: set WANDB_API_KEY or run `wandb login`, then --push again")
        entity = entity or wandb.Api().default_entity
        if not entity:
            raise ValueError("no W&B entity: give --entity NAME")
        return [
            build_workspace(entity, project).save().url,
            build_report(project, entity).save(draft=True).url,
        ]
    except wandb.errors.Error as error:  # a malformed or unknown key, no network
        raise ValueError(f"W&B: {' '.join(str(error).split())}; put it right, then --push again") from None
