"""Write the local report: one self-contained page of every run, table and figure. No server, no network.

The page may be opened from a disk or an archive. Text of data and models is escaped: Jinja escapes the static
parts, the runs travel as JSON that cannot close its script element, and the script writes text nodes alone. A
content security policy forbids the page to load anything.
"""

from __future__ import annotations

import base64
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup

from lab.report.cells import last_metric, learning_rate, ratio_of
from lab.report.markdown import parse_table
from lab.report.publish import PUBLISHED
from sgdpo.drawing.curves import series
from sgdpo.runs.provenance import git_state
from sgdpo.runs.records import RunView, flatten, read_runs
from sgdpo.store import finite, write_whole

ASSETS = Path(__file__).parent / "page_assets"
POINTS = 120  # points of a curve: what a chart of the page can show
CURVES = (
    "rewards/chosen",
    "rewards/rejected",
    "rewards/margins",
    "rewards/accuracies",
    "loss",
    "pilot/log_balance",
)
FINAL = ("rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies")
PAIRS, SAMPLES = 3, 4  # of each run
TEXT_BUDGET = 6_000_000  # characters of pairs and samples on the page; beyond it, links alone
STATUSES = ("finished", "running", "interrupted", "failed", "broken")
FIGURES = ("figure*.svg", "ratio_grid*.svg", "balance*.svg", "learning_rate*.svg")


def write_page(outputs: Path) -> Path:
    """Write <outputs>/report/index.html from the records, tables and figures there; return its path.

    Raises ValueError if there is no run yet, with the command that makes one.
    """
    runs = read_runs(outputs)
    if not runs:
        raise ValueError(f"no runs under {outputs}. Make one: python src/train.py (or: make demo)")
    path = outputs / "report" / "index.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, render(runs, tables_of(outputs), figures_of(outputs)))
    return path


def render(runs: Sequence[RunView], tables: Sequence[Any], figures: Sequence[Any]) -> str:
    """Return the page."""
    environment = Environment(loader=FileSystemLoader(ASSETS), autoescape=True)
    budget = [TEXT_BUDGET]
    return environment.get_template("index.html.j2").render(
        css=Markup((ASSETS / "page.css").read_text("utf-8")),
        js=Markup((ASSETS / "page.js").read_text("utf-8")),
        data=Markup(script_json({"runs": [describe(run, budget) for run in runs]})),
        counts=_counts(runs),
        commit=(git_state()["commit"] or "unknown")[:9],
        experiments=_experiments(runs),
        tables=tables,
        figures=figures,
    )


def script_json(value: Any) -> str:
    """Return JSON that may stand inside a script element: no text in it can end the element."""
    text = json.dumps(finite(value), ensure_ascii=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def describe(run: RunView, budget: list[int]) -> dict[str, Any]:
    """Return one run as the page's script reads it; `budget` is what is left for texts, and is used up."""
    settings = flatten(run["settings"] or {})
    try:
        rows = run.metrics()
    except ValueError as error:
        return {**_empty(run), "error": str(error)}
    final = {key: last_metric(run, f"train/{key}") for key in FINAL}
    evaluations = run["eval"] or {}
    texts, left_out = _texts(run, budget)
    described = {
        **_empty(run),
        **{key: run[key] for key in ("method", "model", "seed", "seconds")},
        "memory": run["peak_memory_mb"],
        "ratio": ratio_of(run) if run.record else None,
        "lr": learning_rate(run),
        "final": final,
        "win": _first_win_rate(evaluations),
        "eval": {key: {k: v for k, v in found.items() if _plain(v)} for key, found in evaluations.items()},
        "grid": _grid_metrics(run, evaluations),
        "settings": {key: value for key, value in settings.items() if value is not None and _plain(value)},
        "cost": _cost(run),
        "curves": {key: curve for key in CURVES if (curve := thin(*series(rows, "train", key)))},
        "held": {key: curve for key in CURVES if (curve := thin(*series(rows, "eval", key)))},
        **texts,
        "left_out": left_out,
    }
    searched = [run.name, run.experiment, run.status, run.error, *(f"{k}={v}" for k, v in settings.items())]
    return {**described, "text": " ".join(str(word) for word in searched if word).lower()}


def _empty(run: RunView) -> dict[str, Any]:
    names = ("method", "model", "seed", "seconds", "memory", "ratio", "lr", "win", "left_out")
    nested = dict.fromkeys(("final", "eval", "grid", "settings", "cost", "curves", "held"))
    return {
        "name": run.name,
        "experiment": run.experiment,
        "status": run.status,
        "error": run.error,
        "text": f"{run.name} {run.experiment} {run.status} {run.error}".lower(),
        **dict.fromkeys(names),
        **{key: {} for key in nested},
        "pairs": [],
        "samples": [],
        "files": _files(run),
    }


def thin(steps: np.ndarray, values: np.ndarray) -> dict[str, list] | None:
    """Return at most POINTS points of a curve, each the mean of its stretch; None without any."""
    if not len(steps):
        return None
    parts = np.array_split(np.arange(len(steps)), min(POINTS, len(steps)))
    x = [float(steps[part[-1]]) for part in parts]
    kept = [values[part][np.isfinite(values[part])] for part in parts]
    return {"x": x, "y": [float(f"{part.mean():.4g}") if len(part) else None for part in kept]}


def _texts(run: RunView, budget: list[int]) -> tuple[dict[str, list], str | None]:
    texts = {"pairs": _pairs(run.folder / "pairs.json"), "samples": _samples(run)}
    size = len(json.dumps(texts))
    if size > budget[0]:
        return {
            "pairs": [],
            "samples": [],
        }, "Samples are left out, the page would be too large: see the files."
    budget[0] -= size
    return texts, None


def _pairs(path: Path) -> list[dict[str, Any]]:
    try:
        return json.loads(path.read_text("utf-8"))["pairs"][:PAIRS]
    except (OSError, ValueError, KeyError):
        return []


def _samples(run: RunView) -> list[dict[str, str]]:
    found = []
    for key in run["eval"] or {}:
        path = run.folder / "eval" / key / "samples.jsonl"
        lines = path.read_text("utf-8").split("\n")[:SAMPLES] if path.is_file() else []
        for row in (json.loads(line) for line in lines if line.strip()):
            score = f", score {row['score']:g}" if isinstance(row.get("score"), int | float) else ""
            texts = {name: str(row.get(name, "")) for name in ("prompt", "response")}
            found.append({"head": f"{key}, prompt {row.get('prompt_id', '?')}{score}", **texts})
    return found


def _files(run: RunView) -> list[dict[str, str]]:
    names = ["record.json", "metrics.jsonl", "config.yaml", "log.txt", "reward_curves.png", "pairs.json"]
    names += sorted(str(p.relative_to(run.folder)) for p in run.folder.glob("eval/*/*.jsonl"))
    base = f"../{run.experiment}/{run.name}"
    return [
        {"name": name, "href": quote(f"{base}/{name}")} for name in names if (run.folder / name).is_file()
    ]


def _cost(run: RunView) -> dict[str, Any]:
    git = run["git"] or {}
    return {
        "started": run["started"],
        "seconds": run["seconds"],
        "peak memory, MiB": run["peak_memory_mb"],
        "started from": run["start"],
        "commit": f"{(git.get('commit') or 'unknown')[:9]}{' with changes' if git.get('dirty') else ''}",
        **{f"version {name}": version for name, version in (run["versions"] or {}).items()},
    }


def _grid_metrics(run: RunView, evaluations: Mapping[str, Any]) -> dict[str, float]:
    names = [f"{split}/{key}" for split in ("eval", "train") for key in FINAL]
    fields = ("win_rate", "lc_win_rate", "score_mean", "overall", "tokens_mean")
    names += [f"{key}:{field}" for key in evaluations for field in fields]
    found = {name: last_metric(run, name) for name in names}
    return {name: value for name, value in found.items() if value is not None}


def _first_win_rate(evaluations: Mapping[str, Any]) -> float | None:
    rates = [found.get("win_rate") for found in evaluations.values()]
    return next((rate for rate in rates if rate is not None), None)


def _plain(value: Any) -> bool:
    return value is None or isinstance(value, str | int | float | bool)


def _counts(runs: Sequence[RunView]) -> str:
    count = Counter(run.status for run in runs)
    return f"{len(runs)} runs: " + ", ".join(
        f"{count[status]} {status}" for status in STATUSES if count[status]
    )


def _experiments(runs: Sequence[RunView]) -> list[dict[str, Any]]:
    found = []
    for name in sorted({run.experiment for run in runs}):
        own = [run for run in runs if run.experiment == name]
        count = Counter(run.status for run in own)
        parts = [{"status": status, "count": count[status]} for status in STATUSES if count[status]]
        found.append({"name": name, "parts": parts, "text": _counts(own)})
    return found


def tables_of(outputs: Path) -> list[dict[str, Any]]:
    """Return the tables that stand under `outputs`, parsed from their Markdown; published copies are not."""
    paths = [path for path in sorted(outputs.glob("*/*.md")) if path.parent.name != PUBLISHED]
    return [table for path in paths if (table := parse_table(path.read_text("utf-8")))]


def figures_of(outputs: Path) -> list[dict[str, str]]:
    """Return the figures that stand under `outputs`, as data addresses: a picture cannot run anything."""
    paths = sorted({path for pattern in FIGURES for path in outputs.glob(f"*/{pattern}")})
    encoded = [(path.stem, base64.b64encode(path.read_bytes()).decode()) for path in paths]
    return [{"name": name, "uri": f"data:image/svg+xml;base64,{text}"} for name, text in encoded]
