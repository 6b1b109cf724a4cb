"""Loading models and tokenizers: tiny ones from nothing, folders, and every bad input by name, before weights."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from model_folders import broken_folder, local, tiny_folder
from packed_rows import model_config, tiny_model
from sgdpo import hub
from sgdpo.config.compose import compose_run, to_run_config
from sgdpo.config.schema import ModelConfig
from sgdpo.data.template import render, require_template
from sgdpo.models.architectures import fit_errors
from sgdpo.models.load import config_errors as why_not
from sgdpo.models.load import (
    content_hashes,
    load_config,
    load_model,
    load_tokenizer,
    model_errors,
    weights_folder,
    weights_hash,
)
from sgdpo.models.tiny import ALPHABET
from sgdpo.runs.validate import config_errors

TURNS = [{"role": "user", "content": "Sort: b a"}, {"role": "assistant", "content": "a  b"}]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return tiny_folder(tmp_path_factory.mktemp("model"))


def test_the_tiny_tokenizer_gives_each_character_a_token_and_takes_it_back() -> None:
    tokenizer = load_tokenizer(model_config())
    ids = tokenizer(ALPHABET, add_special_tokens=False).input_ids
    assert len(ids) == len(set(ids)) == len(ALPHABET) == 96
    assert tokenizer.decode(ids) == ALPHABET
    unknown = tokenizer("é", add_special_tokens=False).input_ids  # two bytes
    assert unknown == [tokenizer.unk_token_id] * 2


@pytest.mark.parametrize("name", ["tiny_llama", "tiny_qwen2"])
def test_a_saved_tiny_tokenizer_is_the_same_to_everybody_who_loads_it(name: str, tmp_path: Path) -> None:
    """transformers rebuilds a Qwen-2 folder's tokenizer as Qwen-2's own class; spaces must survive that."""
    config = model_config(name)
    tokenizer, turns = load_tokenizer(config), [{"role": "user", "content": f"Say twice:  a b\n{ALPHABET}"}]
    load_config(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    wanted = tokenizer.apply_chat_template(turns, return_dict=True)["input_ids"]
    for loaded in (AutoTokenizer.from_pretrained(tmp_path), load_tokenizer(local(tmp_path))):
        assert loaded.apply_chat_template(turns, return_dict=True)["input_ids"] == wanted
        assert loaded.decode(wanted) == tokenizer.decode(wanted)
        assert loaded.eos_token_id == tokenizer.eos_token_id


def in_the_hubs_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder whose files are those of the hub's org/name, which is not asked."""
    kept = tmp_path / "models--org--name"
    (kept / "refs").mkdir(parents=True)
    (kept / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return kept / "snapshots" / ("0" * 40)


def test_a_tokenizer_of_ones_own_is_loaded_as_it_was_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """AutoTokenizer would make it Qwen-2's, which knows no such words; by a hub id, here in the hub's cache, too."""
    here = in_the_hubs_cache(tmp_path, monkeypatch)
    words = Tokenizer(WordLevel({"<unk>": 0, "two words": 1}, unk_token="<unk>"))
    own = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", chat_template="{{ messages }}")
    own.save_pretrained(here)
    load_config(model_config("tiny_qwen2")).save_pretrained(here)
    for place in (here, "org/name"):
        assert load_tokenizer(local(place))("two words").input_ids == [1]


def test_quantised_weights_of_the_hub_are_refused_by_their_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder's are refused before anything is downloaded; these as soon as the config is here."""
    config = load_config(model_config())
    config.quantization_config = {"quant_method": "awq"}
    config.save_pretrained(in_the_hubs_cache(tmp_path, monkeypatch))
    (error,) = why_not(load_config(local("org/name")))
    assert error.startswith("model.path=org/name holds quantised weights (awq)")


def test_special_tokens_are_distinct_and_a_turn_closes_with_what_generation_stops_at() -> None:
    tokenizer, config = load_tokenizer(model_config()), load_config(model_config())
    special = [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id]
    assert len(set(special)) == 4
    ids = tokenizer.apply_chat_template(TURNS, return_dict=True)["input_ids"]
    assert ids[-1] == config.eos_token_id
    assert config.vocab_size == len(tokenizer)


def test_the_generation_prompt_is_a_prefix_of_the_whole_conversation() -> None:
    tokenizer = load_tokenizer(model_config())
    whole = tokenizer.apply_chat_template(TURNS, tokenize=False)
    prompt = tokenizer.apply_chat_template(TURNS[:1], tokenize=False, add_generation_prompt=True)
    assert whole.startswith(prompt)
    assert whole.removeprefix(prompt).startswith("a  b")


@pytest.mark.parametrize(("name", "tied"), [("tiny_llama", False), ("tiny_qwen2", True)])
def test_tiny_models_are_real_architectures_of_about_a_million_parameters(name, tied) -> None:
    config = model_config(name, num_hidden_layers=4, hidden_size=128)
    model = load_model(config, seed=3)
    assert 0.5e6 < sum(p.numel() for p in model.parameters()) < 3e6
    assert type(model).__name__ == {"tiny_llama": "LlamaForCausalLM", "tiny_qwen2": "Qwen2ForCausalLM"}[name]
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
    assert model.training


def test_random_weights_follow_the_seed_and_leave_the_global_state_alone() -> None:
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    first, again, other = (load_model(model_config(), seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.rand(3), expected)
    assert weights_hash(first) == weights_hash(again) != weights_hash(other)


def test_a_saved_model_comes_back_equal_with_its_tokenizer(saved) -> None:
    config = local(saved)
    assert model_errors(config) == []
    model, plain = load_model(config, seed=0), tiny_model()
    assert all(torch.equal(one, two) for one, two in zip(model.parameters(), plain.parameters(), strict=True))
    assert load_tokenizer(config)("ab").input_ids == load_tokenizer(model_config())("ab").input_ids
    assert weights_folder(config) == saved
    assert content_hashes(config) == content_hashes(local(saved))


def test_a_start_runs_weights_take_the_place_of_the_models_own(saved) -> None:
    model = load_model(model_config(), weights=saved, seed=5)
    assert weights_hash(model) == weights_hash(tiny_model())


def test_one_changed_weight_changes_the_hash() -> None:
    model = tiny_model()
    before = weights_hash(model)
    with torch.no_grad():
        model.lm_head.weight[3, 4] += 1e-6
    assert weights_hash(model) != before


SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
DROPPING = [
    {"model_type": "llama", "attention_dropout": 0.5, "intermediate_size": 64, **SMALL},
    {"model_type": "biogpt", "hidden_dropout_prob": 0.5, "attention_probs_dropout_prob": 0.5, **SMALL},
    {"model_type": "opt", "layerdrop": 0.5, "ffn_dim": 64, "word_embed_proj_dim": 32, **SMALL},
    {"model_type": "gpt2", "resid_pdrop": 0.5, "embd_pdrop": 0.5, "n_embd": 32, "n_layer": 2, "n_head": 2},
    # Not dropout: routers that draw the experts by their scores, or jitter what they read.
    {"model_type": "phimoe", "num_key_value_heads": 2, "num_local_experts": 4, "intermediate_size": 64, **SMALL},
    {"model_type": "mixtral", "router_jitter_noise": 0.1, "num_key_value_heads": 2, "intermediate_size": 64, **SMALL},
    {"model_type": "dbrx", "ffn_config": {"moe_jitter_eps": 0.1, "ffn_hidden_size": 64, "moe_num_experts": 4},
     "d_model": 32, "n_layers": 2, "n_heads": 2, "attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8}},
]  # fmt: skip


@pytest.mark.parametrize("tiny", DROPPING, ids=lambda tiny: tiny["model_type"])
def test_nothing_is_drawn_in_training_whatever_an_architecture_calls_it(tiny: dict) -> None:
    """Else the policy would not be its reference, which is evaluated."""
    model = load_model(ModelConfig(name="tiny", tiny=tiny), seed=0)
    ids_QT = torch.arange(8, 40)[None]
    first, again = model(ids_QT).logits, model.train()(ids_QT).logits
    assert torch.equal(first, again)
    assert torch.equal(first, model.eval()(ids_QT).logits)


def test_a_rate_of_a_part_of_the_config_is_0_and_stays_an_integer_where_it_must_be_one() -> None:
    tiny = {"model_type": "mpt", "attn_config": {"attn_pdrop": 1}}
    assert load_config(ModelConfig(name="tiny", tiny=tiny)).attn_config.attn_pdrop == 0


def test_a_dropout_that_no_config_names_is_off_too(monkeypatch) -> None:
    built = tiny_model()
    built.model.extra = torch.nn.Dropout(0.5)
    monkeypatch.setattr("sgdpo.models.load.AutoModelForCausalLM.from_config", lambda *_, **__: built)
    assert load_model(model_config(), seed=0).model.extra.p == 0.0


def test_a_chat_template_comes_from_a_file_or_a_folder(saved, tmp_path) -> None:
    file = tmp_path / "own.jinja"
    file.write_text("{{ messages[0]['content'] }}")
    assert load_tokenizer(local(saved, chat_template=str(file))).chat_template == file.read_text()
    own = load_tokenizer(local(saved)).chat_template
    assert load_tokenizer(local(saved, chat_template=str(saved))).chat_template == own


NAMED = {"default": "{{ messages[0]['content'] }}", "tool_use": "{{ tools }}"}


def named_templates(tmp_path, saved, templates: dict[str, str]):
    """Return a folder whose tokenizer has several chat templates by name, as Command-R's has."""
    folder = broken_folder(tmp_path, saved)
    tokenizer = load_tokenizer(local(saved))
    tokenizer.chat_template = templates
    (folder / "chat_template.jinja").unlink()
    tokenizer.save_pretrained(folder)
    return folder


def test_of_several_chat_templates_the_default_one_serves(saved, tmp_path) -> None:
    folder = named_templates(tmp_path, saved, NAMED)
    assert model_errors(local(folder)) == []
    loaded, borrowed = load_tokenizer(local(folder)), load_tokenizer(local(saved, chat_template=str(folder)))
    assert loaded.chat_template == NAMED, "it is saved as it came"
    for tokenizer in (loaded, borrowed):
        require_template(tokenizer)
        assert render(tokenizer, TURNS) == TURNS[0]["content"]


def test_several_chat_templates_without_a_default_one_are_named(saved, tmp_path) -> None:
    folder = named_templates(tmp_path, saved, {"rag": "{{ documents }}", "tool_use": "{{ tools }}"})
    said = "has the chat templates rag, tool_use, and none of them is called default; write the one that is meant"
    (error,) = model_errors(local(folder))
    assert f"the tokenizer of {folder} {said}" in error
    with pytest.raises(ValueError, match=f"model.chat_template={folder} {said}"):
        load_tokenizer(local(saved, chat_template=str(folder)))


def test_a_home_folders_sign_is_expanded_for_all_who_read_the_path(saved, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("HOME", str(saved.parent))
    plain, home = (local(f"{place}/{saved.name}") for place in (saved.parent, "~"))
    assert home == plain
    assert model_errors(replace(home, chat_template=f"~/{saved.name}")) == []
    assert weights_hash(load_model(home, seed=0)) == weights_hash(tiny_model())
    composed = to_run_config(
        compose_run(["model=local", f"model.path='~/{saved.name}'", "model.chat_template='~/a.jinja'"])
    )
    assert (composed.model.path, composed.model.chat_template) == (str(saved), f"{saved.parent}/a.jinja")
    assert local("org/name").path == "org/name"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (ModelConfig(name="local"), "needs model.path: a folder"),
        (local("no/such/folder"), "no/such/folder does not exist; set model.path"),
        (local("no/such/folder", setup_hint="run `make it`"), "does not exist; run `make it`"),
        (model_config(model_type="lama"), "model_type='lama' is no architecture"),
        (model_config(hiden_size=3), "has keys that 'llama' does not know: ['hiden_size']"),
        (ModelConfig(name="local", path="org/name", attention="fast"), "attention='fast' is not one of"),
        (local("org/name", chat_template="missing.jinja"), "missing.jinja does not exist"),
        (local("org/name", chat_template="no/such/place"), "is no file, folder or hub id"),
    ],
)
def test_bad_settings_are_named(config, message) -> None:
    found = model_errors(config)
    assert len(found) == 1
    assert message in found[0]


def test_data_that_does_not_fit_the_model_is_named() -> None:
    """Both at once: a vocabulary of 104 for ids up to 149, and 512 positions for 600 tokens."""
    config = load_config(model_config())
    assert fit_errors(config, config.vocab_size, 512) == []
    vocabulary, positions = fit_errors(config, 150, 600)
    assert f"ids up to 149, but the model's vocabulary holds {config.vocab_size}" in vocabulary
    assert "600 tokens, but the model has 512 positions; set data.max_length to 512" in positions


def test_a_template_that_is_no_text_is_told_of_a_tiny_model_too(tmp_path) -> None:
    (tmp_path / "mine.jinja").write_bytes(b"\xff\xfe")
    (said,) = model_errors(replace(model_config(), chat_template=str(tmp_path / "mine.jinja")))
    assert f"model.chat_template={tmp_path / 'mine.jinja'} cannot be read" in said


def test_a_hub_id_without_network_is_one_quick_line(monkeypatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    hub._reachable.cache_clear()
    began = time.monotonic()
    for load in (load_tokenizer, load_config, weights_folder):
        with pytest.raises(ValueError, match=r"of org/name cannot be loaded: the hub cannot be reached"):
            load(local("org/name"))
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("num_attention_heads=3", "not a multiple of the number of attention heads (3)"),
        ("num_key_value_heads=3", "model.tiny.num_key_value_heads=3 must divide num_attention_heads=4"),
        ("num_key_value_heads=0", "must divide num_attention_heads=4"),
        ("hidden_size=many", "'hidden_size' expected int, got str"),
        ("hidden_size=-4", "cannot be built so"),
        ("+hidden_act=banana", "'banana'"),
        ("+vocab_size=9", "keys that its tokenizer decides: ['vocab_size']"),
    ],
)
def test_a_tiny_model_that_cannot_be_built_is_one_sentence(override: str, words: str) -> None:
    plus = "+" * override.startswith("+")
    (said,) = config_errors(compose_run([f"{plus}model.tiny.{override.removeprefix('+')}"]))
    assert said.startswith("model.tiny")
    assert words in said
    assert "\n" not in said
