"""Hold our two paths against TRL's DPOTrainer: same model, same pairs, same precision, in turn."""

import argparse
import os
import statistics
import sys
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lab.bench import cli, rounds
from lab.bench.rounds import Measurement, Variant
from lab.bench.steps import random_model
from sgdpo.console import ENVIRONMENT
from sgdpo.drawing.table import Table
from sgdpo.models.tiny import tiny_tokenizer
from sgdpo.processes import run

PINNED = ("torch==2.13.0", "transformers==5.23.0", "accelerate==1.15.0", "datasets==5.2.0", "trl==1.16.0")
WORKER = Path(__file__).with_name("trl_worker.py")
# Our two ways, by their layout; TRL has one.
PATHS = {"shared_prefix": "fast", "own": "general"}
# Of one variant and round: ours, and what trl_worker.py answered.
Both = tuple[Measurement, dict[str, Any]]

# TRL's users set no more.
PEERS_ENVIRONMENT = {"TOKENIZERS_PARALLELISM": ENVIRONMENT["TOKENIZERS_PARALLELISM"]}


def peer_python(folder: Path) -> Path:
    """Return an interpreter that has TRL: this one, or that of the peers' environment, made if it is not there.

    Raise ValueError if it cannot be installed.
    """
    if find_spec("trl") is not None:
        return Path(sys.executable)
    python = folder / "bin" / "python"
    if (folder / ".installed").is_file() and (folder / ".installed").read_text().split() == list(PINNED):
        return python
    print(f"making {folder} with {', '.join(PINNED)}")
    for command in (
        [sys.executable, "-m", "venv", str(folder)],
        [str(python), "-m", "pip", "install", "--quiet", *PINNED],
    ):
        if run(command, show=True).returncode != 0:
            raise ValueError(f"cannot install the peers: `{' '.join(command)}` failed; check the network")
    (folder / ".installed").write_text("\n".join(PINNED) + "\n")
    return python


def write_random(model: dict[str, Any], folder: Path) -> Path:
    """Write a model with random weights, and a tokenizer for it, where TRL can load them; once."""
    if not (folder / "config.json").is_file():
        print(f"writing a model with random weights to {folder}")
        tiny_tokenizer().save_pretrained(folder)
        random_model(model).save_pretrained(folder)
    return folder


def compare(python: Path, variants: Sequence[Variant], pairs: Path, times: int) -> list[list[Both]]:
    """Measure ours and theirs of every variant in turn, round after round; both are DPO on the same pairs."""
    found: list[list[Both]] = [[] for _ in variants]
    for number in range(times):
        for variant, both in zip(variants, found, strict=True):
            # Ours keeps no reference model: its log-probs are cached, whatever the peer does.
            ours = rounds.measure_apart(replace(variant, reference="cached"), pairs)
            failed = f"TRL could not run {variant.name!r}"
            theirs = rounds.run_apart([str(python), str(WORKER)], variant, pairs, failed, PEERS_ENVIRONMENT)
            both.append((ours, theirs))
            seconds = [statistics.median(each) for each in (ours.seconds, theirs["seconds"])]
            print(
                f"round {number + 1}/{times}  {variant.precision}, {PATHS[variant.layout]} path, TRL's reference"
                f" {variant.reference}: ours {seconds[0]:.2f} s a step, TRL {seconds[1]:.2f} s;"
                f" {ours.memory_mb:,.0f} MB against {theirs['memory_mb']:,.0f}"
            )
    return found


def table(variants: Sequence[Variant], found: Sequence[Sequence[Both]], facts: str) -> Table:
    rows = []
    for variant, both in zip(variants, found, strict=True):
        speed = [sum(theirs["seconds"]) / sum(ours.seconds) for ours, theirs in both]
        mine = statistics.median(ours.pairs_per_second for ours, _ in both)
        peer = statistics.median(sum(ours.pairs) / sum(theirs["seconds"]) for ours, theirs in both)
        row = [variant.precision, PATHS[variant.layout], variant.reference]
        row += [f"{mine:.3f}", f"{peer:.3f}", rounds.spread(speed)]
        memory = statistics.median(ours.memory_mb for ours, _ in both)
        theirs_mb = statistics.median(theirs["memory_mb"] for _, theirs in both)
        rows.append([*row, f"{memory:,.0f}", f"{theirs_mb:,.0f}", f"{memory / theirs_mb:.2f}"])
    versions = ", ".join(f"{name} {version}" for name, version in found[0][0][1]["versions"].items())
    faster = rounds.spread_title("times as fast", len(found[0]))
    header = ["precision", "our path", "TRL's reference", "ours, pairs/s", "TRL, pairs/s", faster]
    header += ["ours, MB", "TRL, MB", "share of TRL's memory"]
    below = [f"Measured against {versions}.", facts]
    return Table("bench_peers", "", header, rows, 3, below)


def measure_peers(options: argparse.Namespace) -> None:
    """Measure ours and TRL's in turn, print the ratios and write them under `--out`."""
    base = cli.base_variant(options)
    python = peer_python(Path(os.environ.get("PEERS_VENV", ".venv-peers")))
    options.out.mkdir(parents=True, exist_ok=True)
    if isinstance(base.model, dict):
        base = replace(base, model=str(write_random(base.model, options.out / options.model)))
    variants = [
        replace(base, method="dpo", precision=precision, layout=layout, reference=reference)
        for precision in options.precisions
        for layout in PATHS
        for reference in options.references
    ]
    pairs, examples = options.out / "pairs.npz", cli.pairs_of(base, options)
    rounds.save(pairs, examples)
    compared = compare(python, variants, pairs, options.rounds)
    cli.keep(table(variants, compared, cli.facts(options.target, options, examples)), options)
