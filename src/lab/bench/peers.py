"""Hold the fast path against TRL's DPOTrainer: same model, same pairs, same precision, in turn."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lab.bench import cli, rounds, workload
from lab.bench.facts import facts
from lab.bench.variant import Measurement, Variant

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
        if subprocess.run(command, check=False).returncode != 0:
            raise ValueError(f"cannot install the peers: `{' '.join(command)}` failed; check the network")
    (folder / ".installed").write_text("\n".join(PINNED) + "\n")
    return python


def measure_peer(python: Path, variant: Variant, pairs: Path) -> Peer:
    """Run TRL's trainer on the pairs in its own environment. Raise ValueError with its last words if it fails."""
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        command = [str(python), str(WORKER), json.dumps(vars(variant)), str(pairs), str(answer)]
        done = subprocess.run(command, env=dict(os.environ), capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise ValueError(f"TRL could not run {variant.name!r}:\n{done.stderr[-2000:]}")
        found = json.loads(answer.read_text())
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


def table(found: Sequence[Sequence[tuple[Measurement, Peer]]]) -> str:
    """Return a Markdown table of speed and memory against TRL: ratios of the same round, min, median, max."""
    versions = found[0][0][1].versions
    lines = [
        "Measured against " + ", ".join(f"{name} {version}" for name, version in versions.items()) + ".",
        "",
        "| precision | TRL's reference | ours, pairs/s | TRL, pairs/s | times as fast: min, median, max"
        " | ours, MB | TRL, MB | share of TRL's memory |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for both in found:
        ours, theirs = zip(*both, strict=True)
        speed = [sum(t.seconds) / sum(o.seconds) for o, t in both]
        low, middle, high = rounds.spread(speed)
        mine = statistics.median(o.pairs_per_second for o in ours)
        peer = statistics.median(sum(o.pairs) / sum(t.seconds) for o, t in both)
        memory = [statistics.median(x.memory_mb for x in side) for side in (ours, theirs)]
        variant = theirs[0].variant
        lines.append(
            f"| {variant.precision} | {variant.reference} | {mine:.3f} | {peer:.3f}"
            f" | {low:.2f}, {middle:.2f}, {high:.2f} | {memory[0]:,.0f} | {memory[1]:,.0f}"
            f" | {memory[0] / memory[1]:.2f} |"
        )
    return "\n".join(lines) + "\n"


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
    workload.save(pairs, examples)
    text = facts("bench-peers", options, examples)
    text += table(compare(python, variants, pairs, options.rounds))
    print(f"\n{text}")
    (options.out / "bench_peers.md").write_text(text)
