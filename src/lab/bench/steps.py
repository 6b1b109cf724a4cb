"""The preference steps that a benchmark times, and timing one variant of them in a process of its own.

A step is our packed one, or the padded dense one as most trainers do it. Peak memory is that of the variant alone:
`python -m lab.bench.steps SPEC PAIRS ANSWER`.
"""

import copy
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from lab.bench.rounds import Measurement, Variant, load
from sgdpo.config.schema import AdapterConfig, ModelConfig
from sgdpo.data.batching import even_rows, tokens_of
from sgdpo.data.example import Example
from sgdpo.data.packing import RowCollator, model_inputs, pair_of
from sgdpo.drawing.table import Table
from sgdpo.methods.dpo import dpo
from sgdpo.methods.sgdpo import sgdpo
from sgdpo.models.adapters import fit_adapter
from sgdpo.models.allocator import keep_freed_memory
from sgdpo.models.load import load_model
from sgdpo.models.logprobs import teach_logprobs
from sgdpo.pairs import DrawKey, Ratios
from sgdpo.pilot import Pilot
from sgdpo.runs.provenance import peak_memory_mb
from sgdpo.selects import uniform
from sgdpo.store import read_json, write_json

BETA, RATIOS, DRAWS, PILOT = 0.1, Ratios(0.6, 0.9), DrawKey(42), Pilot(uniform, {})
# The losses with the paper's settings.
METHODS = {
    "dpo": lambda pair: dpo(pair, beta=BETA),
    "sgdpo": lambda pair: sgdpo(pair, beta=BETA, draw="shared", ratios=RATIOS, draws=DRAWS, pilot=PILOT),
}
# Operators by what they are for; the first group that matches a name takes it.
GROUPS = (
    ("matrix products", ("aten::mm", "aten::addmm", "aten::bmm", "aten::linear")),
    ("attention", ("attention", "RowAttention")),
    ("optimizer", ("_fused_adamw", "optimizer", "foreach", "linalg_vector_norm")),
    ("casts and copies", ("aten::copy_", "aten::_to_copy", "aten::cat", "aten::fill_", "aten::zero_")),
    ("gradient accumulation", ("AccumulateGrad", "aten::add_")),
)


class DenseHead(nn.Linear):
    """Give per-token log-probs by way of the whole tokens-by-vocabulary matrix: what the fast path avoids."""

    def forward(self, input: Tensor, target_L: Tensor | None = None) -> Tensor:
        logits_LV = super().forward(input)
        if target_L is None:
            return logits_LV
        return logits_LV.float().log_softmax(-1).gather(-1, target_L[:, None])[:, 0]


def random_model(arguments: dict[str, Any]) -> PreTrainedModel:
    """Return a model with random weights. arguments: of its config class, `model_type` among them."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(**arguments)
    return AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")


def build_model(variant: Variant) -> PreTrainedModel:
    if isinstance(variant.model, dict):
        model = random_model(variant.model)
    else:
        model = load_model(ModelConfig(name="bench", path=variant.model), seed=0)
    teach_logprobs(model, head_budget_mb=64, fast=variant.layout != "own")
    if variant.head == "dense":
        head = DenseHead(1, 1, bias=False, device="meta")
        head.weight = model.lm_head.weight
        model.lm_head = head
    if variant.adapter:
        model = fit_adapter(model, AdapterConfig(name="lora", rank=16), seed=0)
    if variant.checkpointing:
        model.gradient_checkpointing_enable()
    return model.to(variant.device).train()


class Stepper:
    """Run preference steps of one variant: forward, loss, backward, clipping, AdamW."""

    def __init__(self, variant: Variant, model: PreTrainedModel) -> None:
        self.variant, self.model = variant, model
        self.live = copy.deepcopy(model).requires_grad_(False).eval() if variant.reference == "live" else None
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-7, fused=True)

    def rows(self, examples: Sequence[Example]) -> list[dict[str, Tensor]]:
        if self.variant.layout == "padded":
            return [padded_batch(examples)]
        lengths, layout = lengths_of(examples), packed_as(self.variant.layout)
        tokens = tokens_of(lengths, layout)
        rows = even_rows(tokens, min(len(examples), -(-int(tokens.sum()) // self.variant.max_tokens)))
        collate = RowCollator(layout)
        return [collate([examples[index] for index in row]) for row in rows]

    def logprobs(self, model: PreTrainedModel, row: dict[str, Tensor]) -> Tensor:
        device = torch.device(self.variant.device).type
        with torch.autocast(device, torch.bfloat16, enabled=self.variant.precision == "bf16"):
            if self.variant.layout == "padded":
                return padded_logprobs(model, row)
            return model(**model_inputs(row))

    @torch.no_grad()
    def reference(self, examples: Sequence[Example]) -> list[Tensor]:
        """Return what a reference cache would give for each row of the step."""
        return [self.logprobs(self.live or self.model, self._placed(row)) for row in self.rows(examples)]

    def step(self, examples: Sequence[Example], cached: list[Tensor] | None) -> None:
        """Train on one batch. cached: the reference's log-probs; None runs the live reference."""
        for index, row in enumerate(self.rows(examples)):
            row = self._placed(row)
            with torch.no_grad():
                reference_L = self.logprobs(self.live, row) if cached is None else cached[index]
            pair = pair_of(row, self.logprobs(self.model, row), reference_L)
            (METHODS[self.variant.method](pair).loss_B.sum() / len(examples)).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def _placed(self, row: dict[str, Tensor]) -> dict[str, Tensor]:
        return {key: value.to(self.variant.device) for key, value in row.items()}


def packed_as(layout: str) -> str:
    """Return the layout of a variant's rows: padded sequences are separate ones."""
    return "separate" if layout in ("padded", "own") else layout


def lengths_of(examples: Sequence[Example]) -> np.ndarray:
    """Return (prompt, chosen, rejected) lengths, int64[n, 3]."""
    return np.array([[len(e.prompt_ids), len(e.chosen_ids), len(e.rejected_ids)] for e in examples])


def padded_batch(examples: Sequence[Example]) -> dict[str, Tensor]:
    """Return a row whose inputs are (2B, longest) sequences padded on the right, chosen ones first."""
    row = RowCollator("separate")(examples)
    sides = [(e.prompt_ids, e.chosen_ids) for e in examples] + [
        (e.prompt_ids, e.rejected_ids) for e in examples
    ]
    longest = max(len(prompt) + len(completion) for prompt, completion in sides)
    input_ids = torch.zeros(len(sides), longest, dtype=torch.int64)
    mask, source = torch.zeros_like(input_ids), []
    for index, (prompt, completion) in enumerate(sides):
        length = len(prompt) + len(completion)
        input_ids[index, :length] = torch.from_numpy(np.concatenate([prompt, completion]).astype(np.int64))
        mask[index, :length] = 1
        source.append(torch.arange(len(prompt) - 1, length - 1) + index * longest)
    return row | {"input_ids": input_ids, "attention_mask": mask, "source_L": torch.cat(source)}


def padded_logprobs(model: PreTrainedModel, row: dict[str, Any]) -> Tensor:
    """Return log-probs as most trainers do: logits of every position, padding included, then a dense softmax."""
    logits_BNV = model(
        input_ids=row["input_ids"], attention_mask=row["attention_mask"], use_cache=False
    ).logits
    logp_BNV = logits_BNV.float().log_softmax(-1)
    return logp_BNV.flatten(0, 1)[row["source_L"], row["target_L"]]


def measure(variant: Variant, examples: Sequence[Example]) -> Measurement:
    """Run a warm-up step, then `variant.steps` timed ones, each on its own pairs."""
    on_gpu = torch.device(variant.device).type == "cuda"
    if not on_gpu:
        keep_freed_memory()
    layout = packed_as(variant.layout)
    peak = matrix_peak(variant)
    stepper = Stepper(variant, build_model(variant))
    batches = [examples[start : start + variant.batch] for start in range(0, len(examples), variant.batch)]
    batches = [batches[index % len(batches)] for index in range(variant.steps + 1)]
    cached = [stepper.reference(b) if stepper.live is None else None for b in batches]
    seconds = [
        seconds_of(partial(stepper.step, batch, reference), variant.device)
        for batch, reference in zip(batches, cached, strict=True)
    ]
    timed = batches[1:]
    return Measurement(
        variant=variant,
        seconds=seconds[1:],
        pairs=[len(b) for b in timed],
        completion_tokens=[int(lengths_of(b)[:, 1:].sum()) for b in timed],
        tokens=[int(tokens_of(lengths_of(b), layout).sum()) for b in timed],
        flops=[useful_flops(stepper.model, b, layout) for b in timed],
        peak_flops=peak,
        memory_mb=torch.cuda.max_memory_allocated() / 2**20 if on_gpu else peak_memory_mb(),
        method_ms={method: method_milliseconds(method, timed[0]) for method in ("dpo", "sgdpo")},
    )


def seconds_of(work: Callable[[], object], device: str = "cpu") -> float:
    """Time work; on a GPU from the moment it is idle until it is idle again."""
    on_gpu = torch.device(device).type == "cuda"
    if on_gpu:
        torch.cuda.synchronize()
    began = time.perf_counter()
    work()
    if on_gpu:
        torch.cuda.synchronize()
    return time.perf_counter() - began


def matrix_peak(variant: Variant, repeats: int = 6) -> float:
    """Return the best rate of a large matrix product in the variant's precision, operations a second."""
    size = 2048 if variant.device == "cpu" else 8192
    dtype = torch.bfloat16 if variant.precision == "bf16" else torch.float32
    left, right = (torch.randn(size, size, device=variant.device).to(dtype) for _ in range(2))
    return 2 * size**3 / min(seconds_of(lambda: left @ right, variant.device) for _ in range(repeats))


def useful_flops(model: PreTrainedModel, examples: Sequence[Example], layout: str) -> float:
    """Return the operations a training step needs: forward and twice that backward, padding and recomputation
    left out; matrix products of the layers for each token, of the lm-head for each completion token, and of
    attention for each (query, key) that a token may see."""
    model = getattr(model, "get_base_model", lambda: model)()  # of a PEFT model
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
    row = RowCollator("shared_prefix")(examples)
    logp_L = -torch.rand(row["target_L"].numel()).requires_grad_()
    reference_L = -torch.rand(row["target_L"].numel())
    pairs = (pair_of(row, logp_L, reference_L) for _ in range(repeats))
    return 1e3 * min(seconds_of(lambda p=pair: METHODS[method](p).loss_B.sum().backward()) for pair in pairs)


def profile_step(variant: Variant, examples: Sequence[Example], top: int = 15) -> list[Table]:
    """Profile one step: a table of its operators' own times, grouped, and one of the largest operators."""
    on_gpu = torch.device(variant.device).type == "cuda"
    if not on_gpu:
        keep_freed_memory()  # as the measured runs do
    stepper = Stepper(variant, build_model(variant))
    batch = examples[: variant.batch]
    cached = stepper.reference(batch)
    stepper.step(batch, cached)
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]) as recorded:
        stepper.step(batch, cached)
    own_time = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    times = {event.key: getattr(event, own_time) for event in recorded.key_averages()}
    total = sum(times.values()) or 1.0
    grouped: dict[str, float] = {}
    for name, time_us in times.items():
        matching = (group for group, parts in GROUPS if any(part in name for part in parts))
        group = next(matching, "elementwise and the rest")
        grouped[group] = grouped.get(group, 0.0) + time_us
    title = f"One step, {variant.name}, {total / 1e3:,.0f} ms"

    def shares(values: dict[str, float], count: int) -> list[list[str]]:
        largest = sorted(values.items(), key=lambda item: -item[1])[:count]
        return [[name, f"{100 * value / total:.1f} %"] for name, value in largest]

    return [
        Table("", title, ["part", "share of the time"], shares(grouped, len(grouped))),
        Table("-operators", "Its largest operators", ["operator", "share"], shares(times, top)),
    ]


if __name__ == "__main__":
    spec, pairs, answer = map(Path, sys.argv[1:])
    write_json(answer, asdict(measure(Variant(**read_json(spec)), load(pairs))))
