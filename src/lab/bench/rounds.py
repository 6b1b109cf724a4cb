"""Run variants in turn, round after round, each in a process of its own, and hold them against each other.

In turn, because a machine's speed drifts: a ratio compares measurements of the same round only.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from lab.bench import workload
from lab.bench.variant import Measurement, Variant
from sgdpo.data.example import Example


def measure_apart(variant: Variant, pairs: Path) -> Measurement:
    """Measure a variant in a new process. Raise ValueError with the end of its output if it fails."""
    environment = os.environ | {"TOKENIZERS_PARALLELISM": "false"}
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        spec = json.dumps(vars(variant))
        command = [sys.executable, "-m", "lab.bench.worker", spec, str(pairs), str(answer)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise ValueError(f"measuring {variant.name!r} failed:\n{done.stderr[-2000:]}")
        return Measurement.from_json(json.loads(answer.read_text()))


def run_rounds(
    variants: Sequence[Variant], examples: Sequence[Example], rounds: int, say: Callable[[str], None] = print
) -> list[list[Measurement]]:
    """Return a list of measurements for each variant, one of each round."""
    found: list[list[Measurement]] = [[] for _ in variants]
    with tempfile.TemporaryDirectory() as folder:
        pairs = Path(folder) / "pairs.npz"
        workload.save(pairs, list(examples))
        for number in range(rounds):
            for variant, measurements in zip(variants, found, strict=True):
                measurements.append(measure_apart(variant, pairs))
                last = measurements[-1]
                say(
                    f"round {number + 1}/{rounds}  {variant.name}: {last.pairs_per_second:.3f} pairs/s,"
                    f" {last.memory_mb:,.0f} MB"
                )
    return found


def spread(values: Sequence[float]) -> tuple[float, float, float]:
    """Return minimum, median and maximum."""
    return min(values), statistics.median(values), max(values)


def speed_ratios(found: Sequence[Measurement], base: Sequence[Measurement]) -> tuple[float, float, float]:
    """Return minimum, median and maximum of the speed against the base's of the same round."""
    pairs = zip(found, base, strict=True)
    return spread([one.pairs_per_second / other.pairs_per_second for one, other in pairs])


def table(found: Sequence[Sequence[Measurement]]) -> str:
    """Return a Markdown table: a row for each variant, speed against the first one of its precision."""
    lines = [
        "| variant | pairs/s | completion tokens/s | utilisation | peak memory, MB | speed against the first:"
        " min, median, max | memory against the first |",
        "|---|---|---|---|---|---|---|",
    ]
    for measurements in found:
        variant = measurements[0].variant
        base = next(other for other in found if other[0].variant.precision == variant.precision)
        low, middle, high = speed_ratios(measurements, base)
        memory = statistics.median(m.memory_mb for m in measurements)
        lines.append(
            f"| {variant.name} | {_median(measurements, 'pairs_per_second'):.3f}"
            f" | {_median(measurements, 'completion_tokens_per_second'):.0f}"
            f" | {100 * _median(measurements, 'utilisation'):.0f} % | {memory:,.0f}"
            f" | {low:.2f}, {middle:.2f}, {high:.2f}"
            f" | {memory / statistics.median(m.memory_mb for m in base):.2f} |"
        )
    return "\n".join(lines)


def overhead(found: Sequence[Sequence[Measurement]]) -> str:
    """Return what SGDPO's draws add to DPO's step, from the loss functions' own times."""
    lines = []
    for measurements in found:
        extra = [
            (m.method_ms["sgdpo"] - m.method_ms["dpo"]) / 10 / statistics.median(m.seconds)
            for m in measurements
        ]
        low, middle, high = spread(extra)
        step = 1e3 * statistics.median(measurements[0].seconds)
        lines.append(
            f"SGDPO over DPO, {measurements[0].variant.precision}: {middle:.3f} % of a step of {step:,.0f} ms"
            f" (min {low:.3f}, max {high:.3f})"
        )
    return "\n".join(lines)


def _median(measurements: Sequence[Measurement], name: str) -> float:
    return statistics.median(getattr(m, name) for m in measurements)
