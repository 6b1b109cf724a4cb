"""The typed form of a run: what `conf/` composes to. Every field's comment is in its YAML.

Hydra merges the YAML files into these dataclasses, so that a wrong type or an unknown key stops at compose
time, by name. Below the entrypoint only these dataclasses travel, never a config object.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class ModelConfig:
    name: str = "???"
    path: str | None = None
    revision: str | None = None
    tiny: dict[str, Any] | None = None
    chat_template: str | None = None
    init: str = "pretrained"
    attention: str = "sdpa"
    trust_remote_code: bool = False
    facts: dict[str, Any] | None = None
    setup_hint: str = ""


@dataclass
class RatioConfig:
    name: str = "none"
    chosen: float | None = None
    rejected: float | None = None


@dataclass
class PhaseConfig:
    lr: float = 0.0
    batch_size: int = 0
    epochs: float = 0.0
    max_steps: int = -1


@dataclass
class OptimizerConfig:
    name: str = "???"
    lr: float = 0.0
    batch_size: int = 0
    epochs: float = 0.0
    max_steps: int = -1
    schedule: str = "cosine"
    warmup_ratio: float = 0.1
    weight_decay: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    max_grad_norm: float = 1.0
    sft: PhaseConfig = field(default_factory=PhaseConfig)
    preference: PhaseConfig = field(default_factory=PhaseConfig)


@dataclass
class WorldConfig:
    """The generated world of `data=verifiable`."""

    seed: int = 0
    pairs: int = 0
    demonstrations: int = 0
    test_pairs: int = 0
    prompts: int = 0
    demonstration_noise: float = 0.0
    length_bias: float = 0.5
    ties: float = 0.0
    identical: float = 0.0
    empty: float = 0.0


@dataclass
class DataConfig:
    name: str = "???"
    source: str = "files"
    train: str | None = None
    test: str | None = None
    sft: str | None = None
    sft_test: str | None = None
    train_split: str = "train"
    test_split: str = "test"
    sft_split: str = "train"
    sft_test_split: str = "test"
    max_length: int = 2048
    max_prompt_length: int = 1800
    ties: str = "keep"
    identical: str = "drop"
    empty: str = "drop"
    refused: str = "drop"
    limit: int | None = None
    test_limit: int | None = None
    world: WorldConfig | None = None
    facts: dict[str, Any] | None = None


@dataclass
class TrainerConfig:
    layout: str = "shared_prefix"
    max_tokens_per_row: int = 8192
    activation_checkpointing: bool = False
    head_budget_mb: int = 64
    eval_steps: int = 0
    save_steps: int = 0
    log_steps: int = 1
    keep_checkpoints: int = 2
    keep_finished: bool = False
    on_nonfinite: str = "stop"
    step0_check: bool = True
    workers: int = 0


@dataclass
class PrecisionConfig:
    name: str = "float32"


@dataclass
class TrackingConfig:
    name: str = "wandb"
    mode: str = "auto"
    project: str = "sgdpo"
    entity: str | None = None
    tags: list[str] = field(default_factory=list)
    init_timeout: int = 20


@dataclass
class EngineConfig:
    name: str = "single"
    num_processes: int = 1
    num_nodes: int = 1
    deepspeed: dict[str, Any] | None = None
    timeout_minutes: float = 30.0
    port: int | None = None
    gpu_memory_gb: float = 80.0
    gpu_tflops: float = 312.0
    gpu_tflops_float32: float = 19.5
    utilisation: float = 0.4


@dataclass
class RunConfig:
    method: dict[str, Any] = field(default_factory=dict)
    start: dict[str, Any] = field(default_factory=dict)
    model: ModelConfig = field(default_factory=ModelConfig)
    ratio: RatioConfig = field(default_factory=RatioConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    data: DataConfig = field(default_factory=DataConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    precision: PrecisionConfig = field(default_factory=PrecisionConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    experiment: str = "default"
    seed: int = 42
    init: str = "sft"
    reference: str = "cached"
    resume: str = "auto"
    force: bool = False
    dry_run: bool = False
    outputs: str = "outputs"
    cache: str = "outputs/cache"
    device: str = "auto"
    n_jobs: int = 1
    extra: list[str] = field(default_factory=list)
    label: str = ""
