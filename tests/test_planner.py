"""A plan's arithmetic agrees with known models, measured peaks and DeepSpeed's own estimator."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from transformers import AutoConfig

from lab.plan.memory import GB, Row, activations, model_shape, model_states, shape_of, whole_weights
from lab.plan.planner import (
    METHODS_OF_A_TABLE,
    OWN_FORWARD,
    Workload,
    gpu_hours,
    plan,
    render,
    train_flops,
    ways_to_fit,
)
from sgdpo.config.compose import compose_run, to_run_config
from sgdpo.config.schema import RunConfig
from sgdpo.models.architectures import skeleton
from sgdpo.training.arguments import total_steps
from step_memory import packed_row, step_peak

SMOLLM2 = Path("outputs/cache/models/smollm2-135m-instruct")
PAPER = ["data=ultrafeedback", "engine=zero3", "precision=bf16", "trainer.activation_checkpointing=true"]


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def run(*overrides: str) -> RunConfig:
    return to_run_config(compose_run(list(overrides)))


@pytest.mark.parametrize(
    ("model", "parameters"),
    [
        ("llama31_8b", 8_030_261_248),
        ("llama31_8b_instruct", 8_030_261_248),
        ("qwen2_7b", 7_615_616_512),
        ("qwen2_7b_instruct", 7_615_616_512),
    ],
)
def test_the_papers_models_are_known_without_a_network(model: str, parameters: int) -> None:
    """The counts are those of the published models' cards (their safetensors indices)."""
    assert model_shape(run(f"model={model}").model).parameters == parameters


def test_a_tiny_shape_by_hand() -> None:
    """tiny_llama: 104 x 128 twice (embedding, head); a layer 2 x 128 x 128 (q, o) + 2 x 64 x 128 (k, v)
    + 3 x 384 x 128 (MLP) + 2 x 128 (norms) = 196,864, four times; one norm more: 128."""
    shape = model_shape(run().model)
    assert shape.parameters == 2 * 104 * 128 + 4 * 196_864 + 128
    assert shape.body == 4 * 196_864 + 128
    assert shape.largest == 384 * 128


@pytest.mark.slow
@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_activations_agree_with_measured_peaks_within_15_percent(bf16: bool, checkpointing: bool) -> None:
    config = run()
    row = packed_row(6, 60, 30, 24, vocabulary=100)
    size = Row(row["input_ids"].numel(), row["source_L"].numel())
    measured = step_peak(config.model, row, bf16, checkpointing, budget_mb=64)
    planned = activations(model_shape(config.model), size, bf16, checkpointing, head_budget_mb=64)
    assert planned == pytest.approx(measured, rel=0.15)


@pytest.mark.slow
@pytest.mark.skipif(not SMOLLM2.is_dir(), reason="`make smollm2` puts the model in place")
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_real_models_peak_agrees_within_15_percent(checkpointing: bool) -> None:
    """SmolLM2-135M: 30 layers, 49,152 entries of vocabulary, tied embeddings."""
    config = run("model=smollm2_135m")
    row = packed_row(2, 120, 60, 50, vocabulary=49_000)
    size = Row(row["input_ids"].numel(), row["source_L"].numel())
    measured = step_peak(config.model, row, False, checkpointing, budget_mb=64)
    planned = activations(model_shape(config.model), size, False, checkpointing, head_budget_mb=64)
    assert planned == pytest.approx(measured, rel=0.15)


@pytest.mark.parametrize("model", ["llama31_8b", "qwen2_7b"])
@pytest.mark.parametrize("processes", [4, 8])
def test_zero3_states_agree_with_deepspeeds_estimator_within_15_percent(model: str, processes: int) -> None:
    """DeepSpeed counts 18 bytes a parameter (2 of them bf16 weights) and the largest module; ours are 20
    (float32 weights) and the same module, where no more than it may be alive."""
    from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs

    largest_alone = ["engine.deepspeed.zero_optimization.stage3_max_live_parameters=0"]
    config = run(f"model={model}", "engine=zero3", f"engine.num_processes={processes}", *largest_alone)
    shape = model_shape(config.model)
    _, theirs, _ = estimate_zero3_model_states_mem_needs(
        shape.parameters,
        shape.largest,
        num_gpus_per_node=processes,
        cpu_offload=False,
        cpu_offload_params=False,
    )
    assert model_states(shape, config.engine).total == pytest.approx(theirs, rel=0.15)


def test_states_by_hand() -> None:
    """P parameters, float32: one process holds 4 P of weights, 4 P of gradients and 8 P of moments. DDP adds 4 P
    of buckets. ZeRO-2 over 4 cuts gradients to P and moments with a master copy (12 P) to 3 P; ZeRO-3 cuts the
    weights to P; FSDP2 keeps no master copy; with offload nothing of them stays on the GPU, and 4 x 5 P, FSDP2's
    4 x 4 P, are in the machine's memory."""
    shape = model_shape(run("model=llama31_8b").model)
    count = shape.parameters

    def states(*overrides: str):
        return model_states(shape, run("engine=" + overrides[0], *overrides[1:]).engine)

    single, ddp, zero2 = states("single"), states("ddp"), states("zero2")
    zero3, offload, fsdp = states("zero3"), states("zero3_offload"), states("fsdp")
    assert (single.weights, single.gradients, single.optimizer) == (4 * count, 4 * count, 8 * count)
    assert ddp.total - single.total == 4 * count
    assert (zero2.weights, zero2.gradients, zero2.optimizer) == (4 * count, count, 3 * count)
    assert (zero3.weights, zero3.gradients, zero3.optimizer) == (count, count, 3 * count)
    assert (fsdp.weights, fsdp.gradients, fsdp.optimizer) == (count, count, 2 * count)
    away = states("fsdp", "+engine.fsdp.cpu_offload=true")
    for offloaded in (offload, away):
        assert (offloaded.weights, offloaded.gradients, offloaded.optimizer) == (0, 0, 0)
    assert (offload.cpu, away.cpu) == (4 * 5 * count, 4 * 4 * count)
    assert (away.buffers, fsdp.cpu) == (fsdp.buffers, 0)


def test_the_papers_run_fits_four_gpus_and_is_planned_without_data_or_weights() -> None:
    """477 steps: 61,135 pairs / 128, the remainder left out; the start's 4,869: 3 x floor(207,865 / 128)."""
    planned = plan(run("model=llama31_8b", *PAPER))
    assert planned.fits
    assert planned.work.steps == 477
    assert planned.start.work.steps == 4869
    assert not planned.work.counted
    text = render(planned)
    assert "it fits" in text
    assert "estimated" in text
    assert "own forward" not in text


def test_one_gpu_does_not_hold_8b_and_the_plan_says_what_to_do() -> None:
    planned = plan(run("model=llama31_8b_instruct", "data=ultrafeedback", "precision=bf16"))
    assert not planned.fits
    assert "IT DOES NOT FIT: use engine=zero3 on more GPUs" in render(planned)


def test_hours_follow_the_formula() -> None:
    """One pass of N tokens, L of them trained: 6 N body + 8 L head FLOPs; at 100 TFLOP/s and a half, over 3600."""
    config = run(
        "model=llama31_8b_instruct", "data=ultrafeedback", "engine.gpu_tflops=100", "engine.utilisation=0.5",
        "trainer.activation_checkpointing=false",
    )  # fmt: skip
    planned = plan(config)
    work, shape = planned.work, planned.shape
    used = 477 * 128 / 61_135
    flops = (6 * work.tokens * shape.body + 8 * work.predicted * shape.head) * used
    assert train_flops(config, shape, work) == pytest.approx(flops, rel=1e-9)
    assert planned.train_hours == pytest.approx(flops / 50e12 / 3600, rel=1e-9)
    assert gpu_hours(config, 50e12 * 3600) == pytest.approx(1)
    assert f"a table of {METHODS_OF_A_TABLE} methods" in render(planned)


@pytest.mark.parametrize(
    ("words", "size"),
    [
        ("engine=zero3", 4),
        ("engine=fsdp", 4),
        ("precision=lean", 2),
        ("method=simpo", 0),
        pytest.param("adapter=lora", 0, marks=pytest.mark.proof),
    ],
)
def test_a_live_reference_is_held_whole_by_every_gpu(words: str, size: int) -> None:
    """P parameters take 4 P bytes, or 2 P where the weights are bfloat16; under an adapter the base serves."""
    small = ["init=pretrained", "data=ultrafeedback", "engine.gpu_memory_gb=1", words]
    cached, live = (plan(run(*small, f"reference={kind}")) for kind in ("cached", "live"))
    assert live.memory - cached.memory == size * cached.shape.parameters
    assert live.reference_cache == 0
    assert ("IT DOES NOT FIT: set reference=cached" in render(live)) == (size > 0)


def test_a_live_reference_passes_over_every_pair_of_every_epoch() -> None:
    words = ["init=pretrained", "data=ultrafeedback", "optimizer.epochs=3"]
    cached, live = (plan(run(*words, f"reference={kind}")) for kind in ("cached", "live"))
    assert live.reference_hours == pytest.approx(3 * cached.reference_hours, rel=3e-3)


def test_the_reference_is_planned_for_the_pairs_that_the_steps_take() -> None:
    """Two steps of 128: a forward pass (2 a parameter and token) over 256 pairs, 258 + 295 log-probs of 4 bytes."""
    words = ["init=pretrained", "data=ultrafeedback", "optimizer=paper", "optimizer.max_steps=2"]
    planned = plan(run(*words))
    assert planned.reference_cache == 256 * 4 * (258 + 295)
    assert planned.reference_hours == pytest.approx(planned.train_hours / 3, rel=0.05)


def test_float32_hours_are_held_against_the_float32_peak() -> None:
    """An A100 multiplies float32 at 19.5 TFLOP/s and bf16 at 312: the same FLOPs take 16 times as long."""
    bf16, float32 = (plan(run("model=qwen2_7b", f"precision={name}")) for name in ("bf16", "float32"))
    assert float32.train_hours == pytest.approx(16 * bf16.train_hours, rel=1e-9)


def big_runs() -> list[list[str]]:
    """Return the overrides of every command of the README that trains a model of billions on several GPUs, and those of
    `SCALE=paper`."""
    text = Path("README.md").read_text()
    lines = re.findall(
        r"src/train\.py ((?:[\w.]+=\S+ ?)*model=(?:llama31_8b|qwen2_7b)\w*(?: [\w.]+=\S+)*)", text
    )
    found = [line.split() for line in lines if "engine=" in line]
    assert found, "the README shows how to train the paper's models"
    scales = yaml.safe_load(Path("conf/report/scales.yaml").read_text())
    return found + [[f"model={model}", *scales["paper"]["settings"]] for model in scales["paper"]["models"]]


@pytest.mark.parametrize("overrides", big_runs(), ids=" ".join)
def test_every_documented_run_of_the_papers_models_fits_its_gpus(overrides: list[str]) -> None:
    planned = plan(run(*(word for word in overrides if not word.startswith("dry_run"))))
    assert planned.fits, render(planned)


def test_local_data_is_counted_not_estimated(tmp_path: Path) -> None:
    planned = plan(run("data.world.pairs=64", "data.world.demonstrations=64", f"outputs={tmp_path}"))
    assert planned.work.counted
    assert planned.work.examples == 64
    assert planned.work.steps == 2
    assert planned.memory < 2 * GB


def test_a_plan_refuses_too_few_rows_as_the_run_does() -> None:
    with pytest.raises(ValueError, match="64 training examples are left but a step takes 65"):
        plan(run("data=ultrafeedback", "data.limit=64", "optimizer.batch_size=65"))


def test_a_fraction_of_an_epoch_is_exact() -> None:
    """1.1 epochs of 90 steps are 99, where floats say 99.00000000000001."""
    assert total_steps(run("optimizer.batch_size=32", "optimizer.epochs=1.1"), 90 * 32) == 99


def test_a_plan_says_that_a_model_trains_through_its_own_forward_and_holds_more() -> None:
    config = run("data=ultrafeedback", "init=pretrained")
    small = {"num_hidden_layers": 1, "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
    mixtral = AutoConfig.for_model("mixtral", **small, vocab_size=100, intermediate_size=64).to_diff_dict()
    text = render(plan(replace(config, model=replace(config.model, facts=mixtral))))
    assert "'mixtral' trains through its own forward" in text
    assert "the router's loss is trained with weight" in text
    assert OWN_FORWARD in text


@pytest.mark.slow
def test_a_dry_run_prints_the_plan_and_leaves_no_run(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "src/train.py",
        "dry_run=true",
        "model=qwen2_7b",
        f"outputs={tmp_path}",
        *PAPER,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "7.62 billion parameters" in done.stdout
    assert not (tmp_path / "default").exists()


def test_what_fits_a_card_is_said_and_by_how_much_the_rest_does_not() -> None:
    """8 billion parameters at 16 bytes, at 16 / 8, at 10, at 6, and at 2 and 0.5 frozen; beside them about 7 GB."""
    found = plan(run("model=llama31_8b_instruct", "data=ultrafeedback"))
    sizes = [size / GB for size in ways_to_fit(found).values()]
    assert sizes == pytest.approx([137.2, 33.0, 89.1, 56.9, 24.9, 14.5], abs=0.2)
    text = render(found)
    assert re.search(r"precision=lean +89.05 GB +9.05 GB too much", text)
    assert re.search(r"precision=lean adapter=lora +24.86 GB +fits", text)
    small = render(plan(run("model=llama31_8b_instruct", "data=ultrafeedback", "engine.gpu_memory_gb=6")))
    assert "None of these fits: the smallest lacks 8.50 GB" in small


def test_an_adapter_is_planned_with_its_own_parameters() -> None:
    """Rank 16 on q, k, v, o, gate, up, down of 32 layers: 16 x (in + out) each; float32 weights, moments, gradients."""
    config = run("model=llama31_8b_instruct", "data=ultrafeedback", "adapter=lora", "precision=lean")
    layer = 16 * (2 * (4096 + 4096) + 2 * (4096 + 1024) + 3 * (4096 + 14336))
    found = plan(config)
    assert found.states.gradients == 4 * 32 * layer
    assert found.states.optimizer == 8 * 32 * layer
    assert found.states.weights == 2 * found.shape.parameters + 4 * 32 * layer
    assert (found.model_on_disk, found.checkpoint_on_disk) == (4 * 32 * layer, 12 * 32 * layer)
    merged = plan(run("init=pretrained", "data=ultrafeedback", "adapter=lora", "adapter.merge=true"))
    assert merged.model_on_disk == 4 * merged.shape.parameters + merged.checkpoint_on_disk / 3
    assert (
        found.model_on_disk
        < 0.2 * GB
        < plan(run("model=llama31_8b_instruct", "data=ultrafeedback")).model_on_disk
    )


@pytest.mark.parametrize("kind", ["gpt_neox", "gpt2", "opt", "falcon", "mamba", "mixtral", "gemma3", "rwkv"])
def test_any_causal_model_can_be_planned_whatever_its_config_calls_things(kind: str) -> None:
    """Parameters are counted; the rest is positive, so that nothing is planned for free."""
    config = AutoConfig.for_model(kind)
    config.get_text_config().num_hidden_layers = 2
    shape = shape_of(config)
    assert shape.parameters == sum(p.numel() for p in skeleton(config).parameters())
    assert shape.hidden <= shape.intermediate
    assert min(shape.layers, shape.attention, shape.key_value, shape.body) > 0
    assert activations(shape, Row(100, 50), True, True, head_budget_mb=64) > 0


def test_a_mixture_holds_all_experts_and_multiplies_those_that_a_token_is_sent_to() -> None:
    """Of 8 experts of 3 x 14336 x 4096 two work in each layer; bitsandbytes leaves them in 2 bytes. qwen2_moe: four of
    1408, and one of 5632 that every token goes to."""
    shape, expert = shape_of(AutoConfig.for_model("mixtral", num_hidden_layers=2)), 3 * 14336 * 4096
    assert (shape.experts, shape.idle, shape.intermediate) == (2 * 8 * expert, 2 * 6 * expert, 2 * 14336)
    config = run("precision=lean", "optimizer.batch_size=10", "trainer.activation_checkpointing=false")
    in_4_bits = whole_weights(shape, config.precision, quantise=True)
    assert in_4_bits == pytest.approx(2 * (shape.parameters - shape.body + shape.experts), rel=0.05)
    work = Workload(10, 1000, 500, 1, 1.0, 1, Row(100, 50), True, "")
    flops = 6 * 1000 * (shape.body - 12 * expert) + 8 * 500 * shape.head
    assert train_flops(config, shape, work) == pytest.approx(flops, rel=1e-9)
    shared = shape_of(AutoConfig.for_model("qwen2_moe", num_hidden_layers=2))
    assert shared.intermediate == pytest.approx(4 * 1408 + 5632, rel=1e-3)
    assert model_shape(run().model).active == model_shape(run().model).body


def test_a_model_that_takes_no_adapter_is_planned_without_those_ways() -> None:
    facts = AutoConfig.for_model("nemotron_h", hybrid_override_pattern="M*-M").to_diff_dict()
    config = run("model=local", "model.path=org/name", "data=ultrafeedback")
    planned = plan(replace(config, model=replace(config.model, facts={**facts, "model_type": "nemotron_h"})))
    assert "precision=lean" in (ways := ways_to_fit(planned))
    assert not any("adapter" in way for way in ways)


def test_what_offloads_to_nowhere_or_cuts_less_is_planned_so() -> None:
    """Stage 1 cuts the optimizer's state alone; null for an offload is none."""
    zero = "engine.deepspeed.zero_optimization"
    config = run("engine=zero2", "engine.num_processes=2", f"{zero}.stage=1")
    count = (shape := model_shape(config.model)).parameters
    states = model_states(shape, config.engine)
    assert (states.gradients, states.optimizer) == (4 * count, 3 * 2 * count)
    stays = [f"{zero}.offload_optimizer=null", f"{zero}.offload_param=null"]
    assert model_states(shape, run("engine=zero3_offload", *stays).engine).cpu == 0
