"""What a benchmark varies, and what one measurement found; plain data that crosses processes as JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any


@dataclass(frozen=True)
class Variant:
    """Hold one way to run a preference step.

    model: a folder, or the arguments of an architecture's config (`model_type` among them) for random
    weights. layout: `shared_prefix`, `separate` or `padded` (both sides with their own prompt, padded to the
    longest). reference: `cached` or `live`. head: `chunked` or `dense`. precision: `float32` or `bf16`.
    method: `sgdpo` or `dpo`. batch: pairs of a step. max_tokens: of a packed row. steps: measured ones.
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

    @property
    def name(self) -> str:
        return ", ".join(
            [self.layout.replace("_", " "), self.reference, self.head, self.method, self.precision]
        )


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
        """Return useful floating-point work against the measured peak, 0 to 1."""
        return sum(self.flops) / sum(self.seconds) / self.peak_flops

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Measurement:
        return cls(**{**values, "variant": Variant(**values["variant"])})


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
        ]
    return found
