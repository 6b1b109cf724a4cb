"""The command line of `make bench`: which pairs, which model, which tables and plots."""

from __future__ import annotations

import argparse
import platform
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import psutil
import torch
from transformers import AutoConfig

from lab.bench import rounds, scaling
from lab.bench.rounds import Variant, around, ultrafeedback_like
from lab.bench.worker import profile_step
from sgdpo.config.schema import DataConfig, ModelConfig
from sgdpo.data.example import Example
from sgdpo.data.prepare import prepare
from sgdpo.models.load import load_tokenizer
from sgdpo.store import write_json

# Randomly initialised Llamas for a machine with a GPU; sizes of the 1B and 3B releases.
RANDOM_LLAMAS = {
    "llama-1b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16},
    "llama-3b": {"hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 28},
}
LLAMA_COMMON = {
    "model_type": "llama",
    "num_attention_heads": 24,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 128_256,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}


def measure(options: argparse.Namespace) -> None:
    """Measure what the command line asks for, print it, and write it under `--out`."""
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
    below = [*rounds.overhead([found[0], *found[6:7]]), facts("bench", options, examples)]
    table = rounds.table(found, below)
    print(f"\n{table.console()}")
    table.write(options.out)
    numbers = [asdict(measurement) for measurements in found for measurement in measurements]
    write_json(options.out / "measurements.json", numbers)


def write_profile(base: Variant, options: argparse.Namespace, examples: list[Example]) -> None:
    """Profile one step in each precision, print where its time goes, and keep it."""
    for precision in options.precisions:
        for table in profile_step(replace(base, precision=precision), examples):
            table = replace(table, facts=[facts("bench", options)], origin={"exhibit": "bench"})
            print(table.console())
            table.write(options.out)


def base_variant(options: argparse.Namespace) -> Variant:
    """Return the variant that the others differ from by one thing."""
    return Variant(
        model=model_of(options.model),
        batch=options.batch,
        steps=options.steps,
        max_tokens=options.max_tokens,
        device=options.device,
        checkpointing=options.checkpointing,
    )


def model_of(name: str) -> str | dict:
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


def vocabulary_of(model: str | dict) -> int:
    """Return the size of the model's vocabulary."""
    return model["vocab_size"] if isinstance(model, dict) else AutoConfig.from_pretrained(model).vocab_size


def pairs_of(base: Variant, options: argparse.Namespace) -> list[Example]:
    """Return one warm-up batch and `--steps` batches of pairs, generated or from a file."""
    count = options.batch * (options.steps + 1)
    if options.data is None:
        return ultrafeedback_like(count, vocabulary_of(base.model), options.max_length, options.seed)
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
    """Measure and draw the three scaling plots."""
    vocabulary = vocabulary_of(base.model)
    lengths = tuple(length for length in scaling.LENGTHS if length <= options.max_length)
    speed, memory = "pairs per second", "peak memory, MB"
    note = facts("bench", options).replace("`: ", "\n").replace("`", "")
    plots = {
        "length": (scaling.by_length(base, vocabulary, lengths, print), "pairs_per_second",
                   ("tokens of prompt plus completion, half each", speed)),
        "share": (scaling.by_share(base, vocabulary, min(512, options.max_length), print), "pairs_per_second",
                  ("completion's share of the sequence", speed)),
        "vocabulary": (scaling.by_vocabulary(base, min(512, options.max_length), scaling.VOCABULARIES, print),
                       "memory_mb", ("vocabulary, tokens (random Llama, 4 layers of width 512)", memory)),
    }  # fmt: skip
    for name, (points, y, labels) in plots.items():
        path = options.out / f"bench_scaling_{name}.png"
        scaling.draw(points, y, labels, path, note)
        print(path)


def facts(target: str, options: argparse.Namespace, examples: Sequence[Example] = ()) -> str:
    """Say command, machine, model and pairs; `target` is the make target that gave the command line."""
    words = shlex.join(options.words)
    command = f'`make {target} BENCH="{words}"`' if words else f"`make {target}`"
    parts = [
        f"{command}: {Path(options.model).name} on {_machine(options.device)}, torch {torch.__version__}"
    ]
    if examples:
        lengths = np.array([[len(e.prompt_ids), len(e.chosen_ids), len(e.rejected_ids)] for e in examples])
        prompt, chosen, rejected = lengths.mean(0)
        parts += [
            f"{options.batch} pairs a step, {options.steps} timed steps in each of {options.rounds} rounds",
            f"on average {prompt:.0f} prompt, {chosen:.0f} chosen and {rejected:.0f} rejected tokens",
        ]
    return "; ".join(parts) + "."


def _machine(device: str) -> str:
    if device != "cpu":
        return torch.cuda.get_device_name()
    return f"{psutil.cpu_count()} cores of {_processor()}"


def _processor() -> str:
    """Return the processor's name, or its architecture where the system does not say."""
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.machine()
