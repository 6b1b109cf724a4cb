"""The command line of `make bench`: which pairs, which model, which tables and plots."""

import argparse
import platform
import shlex
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import psutil
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator
from transformers import AutoConfig

from lab.bench import rounds
from lab.bench.added import added_tables
from lab.bench.rounds import Variant, around, fixed_lengths, ultrafeedback_like
from lab.bench.steps import lengths_of, profile_step
from lab.report.entries import commit_text
from sgdpo.config.schema import DataConfig, ModelConfig
from sgdpo.data.example import Example
from sgdpo.data.prepare import prepare
from sgdpo.drawing.style import COLOURS, QUIET, label_end, save, styled
from sgdpo.drawing.table import Table
from sgdpo.models.device import device_of
from sgdpo.models.load import load_tokenizer
from sgdpo.runs.provenance import git_state
from sgdpo.store import write_json

# Randomly initialised Llamas for a machine with a GPU; sizes of the 1B and 3B releases.
RANDOM_LLAMAS = {
    "llama-1b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16},
    "llama-3b": {"hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 28},
}
LLAMA_COMMON = {
    "model_type": "llama", "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 128_256,
    "max_position_embeddings": 8192, "tie_word_embeddings": True,
}  # fmt: skip
# A body small enough that the vocabulary is what costs; the same for every size of it.
VOCABULARY_MODEL = {
    "model_type": "llama", "hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 4,
    "num_attention_heads": 8, "num_key_value_heads": 4, "tie_word_embeddings": True,
}  # fmt: skip
LENGTHS = (128, 256, 512, 1024, 2048)
SHARES = (0.1, 0.25, 0.5, 0.75, 0.9)
VOCABULARIES = (32_000, 64_000, 128_000, 152_000)
LAYOUTS = (("shared_prefix", "chunked"), ("separate", "chunked"), ("padded", "dense"))
# A range wider than this takes logarithmic axes.
WIDE = 10


def measure(options: argparse.Namespace) -> None:
    if options.gpu and not torch.cuda.is_available():
        print("bench-gpu is skipped: torch finds no CUDA device here")
        return
    device_of(options.device)
    if not options.peers:
        measure_ours(options)
    if options.peers or options.gpu:
        from lab.bench.peers import measure_peers

        measure_peers(options)


def measure_ours(options: argparse.Namespace) -> None:
    base = base_variant(options)
    options.out.mkdir(parents=True, exist_ok=True)
    if options.scaling:
        plot_scaling(base, options)
        return
    examples = pairs_of(base, options)
    if options.profile:
        write_profile(base, options, examples)
        return
    found = rounds.run_rounds(around(base, options.precisions), examples, options.rounds)
    below = [
        *rounds.overhead(found[:: len(found) // len(options.precisions)]),
        facts(options.target, options, examples),
    ]
    keep(rounds.table(found, below), options)
    if options.device == "cpu":
        vocabulary, width = sizes_of(base.model)
        step = statistics.median(found[0][0].seconds)
        for added in added_tables(examples[: base.batch], vocabulary, width, step):
            keep(added, options)
    numbers = [asdict(measurement) for measurements in found for measurement in measurements]
    write_json(options.out / "measurements.json", numbers)


def write_profile(base: Variant, options: argparse.Namespace, examples: list[Example]) -> None:
    for index, precision in enumerate(options.precisions):
        stem = f"bench_profile-{precision}" if index else "bench_profile"  # the first is what pages link to
        for table in profile_step(replace(base, precision=precision), examples):
            keep(replace(table, name=stem + table.name, facts=[facts(options.target, options)]), options)


def keep(table: Table, options: argparse.Namespace) -> None:
    """Print a table and write it, with what `make publish` asks of it: its exhibit and its commit."""
    whole = replace(table, origin={"exhibit": "bench", "commits": [commit_text(git_state())]})
    print(f"\n{whole.console()}")
    whole.write(options.out)


def base_variant(options: argparse.Namespace) -> Variant:
    """Make the variant that the others differ from by one thing."""
    shared = {
        key: getattr(options, key) for key in ("batch", "steps", "max_tokens", "device", "checkpointing")
    }
    return Variant(model=model_of(options.model), **shared)


def model_of(name: str) -> str | dict[str, Any]:
    """Return the model as a Variant names it. Raise ValueError for a folder that is not there."""
    if name in RANDOM_LLAMAS:
        heads = RANDOM_LLAMAS[name]["hidden_size"] // LLAMA_COMMON["head_dim"]
        return {**LLAMA_COMMON, **RANDOM_LLAMAS[name], "num_attention_heads": heads}
    if not (Path(name) / "config.json").is_file():
        raise ValueError(
            f"there is no model in {name}; run `make smollm2`, or give --model a folder or one of"
            f" {sorted(RANDOM_LLAMAS)}"
        )
    return name


def sizes_of(model: str | dict[str, Any]) -> tuple[int, int]:
    """Return vocabulary and hidden width."""
    config = model if isinstance(model, dict) else AutoConfig.from_pretrained(model).to_dict()
    return config["vocab_size"], config["hidden_size"]


def pairs_of(base: Variant, options: argparse.Namespace) -> list[Example]:
    """Return one warm-up batch and `--steps` batches of pairs, generated or from a file."""
    count = options.batch * (options.steps + 1)
    if options.data is None:
        return ultrafeedback_like(count, sizes_of(base.model)[0], options.max_length, options.seed)
    if isinstance(base.model, dict):
        raise ValueError("--data needs a model with a tokenizer: give --model a folder")
    data = DataConfig(
        name="bench", function="sgdpo.data.files.read", settings={"train": options.data}, limit=4 * count,
        max_length=options.max_length, max_prompt_length=options.max_length * 7 // 8,
    )  # fmt: skip
    tokenizer = load_tokenizer(ModelConfig(name="bench", path=base.model))
    train = prepare(data, "preference", tokenizer, options.out / "cache").train
    if len(train) < count:
        raise ValueError(
            f"{options.data} gives {len(train)} pairs, the benchmark needs {count}; lower --steps"
        )
    return [train[index] for index in range(count)]


def plot_scaling(base: Variant, options: argparse.Namespace) -> None:
    """Measure and draw how speed and memory scale: with length, with the completion's share, with the vocabulary."""
    speed, memory = ("pairs_per_second", "pairs per second"), ("memory_mb", "peak memory, MB")
    note = facts(options.target, options).replace("`: ", "\n").replace("`", "")
    for name, (y, height), measured, label in (
        ("length", speed, by_length(base, options.max_length), "tokens of prompt plus completion, half each"),
        ("share", speed, by_share(base, min(512, options.max_length)), "completion's share of the sequence"),
        ("vocabulary", memory, by_vocabulary(base, min(512, options.max_length)),
         "vocabulary, tokens (random Llama, 4 layers of width 512)"),
    ):  # fmt: skip
        path = options.out / f"bench_scaling_{name}.png"
        draw(list(measured), y, (label, height), path, note)
        print(path)


def by_length(base: Variant, longest: int) -> Iterator[dict[str, Any]]:
    vocabulary = sizes_of(base.model)[0]
    for length in (length for length in LENGTHS if length <= longest):
        for layout, head in LAYOUTS:
            variant = replace(base, layout=layout, head=head)
            yield _point(variant, length, (length // 2, length // 2), vocabulary)


def by_share(base: Variant, length: int) -> Iterator[dict[str, Any]]:
    vocabulary = sizes_of(base.model)[0]
    for share in SHARES:
        completion = max(1, round(share * length))
        for layout, head in LAYOUTS:
            variant = replace(base, layout=layout, head=head)
            yield _point(variant, share, (length - completion, completion), vocabulary)


def by_vocabulary(base: Variant, length: int) -> Iterator[dict[str, Any]]:
    for size in VOCABULARIES:
        model = {**VOCABULARY_MODEL, "vocab_size": size, "max_position_embeddings": 2 * length}
        for layout, head in (LAYOUTS[0], ("shared_prefix", "dense"), LAYOUTS[2]):
            variant = replace(base, model=model, layout=layout, head=head)
            yield _point(variant, size, (length // 2, length // 2), size)


def _point(variant: Variant, x: float, lengths: tuple[int, int], vocabulary: int) -> dict[str, Any]:
    examples = fixed_lengths(2 * variant.batch, *lengths, vocabulary, seed=0)
    ((measurement,),) = rounds.run_rounds([variant], examples, 1, lambda line: print(f"{x:,}  {line}"))
    series = f"{variant.layout.replace('_', ' ')}, {variant.head} head"
    numbers = {key: getattr(measurement, key) for key in ("pairs_per_second", "memory_mb")}
    return {"x": x, "series": series, **numbers}


def draw(points: list[dict[str, Any]], y: str, labels: tuple[str, str], path: Path, note: str) -> None:
    """Draw one labelled line for each series, a note below, and write the numbers beside the picture, as JSON."""
    with styled():
        figure = Figure(figsize=(7, 4), layout="constrained")
        axes, ends = figure.subplots(), []
        for series, colour in zip(dict.fromkeys(p["series"] for p in points), COLOURS, strict=False):
            mine = [point for point in points if point["series"] == series]
            axes.plot([p["x"] for p in mine], [p[y] for p in mine], marker="o", linewidth=2, color=colour)
            ends.append((mine[-1][y], series, colour))
        axes.set(xlabel=labels[0], ylabel=labels[1])
        if max(p[y] for p in points) > WIDE * min(p[y] for p in points):
            axes.loglog()
            axes.minorticks_off()
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter("{x:g}")
        else:
            axes.set_ylim(bottom=0)
        xs = sorted({p["x"] for p in points})
        axes.set_xticks(xs, [f"{x:,}" for x in xs])
        label_end(axes, ends)
        figure.supxlabel(note, fontsize=7.5, color=QUIET, x=0.01, ha="left")
        save(figure, path)
    write_json(path.with_suffix(".json"), points)


def facts(target: str, options: argparse.Namespace, examples: Sequence[Example] = ()) -> str:
    """Say command, machine, model and pairs; `target` is the make target that gave the command line."""
    words = shlex.join(options.words)
    command = f'`make {target} BENCH="{words}"`' if words else f"`make {target}`"
    machine = f"{psutil.cpu_count()} cores of {_processor()}"
    machine = machine if options.device == "cpu" else torch.cuda.get_device_name()
    parts = [f"{command}: {Path(options.model).name} on {machine}, torch {torch.__version__}"]
    if examples:
        prompt, chosen, rejected = lengths_of(examples).mean(0)
        parts += [
            f"{options.batch} pairs a step, {options.steps} timed steps in each of {options.rounds} rounds",
            f"on average {prompt:.0f} prompt, {chosen:.0f} chosen and {rejected:.0f} rejected tokens",
        ]
    return "; ".join(parts) + "."


def _processor() -> str:
    """Return the processor's name, or its architecture where the system does not say."""
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.machine()
