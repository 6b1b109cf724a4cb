"""Small run records made by a formula, for the tests of tables, figures and the page. No run made them.

Every number has a reason that a test can use: the win rate of a method is its place in `QUALITY` plus a tenth
of the seed's distance from 42; rewards move linearly with the step.
"""

from __future__ import annotations

import json
from pathlib import Path

from lab.report.exhibit import find_exhibit, make

QUALITY = {"sft": 50.0, "dpo": 52.0, "nca": 51.0, "bco": 51.5, "ipo": 50.5, "sampo": 52.5, "sgdpo": 58.0}
PROMPTS = 200
STEPS = 20
VERSIONS = {"python": "3.11.0", "torch": "2.13.0"}


def write_run(
    outputs: Path,
    experiment: str,
    method: str,
    model: str = "tiny_llama",
    seed: int = 42,
    ratio: tuple[float, float] | None = None,
    *,
    lr: float = 2e-5,
    status: str = "finished",
    error: str | None = None,
    evaluated: bool = True,
    versions: dict | None = None,
    fingerprint: str = "f00d",
    quality: float | None = None,
) -> Path:
    """Write one run folder: record.json, metrics.jsonl and, if evaluated, the checker's judgments."""
    tag = f"-r{ratio[0]}-{ratio[1]}" if ratio else ""
    folder = outputs / experiment / f"{method}-{model}-verifiable{tag}-lr{lr:g}-s{seed}"
    folder.mkdir(parents=True)
    rows = metrics(method, ratio, seed)
    quality = QUALITY[method] if quality is None else quality
    done = status == "finished"
    record = {
        **identity(folder, method, model, seed, ratio, lr),
        "status": status,
        "versions": versions or VERSIONS,
        "data": {
            "fingerprint": f"{fingerprint}-{model}-{'sft' if method == 'sft' else 'pairs'}",
            "counts": {},
        },
        "final": {split: [r for r in rows if r["split"] == split][-1] for split in ("train", "eval")}
        if done
        else None,
        "error": error,
        "eval": checked(method, quality + (seed - 42) / 10) if evaluated and done else {},
    }
    (folder / "record.json").write_text(json.dumps(record))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if record["eval"]:
        write_judgments(folder, None if method == "sft" else quality)
    return folder


def identity(
    folder: Path, method: str, model: str, seed: int, ratio: tuple[float, float] | None, lr: float
) -> dict:
    """Return the fields of a record that say which run it is."""
    chosen = {"chosen": ratio[0], "rejected": ratio[1]} if ratio else None
    settings = {
        "method": {"name": method, "beta": 0.1},
        "model": {"name": model},
        "data": {"name": "verifiable", "max_length": 256},
        "ratio": chosen or {"chosen": None, "rejected": None},
        "optimizer": {"lr": lr, "batch_size": 32},
        "seed": seed,
    }
    return {
        "format": 1,
        "name": folder.name,
        "experiment": folder.parent.name,
        "phase": "sft" if method == "sft" else "preference",
        "method": method,
        "model": model,
        "dataset": "verifiable",
        "seed": seed,
        "ratio": chosen,
        "settings_hash": f"hash of {folder.name}",
        "result_hash": "r",
        "settings": settings,
        "git": {"commit": "0123456789abcdef", "dirty": False},
        "started": "2025-01-01T00:00:00+00:00",
        "seconds": 12.5,
        "peak_memory_mb": 640.0,
    }


def checked(method: str, win_rate: float) -> dict:
    """Return the result of the checker for a win rate; the SFT run is the baseline and has none."""
    names = ("win_rate", "win_rate_se", "lc_win_rate", "lc_win_rate_se")
    values = [None] * 4 if method == "sft" else [win_rate, 1.5, win_rate - 1.0, 1.6]
    scores = {"score_mean": win_rate / 10, "score_se": 0.05, "tokens_mean": 30.0, "n": PROMPTS}
    return {
        "verifiable-checker": {**dict(zip(names, values, strict=True)), **scores, "samples": "samples.jsonl"}
    }


def write_judgments(folder: Path, quality: float | None) -> None:
    """Write one preference a prompt: as many wins as make the win rate `quality`; the rest tie."""
    place = folder / "eval" / "verifiable-checker"
    place.mkdir(parents=True)
    wins = round(((quality or 50) - 50) / 100 * 2 * PROMPTS)
    lines = [{"prompt_id": str(i), "judge": "checker", "score": 5.0} for i in range(PROMPTS)]
    if quality is not None:
        lines = [{**line, "preference": 1.0 if i < wins else 0.5} for i, line in enumerate(lines)]
    (place / "judgments.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def metrics(method: str, ratio: tuple[float, float] | None, seed: int) -> list[dict]:
    """Return a run's rows: the chosen reward falls for all but SGDPO, whose rewards grow as ratios shrink."""
    if method == "sft":
        rows = [
            {"step": s, "epoch": s / STEPS, "split": "train", "loss": 3.0 / s} for s in range(1, STEPS + 1)
        ]
        return [*rows, {"step": STEPS, "epoch": 1.0, "split": "eval", "loss": 0.2}]
    scale = 2.0 - sum(ratio) / 2 if ratio else 1.0
    rows = []
    for step in range(1, STEPS + 1):
        wiggle = 0.01 * ((step * 7 + seed) % 5 - 2)
        chosen = (0.02 if method == "sgdpo" else -0.02) * step * scale + wiggle
        rejected = -0.05 * step * scale - wiggle
        row = {"step": step, "epoch": step / STEPS, "split": "train", "loss": 0.69 - 0.01 * step}
        row |= {"rewards/chosen": chosen, "rewards/rejected": rejected, "rewards/margins": chosen - rejected}
        row |= {
            "rewards/accuracies": min(1.0, 0.5 + 0.02 * step),
            "pairs_per_second": 100.0 - (method == "sgdpo"),
        }
        if method == "sgdpo":
            row["pilot/log_balance"] = -0.03 * step
        rows.append(row)
        if step % 10 == 0:
            rows.append({**row, "split": "eval"})
    return rows


def table3_runs(outputs: Path) -> None:
    """Write the runs of table 3: two models, two seeds; a failed seed, a failed cell, missing cells."""
    for method in QUALITY:
        ratio = (0.6, 0.9) if method == "sgdpo" else None
        for seed in (42, 43):
            if (method, seed) == ("ipo", 43):
                write_run(
                    outputs, "table3", method, seed=seed, status="failed", error="loss is NaN at step 7"
                )
            elif method == "bco":
                write_run(outputs, "table3", method, seed=seed, status="failed", error="killed by signal 9")
            elif method != "nca":
                write_run(outputs, "table3", method, seed=seed, ratio=ratio)
    for method in ("sft", "dpo", "sgdpo"):
        ratio = (0.6, 0.9) if method == "sgdpo" else None
        for seed in (42, 43):
            write_run(outputs, "table3", method, "tiny_qwen2", seed, ratio)


def grid_runs(
    outputs: Path, values: tuple[float, ...] = (0.6, 0.8, 1.0), seeds: tuple[int, ...] = (42, 43)
) -> None:
    """Write a ratio grid with DPO beside it; the best cell is (0.6, 0.8)."""
    for seed in seeds:
        write_run(outputs, "table1", "dpo", seed=seed)
        for chosen in values:
            for rejected in values:
                quality = 56.0 - 10 * abs(chosen - 0.6) - 5 * abs(rejected - 0.8)
                write_run(outputs, "table1", "sgdpo", seed=seed, ratio=(chosen, rejected), quality=quality)


def build(name: str, outputs: Path, experiment: str | None = None, *settings: str) -> tuple[list[Path], str]:
    """Make an exhibit; return its files and what is printed."""
    return make(find_exhibit(name, settings), outputs, experiment)
