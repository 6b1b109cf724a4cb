"""Run variants in turn, round after round, each in a process of its own, and hold them against each other.

In turn, because a machine's speed drifts: a ratio compares measurements of the same round only. A variant, its
pairs and what one process measured cross processes as JSON and one npz file.
"""

import statistics
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from sgdpo.console import ENVIRONMENT
from sgdpo.data.example import Example
from sgdpo.drawing.table import Table
from sgdpo.processes import how_it_ended, run
from sgdpo.store import read_json, write_json

# Medians and spreads (of the logarithm) of prompt and completion lengths, tokens, fitted to UltraFeedback's
# training preferences under SmolLM2's tokenizer; chosen and rejected lengths are correlated, as they are
# there.
PROMPT_MEDIAN, PROMPT_SPREAD = 105.0, 0.95
COMPLETION_MEDIAN, COMPLETION_SPREAD = 240.0, 0.85
CORRELATION = 0.6


@dataclass(frozen=True)
class Variant:
    """Hold one way to run a preference step.

    model: a folder, or the arguments of an architecture's config (`model_type` among them) for random
    weights. layout: `shared_prefix`, `separate`, `padded` (both sides with their own prompt, padded to the
    longest) or `own` (the general path: the model's own forward). reference: `cached` or `live`. head: `chunked`
    or `dense`. precision: `float32` or `bf16`. method: `sgdpo` or `dpo`. batch: pairs of a step. max_tokens: of a
    packed row. steps: measured ones.
    adapter: train a LoRA on every layer and freeze the rest.
    """

    model: str | dict[str, Any] = ""
    layout: str = "shared_prefix"
    reference: str = "cached"
    head: str = "chunked"
    precision: str = "float32"
    method: str = "sgdpo"
    batch: int = 4
    max_tokens: int = 8192
    steps: int = 3
    device: str = "cpu"
    checkpointing: bool = False
    adapter: bool = False

    @property
    def name(self) -> str:
        layout = self.layout.replace("_", " ")
        parts = [
            layout,
            self.reference,
            self.head,
            *(["LoRA"] if self.adapter else []),
            self.method,
            self.precision,
        ]
        return ", ".join(parts)


@dataclass(frozen=True)
class Measurement:
    """Hold what one process measured.

    seconds: of each step. pairs, completion_tokens, tokens, flops: of each step (useful work: no padding, no
    recomputation). peak_flops: per second, of a large matrix product in the same process and precision.
    memory_mb: peak resident memory of the process, or of the GPU's allocator. method_ms: time of the loss
    function alone, forward and backward, for each method.
    """

    variant: Variant
    seconds: list[float]
    pairs: list[int]
    completion_tokens: list[int]
    tokens: list[int]
    flops: list[float]
    peak_flops: float
    memory_mb: float
    method_ms: dict[str, float] = field(default_factory=dict)

    @property
    def pairs_per_second(self) -> float:
        return sum(self.pairs) / sum(self.seconds)

    @property
    def completion_tokens_per_second(self) -> float:
        return sum(self.completion_tokens) / sum(self.seconds)

    @property
    def utilisation(self) -> float:
        """Give useful floating-point work against the measured peak, 0 to 1."""
        return sum(self.flops) / sum(self.seconds) / self.peak_flops


def around(base: Variant, precisions: list[str]) -> list[Variant]:
    """Return the base and its neighbours, one thing changed at a time, in every precision."""
    found = []
    for precision in precisions:
        center = replace(base, precision=precision)
        found += [
            center,
            replace(center, layout="separate"),
            replace(center, layout="padded", head="dense"),
            replace(center, reference="live"),
            replace(center, head="dense"),
            replace(center, method="dpo"),
            replace(center, layout="own"),
            replace(center, adapter=True),
        ]
    return found


def ultrafeedback_like(count: int, vocabulary: int, max_length: int, seed: int) -> list[Example]:
    """Return pairs of random ids with UltraFeedback-like lengths; the longest is cut to `max_length` tokens."""
    draw = np.random.default_rng(seed)
    prompt = _lognormal(draw.standard_normal(count), PROMPT_MEDIAN, PROMPT_SPREAD)
    shared, own = draw.standard_normal(count), draw.standard_normal((2, count))
    sides = np.sqrt(CORRELATION) * shared + np.sqrt(1 - CORRELATION) * own
    prompt = np.clip(prompt, 8, max_length // 2)
    completions = np.clip(_lognormal(sides, COMPLETION_MEDIAN, COMPLETION_SPREAD), 2, max_length - prompt)
    return _random_pairs(draw, zip(prompt, *completions, strict=True), vocabulary)


def fixed_lengths(count: int, prompt: int, completion: int, vocabulary: int, seed: int) -> list[Example]:
    """Return pairs of random ids that all have the same lengths: for the scaling plots."""
    draw = np.random.default_rng(seed)
    return _random_pairs(draw, [(prompt, completion, completion)] * count, vocabulary)


def _lognormal(normal: np.ndarray, median: float, spread: float) -> np.ndarray:
    return np.exp(np.log(median) + spread * normal).astype(np.int64)


def _random_pairs(
    draw: np.random.Generator, lengths: Iterable[tuple[int, int, int]], vocabulary: int
) -> list[Example]:
    low, found = min(10, vocabulary // 2), []
    for index, sides in enumerate(lengths):
        ids = [draw.integers(low, vocabulary, int(length), dtype=np.int32) for length in sides]
        found.append(Example(index, *ids, np.ones(len(ids[1]), bool)))
    return found


def save(path: Path, examples: list[Example]) -> None:
    """Write pairs to one npz file, flat ids and lengths, for a process that measures."""
    sides = [(e.prompt_ids, e.chosen_ids, e.rejected_ids) for e in examples]
    lengths = np.array([[len(ids) for ids in side] for side in sides])
    flat = np.concatenate([ids for side in sides for ids in side])
    np.savez(path, lengths=lengths, flat=flat, ids=np.array([e.example_id for e in examples]))


def load(path: Path) -> list[Example]:
    with np.load(path) as file:
        lengths, flat, ids = file["lengths"], file["flat"], file["ids"]
    pieces = np.split(flat, np.cumsum(lengths.flatten())[:-1])
    return [
        Example(int(ids[row]), *pieces[3 * row : 3 * row + 3], np.ones(int(lengths[row, 1]), bool))
        for row in range(len(ids))
    ]


def measure_apart(variant: Variant, pairs: Path) -> Measurement:
    """Measure a variant in a new process. Raise ValueError with the end of its output if it fails."""
    command = [sys.executable, "-m", "lab.bench.steps"]
    failed = f"measuring {variant.name!r} failed"
    found = run_apart(command, variant, pairs, failed, ENVIRONMENT)  # as a run has it
    return Measurement(**{**found, "variant": Variant(**found["variant"])})


def run_apart(
    command: Sequence[str], variant: Variant, pairs: Path, failed: str, env: Mapping[str, str]
) -> dict[str, Any]:
    """Run `command SPEC PAIRS ANSWER`, files of JSON and npz, and return the answer. env: on top of this process's."""
    with tempfile.TemporaryDirectory() as folder:
        spec, answer = Path(folder) / "spec.json", Path(folder) / "answer.json"
        write_json(spec, asdict(variant))
        done = run([*command, str(spec), str(pairs), str(answer)], env=env)
        if done.returncode < 0:  # it had no last word: what it wrote ends in a progress bar
            raise ValueError(f"{failed}: {how_it_ended(done.returncode)}")
        if done.returncode != 0:
            raise ValueError(f"{failed}:\n{done.stderr[-2000:]}")
        return dict(read_json(answer))


def run_rounds(
    variants: Sequence[Variant], examples: Sequence[Example], rounds: int, say: Callable[[str], None] = print
) -> list[list[Measurement]]:
    """Measure every variant once a round; return its measurements, one of each round."""
    found: list[list[Measurement]] = [[] for _ in variants]
    with tempfile.TemporaryDirectory() as folder:
        pairs = Path(folder) / "pairs.npz"
        save(pairs, list(examples))
        for number in range(rounds):
            for variant, measurements in zip(variants, found, strict=True):
                last = measure_apart(variant, pairs)
                measurements.append(last)
                speed = f"{last.pairs_per_second:.3f} pairs/s, {last.memory_mb:,.0f} MB"
                say(f"round {number + 1}/{rounds}  {variant.name}: {speed}")
    return found


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Write the median with the least and the greatest; the one value alone where there is one."""
    middle = f"{statistics.median(values):.{digits}f}"
    return middle if len(values) < 2 else f"{middle} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def spread_title(what: str, rounds: int) -> str:
    return f"{what}, one round" if rounds == 1 else f"{what}, median of {rounds} rounds (least to greatest)"


def speed_ratios(found: Sequence[Measurement], base: Sequence[Measurement]) -> list[float]:
    return [one.pairs_per_second / other.pairs_per_second for one, other in zip(found, base, strict=True)]


def table(found: Sequence[Sequence[Measurement]], facts: Sequence[str] = ()) -> Table:
    rows = []
    for measurements in found:
        variant = measurements[0].variant
        base = next(other for other in found if other[0].variant.precision == variant.precision)
        memory = _median(measurements, "memory_mb")
        row = [variant.name, f"{_median(measurements, 'pairs_per_second'):.3f}"]
        row += [f"{_median(measurements, 'completion_tokens_per_second'):.0f}"]
        row += [f"{100 * _median(measurements, 'utilisation'):.0f} %", f"{memory:,.0f}"]
        row += [spread(speed_ratios(measurements, base)), f"{memory / _median(base, 'memory_mb'):.2f}"]
        rows.append(row)
    against = spread_title("speed against the first", len(found[0]))
    header = ["variant", "pairs/s", "completion tokens/s", "utilisation", "peak memory, MB", against,
              "memory against the first"]  # fmt: skip
    return Table("bench", "", header, rows, 1, facts)


def overhead(found: Sequence[Sequence[Measurement]]) -> list[str]:
    """Say what SGDPO's draws add to DPO's step, from the loss functions' own times."""
    lines = []
    for measurements in found:
        added_ms = [m.method_ms["sgdpo"] - m.method_ms["dpo"] for m in measurements]
        extra = [ms / 10 / statistics.median(m.seconds) for ms, m in zip(added_ms, measurements, strict=True)]
        step = 1e3 * statistics.median(measurements[0].seconds)
        precision = measurements[0].variant.precision
        lines.append(f"SGDPO over DPO, {precision}: {spread(extra, 3)} % of a step of {step:,.0f} ms.")
    return lines


def _median(measurements: Sequence[Measurement], name: str) -> float:
    return statistics.median(getattr(m, name) for m in measurements)
