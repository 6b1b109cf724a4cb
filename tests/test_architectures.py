"""Every architecture of the list against plain forwards of a tiny random model; the general path against both."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from packed_rows import make_examples, plain_logprobs
from sgdpo.config.schema import AdapterConfig, ModelConfig
from sgdpo.data.packing import RowCollator, model_inputs
from sgdpo.models.adapters import WithoutAdapter, fit_adapter
from sgdpo.models.architectures import (
    architecture_errors,
    fast_facts,
    fit_errors,
    known,
    path_words,
    rotation_turn,
)
from sgdpo.models.load import load_config, model_errors
from sgdpo.models.logprobs import teach_logprobs

LENGTHS = [(5, 9, 4), (11, 6, 1), (70, 60, 90)]
SIZES = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 512,
}  # fmt: skip


def tiny(kind: str, **changes: object) -> PreTrainedModel:
    """Return a random model of an architecture, with weights large enough that attention is far from uniform."""
    sizes = {key: value for key, value in SIZES.items() if hasattr(AutoConfig.for_model(kind), key)}
    config = load_config(ModelConfig(name=kind, tiny={"model_type": kind, **sizes, **changes}))
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager").train()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(4)
    return model


def expected_of(model: PreTrainedModel, examples: list) -> torch.Tensor:
    """Return the log-probs of all chosen completions, then of all rejected ones, by plain forwards."""
    sides = ("chosen_ids", "rejected_ids")
    return torch.cat(
        [plain_logprobs(model, e.prompt_ids, getattr(e, side)) for side in sides for e in examples]
    )


def gradient_of(model: PreTrainedModel, logp_L: torch.Tensor) -> list[torch.Tensor]:
    """Return the gradient of a sum with different weights for every token."""
    return torch.autograd.grad((logp_L * torch.linspace(-1, 2, len(logp_L))).sum(), list(model.parameters()))


def check_parity(model: PreTrainedModel, *, fast: bool, layout: str = "shared_prefix") -> PreTrainedModel:
    """Hold a taught model's log-probs and gradients against plain forwards; return the taught model."""
    examples, plain = make_examples(LENGTHS), copy.deepcopy(model)
    expected = expected_of(plain, examples)
    teach_logprobs(model, 1, fast=fast)
    found = model(**model_inputs(RowCollator(layout)(examples)))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    for one, other in zip(gradient_of(model, found), gradient_of(plain, expected), strict=True):
        assert (one - other).abs().max() <= 1e-4 * other.abs().max()
    return model


@pytest.mark.parametrize("kind", known())
def test_every_architecture_of_the_list_equals_plain_forwards(kind: str) -> None:
    facts, config = known()[kind], AutoConfig.for_model(kind)
    capped = dict.fromkeys(facts.unless)
    scales = {key: 0.25 for key in (facts.multiply, facts.divide) if key}
    model = check_parity(tiny(kind, **capped, **scales), fast=True)
    assert fast_facts(model.config) == facts
    if any(getattr(config, key) is not None for key in facts.unless):
        assert fast_facts(config) is None, "with its caps it takes the general path"


@pytest.mark.parametrize("layout", ["shared_prefix", "separate"])
@pytest.mark.parametrize(
    ("kind", "last"),
    [("llama", True), ("qwen2", True), ("gemma2", False), ("phi", None), ("bloom", True), ("gpt_oss", True)],
)
def test_the_general_path_equals_plain_forwards(kind: str, last: bool | None, layout: str) -> None:
    """last: the log-probs come from blocks of the vocabulary; not where logits are capped or the head has a bias."""
    few = {"num_local_experts": 4, "num_experts_per_tok": 2} if kind == "gpt_oss" else {}
    model = check_parity(tiny(kind, **few), fast=False, layout=layout)
    assert getattr(model.get_output_embeddings(), "last", None) is last


@pytest.mark.parametrize(
    ("kind", "sizes"),
    [("xlm", {"emb_dim": 64, "n_layers": 2, "n_heads": 4, "init_std": 0.3}), ("cpmant", {})],
)
def test_a_model_that_looks_ahead_or_minds_padding_is_refused_at_its_first_row(
    kind: str, sizes: dict[str, float]
) -> None:
    """Of neither its config tells."""
    model = tiny(kind, **sizes)
    assert architecture_errors(model.config) == []
    teach_logprobs(model, 1)
    with pytest.raises(
        ValueError, match=f"{kind!r} gives a token another probability .* take another causal"
    ):
        model(**model_inputs(RowCollator("shared_prefix")(make_examples(LENGTHS))))


@pytest.mark.parametrize("kind", ["gemma2", "llama"])
def test_features_are_the_same_on_both_paths(kind: str) -> None:
    """Of capped logits they come from whole logits, else from the head's blocks."""
    model, row = tiny(kind), RowCollator("shared_prefix")(make_examples(LENGTHS))
    plain, twin = copy.deepcopy(model), copy.deepcopy(model)
    teach_logprobs(model, 1, ("entropy", "log_p2"), fast=False)
    _, found = model(**model_inputs(row))
    logits_LV = torch.cat([
        plain(input_ids=torch.from_numpy(ids)[None].long()).logits[0, len(e.prompt_ids) - 1 : -1]
        for side in ("chosen_ids", "rejected_ids") for e in make_examples(LENGTHS)
        for ids in [np.concatenate([e.prompt_ids, getattr(e, side)])]
    ])  # fmt: skip
    expected = torch.distributions.Categorical(logits=logits_LV)
    torch.testing.assert_close(found["entropy"], expected.entropy(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        found["log_p2"], (2 * logits_LV.log_softmax(-1)).logsumexp(-1), rtol=1e-4, atol=1e-4
    )
    if kind == "llama":
        teach_logprobs(twin, 1, ("entropy", "log_p2"))
        torch.testing.assert_close(twin(**model_inputs(row))[1], found, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("window", "packed"), [(160, True), (159, False)])
@pytest.mark.parametrize("kind", ["mistral", "gemma3_text", "ministral"])
def test_a_window_is_packed_while_no_sequence_exceeds_it(kind: str, window: int, packed: bool) -> None:
    """The longest sequence has 160 tokens: a branch of 90 after its prefix of 70."""
    model = check_parity(tiny(kind, sliding_window=window), fast=True)
    assert (model.get_output_embeddings().last is None) is packed
    assert ("longer than its window" in " ".join(path_words(model.config, 160))) is not packed


@pytest.mark.parametrize(("kind", "name"), [("mixtral", "router_aux_loss_coef"), ("jetmoe", "aux_loss_coef")])
def test_a_mixture_trains_with_its_routers_loss(kind: str, name: str) -> None:
    """What transformers adds to its own loss, on the same sequences."""
    model = tiny(kind, num_local_experts=4, **{name: 0.5})
    plain, (example, *_) = copy.deepcopy(model), make_examples([(5, 9, 9)])
    teach_logprobs(model, 1)
    model(**model_inputs(RowCollator("shared_prefix")([example])))
    ids_QT = torch.from_numpy(np.stack([
        np.concatenate([example.prompt_ids, side]) for side in (example.chosen_ids, example.rejected_ids)
    ])).long()  # fmt: skip
    expected = 0.5 * plain(input_ids=ids_QT, output_router_logits=True).aux_loss
    torch.testing.assert_close(model.router_loss, expected)
    assert model.router_loss.requires_grad


def test_a_reference_without_the_adapter_leaves_the_policys_router_loss_in_place() -> None:
    """The trainer reads it after both passes, and its gradient reaches the adapter."""
    taught, row = (
        tiny("mixtral", num_local_experts=4),
        model_inputs(RowCollator("shared_prefix")(make_examples(LENGTHS))),
    )
    teach_logprobs(taught, 1)
    model = fit_adapter(taught, AdapterConfig("lora", 4), 0)
    model(**row)
    before = model.router_loss
    with torch.no_grad():
        WithoutAdapter(model)(**row)
    assert model.router_loss is before
    before.backward()
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())


@pytest.mark.parametrize(
    ("kind", "changes", "words"),
    [
        ("bloom", {}, "'bloom' trains through its own forward"),
        ("gemma2", {}, "'gemma2' trains through its own forward"),
        ("mixtral", {}, "the router's loss is trained with weight 0.001"),
        ("dbrx", {}, "the router's loss is trained with weight 0.01"),
        ("mixtral", {"router_aux_loss_coef": 0.0}, "the router's loss is switched off"),
    ],
)
def test_what_a_user_should_know_is_said(kind: str, changes: dict, words: str) -> None:
    assert words in "; ".join(path_words(AutoConfig.for_model(kind, **changes), 100))
    assert path_words(AutoConfig.for_model("llama"), 100) == []


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("t5", "'t5' has an encoder"),
        ("bart", "'bart' has an encoder"),
        ("bert", "'bert' attends in both directions"),
        ("vit", "'vit' is no causal language model"),
    ],
)
def test_what_is_no_causal_model_is_refused_by_name(kind: str, words: str) -> None:
    assert words in architecture_errors(AutoConfig.for_model(kind))[0]
    assert architecture_errors(AutoConfig.for_model("gpt_neox")) == []


def test_a_models_config_is_refused_before_anything_is_tokenised() -> None:
    config = ModelConfig(name="local", tiny={"model_type": "bert", "hidden_size": 32})
    assert "attends in both directions" in model_errors(config)[0]


def test_a_sequence_that_would_change_the_rotations_of_its_rows_company_is_refused() -> None:
    """longrope's long factors serve a whole row if one sequence of it is longer than the original positions."""
    factors = {"short_factor": [1.0] * 8, "long_factor": [4.0] * 8, "original_max_position_embeddings": 32}
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "factor": 16.0, **factors}
    model = tiny("phi3", rope_parameters=rope, original_max_position_embeddings=32)
    short, other, long = make_examples([(5, 6, 7), (20, 12, 9), (20, 13, 9)])
    teach_logprobs(model, 1)
    alone, beside, changed = (
        model(**model_inputs(RowCollator("shared_prefix")(row)))[:6]
        for row in ([short], [short, other], [short, long])
    )
    torch.testing.assert_close(alone, beside, rtol=0, atol=1e-5)
    assert (alone - changed).abs().max() > 1e-3
    assert fit_errors(model.config, 10, 32) == []
    (error,) = fit_errors(model.config, 10, 33)
    assert "the longest sequence has 33 tokens" in error
    assert "set data.max_length to 32 or less" in error


@pytest.mark.parametrize("kind", sorted(known()))
def test_only_longrope_turns_with_length(kind: str) -> None:
    config = AutoConfig.for_model(kind)
    assert rotation_turn(config) is None
    config.rope_parameters = {
        "full_attention": {"rope_type": "longrope", "original_max_position_embeddings": 64}
    }
    assert rotation_turn(config) == 64
