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
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup

from lab.report.cells import last_metric, learning_rate, ratio_of
from lab.report.entries import commit_text
from lab.report.exhibit import find_exhibit, standing
from lab.report.names import method_title
from sgdpo.drawing.curves import series
from sgdpo.drawing.table import Table
from sgdpo.runs.provenance import git_state
from sgdpo.runs.records import SAMPLES as RUN_SAMPLES
from sgdpo.runs.records import RunView, flatten, read_runs
from sgdpo.store import finite, read_json, read_jsonl, write_whole

ASSETS = Path(__file__).parent / "page_assets"
POINTS = 120  # points of a curve: what a chart of the page can show
REWARDS = ("rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies")
INCENTIVES = ("incentive/log_ratio", "displaced", "log_ratio/chosen", "log_ratio/rejected", "entropy/chosen")
WINS = ("win_rate", "lc_win_rate")  # what the column of wins shows: no headline of another scale
CURVES = (*REWARDS, "loss", "pilot/log_balance", *INCENTIVES)
PAIRS, SAMPLES, STAGES = 3, 4, 4  # of each run; stages of an answer
TEXT_BUDGET = 6_000_000  # characters of pairs and samples on the page; beyond it, links alone
STATUSES = ("finished", "running", "pruned", "interrupted", "failed", "broken")
# What a file of the wrong form raises where it is read; the page names the file and goes on.
DAMAGE = (ValueError, TypeError, KeyError, AttributeError, IndexError, OSError)


def write_page(outputs: Path) -> Path:
    """Write <outputs>/report/index.html from the records, tables and figures there; return its path.

    Raises ValueError if there is no run yet, with the command that makes one.
    """
    runs = read_runs(outputs)
    if not runs:
        raise ValueError(f"no runs under {outputs}. Make one: python src/train.py (or: make demo)")
    path = outputs / "report" / "index.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, render(outputs, runs))
    return path


def render(outputs: Path, runs: Sequence[RunView]) -> str:
    works, damaged = standing(outputs)
    environment = Environment(loader=FileSystemLoader(ASSETS), autoescape=True)
    budget, baseline = [TEXT_BUDGET], find_exhibit("ratio_grid").settings["baseline"]
    return environment.get_template("index.html.j2").render(
        css=Markup((ASSETS / "page.css").read_text("utf-8")),
        js=Markup((ASSETS / "page.js").read_text("utf-8")),
        data=Markup(script_json({"runs": [describe(run, budget) for run in runs], "baseline": baseline})),
        counts=_counts(runs),
        commit=commit_text(git_state()),
        experiments=_experiments(runs),
        tables=[
            (work.title or f"{path.parent.name}: {work.name}", work)
            for path, work in works
            if isinstance(work, Table)
        ],
        figures=[_figure(path, work) for path, work in works if not isinstance(work, Table)],
        damaged=damaged,
    )


def script_json(value: Any) -> str:
    """Write JSON that may stand inside a script element: no text in it can end the element."""
    text = json.dumps(finite(value), ensure_ascii=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def describe(run: RunView, budget: list[int]) -> dict[str, Any]:
    """Give one run as the page's script reads it; `budget` is what is left for texts, and is used up.

    What cannot be read is named in `error`, and the rest is shown.
    """
    found: dict[str, Any] = {"name": run.name, "experiment": run.experiment, "status": run.status}
    found |= dict.fromkeys(("method", "title", "model", "seed", "seconds", "ratio", "lr", "win", "left_out"))
    found |= {key: {} for key in ("final", "eval", "grid", "settings", "cost", "curves", "held")}
    found |= {"pairs": [], "samples": [], "started": ""}
    problems = [run.error] if run.error else []
    for part in (_facts, _numbers, _curves, partial(_texts, budget)) if run.status != "broken" else ():
        try:
            found |= part(run)
        except DAMAGE as error:
            where = "" if str(run.folder) in str(error) else f"{run.folder} cannot be read whole: "
            problems.append(f"{where}{error or type(error).__name__}")
    found |= {"error": "; ".join(problems) or None, "files": _files(run)}
    searched = [found[key] for key in ("name", "experiment", "status", "title", "error")]
    searched += [f"{key}={value}" for key, value in found["settings"].items()]
    return {**found, "text": " ".join(str(word) for word in searched if word).lower()}


def _facts(run: RunView) -> dict[str, Any]:
    settings = flatten(run["settings"] or {})
    versions = {f"version {name}": version for name, version in (run["versions"] or {}).items()}
    return {
        **{key: run[key] for key in ("method", "model", "seed", "seconds")},
        "title": method_title(run["method"], [run]) if run["method"] else None,
        "ratio": ratio_of(run),
        "lr": learning_rate(run),
        "started": str(run["started"] or "")[:16].replace("T", " "),
        "settings": {key: value for key, value in settings.items() if value is not None and _plain(value)},
        "cost": {
            "started": run["started"],
            "seconds": run["seconds"],
            "peak memory, MiB": run["peak_memory_mb"],
            "started from": run["start"],
            "commit": commit_text(run["git"] or {}),
            **versions,
        },
    }


def _numbers(run: RunView) -> dict[str, Any]:
    evaluations = run["eval"] or {}
    names = [f"{split}/{key}" for split in ("eval", "train") for key in REWARDS]
    fields = {(key, name) for key, result in evaluations.items() for name, v in result.items() if _number(v)}
    names += [f"{key}:{name}" for key, name in sorted(fields)]
    grid = {name: value for name in names if (value := last_metric(run, name)) is not None}
    wins = [grid.get(f"{key}:{field}") for field in WINS for key in evaluations]
    return {
        # Held-out pairs: the last training batch's rewards move by more than methods differ.
        "final": {key: grid.get(f"eval/{key}") for key in REWARDS},
        "win": next((win for win in wins if win is not None), None),
        "eval": {key: {k: v for k, v in result.items() if _plain(v)} for key, result in evaluations.items()},
        "grid": grid,
    }


def _curves(run: RunView) -> dict[str, Any]:
    rows = run.metrics()
    names = {"curves": "train", "held": "eval"}
    return {
        name: {key: curve for key in CURVES if (curve := thin(*series(rows, split, key)))}
        for name, split in names.items()
    }


def thin(steps: np.ndarray, values: np.ndarray) -> dict[str, list] | None:
    """Give at most POINTS points of a curve, each the mean of its stretch; None without any."""
    if not len(steps):
        return None
    parts = np.array_split(np.arange(len(steps)), min(POINTS, len(steps)))
    kept = [values[part][np.isfinite(values[part])] for part in parts]
    means = [float(f"{part.mean():.4g}") if len(part) else None for part in kept]
    return {"x": [float(steps[part[-1]]) for part in parts], "y": means}


def _texts(budget: list[int], run: RunView) -> dict[str, Any]:
    pairs = read_json(run.folder / "pairs.json", default={"pairs": []})["pairs"][:PAIRS]
    texts = {"pairs": pairs, "samples": _samples(run)}
    size = len(json.dumps(texts))
    if size > budget[0]:
        return {"left_out": "Samples are left out, the page would be too large: see the files."}
    budget[0] -= size
    return texts


def _samples(run: RunView) -> list[dict[str, str]]:
    found = _watched(run)
    for key in run["eval"] or {}:
        path = run.folder / "eval" / key / "samples.jsonl"
        for row in read_jsonl(path)[:SAMPLES] if path.is_file() else []:
            score = f", score {row['score']:g}" if _number(row.get("score")) else ""
            texts = {name: str(row.get(name, "")) for name in ("prompt", "response")}
            found.append({"head": f"{key}, prompt {row.get('prompt_id', '?')}{score}", **texts})
    return found


def _watched(run: RunView) -> list[dict[str, str]]:
    """Show how the answers to the first prompts changed while the run trained, at most STAGES of each."""
    answers: dict[int, list[dict[str, Any]]] = {}
    for row in read_jsonl(run.folder / RUN_SAMPLES, torn_end=True):
        answers.setdefault(row["number"], []).append(row)
    found = []
    for rows in list(answers.values())[:SAMPLES]:
        stages = rows[:: -(-len(rows) // STAGES)] + rows[-1:]
        texts = {row["step"]: f"step {row['step']}: {row['response']}" for row in stages}
        found.append(
            {"head": "while it trained", "prompt": rows[0]["prompt"], "response": "\n".join(texts.values())}
        )
    return found


def _files(run: RunView) -> list[dict[str, str]]:
    names = [
        "record.json",
        "metrics.jsonl",
        "config.yaml",
        "log.txt",
        "reward_curves.png",
        "pairs.json",
        RUN_SAMPLES,
    ]
    names += sorted(str(p.relative_to(run.folder)) for p in run.folder.glob("eval/*/*.jsonl"))
    base = f"../{run.experiment}/{run.name}"
    there = [name for name in names if (run.folder / name).is_file()]
    return [{"name": name, "href": quote(f"{base}/{name}")} for name in there]


def _plain(value: Any) -> bool:
    return value is None or isinstance(value, str | int | float | bool)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _statuses(runs: Sequence[RunView]) -> list[dict[str, Any]]:
    count = Counter(run.status for run in runs)
    return [{"status": status, "count": count[status]} for status in STATUSES if count[status]]


def _counts(runs: Sequence[RunView]) -> str:
    return f"{len(runs)} runs: " + ", ".join(f"{part['count']} {part['status']}" for part in _statuses(runs))


def _experiments(runs: Sequence[RunView]) -> list[dict[str, Any]]:
    by_name = {
        name: [run for run in runs if run.experiment == name] for name in {run.experiment for run in runs}
    }
    return [
        {"name": name, "parts": _statuses(own), "text": _counts(own)} for name, own in sorted(by_name.items())
    ]


def _figure(path: Path, picture: Mapping[str, Any]) -> dict[str, str]:
    """Give a figure as a data address: a picture cannot run anything."""
    text = base64.b64encode(path.with_suffix(".svg").read_bytes()).decode()
    return {"name": str(picture.get("title") or path.stem), "uri": f"data:image/svg+xml;base64,{text}"}
