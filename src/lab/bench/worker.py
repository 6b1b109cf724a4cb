"""Measure one variant in a process of its own, so that peak memory is that variant's: `-m lab.bench.worker`."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile
from transformers import PreTrainedModel

from lab.bench.rounds import Measurement, Variant, load
from lab.bench.steps import Stepper, build_model, lengths_of, method_loss
from sgdpo.data.batching import tokens_of
from sgdpo.data.example import Example
from sgdpo.data.packing import RowCollator, pair_of
from sgdpo.drawing.table import Table
from sgdpo.models.allocator import keep_freed_memory
from sgdpo.runs.provenance import peak_memory_mb
from sgdpo.store import read_json, write_json

# Operators by what they are for; the first group that matches a name takes it.
GROUPS = (
    ("matrix products", ("aten::mm", "aten::addmm", "aten::bmm", "aten::linear")),
    ("attention", ("attention", "RowAttention")),
    ("optimizer", ("_fused_adamw", "optimizer", "foreach", "linalg_vector_norm")),
    ("casts and copies", ("aten::copy_", "aten::_to_copy", "aten::cat", "aten::fill_", "aten::zero_")),
    ("gradient accumulation", ("AccumulateGrad", "aten::add_")),
)


def measure(variant: Variant, examples: Sequence[Example]) -> Measurement:
    """Run a warm-up step, then `variant.steps` timed ones, each on its own pairs."""
    if torch.device(variant.device).type == "cpu":
        keep_freed_memory()
    peak = matrix_peak(variant)
    stepper = Stepper(variant, build_model(variant))
    batches = [examples[start : start + variant.batch] for start in range(0, len(examples), variant.batch)]
    batches = [batches[index % len(batches)] for index in range(variant.steps + 1)]
    cached = [stepper.reference(b) if stepper.live is None else None for b in batches]
    seconds = []
    for batch, reference in zip(batches, cached, strict=True):
        seconds.append(_timed(variant, stepper, batch, reference))
    timed = batches[1:]
    return Measurement(
        variant=variant,
        seconds=seconds[1:],
        pairs=[len(b) for b in timed],
        completion_tokens=[int(lengths_of(b)[:, 1:].sum()) for b in timed],
        tokens=[int(tokens_of(lengths_of(b), _packing(variant)).sum()) for b in timed],
        flops=[useful_flops(stepper.model, b, _packing(variant)) for b in timed],
        peak_flops=peak,
        memory_mb=_peak_memory_mb(variant),
        method_ms={method: method_milliseconds(method, timed[0]) for method in ("dpo", "sgdpo")},
    )


def _packing(variant: Variant) -> str:
    return "separate" if variant.layout == "padded" else variant.layout


def _timed(variant: Variant, stepper: Stepper, batch: Sequence[Example], reference) -> float:
    if torch.device(variant.device).type == "cuda":
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        stepper.step(batch, reference)
        end.record()
        torch.cuda.synchronize()
        return begin.elapsed_time(end) / 1e3
    begin = time.perf_counter()
    stepper.step(batch, reference)
    return time.perf_counter() - begin


def _peak_memory_mb(variant: Variant) -> float:
    if torch.device(variant.device).type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return peak_memory_mb()


def matrix_peak(variant: Variant, size: int = 2048, repeats: int = 6) -> float:
    """Return the best rate of a large matrix product in the variant's precision, operations a second."""
    dtype = torch.bfloat16 if variant.precision == "bf16" else torch.float32
    left, right = (torch.randn(size, size, device=variant.device).to(dtype) for _ in range(2))
    best = float("inf")
    for _ in range(repeats):
        begin = time.perf_counter()
        left @ right
        if left.is_cuda:
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - begin)
    return 2 * size**3 / best


def useful_flops(model: PreTrainedModel, examples: Sequence[Example], layout: str) -> float:
    """Return the operations a training step needs: forward and twice that backward, padding and recomputation
    left out; matrix products of the layers for each token, of the lm-head for each completion token, and of
    attention for each (query, key) that a token may see."""
    body = getattr(model, model.base_model_prefix)
    per_token = sum(p.numel() for layer in body.layers for p in layer.parameters() if p.ndim == 2)
    head = model.lm_head.weight.numel()
    heads = model.config.num_attention_heads * body.layers[0].self_attn.head_dim * len(body.layers)
    lengths = lengths_of(examples)
    completions = lengths[:, 1:].sum()
    seen = 0
    for prompt, chosen, rejected in lengths.tolist():
        trunks = [prompt + chosen] if layout == "shared_prefix" else [prompt + chosen, prompt + rejected]
        seen += sum(trunk * (trunk + 1) / 2 for trunk in trunks)
        seen += rejected * prompt + rejected * (rejected + 1) / 2 if layout == "shared_prefix" else 0
    return float(6 * (per_token * tokens_of(lengths, layout).sum() + head * completions) + 12 * seen * heads)


def method_milliseconds(method: str, examples: Sequence[Example], repeats: int = 50) -> float:
    """Return the best time of the loss function alone, forward and backward, milliseconds."""
    row, best = RowCollator("shared_prefix")(examples), float("inf")
    logp_L = -torch.rand(row["target_L"].numel()).requires_grad_()
    reference_L = -torch.rand(row["target_L"].numel())
    for _ in range(repeats):
        pair = pair_of(row, logp_L, reference_L)
        begin = time.perf_counter()
        method_loss(method, pair).loss_B.sum().backward()
        best = min(best, time.perf_counter() - begin)
    return best * 1e3


def profile_step(variant: Variant, examples: Sequence[Example], top: int = 15) -> list[Table]:
    """Profile one step: a table of its operators' own times, grouped, and one of the largest operators."""
    on_gpu = variant.device != "cpu"
    if not on_gpu:
        keep_freed_memory()  # as the measured runs do
    stepper = Stepper(variant, build_model(variant))
    batch = examples[: variant.batch]
    cached = stepper.reference(batch)
    stepper.step(batch, cached)
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]) as recorded:
        stepper.step(batch, cached)
    times = {
        e.key: e.self_device_time_total if on_gpu else e.self_cpu_time_total for e in recorded.key_averages()
    }
    total = sum(times.values()) or 1.0
    grouped: dict[str, float] = {}
    for name, time_us in times.items():
        group = next(
            (group for group, parts in GROUPS if any(p in name for p in parts)), "elementwise and the rest"
        )
        grouped[group] = grouped.get(group, 0.0) + time_us
    stem, title = f"bench_profile-{variant.precision}", f"One step, {variant.name}, {total / 1e3:,.0f} ms"

    def shares(values: dict[str, float], count: int) -> list[list[str]]:
        largest = sorted(values.items(), key=lambda item: -item[1])[:count]
        return [[name, f"{100 * value / total:.1f} %"] for name, value in largest]

    return [
        Table(stem, title, ["part", "share of the time"], shares(grouped, len(grouped))),
        Table(f"{stem}-operators", "Its largest operators", ["operator", "share"], shares(times, top)),
    ]


if __name__ == "__main__":
    spec, pairs, answer = map(Path, sys.argv[1:])
    write_json(answer, asdict(measure(Variant(**read_json(spec)), load(pairs))))
