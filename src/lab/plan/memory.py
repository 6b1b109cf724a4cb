"""What a training step keeps in memory on one GPU, from shapes alone, and a model's shape from its config alone.

A model's YAML may hold the facts of its config.json (`facts`), so that a plan needs no network; any other model's
config is read from its folder or, if it must be, the hub. Weights and the optimizer's state are float32 on every
engine, as the trainer keeps them; `bf16` halves what matrix products save for the backward pass. Held against measured
peaks in tests/test_planner.py. All sizes in bytes; N tokens of a packed row, L predicted tokens of it.
"""

from dataclasses import dataclass, replace
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel

from sgdpo.config.precision import PRECISIONS
from sgdpo.config.schema import EngineConfig, ModelConfig, PrecisionConfig
from sgdpo.models.architectures import described, skeleton
from sgdpo.models.head import chunk_size
from sgdpo.models.load import load_config

FLOAT = 4
GB = 1e9
# What a GPU holds before the first tensor: the CUDA context and the collectives' buffers.
CONTEXT = int(1.5 * GB)


@dataclass(frozen=True)
class ModelShape:
    """Hold what a plan needs of a model.

    hidden, intermediate: widths of the residual stream and the MLP. attention, key_value: widths of all query
    heads and of all key heads together.
    parameters: all, tied ones once. head: of the lm-head's matrix. embedding: of the input embedding that is
    only looked up (0 if tied: then it is the head's matrix). largest: of the largest module, which ZeRO-3
    gathers whole. experts: of a mixture's experts, and idle: of those that a token is not sent to; intermediate is
    then that of all that it is sent to together.
    """

    layers: int
    hidden: int
    intermediate: int
    attention: int
    key_value: int
    vocabulary: int
    parameters: int
    head: int
    embedding: int
    largest: int
    tied: bool
    experts: int = 0
    idle: int = 0

    @property
    def body(self) -> int:
        """Return the parameters between the embedding and the lm-head."""
        return self.parameters - self.head - self.embedding

    @property
    def active(self) -> int:
        """Return the parameters of the body that a token multiplies."""
        return self.body - self.idle


def model_shape(model: ModelConfig) -> ModelShape:
    """Return the shape of a run's model; only a config is read, and none if its YAML holds the facts."""
    return shape_of(config_of(model))


def config_of(model: ModelConfig) -> PreTrainedConfig:
    """Return a model's config, from the facts in its YAML if it has any."""
    return described("model.facts", model.facts) if model.facts else load_config(model)


def shape_of(config: PreTrainedConfig) -> ModelShape:
    """Return the shape of an architecture, counted on a model without memory (torch's meta device).

    Parameters are counted. A width that a config does not say by Llama's name for it is taken from the matrices: the
    largest side of one for the MLP's, the residual stream's for the attention's.
    """
    model, said = skeleton(config), config.get_text_config()
    modules = [sum(p.numel() for p in module.parameters(recurse=False)) for module in model.modules()]
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    tied, hidden = head is embedding, _said(said, "hidden_size", embedding.shape[-1])
    sides = [max(p.shape) for p in model.parameters() if p.ndim == 2 and p is not head and p is not embedding]
    heads = _said(said, "num_attention_heads", 1)
    width = _said(said, "head_dim", hidden // heads)
    layers = _said(said, "num_hidden_layers", 1)
    intermediate = _said(said, "intermediate_size", max(sides, default=hidden))
    experts, used, shared = _mixture(model, said)
    together = (used + shared) // (3 * hidden * layers)  # gate, up and down
    return ModelShape(
        layers=layers,
        hidden=hidden,
        intermediate=max(intermediate, together),
        attention=heads * width,
        key_value=_said(said, "num_key_value_heads", heads) * width,
        vocabulary=head.shape[0],
        parameters=sum(p.numel() for p in model.parameters()),
        head=head.numel(),
        embedding=0 if tied else embedding.numel(),
        largest=max(modules),
        tied=tied,
        experts=experts,
        idle=experts - used,
    )


def _mixture(model: PreTrainedModel, said: PreTrainedConfig) -> tuple[int, int, int]:
    """Return the parameters of a mixture's experts, of those that one token is sent to, and of those that all are.

    Of each projection all experts of a layer are one tensor. A config that does not say how many are used uses all.
    """
    experts = [p for name, p in model.named_parameters() if p.ndim == 3 and ".experts." in name]
    shared = [p for name, p in model.named_parameters() if p.ndim == 2 and ".shared_expert" in name]
    most = max(map(len, experts), default=0)
    asked = _said(said, "num_experts_per_tok", _said(said, "top_k_experts", most))
    return (
        sum(p.numel() for p in experts),
        sum(p[:asked].numel() for p in experts),
        sum(p.numel() for p in shared),
    )


def _said(config: PreTrainedConfig, key: str, otherwise: int) -> int:
    """Return a number of a config; `otherwise` where it says none for the whole model."""
    try:
        found = getattr(config, key, None)
    except Exception:  # transformers' own, where it differs from layer to layer
        found = None
    return found if isinstance(found, int) and found > 0 else otherwise


@dataclass(frozen=True)
class Row:
    """Hold the size of the longest packed row of a step: its tokens and its predicted tokens."""

    tokens: int
    predicted: int


@dataclass(frozen=True)
class States:
    """Hold what stays from step to step, bytes a GPU; `cpu` is what all processes of a machine offload.

    reference: the weights of a live reference model, which every GPU holds whole.
    """

    weights: int
    gradients: int
    optimizer: int
    buffers: int
    cpu: int = 0
    reference: int = 0

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.buffers + self.reference


NF4 = 0.516  # bytes of a weight in 4 bits, with the scales of its block


def whole_weights(shape: ModelShape, precision: PrecisionConfig, quantise: bool) -> int:
    """Return a model's weights as a run loads them, bytes."""
    size, count = 2 if precision.lean else FLOAT, shape.parameters
    # bitsandbytes knows linear layers; a mixture's experts are none.
    quantised = (shape.body - shape.experts) * quantise
    return int(NF4 * quantised + size * (count - quantised))


def model_states(
    shape: ModelShape, engine: EngineConfig, precision: PrecisionConfig | None = None, adapted: int | None = None,
    quantise: bool = False,
) -> States:  # fmt: skip
    """Return the weights, gradients, AdamW moments and communication buffers of an engine, bytes a GPU.

    AdamW keeps two moments (8 bytes a parameter); DeepSpeed keeps a master copy beside them (4 more).
    ZeRO-2 cuts gradients and optimizer by the number of processes, ZeRO-3 and FSDP2 the weights too.
    adapted: parameters of an adapter, in float32, which then are all that is trained. quantise: its base in 4 bits.
    """
    world, count = engine.world, shape.parameters
    precision = precision or PrecisionConfig()
    size, whole = 2 if precision.lean else FLOAT, whole_weights(shape, precision, quantise)
    trained, gradient, moments = count, size, precision.facts.moments
    if adapted is not None:
        whole += FLOAT * adapted
        trained, gradient, moments = adapted, FLOAT, PRECISIONS["float32"].moments
    if engine.fsdp:
        # Whole at a time: the head, a layer and the next one; and the gradients of one of them, as made and as sent.
        layer = shape.body // shape.layers
        buffers = FLOAT * (shape.head + 2 * layer + 2 * min(max(layer, shape.head), trained))
        shares = States(whole // world, FLOAT * trained // world, moments * trained // world, buffers)
        away = bool(engine.fsdp.get("cpu_offload"))
        return _offloaded(shares, engine.num_processes, weights=away, optimizer=away)
    if not engine.deepspeed:
        # DDP reduces gradients in buckets beside them.
        return States(whole, gradient * trained, moments * trained, gradient * trained if world > 1 else 0)
    zero = engine.deepspeed["zero_optimization"]
    # Stage 0 cuts nothing, 1 the optimizer's state, 2 gradients too, 3 weights too.
    optimizer, gradients = (FLOAT * trained // (world if zero["stage"] >= n else 1) for n in (1, 2))
    optimizer *= 3
    bucket = zero.get("reduce_bucket_size", 500_000_000)
    bucket = shape.hidden**2 if bucket == "auto" else int(bucket)
    buffers = 2 * FLOAT * min(bucket, trained)
    if zero["stage"] < 3:
        return States(whole, gradients, optimizer, buffers)
    # Gathered layers: the largest one at least, and as many as may be alive at once.
    gathered = FLOAT * max(shape.largest, min(count, int(zero.get("stage3_max_live_parameters", 1e9))))
    gathered = min(gathered, whole)
    shares = States(whole // world, gradients, optimizer, buffers + gathered)
    return _offloaded(
        shares, engine.num_processes,
        weights=_elsewhere(zero, "offload_param"), optimizer=_elsewhere(zero, "offload_optimizer"),
    )  # fmt: skip


def _offloaded(states: States, processes: int, *, weights: bool, optimizer: bool) -> States:
    """Move to the machine's memory what is offloaded; gradients go with the optimizer."""
    cpu = 0
    if optimizer:
        cpu += states.optimizer + states.gradients
        states = replace(states, optimizer=0, gradients=0)
    if weights:
        cpu += states.weights
        states = replace(states, weights=0)
    return replace(states, cpu=cpu * processes)


def _elsewhere(zero: dict[str, Any], key: str) -> bool:
    return (zero.get(key) or {}).get("device", "none") != "none"


def activations(
    shape: ModelShape, row: Row, bf16: bool, checkpointing: bool, head_budget_mb: int, *, lean: bool = False,
    frozen: bool = False,
) -> int:  # fmt: skip
    """Return the most that a row's forward and backward pass hold beside the states, bytes.

    lean: the weights are bfloat16, so that autocast copies none. frozen: an adapter is trained, the head is not.
    With checkpointing each layer keeps its input alone and is run again when the backward pass comes to it.
    """
    layer, backward = _layer_saved(shape, row, bf16, checkpointing), _layer_backward(shape, row, bf16)
    stream = FLOAT * row.tokens * shape.hidden
    # The last norm's input and its output are there until the head's backward pass is done.
    head = head_working(shape, row, bf16, head_budget_mb) + 2 * stream
    if frozen:
        head -= FLOAT * shape.head
    casts = (
        2 * shape.body if bf16 and not lean else 0
    )  # autocast's copies of the weights, saved for the backward pass
    # A tied matrix's gradient from the head waits, through all layers, for the one from the embedding, to which
    # it is added in place.
    waiting, end = (
        (FLOAT * shape.head, 2 * FLOAT * shape.head) if shape.tied else (0, FLOAT * shape.embedding)
    )
    if frozen:
        waiting = end = 0
    if checkpointing:
        again = layer - stream + backward + casts // shape.layers + waiting
        return max(shape.layers * stream + max(again, head), end + stream)
    return max(shape.layers * layer + casts + max(backward + waiting, head), end + stream)


def _layer_saved(shape: ModelShape, row: Row, bf16: bool, checkpointing: bool) -> int:
    """Count the tensors one layer of a Llama or Qwen-2 saves, in the order in which they are made.

    Norms keep their input in float32; their output, which q, k and v take, or gate and up, and what these two give
    down are computed again (`models/recompute.py`), but in a layer that is run again itself. No attention kernel of
    ours keeps a matrix of tokens by tokens.
    """
    size = 2 if bf16 else FLOAT
    norms = 2 * FLOAT * shape.hidden
    # Rotated q and k and the output are float32 (FlexAttention casts them first: then this is a little high);
    # under autocast o casts its input.
    attention = FLOAT * (2 * shape.attention + shape.key_value) + size * shape.key_value
    attention += size * shape.attention if bf16 else 0
    mlp = 2 * size * shape.intermediate
    cheap = size * (2 * shape.hidden + shape.intermediate) if checkpointing else 0
    return row.tokens * (norms + attention + mlp + cheap)


def _layer_backward(shape: ModelShape, row: Row, bf16: bool) -> int:
    """Return what a layer's backward pass holds beside all that is saved: the MLP's gradients, and its product."""
    size = 2 if bf16 else FLOAT
    return row.tokens * (3 * size * shape.intermediate + 2 * FLOAT * shape.hidden)


def head_working(shape: ModelShape, row: Row, bf16: bool, budget_mb: int) -> int:
    """Return what the lm-head holds in its backward pass.

    A gradient of its matrix, the predicting states four times, and one block of the vocabulary's softmax, from
    which both gradients are written in place. In bf16 the block is there in both widths, and so are the block's
    weights and the product before it is copied to its place.
    """
    states = (4 * FLOAT + (4 if bf16 else 0)) * row.predicted * shape.hidden
    chunk = chunk_size(row.predicted, shape.vocabulary, budget_mb)
    block = chunk * (6 * row.predicted + 4 * shape.hidden if bf16 else FLOAT * row.predicted)
    return states + FLOAT * shape.head + block
