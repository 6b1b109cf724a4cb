"""Where a step's time goes: the operators of one profiled step, by their own time."""

from __future__ import annotations

from collections.abc import Sequence

from torch.profiler import ProfilerActivity, profile

from lab.bench.steps import Stepper, build_model
from lab.bench.variant import Variant
from sgdpo.data.example import Example
from sgdpo.models.allocator import keep_freed_memory

# Operators by what they are for; the first group that matches a name takes it.
GROUPS = (
    ("matrix products", ("aten::mm", "aten::addmm", "aten::bmm", "aten::linear")),
    ("attention", ("attention", "RowAttention")),
    ("optimizer", ("_fused_adamw", "optimizer", "foreach", "linalg_vector_norm")),
    ("casts and copies", ("aten::copy_", "aten::_to_copy", "aten::cat", "aten::fill_", "aten::zero_")),
    ("gradient accumulation", ("AccumulateGrad", "aten::add_")),
)


def profile_step(variant: Variant, examples: Sequence[Example], top: int = 15) -> str:
    """Return a Markdown table of one step's own operator times, grouped, and the largest operators."""
    if variant.device == "cpu":
        keep_freed_memory()  # as the measured runs do
    stepper = Stepper(variant, build_model(variant))
    batch = examples[: variant.batch]
    cached = stepper.reference(batch)
    stepper.step(batch, cached)
    activities = [ProfilerActivity.CPU]
    if variant.device != "cpu":
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as recorded:
        stepper.step(batch, cached)
    on_gpu = variant.device != "cpu"
    events = [
        (event.key, event.self_device_time_total if on_gpu else event.self_cpu_time_total)
        for event in recorded.key_averages()
    ]
    total = sum(time for _, time in events) or 1.0
    shares: dict[str, float] = {}
    for name, time in events:
        shares[_group(name)] = shares.get(_group(name), 0.0) + time
    lines = [
        f"One step, {variant.name}, {total / 1e3:,.0f} ms:",
        "",
        "| part | share of the time |",
        "|---|---|",
    ]
    lines += [
        f"| {group} | {100 * time / total:.1f} % |" for group, time in _largest(shares.items(), len(shares))
    ]
    lines += ["", "| operator | share |", "|---|---|"]
    lines += [f"| `{name}` | {100 * time / total:.1f} % |" for name, time in _largest(events, top)]
    return "\n".join(lines) + "\n"


def _group(name: str) -> str:
    for group, parts in GROUPS:
        if any(part in name for part in parts):
            return group
    return "elementwise and the rest"


def _largest(items, count: int) -> list[tuple[str, float]]:
    return sorted(items, key=lambda item: -item[1])[:count]
