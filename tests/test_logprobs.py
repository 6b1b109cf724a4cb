"""Per-token log-probs of packed rows equal those of separate plain forwards, in layout after layout."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from packed_rows import make_examples, plain_logprobs, tiny_model
from sgdpo.data.packing import RowCollator, model_inputs, pair_of
from sgdpo.models import attention
from sgdpo.models.logprobs import teach_logprobs

LENGTHS = [(5, 9, 4), (1, 1, 12), (11, 6, 1), (3, 8, 8)]
ARCHITECTURES = pytest.mark.parametrize(
    ("name", "tiny"),
    [
        ("tiny_llama", {}),
        ("tiny_llama", {"tie_word_embeddings": True, "num_key_value_heads": 4}),
        ("tiny_qwen2", {}),
        ("tiny_qwen2", {"tie_word_embeddings": False, "num_key_value_heads": 1}),
    ],
    ids=["llama", "llama tied, no groups", "qwen2 tied", "qwen2 untied, one key head"],
)
LAYOUTS = pytest.mark.parametrize("layout", ["shared_prefix", "separate"])


def packed(model, layout: str, examples) -> list[torch.Tensor]:
    """Return the log-probs of each completion, chosen and rejected in turn, from one packed row."""
    row = RowCollator(layout)(examples)
    pair = pair_of(row, model(**model_inputs(row)))
    return [
        side.logp_BT[index][side.mask_BT[index]]
        for index in range(len(examples))
        for side in (pair.chosen, pair.rejected)
    ]


def separate(model, examples) -> list[torch.Tensor]:
    return [
        plain_logprobs(model, example.prompt_ids, ids)
        for example in examples
        for ids in (example.chosen_ids, example.rejected_ids)
    ]


def weighted_gradients(model, logps: list[torch.Tensor]) -> list[torch.Tensor]:
    """Return the gradient of a sum with different weights for every token."""
    total = sum((logp * torch.linspace(-1, 2, len(logp), dtype=logp.dtype)).sum() for logp in logps)
    return torch.autograd.grad(total, list(model.parameters()))


@LAYOUTS
@ARCHITECTURES
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize("longer", [[], [(70, 60, 90)]], ids=["short", "long"])
def test_packed_rows_equal_separate_forwards(name, tiny, layout, dtype, tolerance, longer) -> None:
    """A span of more than 128 tokens takes the kernel tile by tile, shorter ones are padded into one call."""
    model, examples = tiny_model(name, dtype, **tiny), make_examples(LENGTHS + longer)
    plain = copy.deepcopy(model)
    teach_logprobs(model, 1)
    for found, expected in zip(packed(model, layout, examples), separate(plain, examples), strict=True):
        assert found.dtype == dtype
        assert torch.allclose(found, expected, rtol=0, atol=tolerance)


@ARCHITECTURES
@pytest.mark.parametrize("checkpointing", [False, True], ids=["stored", "recomputed"])
@pytest.mark.parametrize("longer", [[], [(70, 60, 90)]], ids=["short", "long"])
def test_gradients_equal_those_of_separate_forwards(name, tiny, checkpointing, longer) -> None:
    model, examples = tiny_model(name, torch.float64, **tiny), make_examples(LENGTHS + longer)
    plain = copy.deepcopy(model)
    teach_logprobs(model, 1)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    found = weighted_gradients(model, packed(model, "shared_prefix", examples))
    for one, other in zip(found, weighted_gradients(plain, separate(plain, examples)), strict=True):
        # transformers' RMSNorm works in float32 even in a float64 model; with it, so do gradients through it.
        assert (one - other).abs().max() < 1e-6 * other.abs().max()


def test_reentrant_checkpointing_gives_the_same_gradient() -> None:
    model, examples = tiny_model(dtype=torch.float64), make_examples(LENGTHS)
    teach_logprobs(model, 1)
    stored = weighted_gradients(model, packed(model, "shared_prefix", examples))
    model.gradient_checkpointing_enable({"use_reentrant": True})
    model.enable_input_require_grads()
    sum(logp.sum() for logp in packed(model, "shared_prefix", examples)).backward()
    model.zero_grad()
    total = sum(
        (logp * torch.linspace(-1, 2, len(logp), dtype=logp.dtype)).sum()
        for logp in packed(model, "shared_prefix", examples)
    )
    total.backward()
    for parameter, expected in zip(model.parameters(), stored, strict=True):
        assert (parameter.grad - expected).abs().max() < 1e-6 * expected.abs().max()


def test_the_grouping_of_pairs_into_rows_changes_nothing() -> None:
    model, examples = tiny_model(dtype=torch.float64), make_examples(LENGTHS)
    teach_logprobs(model, 1)
    together = packed(model, "shared_prefix", examples)
    alone = [logp for example in examples for logp in packed(model, "shared_prefix", [example])]
    for one, other in zip(together, alone, strict=True):
        assert torch.allclose(one, other, rtol=0, atol=1e-10)


def test_the_rejected_completion_does_not_see_the_chosen_one() -> None:
    model, (example, _) = tiny_model(dtype=torch.float64), make_examples([(4, 6, 5), (1, 1, 1)])
    teach_logprobs(model, 1)
    changed = copy.copy(example)
    object.__setattr__(changed, "chosen_ids", (example.chosen_ids + 1).astype(np.int32))
    assert torch.equal(
        packed(model, "shared_prefix", [example])[1], packed(model, "shared_prefix", [changed])[1]
    )


def test_bf16_autocast_stays_near_float32() -> None:
    model, examples = tiny_model(), make_examples(LENGTHS)
    teach_logprobs(model, 1)
    exact = torch.cat(packed(model, "shared_prefix", examples))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = torch.cat(packed(model, "shared_prefix", examples))
    assert rounded.dtype == torch.float32
    assert 0 < (rounded - exact).abs().mean() < 0.1
    rounded.sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_plain_calls_generation_and_saved_files_are_what_they_were(tmp_path) -> None:
    model = tiny_model()
    plain = copy.deepcopy(model).eval()
    teach_logprobs(model, 1)
    model.eval()
    ids_1N = torch.arange(6, 30)[None]
    assert torch.equal(model(input_ids=ids_1N).logits, plain(input_ids=ids_1N).logits)
    padded = torch.tensor([[0] * 3 + [1] * 21])
    assert torch.equal(
        model(input_ids=ids_1N, attention_mask=padded).logits,
        plain(input_ids=ids_1N, attention_mask=padded).logits,
    )
    options = {"max_new_tokens": 5, "do_sample": False}
    assert torch.equal(model.generate(ids_1N, **options), plain.generate(ids_1N, **options))
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(again(input_ids=ids_1N).logits, plain(input_ids=ids_1N).logits)
    assert "sgdpo" not in (tmp_path / "config.json").read_text()
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]


def test_teaching_twice_changes_only_the_budget() -> None:
    model = tiny_model()
    teach_logprobs(model, 1)
    before = torch.cat(packed(model, "shared_prefix", make_examples(LENGTHS)))
    teach_logprobs(model, 2)
    assert model.lm_head.budget_mb == 2
    assert torch.equal(torch.cat(packed(model, "shared_prefix", make_examples(LENGTHS))), before)


def test_tied_embeddings_stay_tied() -> None:
    model = tiny_model("tiny_qwen2")
    teach_logprobs(model, 1)
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_the_mask_of_a_row_is_what_a_reader_would_draw() -> None:
    """One pair with a prompt of 2, chosen 1, rejected 2; then a sequence of 2 (a row is a query)."""
    drawn = """
        1......
        11.....
        111....
        11.1...
        11.11..
        .....1.
        .....11
    """
    spans = torch.tensor([[2, 3, 2], [0, 2, 0]])
    mask = attention.dense_mask(spans, 7)
    expected = torch.tensor([[mark == "1" for mark in line] for line in drawn.split()])
    assert torch.equal(mask, expected)


def test_the_flex_block_mask_is_the_dense_mask() -> None:
    """FlexAttention cannot run here, but its mask function can: entry by entry it is the mask drawn above."""
    spans = torch.tensor([[50, 130, 70], [0, 90, 0], [1, 3, 200]])
    tokens = int(spans[:, 1:].sum())
    plan = attention.plan_row(spans, tokens, "flex")
    index = torch.arange(tokens)
    made = plan.mask.mask_mod(torch.tensor(0), torch.tensor(0), index[:, None], index[None])
    assert torch.equal(made, attention.dense_mask(spans, tokens))
    blocks = plan.mask.to_dense()[0, 0].bool()
    assert blocks.shape == (4, 4)
    assert not blocks[3, :2].any(), "tokens from 384 on belong to the last pair, which begins at token 290"


def test_every_kernel_gives_the_same_log_probs(monkeypatch) -> None:
    model, examples = tiny_model(dtype=torch.float64), make_examples(LENGTHS)
    teach_logprobs(model, 1)
    found = {}
    for kernel in ("spans", "padded", "dense"):
        monkeypatch.setattr(attention, "kernel_for", lambda span_S3, kernel=kernel: kernel)
        logps = packed(model, "shared_prefix", examples)
        found[kernel] = torch.cat(logps), weighted_gradients(model, logps)
    for kernel in ("spans", "padded"):
        assert torch.allclose(found[kernel][0], found["dense"][0], rtol=0, atol=1e-10)
        for one, other in zip(found[kernel][1], found["dense"][1], strict=True):
            assert (one - other).abs().max() < 1e-6 * other.abs().max()


@pytest.mark.parametrize(("longest", "kernel"), [(128, "padded"), (129, "spans")])
def test_short_spans_are_padded_into_one_call(longest, kernel) -> None:
    assert attention.kernel_for(torch.tensor([[10, 20, 30], [5, 28, longest - 28]])) == kernel
