"""Plan a run without running it: steps, tokens, memory a GPU, disk, hours; from the config alone.

FLOPs of a token: 2 for each parameter it multiplies in a forward pass, twice that in the backward pass, and
the forward pass again with activation checkpointing (the lm-head always computes its blocks again). The
reference's pass is one forward pass. Attention's own products (below 5 % at these lengths) are left out.
Hours = FLOPs / (GPUs x peak x utilisation).
"""

from __future__ import annotations

from dataclasses import dataclass

from lab.plan.memory import CONTEXT, FLOAT, GB, States, activations, model_states
from lab.plan.shapes import ModelShape, model_shape
from lab.plan.workload import Workload, workload
from sgdpo.config.identity import needs_start, start_config
from sgdpo.config.schema import RunConfig
from sgdpo.method import bind_method

# The rows of the paper's table 3 beside SFT: DPO, NCA, BCO, IPO, SamPO, SGDPO. They share start and reference.
METHODS_OF_A_TABLE = 6


@dataclass(frozen=True)
class Plan:
    """Hold what a run takes. Bytes are of one GPU, or of the disk; hours are of one GPU at full count."""

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
    start: Plan | None

    @property
    def memory(self) -> int:
        """Return the peak of one GPU as the run is set up."""
        used = self.config.trainer.activation_checkpointing
        return self.states.total + (self.activations_checkpointed if used else self.activations) + CONTEXT

    @property
    def fits(self) -> bool:
        """Say whether the run fits engine.gpu_memory_gb."""
        return self.memory <= self.config.engine.gpu_memory_gb * GB


def plan(config: RunConfig) -> Plan:
    """Return the plan of a run and, if it needs one, of its SFT start; loads no weights."""
    shape, work = model_shape(config.model), workload(config)
    bf16, budget = config.precision.name == "bf16", config.trainer.head_budget_mb
    method = bind_method(config.method, vars(config.ratio), config.extra, pilot=config.pilot)
    cached = method.reference and config.reference == "cached"
    forward = 2 * (work.tokens * shape.body + work.predicted * shape.head)
    return Plan(
        config=config,
        shape=shape,
        work=work,
        states=model_states(shape, config.engine),
        activations=activations(shape, work.row, bf16, False, budget),
        activations_checkpointed=activations(shape, work.row, bf16, True, budget),
        reference_cache=FLOAT * work.predicted if cached else 0,
        model_on_disk=FLOAT * shape.parameters,
        checkpoint_on_disk=(4 if config.engine.deepspeed else 3) * FLOAT * shape.parameters,
        train_hours=gpu_hours(config, train_flops(config, shape, work)),
        reference_hours=gpu_hours(config, forward if method.reference else 0),
        start=plan(start_config(config)) if needs_start(config) else None,
    )


def train_flops(config: RunConfig, shape: ModelShape, work: Workload) -> float:
    """Return the floating-point operations of all steps: 6 (8 with checkpointing) a parameter and token."""
    passes = 4 if config.trainer.activation_checkpointing else 3
    one_pass = 2 * (passes * work.tokens * shape.body + 4 * work.predicted * shape.head)
    return one_pass * work.steps * config.optimizer.batch_size / work.examples


def gpu_hours(config: RunConfig, flops: float) -> float:
    """Return the hours of one GPU at the peak of the run's precision and the given utilisation."""
    return flops / (peak_tflops(config) * 1e12 * config.engine.utilisation) / 3600


def peak_tflops(config: RunConfig) -> float:
    """Return the GPU's peak in the run's precision; on an A100 float32 is 16 times slower than bf16."""
    engine = config.engine
    return engine.gpu_tflops if config.precision.name == "bf16" else engine.gpu_tflops_float32


def render(plan: Plan) -> str:
    """Return the plan as text."""
    parts = [*_work_lines(plan), "", *_memory_lines(plan), "", *_disk_lines(plan), "", *_hour_lines(plan)]
    if plan.start is not None:
        start = plan.start
        parts += ["", "The SFT start, trained first unless it exists:", *_indented(_work_lines(start)[1:])]
        parts += _indented([f"memory a GPU  {_gb(start.memory)}", f"GPU hours     {start.train_hours:,.1f}"])
    return "\n".join(parts)


def _work_lines(plan: Plan) -> list[str]:
    config, work = plan.config, plan.work
    unit = "conversations" if config.method["phase"] == "sft" else "pairs"
    tokens = f"{work.tokens / work.examples:,.0f} tokens each, {work.predicted / work.examples:,.0f} of them trained"
    world = config.engine.num_processes * config.engine.num_nodes
    source = config.model.path or "random weights"
    return [
        f"Plan of {config.method['name']} on {config.data.name} with {config.model.name}; no weights were loaded.",
        f"model         {plan.shape.parameters / 1e9:,.3g} billion parameters ({source})",
        f"data          {work.examples:,} {unit}, {tokens} ({work.source})",
        f"steps         {work.steps:,} of {config.optimizer.batch_size} {unit} ({work.epochs:g} epochs), "
        f"{work.rows} rows a process and step, up to {work.row.tokens:,} tokens a row",
        f"engine        {config.engine.name}, {world} processes, {config.precision.name}",
    ]


def _memory_lines(plan: Plan) -> list[str]:
    engine, states, used = plan.config.engine, plan.states, plan.config.trainer.activation_checkpointing
    verdict = "it fits" if plan.fits else f"IT DOES NOT FIT: {_advice(plan)}"
    lines = [
        f"Memory of one GPU, against {engine.gpu_memory_gb:g} GB:",
        f"  weights                         {_gb(states.weights)}",
        f"  gradients                       {_gb(states.gradients)}",
        f"  optimizer                       {_gb(states.optimizer)}",
        f"  communication, gathered layers  {_gb(states.buffers)}",
        f"  activations                     {_gb(plan.activations)}{'' if used else '  <- this run'}",
        f"    with checkpointing            {_gb(plan.activations_checkpointed)}{'  <- this run' if used else ''}",
        f"  CUDA context and collectives    {_gb(CONTEXT)}",
        f"  in all                          {_gb(plan.memory)}: {verdict}",
    ]
    if states.cpu:
        lines.append(f"  offloaded to the machine        {_gb(states.cpu)}")
    return lines


def _advice(plan: Plan) -> str:
    without = plan.memory - plan.activations + plan.activations_checkpointed
    limit = plan.config.engine.gpu_memory_gb * GB
    if not plan.config.trainer.activation_checkpointing and without <= limit:
        return "set trainer.activation_checkpointing=true"
    if plan.states.total > limit:
        return "use engine=zero3 on more GPUs, or engine=zero3_offload"
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
    engine = plan.config.engine
    world = engine.num_processes * engine.num_nodes
    start = plan.start.train_hours if plan.start else 0.0
    table = METHODS_OF_A_TABLE * plan.train_hours + plan.reference_hours + start
    passes = 8 if plan.config.trainer.activation_checkpointing else 6
    rows = (
        ("training", plan.train_hours, f"{plan.train_hours / world:,.2f} h on {world} GPUs"),
        ("reference, once", plan.reference_hours, "shared by all methods"),
        (
            f"a table of {METHODS_OF_A_TABLE} methods",
            table,
            f"with one start and one reference; {table / world:,.1f} h",
        ),
    )
    return [
        f"GPU hours at {engine.utilisation:.0%} of {peak_tflops(plan.config):g} TFLOP/s, {plan.config.precision.name} "
        f"({passes} x parameters x tokens / peak / utilisation):",
        *(f"  {name:<28}{hours:12,.2f}   ({note})" for name, hours, note in rows),
    ]


def _gb(size: int) -> str:
    if size < 0.1 * GB:
        return f"{size / 1e6:9,.2f} MB"
    return f"{size / GB:9,.2f} GB"


def _indented(lines: list[str]) -> list[str]:
    return [f"  {line}" for line in lines]
