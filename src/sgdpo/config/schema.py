"""The typed form of a run: what `conf/` composes to. Every field's comment is in its YAML, its range here.

Hydra merges the YAML files into these dataclasses, so that a wrong type or an unknown key stops at compose
time, by name; `values.schema_errors` holds every value against its range. Below the entrypoint only these
dataclasses travel, never a config object.
"""

from dataclasses import dataclass, field
from os.path import expanduser
from typing import Annotated, Any, Literal

from sgdpo.config.precision import PRECISIONS, Precision
from sgdpo.values import NAME, PLACE, HalfOpenShare, Keys, Name, OneOf, Range, Share

Decay = Annotated[float, Range("[0, 1)")]
Size = Annotated[float, Range("(0, 1000000]")]
Count = Annotated[int, Range("[1, 1000000000]")]
CountOrZero = Annotated[int, Range("[0, 1000000000]")]
Called = Annotated[str, NAME]
Start = Annotated[str, OneOf("sft", "pretrained")]
# What a plan assumes of a phase's rows: how many, and the tokens of a row's parts.
RowFacts = Annotated[
    dict[str, Any],
    Keys(
        {"rows": Count, "prompt": CountOrZero, "chosen": Count, "rejected": CountOrZero},
        needed=("rows", "prompt", "chosen", "rejected"),
    ),
]
DataFacts = Annotated[dict[str, Any] | None, Keys({"preference": RowFacts, "sft": RowFacts})]
# What this code reads of DeepSpeed's settings; the others are DeepSpeed's to check (`engine/checks.py`).
Elements = Annotated[float, Range("[0, 1e15]")] | Literal["auto"]
Offload = Annotated[
    dict[str, Any] | None, Keys({"device": Literal["none", "cpu", "nvme"]}, others=True, needed=("device",))
]
Zero = Annotated[
    dict[str, Any],
    Keys(
        {
            "stage": Literal[0, 1, 2, 3],
            "reduce_bucket_size": Elements,
            "stage3_max_live_parameters": Annotated[float, Range("[0, 1e15]")],
            "offload_optimizer": Offload,
            "offload_param": Offload,
        },
        needed=("stage",),
        others=True,
    ),
]
FROM_THE_RUN = (
    "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "train_batch_size", "gradient_clipping",
)  # fmt: skip
DeepSpeed = Annotated[
    dict[str, Any] | None,
    Keys(
        {
            "zero_optimization": Zero,
            **dict.fromkeys(FROM_THE_RUN, Literal["auto"]),
            "zero_allow_untested_optimizer": bool,
            "zero_force_ds_cpu_optimizer": bool,
            "steps_per_print": Annotated[int, Range("[1, 1e15]")],
        },
        needed=("zero_optimization", *FROM_THE_RUN),
        others=True,
    ),
]
# All that transformers reads for FSDP2; it passes over any other key without a word.
Fsdp = Annotated[
    dict[str, Any] | None,
    Keys(
        {
            "version": Literal[2],
            "reshard_after_forward": bool,
            "auto_wrap_policy": Literal["TRANSFORMER_BASED_WRAP", "SIZE_BASED_WRAP", "NO_WRAP"],
            "transformer_layer_cls_to_wrap": list[str],
            "min_num_params": CountOrZero,
            "state_dict_type": Literal["FULL_STATE_DICT", "SHARDED_STATE_DICT"],
            "cpu_offload": bool,
            "cpu_ram_efficient_loading": bool,
            "activation_checkpointing": bool,
        }
    ),
]


@dataclass
class ModelConfig:
    name: Called = "???"
    path: str | None = None
    revision: str | None = None
    tiny: dict[str, Any] | None = None
    chat_template: str | None = None
    init: Start = "pretrained"
    attention: str = "sdpa"
    trust_remote_code: bool = False
    facts: dict[str, Any] | None = None
    setup_hint: str = ""

    def __post_init__(self) -> None:
        """Expand ~ once, for all who read a path: the libraries would look for a folder of that name, or a hub id."""
        self.path = self.path and expanduser(self.path)
        self.chat_template = self.chat_template and expanduser(self.chat_template)


@dataclass
class AdapterConfig:
    """rank: None for no adapter."""

    name: Called = "none"
    rank: Annotated[int, Range("[1, 65536]")] | None = None
    alpha: Annotated[float, Range("(0, 1000000]")] = 32.0
    dropout: Decay = 0.0
    targets: list[str] = field(default_factory=lambda: ["all-linear"])
    dora: bool = False
    quantise: bool = False
    start: Annotated[str, OneOf("full", "adapter")] = "full"
    merge: bool = False


@dataclass
class RatioConfig:
    name: Called = "none"
    chosen: Share | None = None
    rejected: Share | None = None


@dataclass
class PhaseConfig:
    lr: Annotated[float, Range("(0, 100]")] = 0.0
    batch_size: Annotated[int, Range("[1, 1000000]")] = 0
    epochs: Annotated[float, Range("[0, 100000]")] = 0.0
    max_steps: Annotated[int, Range("[-1, 1000000000]")] = -1


@dataclass
class OptimizerConfig(PhaseConfig):
    """The phase in use, and what both share."""

    name: Called = "???"
    schedule: Annotated[str, OneOf("cosine", "linear", "constant", "constant_with_warmup")] = "cosine"
    warmup_ratio: Decay = 0.1
    weight_decay: Annotated[float, Range("[0, 1000]")] = 0.0
    beta1: Decay = 0.9
    beta2: Decay = 0.999
    eps: HalfOpenShare = 1e-8
    max_grad_norm: Annotated[float, Range("[0, 1000000]")] = 1.0
    sft: PhaseConfig = field(default_factory=PhaseConfig)
    preference: PhaseConfig = field(default_factory=PhaseConfig)


@dataclass
class DataConfig:
    """settings: the keys of the YAML that are its function's own."""

    name: Called = "???"
    function: str = "???"
    columns: dict[str, str] = field(default_factory=dict)
    max_length: Annotated[int, Range("[3, 10000000]")] = 2048
    max_prompt_length: Annotated[int, Range("[2, 10000000]")] = 1800
    ties: Annotated[str, OneOf("keep", "drop")] = "keep"
    identical: Annotated[str, OneOf("keep", "drop")] = "drop"
    empty: Annotated[str, OneOf("drop", "error")] = "drop"
    refused: Annotated[str, OneOf("drop", "error")] = "drop"
    weights: Annotated[str, OneOf("auto", "require", "ignore")] = "auto"
    limit: Count | None = None
    test_limit: Count | None = None
    facts: DataFacts = None
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass
class TrainerConfig:
    layout: Annotated[str, OneOf("shared_prefix", "separate")] = "shared_prefix"
    max_tokens_per_row: Count = 8192
    activation_checkpointing: bool = False
    head_budget_mb: Annotated[int, Range("[1, 1000000]")] = 64
    eval_steps: CountOrZero = 0
    save_steps: CountOrZero = 0
    log_steps: Count = 1
    keep_checkpoints: Count = 2
    keep_finished: bool = False
    samples: Annotated[int, Range("[0, 10000]")] = 8
    sample_tokens: Annotated[int, Range("[1, 1000000]")] = 64
    benchmark: Annotated[str, NAME] | None = None
    asks: dict[str, Any] | None = None
    asked_by: str = "???"
    best: str | None = None
    better: Annotated[str, OneOf("auto", "higher", "lower")] = "auto"
    patience: Count | None = None
    on_nonfinite: Annotated[str, OneOf("stop", "skip")] = "stop"
    step0_check: bool = True
    entropy: bool = False
    workers: Annotated[int, Range("[0, 1024]")] = 0


@dataclass
class PrecisionConfig:
    name: Annotated[str, OneOf(*PRECISIONS)] = "float32"

    @property
    def facts(self) -> Precision:
        return PRECISIONS[self.name]

    @property
    def bf16(self) -> bool:
        """Say whether matrix products run in bfloat16."""
        return self.facts.bf16

    @property
    def lean(self) -> bool:
        """Say whether the weights themselves are bfloat16."""
        return self.facts.lean


@dataclass
class TrackingConfig:
    name: Called = "wandb"
    enabled: bool = True
    mode: Annotated[str, OneOf("auto", "online", "offline", "disabled")] = "auto"
    project: Called = "sgdpo"
    entity: Called | None = None
    tags: list[str] = field(default_factory=list)
    init_timeout: Annotated[int, Range("[1, 3600]")] = 20
    finish_timeout: Annotated[int, Range("[1, 3600]")] = 60


@dataclass
class EngineConfig:
    name: Called = "single"
    num_processes: Annotated[int, Range("[1, 1024]")] = 1
    num_nodes: Annotated[int, Range("[1, 10000]")] = 1
    deepspeed: DeepSpeed = None
    fsdp: Fsdp = None
    timeout_minutes: Annotated[float, Range("(0, 100000]")] = 30.0
    port: Annotated[int, Range("[1024, 65535]")] | None = None
    gpu_memory_gb: Size = 80.0
    gpu_tflops: Size = 312.0
    gpu_tflops_float32: Size = 19.5
    utilisation: HalfOpenShare = 0.4

    @property
    def world(self) -> int:
        """Return how many processes all machines run."""
        return self.num_processes * self.num_nodes

    @property
    def sharded(self) -> bool:
        """Say whether a rank holds shares of what is trained, so that all ranks must take part in each pass."""
        return bool(self.deepspeed or self.fsdp)


@dataclass
class RunConfig:
    method: dict[str, Any] = field(default_factory=dict)
    start: dict[str, Any] = field(default_factory=dict)
    model: ModelConfig = field(default_factory=ModelConfig)
    ratio: RatioConfig = field(default_factory=RatioConfig)
    pilot: dict[str, Any] = field(default_factory=dict)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    data: DataConfig = field(default_factory=DataConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    precision: PrecisionConfig = field(default_factory=PrecisionConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    experiment: Annotated[str, Name(100, reserved=("cache", "published", "report"))] = "default"
    seed: Annotated[int, Range("[0, 4294967296)")] = 42
    init: Start = "sft"
    reference: Annotated[str, OneOf("cached", "live")] = "cached"
    reference_weights: Annotated[str, PLACE] | None = None
    resume: Annotated[str, OneOf("auto", "never", "anyway")] = "auto"
    force: bool = False
    dry_run: bool = False
    outputs: Annotated[str, PLACE] = "outputs"
    cache: Annotated[str, PLACE] = "outputs/cache"
    device: Annotated[str, OneOf("auto", "cpu", "cuda")] = "auto"
    n_jobs: Annotated[int, Range("[1, 1000]")] = 1
    extra: list[str] = field(default_factory=list)
    label: Annotated[str, Name(empty=True)] = ""
