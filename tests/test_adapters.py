"""Adapters through the real entry: what is trained, kept, merged, found again, continued, and refused."""

from __future__ import annotations

import json
import re
import runpy
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import partial
from io import StringIO
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from killed_run import ROOT, edit, kill_in_the_middle, overrides, rows, write_inputs
from lab.answers.generators import VllmGenerator
from lab.evaluation.evaluate import read_config
from lab.evaluation.settings import compose_evaluation, evaluation_errors
from lab.pair import show_pair
from lab.push import merge_adapter, plan_upload
from lab.sampling.settings import answering_errors, model_of
from packed_rows import make_examples, model_config, tiny_model
from sgdpo.config.compose import compose_run, to_run_config
from sgdpo.config.schema import AdapterConfig, ModelConfig, RunConfig
from sgdpo.data.packing import RowCollator, model_inputs
from sgdpo.data.prepare import prepare
from sgdpo.models.adapters import adapter_errors, fit_adapter
from sgdpo.models.folder import is_adapter
from sgdpo.models.load import base_of, load_config, load_model, load_tokenizer, model_errors
from sgdpo.models.logprobs import teach_logprobs
from sgdpo.runs.run import Run, execute
from sgdpo.runs.train import taught
from sgdpo.runs.validate import config_errors

ENGINES = ("ddp", "zero2", "zero3", "fsdp")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapters") / "place"
    write_inputs(folder)
    return folder


def config_of(place: Path, *more: str) -> RunConfig:
    changes = [
        "adapter=lora",
        "adapter.rank=4",
        "optimizer.max_steps=8",
        "optimizer.lr=1e-2",
        "trainer.save_steps=4",
    ]
    return to_run_config(compose_run([*overrides(place), *changes, "trainer.keep_finished=true", *more]))


@pytest.fixture(scope="module")
def lora(place: Path) -> Path:
    return execute(config_of(place))


def first_loss(run: Path) -> float:
    return next(row["loss"] for row in rows(run) if row["split"] == "train")


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def test_checkpoints_and_the_finished_run_hold_the_adapter_alone(place: Path, lora: Path) -> None:
    base = (place / "base" / "model.safetensors").stat().st_size
    for folder in (lora / "model", *(lora / "checkpoints").iterdir()):
        assert (folder / "adapter_model.safetensors").is_file()
        assert not (folder / "model.safetensors").exists()
        assert all("lora" in name and "lm_head" not in name for name in tensors(folder))
    assert (lora / "checkpoints/checkpoint-8/optimizer.pt").stat().st_size < 2 * base
    assert json.loads((lora / "record.json").read_text())["settings"]["adapter"]["rank"] == 4
    assert "-lora-" in lora.name


def test_it_learns_from_the_reference_it_starts_at(lora: Path) -> None:
    first, *_, last = [row for row in rows(lora) if row["split"] == "train"]
    assert first["loss"] == pytest.approx(0.693147, abs=1e-5)
    assert last["rewards/margins"] > 1e-3


def test_the_adapter_loads_onto_its_base_and_equals_what_was_merged(place: Path, lora: Path) -> None:
    merged = execute(config_of(place, "adapter.merge=true"))
    assert merged != lora
    assert {file.name for file in (merged / "model" / "adapter").iterdir()} >= {"adapter_model.safetensors"}
    assert torch.equal(*(torch.cat([t.flatten() for t in tensors(f).values()])
                         for f in (lora / "model", merged / "model" / "adapter")))  # fmt: skip
    ours = load_model(ModelConfig(name="local", path=str(lora / "model")), seed=0).state_dict()
    anybodys = AutoModelForCausalLM.from_pretrained(merged / "model").state_dict()
    base = tensors(place / "base")
    changed = {name for name in base if not torch.equal(base[name], ours[name])}
    assert all(torch.equal(ours[name], anybodys[name]) for name in ours)
    assert changed == {name for name in base if "proj" in name}, "every linear layer but the head"
    assert model_errors(ModelConfig(name="local", path=str(merged / "model"))) == []


def merge(run: Path, target: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts" / "merge.py"), str(run), str(target)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_merged_afterwards_it_is_what_merging_at_the_end_writes(
    place: Path, lora: Path, tmp_path: Path
) -> None:
    at_the_end = execute(config_of(place, "adapter.merge=true"))
    done = merge(lora, tmp_path / "whole")
    assert (done.returncode, done.stdout.strip()) == (0, str(tmp_path / "whole")), done.stderr
    one, other = tensors(at_the_end / "model"), tensors(tmp_path / "whole")
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert model_errors(ModelConfig(name="local", path=str(tmp_path / "whole"))) == []
    assert is_adapter(lora / "model"), "the run stays as it is"


def test_what_cannot_be_merged_or_pushed_is_named(place: Path, lora: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is there already; name a new folder"):
        merge_adapter(lora, tmp_path)
    with pytest.raises(ValueError, match="holds a whole model already"):
        merge_adapter(merged := execute(config_of(place, "adapter.merge=true")), tmp_path / "new")
    upload = partial(plan_upload, repo="me/mine", private=True, licence=None)
    assert "adapter" not in [file.name for file in upload(merged).files]
    with pytest.raises(ValueError, match="its base is on this machine alone"):
        upload(lora)
    with pytest.raises(ValueError, match="'me/my model' is no name of a repository on the hub"):
        upload(merged, repo="me/my model")
    for key, words in (("quantise", "cannot be merged into them: what was learned would be rounded"),
                       ("trust_remote_code", "say --trust-remote-code on this command")):  # fmt: skip
        received = shutil.copytree(lora, tmp_path / key)
        edit(received / "config.yaml", f"{key}: false", f"{key}: true")
        with pytest.raises(ValueError, match=words):
            merge_adapter(received, tmp_path / "new")


def test_evaluation_sampling_and_chat_take_an_adapter_run_for_a_finished_one(
    lora: Path, monkeypatch, capsys
) -> None:
    """All that is said against it is that its data is not the benchmark's."""
    world = f"{lora}: benchmark=verifiable needs the world of data=verifiable; the run's data is 'local'"
    assert evaluation_errors(compose_evaluation([f"runs=[{lora}]", "benchmark=verifiable"])) == [world]
    assert model_of(str(lora), "cache").path == str(lora / "model")
    assert answering_errors(model_of(str(lora), "cache")) == []
    monkeypatch.setattr(sys, "stdin", StringIO("hi\n"))
    runpy.run_path(str(ROOT / "scripts" / "chat.py"))["main"]([str(lora), "--tokens", "3"])
    assert capsys.readouterr().out.strip()


@pytest.mark.parametrize("more", [[], ["reference=live"], ["adapter.merge=true"]], ids=" ".join)
def test_a_pair_of_an_adapter_run_has_the_rewards_that_the_run_wrote(place: Path, more: list[str]) -> None:
    run = execute(config_of(place, *more))
    config = read_config(run)
    prepared = prepare(config.data, "preference", load_tokenizer(config.model), Path(config.cache))
    written = json.loads((run / "pairs.json").read_text())["pairs"][2]
    shown = show_pair(str(prepared.train.ids[2]), config, run)
    for side in ("chosen", "rejected"):
        (reward,) = re.findall(rf"^{side}: .* reward (-?[\d.]+)$", shown, re.MULTILINE)
        assert float(reward) == pytest.approx(sum(token["reward"] for token in written[side]), abs=2e-4)
        assert abs(float(reward)) > 1e-3


def test_the_base_is_the_start_and_no_other(place: Path, lora: Path, tmp_path: Path) -> None:
    assert base_of(lora / "model") == place / "base"
    shutil.copytree(lora / "model", tmp_path / "model")
    entry = json.loads((tmp_path / "model" / "adapter_base.json").read_text())
    for change, words in (({"weights": "0" * 16}, "adapter of other weights"),
                          ({"path": "/no/where", "beside": "../gone"}, "base of the adapter .* is gone")):  # fmt: skip
        (tmp_path / "model" / "adapter_base.json").write_text(json.dumps(entry | change))
        with pytest.raises(ValueError, match=words):
            load_model(ModelConfig(name="local", path=str(tmp_path / "model")), seed=0)
    (tmp_path / "model" / "adapter_base.json").unlink()
    with pytest.raises(ValueError, match="says only that it belongs to"):
        load_model(ModelConfig(name="local", path=str(tmp_path / "model")), seed=0)


def test_an_adapter_as_a_model_says_how_to_merge_it(lora: Path) -> None:
    adapter = ModelConfig(name="local", path=str(lora / "model"))
    with pytest.raises(ValueError, match=r"holds an adapter, and vLLM is given whole models"):
        VllmGenerator().of(adapter, "cpu")
    (error,) = model_errors(adapter)
    assert "holds an adapter and no model; merge the two" in error


def test_the_reference_is_the_start_with_the_adapter_off_and_cached(place: Path, lora: Path) -> None:
    """The same curve three ways: table, adapter off, and the start's own weights in the table's key."""
    live = execute(config_of(place, "reference=live"))
    for one, other in zip(rows(lora), rows(live), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], abs=1e-5)
    config = config_of(place)
    start, row = taught(config, None), RowCollator("shared_prefix")(make_examples([(5, 9, 4)], vocabulary=60))
    adapted = fit_adapter(taught(config, None), config.adapter, 0)
    assert torch.equal(adapted(**model_inputs(row)), start(**model_inputs(row)))


def test_a_start_with_an_adapter_is_merged_and_its_run_starts_there(place: Path) -> None:
    more = [
        "init=sft", "data=verifiable", "~data.train", "data.world.pairs=40", "data.world.demonstrations=40",
        "optimizer.max_steps=2", "optimizer.sft.max_steps=2", "optimizer.sft.batch_size=4", "optimizer.sft.lr=1e-2",
    ]  # fmt: skip
    full, adapted = (config_of(place, *more, f"adapter.start={start}") for start in ("full", "adapter"))
    run, plain = Run.of(adapted), Run.of(replace(full, adapter=AdapterConfig()))
    assert Run.of(full).start.identity == plain.start.identity, "shared with the runs without an adapter"
    assert len({r.identity.run_hash for r in (run, plain, Run.of(full))}) == 3
    assert "adapter" not in plain.identity.settings
    folder = execute(adapted)
    start = run.start.folder / "model"
    assert base_of(folder / "model") == start
    assert tensors(start).keys() == tensors(place / "base").keys(), "the whole model, merged"
    assert first_loss(folder) == pytest.approx(0.693147, abs=1e-5)


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(["adapter=dora"], marks=pytest.mark.proof),
        *(
            pytest.param([kind, engine, "engine.num_processes=2"], marks=pytest.mark.proof)
            for kind, engine in (
                ("adapter=lora", "engine=ddp"), ("adapter=lora", "engine=zero2"), ("adapter=dora", "engine=zero3"),
                ("adapter=dora", "engine=fsdp"),
            )
        ),
    ],
    ids=" ".join,
)  # fmt: skip
def test_a_killed_adapter_run_continues_bit_for_bit(kind: list[str], tmp_path: Path) -> None:
    place = tmp_path / "place"
    more = [*kind, "adapter.rank=4", "adapter.dropout=0.1", "optimizer.max_steps=12"]
    write_inputs(place)
    killed = kill_in_the_middle(place, *more)
    config = to_run_config(compose_run([*overrides(place), *more]))
    assert execute(config) == killed
    assert len(json.loads((killed / "record.json").read_text())["attempts"]) == 2
    alone = execute(replace(config, outputs=str(place / "alone"), cache=str(place / "alone" / "cache")))
    assert rows(killed) == rows(alone)
    one, other = tensors(killed / "model"), tensors(alone / "model")
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.proof
@pytest.mark.parametrize("engine", ENGINES)
def test_two_processes_train_the_adapter_that_one_does(engine: str, place: Path, lora: Path) -> None:
    together = execute(config_of(place, f"engine={engine}", "engine.num_processes=2", "adapter.merge=true"))
    for one, other in zip(rows(lora), rows(together), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], abs=1e-5)
    alone = load_model(ModelConfig(name="local", path=str(lora / "model")), seed=0).state_dict()
    for name, tensor in tensors(together / "model").items():
        torch.testing.assert_close(tensor, alone[name], rtol=0, atol=1e-4)


def test_a_full_rank_adapter_has_the_full_gradient_seen_through_its_first_matrix() -> None:
    """W + s B A with B = 0: the gradient of B is s G A^T, with G full training's; A square, so nothing of G is lost."""
    model, row = (
        tiny_model(dtype=torch.float64),
        RowCollator("shared_prefix")(make_examples([(5, 9, 4), (3, 8, 8)])),
    )
    teach_logprobs(model, 1)
    layers = {name: module for name, module in model.named_modules() if name.endswith("_proj")}
    logp_L = model(**model_inputs(row))
    full = torch.autograd.grad(logp_L.sum(), [layer.weight for layer in layers.values()])
    adapter = AdapterConfig(name="lora", rank=64, alpha=128.0)
    adapted = fit_adapter(model, adapter, seed=3).double()
    adapted(**model_inputs(row)).sum().backward()
    assert layers.keys()
    for (name, _), gradient in zip(layers.items(), full, strict=True):
        layer = adapted.get_submodule(f"base_model.model.{name}")
        first, second = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        torch.testing.assert_close(second.grad, 2 * gradient @ first.T, rtol=1e-6, atol=1e-9)
        if first.shape[0] == first.shape[1]:
            assert torch.linalg.matrix_rank(first) == 64


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["adapter=lora", "adapter.rank=0"], "adapter.rank must be at least 1"),
        (["adapter=lora", "adapter.rank=null"], "adapter.rank=None and adapter=lora contradict"),
        (["adapter.rank=4"], "adapter.rank=4 and adapter=none contradict"),
        (
            ["adapter.merge=true"],
            "adapter=none trains every weight, but adapter.merge is set; say adapter=lora",
        ),
        (["adapter=lora", "adapter.targets=[]"], "adapter.targets is empty"),
        (
            ["adapter=lora", "adapter.targets=[q_proj,qproj]"],
            "no layer of this model (llama) is called qproj",
        ),
        (
            ["adapter=lora", "adapter.targets=[lm_head]"],
            "lm_head is the lm-head, which the log-probs go through",
        ),
        (
            ["adapter=lora", "model=tiny_qwen2", "adapter.targets=[embed_tokens]"],
            "embed_tokens is tied to the lm-head",
        ),
        (["adapter=lora", "method=sft"], "adapter=lora on the random weights of model=tiny_llama"),
        (["adapter=lora", "init=pretrained"], "adapter=lora on the random weights of model=tiny_llama"),
        (["adapter=lora", "adapter.start=adapter"], "adapter=lora on the random weights of model=tiny_llama"),
        (["adapter=qlora", "adapter.start=full"], "holds the weights in 4 bits, which needs a GPU"),
        (
            ["adapter=qlora", "adapter.start=full", "adapter.merge=true"],
            "cannot merge into weights of 4 bits",
        ),
        (
            ["adapter=qlora", "adapter.start=full", "engine=zero3", "dry_run=true"],
            "adapter=qlora does not work with engine=zero3",
        ),
    ],
)
def test_bad_adapters_are_named(changes: list[str], words: str) -> None:
    assert words in "\n".join(config_errors(compose_run(["device=cpu", *changes])))


@pytest.mark.parametrize("name", ["lora", "dora", "qlora"])
def test_every_adapter_composes_and_can_be_planned(name: str) -> None:
    assert (
        config_errors(compose_run([f"adapter={name}", "adapter.start=full", "dry_run=true", "device=cpu"]))
        == []
    )


@pytest.mark.parametrize(
    ("kind", "target", "words"),
    [
        ("gpt2", "c_attn", ""),
        ("nemotron_h", "all-linear", "adapter=lora does not fit this model (nemotron_h)"),
    ],
)
def test_what_peft_fits_or_refuses_is_known_before_a_run(kind: str, target: str, words: str) -> None:
    """GPT-2's layers are no nn.Linear; peft does not take a part of Mamba's."""
    said = adapter_errors(AdapterConfig(name="lora", rank=4, targets=[target]), AutoConfig.for_model(kind))
    assert words in "".join(said)
    assert bool(said) == bool(words)


def test_an_adapter_is_drawn_from_its_seed_and_leaves_the_global_state_alone() -> None:
    first, again, other = (
        fit_adapter(load_model(model_config(), seed=0), AdapterConfig(name="lora", rank=2), seed)
        for seed in (1, 1, 2)
    )
    weights = [[p for p in model.parameters() if p.requires_grad] for model in (first, again, other)]
    assert all(torch.equal(a, b) for a, b in zip(weights[0], weights[1], strict=True))
    assert not torch.equal(weights[0][0], weights[2][0])
    assert load_config(model_config()).model_type == "llama"
