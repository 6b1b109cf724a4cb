"""Plan a run without running it: steps, tokens, memory a GPU, disk, hours; from the config alone.

The work is counted where the data is at hand, and estimated where not. FLOPs of a token: 2 for each parameter it
multiplies in a forward pass, twice that in the backward pass, and the forward pass again with activation checkpointing
(the lm-head always computes its blocks again). The reference's pass is one forward pass over the pairs of the planned
steps, once for each if it is cached. Attention's own products
(below 5 % at these lengths) are left out. Hours = FLOPs / (GPUs x peak x utilisation).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from lab.plan.memory import (
    CONTEXT,
    FLOAT,
    GB,
    ModelShape,
    Row,
    States,
    activations,
    config_of,
    model_shape,
    model_states,
    whole_weights,
)
from sgdpo.config.compose import compose_run, method_of, to_run_config
from sgdpo.config.identity import needs_start, start_config
from sgdpo.config.precision import PRECISIONS
from sgdpo.config.schema import RunConfig
from sgdpo.data.batching import rows_per_step, tokens_of
from sgdpo.data.prepare import prepare
from sgdpo.data.rows import Rows
from sgdpo.data.sources import load_rows
from sgdpo.data.tokeniser import SIDES
from sgdpo.mixtures import needs_of
from sgdpo.models.adapters import trained_parameters
from sgdpo.models.architectures import fast_facts, path_words
from sgdpo.models.load import load_tokenizer
from sgdpo.training.arguments import total_steps

# The rows of the paper's table 3 beside SFT: DPO, NCA, BCO, IPO, SamPO, SGDPO. They share start and reference.
METHODS_OF_A_TABLE = 6
# Files above this are estimated rather than tokenised for a plan.
CHEAP_MB = 64
# Measured on tiny gpt2, mixtral, gemma2, gpt_oss, phi and bloom against the packed rows that are counted.
OWN_FORWARD = (
    "    of packed rows: its own forward holds 2 to 8 times as much, 1 to 3 times with checkpointing"
)
# What is assumed of a set of which nothing is known: UltraFeedback's size and lengths (conf/data/ultrafeedback.yaml).
UNKNOWN = {
    "preference": {"rows": 61135, "prompt": 175, "chosen": 295, "rejected": 258},
    "sft": {"rows": 61135, "prompt": 0, "chosen": 1200, "rejected": 0},
}


@dataclass(frozen=True)
class Workload:
    """Hold the size of one training run.

    examples: in the training set. tokens, predicted: of one pass over it, all and trained ones, as packed.
    rows: of a step and process. row: the longest one. counted: False if tokens are an estimate, which `source`
    explains.
    """

    examples: int
    tokens: int
    predicted: int
    steps: int
    epochs: float
    rows: int
    row: Row
    counted: bool
    source: str


def workload(config: RunConfig) -> Workload:
    """Return the work of a run. Reads and tokenises data only if it is on this machine and small."""
    local_tokenizer = config.model.path is None or Path(config.model.path).is_dir()
    rows = load_rows(config.data, config.method["phase"], "train", config.extra)
    assert rows is not None, "load_rows lets no run without a training set through"
    if not local_tokenizer or rows.remote or rows.size >= CHEAP_MB * 2**20:
        return _estimated(config, rows)
    tokenizer, phase = load_tokenizer(config.model), config.method["phase"]
    lengths = prepare(config.data, phase, tokenizer, Path(config.cache), config.extra).train.lengths
    layout, batch, world = config.trainer.layout, config.optimizer.batch_size, config.engine.world
    tokens, predicted = tokens_of(lengths, layout), lengths[:, 1] + lengths[:, 2]
    budget = config.trainer.max_tokens_per_row
    examples = len(lengths)
    steps, epochs = _steps(config, examples)
    per_step = rows_per_step(lengths, batch, world, budget, layout, seed=config.seed, steps=steps)
    longest = int(min(max(budget, tokens.max()), math.ceil(tokens.mean() * batch / (per_step * world) * 1.1)))
    longest = max(longest, int(tokens.max()))
    share = predicted.sum() / tokens.sum()
    return Workload(
        examples, int(tokens.sum()), int(predicted.sum()), steps, epochs, per_step,
        Row(longest, math.ceil(longest * share)), True, "counted on the tokenised training set",
    )  # fmt: skip


def _steps(config: RunConfig, examples: int) -> tuple[int, float]:
    """Return the optimizer steps and the passes they make."""
    steps = total_steps(config, examples)
    return steps, steps / (examples // config.optimizer.batch_size)


def _estimated(config: RunConfig, training_rows: Rows) -> Workload:
    data, phase = config.data, config.method["phase"]
    known = (data.facts or {}).get(phase)
    facts = known or UNKNOWN[phase]
    examples, tokens = min(facts["rows"], data.limit or facts["rows"]), [facts[side] for side in SIDES]
    lengths = np.tile(np.array(tokens, np.int64), (examples, 1))
    row = _estimated_row(config, lengths)
    rows_known = f"{facts['rows']:,} rows {'by its card' if known else 'assumed, set data.limit'}"
    source = f"estimated: {training_rows.name}, {rows_known}, {sum(tokens)} tokens a row on average"
    totals = tokens_of(lengths, config.trainer.layout)
    rows = math.ceil(int(totals[0]) * config.optimizer.batch_size / config.engine.world / row.tokens * 1.05)
    return Workload(
        examples, int(totals.sum()), int(lengths[:, 1:].sum()), *_steps(config, examples), rows, row, False,
        source,
    )  # fmt: skip


def _estimated_row(config: RunConfig, lengths: np.ndarray) -> Row:
    """Return the row that a step fills: the budget, or less if a step's pairs do not fill one, or one pair."""
    tokens = tokens_of(lengths[:1], config.trainer.layout)[0]
    of_step = math.ceil(tokens * config.optimizer.batch_size / config.engine.world)
    longest_pair = config.data.max_length * (1 if config.method["phase"] == "sft" else 2)
    size = max(min(config.trainer.max_tokens_per_row, of_step), min(longest_pair, of_step))
    return Row(size, math.ceil(size * lengths[0, 1:].sum() / tokens))


@dataclass(frozen=True)
class Plan:
    """Hold what a run takes. Bytes are of one GPU, or of the disk; hours are of one GPU at full count.

    words: on how the model trains. packed: whether in packed rows, of which its activations are counted.
    """

    config: RunConfig
    shape: ModelShape
    work: Workload
    states: States
    activations: int
    activations_checkpointed: int
    reference_cache: int
    model_on_disk: int
    checkpoint_on_disk: int
    train_hours: float
    reference_hours: float
    words: list[str]
    packed: bool
    start: Plan | None

    @property
    def memory(self) -> int:
        used = self.config.trainer.activation_checkpointing
        return self.states.total + (self.activations_checkpointed if used else self.activations) + CONTEXT

    @property
    def fits(self) -> bool:
        return self.memory <= self.config.engine.gpu_memory_gb * GB


def plan(config: RunConfig) -> Plan:
    """Return the plan of a run and, if it needs one, of its SFT start; loads no weights."""
    model, shape, work = config_of(config.model), model_shape(config.model), workload(config)
    method = method_of(config)
    trained, size, moments = (
        shape.parameters,
        2 if config.precision.lean else FLOAT,
        config.precision.facts.moments,
    )
    if (count := adapted(config)) is not None:  # in float32, and so is what it is merged into
        trained, size, moments = count, FLOAT, PRECISIONS["float32"].moments
    live, pairs = config.reference == "live", work.steps * config.optimizer.batch_size
    passes = method.reference * (pairs if live else min(pairs, work.examples)) / work.examples
    forward = 2 * (work.tokens * shape.active + work.predicted * shape.head)
    return Plan(
        config=config,
        shape=shape,
        work=work,
        states=states_of(config, shape),
        activations=activations_of(config, shape, work.row, False),
        activations_checkpointed=activations_of(config, shape, work.row, True),
        reference_cache=0 if live else int(FLOAT * work.predicted * passes),
        model_on_disk=size * (trained + config.adapter.merge * shape.parameters),
        checkpoint_on_disk=(size + moments + 4 * config.engine.sharded) * trained,
        train_hours=gpu_hours(config, train_flops(config, shape, work)),
        reference_hours=gpu_hours(config, forward * passes),
        words=path_words(model, config.data.max_length),
        packed=fast_facts(model) is not None,
        start=plan(start_config(config)) if needs_start(config) else None,
    )


def adapted(config: RunConfig) -> int | None:
    """Return the parameters of the run's adapter, None without one."""
    if config.adapter.rank is None:
        return None
    return trained_parameters(config.adapter, config_of(config.model))


def states_of(config: RunConfig, shape: ModelShape) -> States:
    quantise = config.adapter.quantise
    states = model_states(shape, config.engine, config.precision, adapted(config), quantise)
    # Without its adapter the policy is the reference.
    is_base = config.adapter.rank is not None and config.reference_weights is None
    if config.reference != "live" or is_base or not needs_of(config.method).get("reference"):
        return states
    return replace(states, reference=whole_weights(shape, config.precision, quantise))


def activations_of(config: RunConfig, shape: ModelShape, row: Row, checkpointing: bool) -> int:
    frozen, lean = config.adapter.rank is not None, config.precision.lean
    budget = config.trainer.head_budget_mb
    return activations(shape, row, config.precision.bf16, checkpointing, budget, lean=lean, frozen=frozen)


# What a run may be changed into to fit, from the most exact to the smallest.
WAYS = (
    ("precision=bf16",),
    ("precision=bf16", "engine=zero3", "engine.num_processes={gpus}"),
    ("precision=lean",),
    ("precision=lean8",),
    ("precision=lean", "adapter=lora"),
    ("precision=lean", "adapter=qlora"),
)
GPUS = 8  # for ZeRO-3, where the run itself asks for one


def ways_to_fit(plan: Plan) -> dict[str, int]:
    """Return {what to say on the command line: bytes of one GPU}, activations computed again, for the run's model."""
    config, found = plan.config, {}
    gpus = config.engine.world if config.engine.world > 1 else GPUS
    for way in WAYS:
        words = [word.format(gpus=gpus) for word in way]
        other = to_run_config(compose_run(words))
        engine = replace(other.engine, gpu_memory_gb=config.engine.gpu_memory_gb)
        changed = replace(config, precision=other.precision, engine=engine, adapter=other.adapter)
        try:
            states = states_of(changed, plan.shape)
        except ValueError:
            continue  # no way for a model that peft fits no adapter to
        held = states.total + activations_of(changed, plan.shape, plan.work.row, True)
        found[" ".join(words)] = held + CONTEXT
    return found


def train_flops(config: RunConfig, shape: ModelShape, work: Workload) -> float:
    """Return the floating-point operations of all steps: 6 a parameter and token, 8 with checkpointing, 2 less with an
    adapter, whose base has no gradients."""
    passes = _passes(config)
    one_pass = 2 * (passes * work.tokens * shape.active + 4 * work.predicted * shape.head)
    return one_pass * work.steps * config.optimizer.batch_size / work.examples


def _passes(config: RunConfig) -> int:
    return 3 + config.trainer.activation_checkpointing - (config.adapter.rank is not None)


def gpu_hours(config: RunConfig, flops: float) -> float:
    """Return the hours of one GPU at the peak of the run's precision and the given utilisation."""
    return flops / (peak_tflops(config) * 1e12 * config.engine.utilisation) / 3600


def peak_tflops(config: RunConfig) -> float:
    """Return the GPU's peak in the run's precision; on an A100 float32 is 16 times slower than bf16."""
    engine = config.engine
    return engine.gpu_tflops if config.precision.bf16 else engine.gpu_tflops_float32


def render(plan: Plan) -> str:
    parts = [part(plan) for part in (_work_lines, _memory_lines, _way_lines, _disk_lines, _hour_lines)]
    if (start := plan.start) is not None:
        lines = [f"memory a GPU  {_gb(start.memory)}", f"GPU hours     {start.train_hours:,.1f}"]
        told = (f"  {line}" for line in (*_work_lines(start)[1:], *lines))
        parts.append(["The SFT start, trained first unless it exists:", *told])
    return "\n\n".join(map("\n".join, parts))


def _work_lines(plan: Plan) -> list[str]:
    config, work = plan.config, plan.work
    unit = "conversations" if config.method["phase"] == "sft" else "pairs"
    tokens = f"{work.tokens / work.examples:,.0f} tokens each, {work.predicted / work.examples:,.0f} of them trained"
    world, shape, source = config.engine.world, plan.shape, config.model.path or "random weights"
    active = f", {(shape.parameters - shape.idle) / 1e9:,.3g} of them for a token" if shape.idle else ""
    return [
        f"Plan of {config.method['name']} on {config.data.name} with {config.model.name}; no weights were loaded.",
        f"model         {shape.parameters / 1e9:,.3g} billion parameters{active} ({source})",
        f"data          {work.examples:,} {unit}, {tokens} ({work.source})",
        f"steps         {work.steps:,} of {config.optimizer.batch_size} {unit} ({work.epochs:g} epochs), "
        f"{work.rows} rows a process and step, up to {work.row.tokens:,} tokens a row",
        f"engine        {config.engine.name}, {world} processes, {config.precision.name}{_adapter_words(config)}",
        *(f"note          {word}" for word in plan.words),
    ]


def _adapter_words(config: RunConfig) -> str:
    count = adapted(config)
    return "" if count is None else f", {config.adapter.name} of {count / 1e6:,.3g} million parameters"


def _memory_lines(plan: Plan) -> list[str]:
    engine, states, used = plan.config.engine, plan.states, plan.config.trainer.activation_checkpointing
    verdict = "it fits" if plan.fits else f"IT DOES NOT FIT: {_advice(plan)}"
    lines = [
        f"Memory of one GPU, against {engine.gpu_memory_gb:g} GB:",
        f"  weights                         {_gb(states.weights)}",
        f"  gradients                       {_gb(states.gradients)}",
        f"  optimizer                       {_gb(states.optimizer)}",
        f"  communication, gathered layers  {_gb(states.buffers)}",
        *([f"  live reference                  {_gb(states.reference)}"] if states.reference else []),
        f"  activations                     {_gb(plan.activations)}{'' if used else '  <- this run'}",
        f"    with checkpointing            {_gb(plan.activations_checkpointed)}{'  <- this run' if used else ''}",
        *([] if plan.packed else [OWN_FORWARD]),
        f"  CUDA context and collectives    {_gb(CONTEXT)}",
        f"  in all                          {_gb(plan.memory)}: {verdict}",
    ]
    if states.cpu:
        lines.append(f"  offloaded to the machine        {_gb(states.cpu)}")
    return lines


def _way_lines(plan: Plan) -> list[str]:
    limit = int(plan.config.engine.gpu_memory_gb * GB)
    ways = ways_to_fit(plan)
    rows = [
        f"  {words:<51}{_gb(size)}   {'fits' if size <= limit else f'{(size - limit) / GB:,.2f} GB too much'}"
        for words, size in ways.items()
    ]
    head = f"What fits {limit / GB:g} GB a GPU, with trainer.activation_checkpointing=true:"
    if min(ways.values()) > limit:
        rows.append(
            f"  None of these fits: the smallest lacks {(min(ways.values()) - limit) / GB:,.2f} GB; take a larger card"
            f" (engine.gpu_memory_gb), more of them, or a shorter row than {plan.work.row.tokens:,} tokens"
            " (trainer.max_tokens_per_row, data.max_length)"
        )
    return [head, *rows]


def _advice(plan: Plan) -> str:
    without = plan.memory - plan.activations + plan.activations_checkpointed
    limit = plan.config.engine.gpu_memory_gb * GB
    if plan.states.reference:
        return "set reference=cached"
    if not plan.config.trainer.activation_checkpointing and without <= limit:
        return "set trainer.activation_checkpointing=true"
    if plan.states.total > limit:
        return "use engine=zero3 on more GPUs, engine=zero3_offload, or what the next lines say fits"
    return "set trainer.activation_checkpointing=true and a smaller trainer.max_tokens_per_row"


def _disk_lines(plan: Plan) -> list[str]:
    trainer = plan.config.trainer
    at_a_time = f"{trainer.keep_checkpoints + 1} at most at a time"
    at_a_time += "" if trainer.keep_finished else ", none once the run is finished"
    return [
        "Disk:",
        f"  reference cache                 {_gb(plan.reference_cache)}",
        f"  final model                     {_gb(plan.model_on_disk)}",
        f"  checkpoints                     {_gb(plan.checkpoint_on_disk)} each, {at_a_time}",
    ]


def _hour_lines(plan: Plan) -> list[str]:
    engine, world = plan.config.engine, plan.config.engine.world
    start = plan.start.train_hours if plan.start else 0.0
    live = plan.config.reference == "live"
    references = METHODS_OF_A_TABLE if live else 1
    table = METHODS_OF_A_TABLE * plan.train_hours + references * plan.reference_hours + start
    passes = 2 * _passes(plan.config)
    of_table = f"with one start and {'live references' if live else 'one reference'}; {table / world:,.1f} h"
    rows = (
        ("training", plan.train_hours, f"{plan.train_hours / world:,.2f} h on {world} GPUs"),
        ("reference, live", plan.reference_hours, "in every run; reference=cached computes it once")
        if live
        else ("reference, once", plan.reference_hours, "shared by all methods"),
        (f"a table of {METHODS_OF_A_TABLE} methods", table, of_table),
    )
    return [
        f"GPU hours at {engine.utilisation:.0%} of {peak_tflops(plan.config):g} TFLOP/s, {plan.config.precision.name} "
        f"({passes} x parameters x tokens / peak / utilisation):",
        *(f"  {name:<28}{hours:12,.2f}   ({note})" for name, hours, note in rows),
    ]


def _gb(size: int) -> str:
    return f"{size / 1e6:9,.2f} MB" if size < 0.1 * GB else f"{size / GB:9,.2f} GB"
