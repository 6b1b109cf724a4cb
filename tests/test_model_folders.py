"""A folder that holds a model: what it lacks, and what in it is damaged or odd, by name and before weights."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from model_folders import broken_folder, local, tiny_folder
from sgdpo.config.schema import ModelConfig
from sgdpo.models.load import load_model, load_tokenizer, model_errors


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return tiny_folder(tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize(
    ("without", "message"),
    [
        ("safetensors", "holds no weights; it needs"),
        ("config.json", "holds no config.json"),
        ("token", "holds no tokenizer"),
        ("jinja", "has no chat template; set model.chat_template"),
    ],
)
def test_what_a_folder_lacks_is_said(saved, tmp_path, without, message) -> None:
    folder = broken_folder(tmp_path, saved, without)
    found = model_errors(local(folder))
    assert len(found) == 1
    assert message in found[0]


def test_pickled_weights_are_not_read(saved, tmp_path) -> None:
    folder = broken_folder(tmp_path, saved, "safetensors")
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    assert "only pytorch_model.bin, which is not read: pickles can run code" in model_errors(local(folder))[0]


def test_code_that_comes_with_a_model_runs_only_on_request(saved, tmp_path) -> None:
    folder = broken_folder(tmp_path, saved, auto_map={"AutoModelForCausalLM": "own.Model"})
    error = model_errors(local(folder))[0]
    assert "comes with Python code of its own" in error
    assert "or take auto_map out of its config.json: transformers' own llama then runs instead" in error
    assert model_errors(local(folder, trust_remote_code=True)) == []
    (tmp_path / "own").mkdir()
    own = broken_folder(
        tmp_path / "own", saved, auto_map={"AutoModelForCausalLM": "own.Model"}, model_type="own"
    )
    assert model_errors(local(own))[0].endswith("read it, then set model.trust_remote_code=true")


def test_a_tokenizer_without_a_template_is_refused_when_loaded(saved, tmp_path) -> None:
    folder = broken_folder(tmp_path, saved, "jinja")
    assert not AutoTokenizer.from_pretrained(folder).chat_template
    with pytest.raises(ValueError, match="has no chat template"):
        load_tokenizer(local(folder))


DAMAGES = {
    "half": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
    "zeros": lambda data: bytes(len(data)),
    "a list": lambda data: b"[1, 2]",
    "an object": lambda data: b'{"model": 3}',
    "bytes": lambda data: b"\xff\xfe\x00\x80" + data[4:],
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"]
)
def test_a_damaged_file_is_named_before_anything_loads(saved, tmp_path, name: str, damage: str) -> None:
    """Whatever of it cannot be read is one line that names the folder, never a library's traceback."""
    folder = broken_folder(tmp_path, saved)
    (folder / name).write_bytes(DAMAGES[damage]((folder / name).read_bytes()))
    found = model_errors(local(folder))
    if (name, damage) == ("tokenizer_config.json", "an object"):
        return  # a setting that means nothing
    assert found
    assert all(str(folder) in error and "\n" not in error for error in found)
    assert any(name in error for error in found) or damage == "an object"


def changed_tensors(saved, tmp_path, change) -> ModelConfig:
    folder = broken_folder(tmp_path, saved)
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return local(folder)


def test_a_tensor_that_is_missing_is_not_drawn_at_random(saved, tmp_path) -> None:
    config = changed_tensors(
        saved, tmp_path, lambda tensors: tensors.pop("model.layers.0.self_attn.q_proj.weight")
    )
    with pytest.raises(
        ValueError, match=r"lacks 1 tensors of the model: model\.layers\.0\.self_attn\.q_proj\.weight"
    ):
        load_model(config, seed=0)


def test_a_tensor_of_another_size_is_named(saved, tmp_path) -> None:
    config = changed_tensors(
        saved, tmp_path, lambda tensors: tensors.update({"model.norm.weight": torch.ones(3)})
    )
    with pytest.raises(ValueError, match=r"of other sizes than its config\.json says: model\.norm\.weight"):
        load_model(config, seed=0)


def test_a_mask_in_bytes_is_no_quantised_weight(saved, tmp_path) -> None:
    """As older GPT-2 and GPT-NeoX checkpoints hold it in every layer."""
    mask = {"model.layers.0.attn.bias": torch.ones(1, 1, 8, 8, dtype=torch.uint8)}
    assert model_errors(changed_tensors(saved, tmp_path, lambda tensors: tensors.update(mask))) == []


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("config.json", {"quantization_config": None}, ""),
        ("config.json", {"quantization_config": "x"}, "holds quantised weights (x)"),
        ("config.json", {"hidden_size": -1}, "The hidden size (-1) is not a multiple"),
        ("model.safetensors.index.json", {"weight_map": 3}, "names no files by tensor"),
        ("model.safetensors.index.json", {"weight_map": {"a": 3}}, "names no files by tensor"),
        ("modules.json", [1], ""),
        ("notes.json", "no JSON", ""),
    ],
)
def test_odd_files_of_a_folder_are_told_if_they_matter(saved, tmp_path, name, content, words) -> None:
    folder = broken_folder(tmp_path, saved)
    if isinstance(content, dict) and (folder / name).exists():
        content = json.loads((folder / name).read_text()) | content
    (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
    said = model_errors(local(folder))
    assert len(said) == bool(words)
    assert words in "".join(said)


def test_a_tensor_that_the_model_does_not_know_is_said(saved, tmp_path, caplog) -> None:
    config = changed_tensors(saved, tmp_path, lambda tensors: tensors.update(extra=torch.zeros(2)))
    load_model(config, seed=0)
    assert "tensors that the model does not know, which are left out: extra" in caplog.text


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.float8_e4m3fn, torch.int32])
def test_quantised_weights_are_refused(saved, tmp_path, dtype) -> None:
    def quantise(tensors: dict) -> None:
        tensors["lm_head.weight"] = torch.ones_like(tensors["lm_head.weight"]).to(dtype)

    assert "holds quantised weights" in model_errors(changed_tensors(saved, tmp_path, quantise))[0]


def test_a_quantised_config_a_lost_shard_and_a_folders_revision_are_named(saved, tmp_path) -> None:
    folder = broken_folder(tmp_path, saved, quantization_config={"quant_method": "gptq"})
    assert "holds quantised weights (gptq)" in model_errors(local(folder))[0]
    index = {"weight_map": {"a": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "model-00002-of-00002.safetensors is missing, which" in model_errors(local(folder))[0]
    assert "model.revision=main is of the hub" in model_errors(local(saved, revision="main"))[0]
