"""Hold the fast path against TRL's DPOTrainer: same model, same pairs, same precision, in turn."""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lab.bench import cli, rounds
from lab.bench.rounds import Measurement, Variant
from sgdpo.drawing.table import Table
from sgdpo.processes import run

PINNED = ("torch==2.13.0", "transformers==5.23.0", "accelerate==1.15.0", "datasets==5.2.0", "trl==1.16.0")
WORKER = Path(__file__).with_name("trl_worker.py")


@dataclass(frozen=True)
class Peer:
    """Hold what TRL's trainer took for one variant's pairs."""

    variant: Variant
    seconds: list[float]
    memory_mb: float
    versions: dict[str, str]


def peer_python(folder: Path) -> Path:
    """Return the interpreter of the peers' environment, made and filled if it is not there.

    Raise ValueError if it cannot be installed.
    """
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


def measure_peer(python: Path, variant: Variant, pairs: Path) -> Peer:
    """Run TRL's trainer on the pairs in its own environment. Raise ValueError with its last words if it fails."""
    found = rounds.run_apart(
        [str(python), str(WORKER)], variant, pairs, f"TRL could not run {variant.name!r}"
    )
    return Peer(variant, found["seconds"], found["memory_mb"], found["versions"])


def compare(python: Path, variants: Sequence[Variant], pairs: Path, times: int) -> list[list[tuple]]:
    """Return, for each variant, (ours, theirs) of every round; both are DPO on the same pairs."""
    found: list[list[tuple[Measurement, Peer]]] = [[] for _ in variants]
    for number in range(times):
        for variant, both in zip(variants, found, strict=True):
            # Ours keeps no reference model: its log-probs are cached, whatever the peer does.
            ours = rounds.measure_apart(replace(variant, reference="cached"), pairs)
            theirs = measure_peer(python, variant, pairs)
            both.append((ours, theirs))
            print(
                f"round {number + 1}/{times}  {variant.precision}, TRL's reference {variant.reference}:"
                f" ours {statistics.median(ours.seconds):.2f} s a step, TRL"
                f" {statistics.median(theirs.seconds):.2f} s; {ours.memory_mb:,.0f} MB against {theirs.memory_mb:,.0f}"
            )
    return found


def table(found: Sequence[Sequence[tuple[Measurement, Peer]]], facts: str) -> Table:
    """Show speed and memory against TRL: ratios of the same round."""
    rows = []
    for both in found:
        ours, theirs = zip(*both, strict=True)
        speed = [sum(t.seconds) / sum(o.seconds) for o, t in both]
        mine = statistics.median(o.pairs_per_second for o in ours)
        peer = statistics.median(sum(o.pairs) / sum(t.seconds) for o, t in both)
        memory = [statistics.median(x.memory_mb for x in side) for side in (ours, theirs)]
        variant = theirs[0].variant
        row = [variant.precision, variant.reference, f"{mine:.3f}", f"{peer:.3f}", rounds.spread(speed)]
        rows.append([*row, *(f"{size:,.0f}" for size in memory), f"{memory[0] / memory[1]:.2f}"])
    versions = ", ".join(f"{name} {version}" for name, version in found[0][0][1].versions.items())
    header = ["precision", "TRL's reference", "ours, pairs/s", "TRL, pairs/s"]
    header += [
        rounds.spread_title("times as fast", len(found[0])),
        "ours, MB",
        "TRL, MB",
        "share of TRL's memory",
    ]
    below = [f"Measured against {versions}.", facts]
    return Table("bench_peers", "", header, rows, 2, below, {"exhibit": "bench"})


def measure(options: argparse.Namespace) -> None:
    """Measure ours and TRL's in turn, print the ratios and write them under `--out`."""
    base = cli.base_variant(options)
    if isinstance(base.model, dict):
        raise ValueError("TRL is measured on a model folder; give --model one")
    python = peer_python(Path(os.environ.get("PEERS_VENV", ".venv-peers")))
    variants = [
        replace(base, method="dpo", precision=precision, reference=reference)
        for precision in options.precisions
        for reference in options.references
    ]
    options.out.mkdir(parents=True, exist_ok=True)
    pairs = options.out / "pairs.npz"
    examples = cli.pairs_of(base, options)
    rounds.save(pairs, examples)
    found = table(
        compare(python, variants, pairs, options.rounds), cli.facts("bench-peers", options, examples)
    )
    print(f"\n{found.console()}")
    found.write(options.out)
