"""The GPU path: what a CPU can count of it (waits, blocks, compilations), and what needs a GPU (`pytest -m gpu`)."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from torch import Tensor
from torch._dynamo.utils import counters
from torch.nn.functional import scaled_dot_product_attention

import killed_run
import test_model_card
from packed_rows import make_examples, tiny_model
from sgdpo.config.compose import compose_run, method_of, to_run_config
from sgdpo.data.packing import RowCollator, model_inputs, pair_of
from sgdpo.method import Method
from sgdpo.models import attention, flex_rows
from sgdpo.models.logprobs import teach_logprobs
from sgdpo.pairs import DrawKey, Pair
from sgdpo.runs.records import view_run
from sgdpo.runs.run import execute
from sgdpo.training.arguments import training_arguments
from sgdpo.training.metrics import pair_metrics
from tiny_training import tiny_config, tiny_trainer
from toy_pairs import CONF, METHODS

PILOTS = sorted(path.stem for path in (CONF / "pilot").glob("*.yaml"))
LENGTHS = [(5, 9, 4), (1, 1, 12), (11, 6, 1), (150, 90, 140)]


def gpu(test):
    """Mark a test as one that needs a GPU: `pytest -m gpu` runs them alone."""
    missing = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
    return pytest.mark.gpu(missing(test))


def composed(*words: str) -> Method:
    return method_of(to_run_config(compose_run([*words])))


def whole_row(method: Method, device: str, lengths=LENGTHS) -> dict[str, Tensor]:
    """Return a row with all that any method may ask of the data, on a device."""
    row = RowCollator("shared_prefix")(make_examples(lengths))
    tokens, pairs = len(row["target_L"]), len(lengths)
    row["reference_L"] = -torch.linspace(1, 3, tokens)
    row |= {"score_w_B": torch.linspace(6, 9, pairs), "score_l_B": torch.linspace(2, 5, pairs)}
    row |= {name: torch.ones(tokens) for name in method.data_features}
    return {name: value.to(device) for name, value in row.items()}


def row_loss(model: torch.nn.Module, method: Method, row: dict[str, Tensor]) -> tuple[Pair, Tensor]:
    """Do what a training step does with a row: log-probs, loss, metrics, incentives."""
    output = model(**model_inputs(row))
    logp_L, features = output if isinstance(output, tuple) else (output, {})
    pair = pair_of(row, (logp_L, features | {name: row[name] for name in method.data_features}))
    result = method(pair, DrawKey(1, 0), method.new_state())
    pair_metrics(pair, result, torch.ones((), device=logp_L.device))
    return pair, result.loss_B.sum()


@pytest.fixture
def other_machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """What accelerate found out about this machine is forgotten before and after."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield monkeypatch
    monkeypatch.undo()
    AcceleratorState._reset_state(reset_partial_state=True)


# ---- counted on a CPU --------------------------------------------------------------------------------------


def test_one_process_takes_one_gpu_of_many(other_machine: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, answer in {"is_available": True, "device_count": 4, "set_device": None}.items():
        other_machine.setattr(torch.cuda, name, lambda *_, answer=answer: answer)
    arguments = training_arguments(replace(tiny_config(), device="auto"), tmp_path, 3, 1, False)
    assert (arguments.device.type, arguments.n_gpu, arguments.world_size) == ("cuda", 1, 1)


def test_an_accelerator_that_is_no_cuda_device_takes_no_part(
    other_machine: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Not in the reference's pass either, which comes before the Trainer is told what to use."""
    other_machine.setattr("accelerate.state.is_mps_available", lambda *_: True)
    words = [*test_model_card.SMALL, "device=auto", f"outputs={tmp_path}"]
    assert view_run(execute(to_run_config(compose_run(words)))).status == "finished"


@pytest.mark.parametrize(
    "words",
    [[f"method={name}"] for name in METHODS if name != "mix"]
    + [["method=sgdpo", "ratio=full", f"pilot={name}"] for name in PILOTS],
    ids=lambda words: words[-1],
)
def test_a_row_waits_for_nothing(words, monkeypatch) -> None:
    """On torch's meta device no value exists: whatever would wait for one (.item(), .tolist(), nonzero) raises."""
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda kind=None: False)  # it does not know the device
    method, model = composed(*words), tiny_model()
    teach_logprobs(model, 1, method.head_features)
    model = model.to("meta")
    _, loss = row_loss(model, method, whole_row(method, "meta"))
    loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    with pytest.raises(RuntimeError, match="meta"):
        loss.item()


def random_spans(draw: np.random.Generator) -> Tensor:
    count = int(draw.integers(1, 6))
    prompt, chosen = draw.integers(1, 60, count), draw.integers(1, 150, count)
    return torch.tensor(np.stack([prompt, prompt + chosen, draw.integers(0, 150, count)], -1))


def test_the_blocks_of_a_row_hold_all_that_is_seen_and_little_else() -> None:
    draw = np.random.default_rng(0)
    for _ in range(20):
        spans = random_spans(draw)
        tokens = int(spans[:, 1:].sum())
        seen = attention.dense_mask(spans, tokens)
        made = flex_rows.block_mask(spans, tokens).to_dense()[0, 0].bool()
        size = flex_rows.BLOCK * made.shape[0]
        padded = torch.zeros(size, size, dtype=torch.bool)
        padded[:tokens, :tokens] = seen
        needed = padded.view(made.shape[0], flex_rows.BLOCK, made.shape[0], -1).any(-1).any(1)
        assert not (needed & ~made).any()
        assert (made & ~needed).sum() <= len(spans), "a span's rejected answer may skip the middle of it"


def test_the_blocks_are_made_without_a_wait() -> None:
    spans = torch.tensor([[50, 130, 70], [0, 90, 0]], device="meta")
    assert flex_rows.block_mask(spans, 290).kv_num_blocks.device.type == "meta"


@pytest.mark.proof
def test_fifty_rows_compile_twice_and_equal_the_dense_mask() -> None:
    """By the CPU's compiler, which knows the forward pass only: once for a row of one block, once for all others."""
    draw, before = np.random.default_rng(1), counters["stats"]["unique_graphs"]
    for _ in range(50):
        spans = random_spans(draw)
        tokens = int(spans[:, 1:].sum())
        query, key, value = (torch.randn(1, heads, tokens, 16) for heads in (4, 2, 2))
        with torch.no_grad():
            found = flex_rows.attend_blocks(query, key, value, flex_rows.block_mask(spans, tokens), 0.3)
        mask = attention.dense_mask(spans, tokens)[None, None]
        dense = scaled_dot_product_attention(query, key, value, mask, scale=0.3, enable_gqa=True)
        assert torch.allclose(found, dense.transpose(1, 2), rtol=0, atol=1e-5)
    assert counters["stats"]["unique_graphs"] - before <= 3


# ---- on a GPU ----------------------------------------------------------------------------------------------


def gradients(model: torch.nn.Module, method: Method, device: str) -> tuple[Pair, dict[str, Tensor]]:
    own = copy.deepcopy(model).to(device)
    pair, loss = row_loss(own, method, whole_row(method, device))
    loss.backward()
    return pair, {name: parameter.grad.float().cpu() for name, parameter in own.named_parameters()}


@gpu
@pytest.mark.parametrize("layout", ["shared_prefix", "separate"])
@pytest.mark.parametrize("fast", [True, False], ids=["fast", "general"])
@pytest.mark.parametrize(("bf16", "tolerance"), [(False, 1e-3), (True, 5e-2)], ids=["float32", "bf16"])
def test_log_probs_and_gradients_are_the_cpus(layout, fast, bf16, tolerance) -> None:
    model, examples = tiny_model(), make_examples(LENGTHS)
    teach_logprobs(model, 1, fast=fast)
    found = {}
    for device in ("cpu", "cuda"):
        own = copy.deepcopy(model).to(device)
        row = {name: value.to(device) for name, value in RowCollator(layout)(examples).items()}
        with torch.autocast(device, torch.bfloat16, enabled=bf16 and device == "cuda"):
            logp_L = own(**model_inputs(row))
        (logp_L * torch.linspace(-1, 2, len(logp_L), device=device)).sum().backward()
        found[device] = [logp_L.detach(), *(parameter.grad for parameter in own.parameters())]
    for ours, theirs in zip(found["cuda"], found["cpu"], strict=True):
        assert (ours.cpu() - theirs).abs().max() < tolerance * theirs.abs().max()


@gpu
@pytest.mark.parametrize("name", METHODS)
def test_every_loss_and_its_gradient_are_the_cpus(name) -> None:
    if name == "mix":
        pytest.skip("a mixture is made of the others")
    method, model = composed(f"method={name}"), tiny_model()
    teach_logprobs(model, 1, method.head_features)
    (on_cpu, theirs), (on_gpu, ours) = (gradients(model, method, device) for device in ("cpu", "cuda"))
    assert torch.allclose(on_gpu.chosen.logp_BT.cpu(), on_cpu.chosen.logp_BT, rtol=1e-3, atol=1e-3)
    for key, gradient in theirs.items():
        assert (ours[key] - gradient).abs().max() <= 1e-2 * gradient.abs().max() + 1e-6, key


@gpu
def test_a_row_waits_for_nothing_on_a_gpu_and_fifty_rows_compile_a_handful() -> None:
    method, model = composed("method=sgdpo"), tiny_model()
    teach_logprobs(model, 1)
    model, draw = model.cuda(), np.random.default_rng(2)
    before = counters["stats"]["unique_graphs"]
    for number in range(50):
        lengths = [tuple(draw.integers(1, 200, 3).tolist()) for _ in range(int(draw.integers(1, 5)))]
        row = whole_row(method, "cuda", lengths)
        torch.cuda.set_sync_debug_mode("error" if number > 5 else "default")  # compiling may wait
        try:
            row_loss(model, method, row)[1].backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        with torch.no_grad():
            model.eval()(**model_inputs(row))
        model.train()
    assert counters["stats"]["unique_graphs"] - before <= 8


@gpu
@pytest.mark.parametrize("words", [[], ["precision=bf16"], ["engine=ddp", "engine.num_processes=1"]], ids=str)
def test_a_run_killed_on_a_gpu_continues_as_if_it_had_not_been(words, tmp_path: Path) -> None:
    """Up to the order in which a GPU adds: its sums are not repeatable to the bit."""
    losses = {}
    for name in ("alone", "killed"):
        place = tmp_path / name
        killed_run.write_inputs(place)
        if name == "killed":
            killed_run.kill_in_the_middle(place, "device=cuda", *words)
        said, _ = killed_run.start(place, "device=cuda", *words).communicate(timeout=280)
        (folder,) = (place / "outputs").glob("*/mine-*")
        assert (folder / "model" / "model.safetensors").is_file(), said
        losses[name] = [row["loss"] for row in killed_run.rows(folder)]
    assert np.allclose(losses["alone"], losses["killed"], rtol=1e-2)


@gpu
def test_held_out_pairs_are_evaluated_on_a_gpu(tmp_path: Path) -> None:
    trainer = tiny_trainer(tiny_config("device=cuda", "method=dpo"), tmp_path)
    trainer.train()
    assert all(np.isfinite(row["loss"]) for row in trainer.rows_written)
