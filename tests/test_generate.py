"""Generation: a prompt's answer depends on the model, the prompt and the seed, and on nothing else."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

from lab.answers import decode
from lab.answers.decode import gumbel_noise
from lab.answers.generate import Generator, generate
from lab.answers.generators import TransformersGenerator
from lab.answers.prompts import Prompt, Sample, Sampling, prompt_ids, prompt_key
from sgdpo.config.schema import ModelConfig
from sgdpo.data.conversation import stop_ids
from sgdpo.models.load import load_model, load_tokenizer

TINY = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
PROMPTS = [Prompt.user(f"p{n}", "Sort: " + "banana"[: n % 6 + 1] * (n % 3 + 1)) for n in range(24)]


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> ModelConfig:
    """Save a random tiny model whose own generation settings would change the answers, if obeyed."""
    folder = tmp_path_factory.mktemp("model")
    tiny = ModelConfig(name="tiny", tiny=TINY)
    model = load_model(tiny, seed=1)
    with torch.no_grad():
        model.lm_head.weight *= 8
    model.generation_config = GenerationConfig(repetition_penalty=5.0, no_repeat_ngram_size=2)
    model.save_pretrained(folder)
    load_tokenizer(tiny).save_pretrained(folder)
    return ModelConfig(name="tiny", path=str(folder))


class Scripted(Generator):
    """Answer from a list of batches; fail where the script says so; count what was asked."""

    def __init__(self, batch: int = 2, fail_after: int | None = None):
        self.batch, self.fail_after, self.asked = batch, fail_after, []

    def identity(self):
        return {"generator": "scripted"}

    def answers(self, prompts, sampling):
        for start in range(0, len(prompts), self.batch):
            if self.fail_after is not None and start >= self.fail_after:
                raise KeyboardInterrupt
            chunk = prompts[start : start + self.batch]
            self.asked += [prompt.prompt_id for prompt in chunk]
            yield [Sample(p.prompt_id, f"to \u2028 {p.prompt_id}", 3, False) for p in chunk]


def answers(
    model: ModelConfig, sampling: Sampling, cache: Path, batch_tokens: int = 100_000, prompts=PROMPTS
):
    return generate(
        TransformersGenerator(batch_tokens=batch_tokens).of(model, "cpu"), prompts, sampling, cache
    )


@pytest.mark.parametrize("sampling", [Sampling(0.0, max_new_tokens=20), Sampling(0.8, 0.9, 20, seed=3)])
def test_one_by_one_and_batched_answers_are_the_same_tokens(saved, tmp_path, sampling):
    """batch_tokens=1 makes batches of one row, without padding; the other run is one padded batch."""
    single = answers(saved, sampling, tmp_path / "single", batch_tokens=1)
    batched = answers(saved, sampling, tmp_path / "batched")
    assert single == batched
    assert len({sample.text for sample in batched}) > 2


@pytest.mark.parametrize("sampling", [Sampling(0.0, max_new_tokens=20), Sampling(0.8, 0.9, 20, seed=3)])
def test_a_prompt_of_several_answers_is_read_once_and_each_is_as_it_is_alone(
    saved, tmp_path, sampling, monkeypatch
):
    """Noise is drawn for one row at a time, as with a large vocabulary."""
    monkeypatch.setattr(decode, "_CACHED", 1)
    several = [Prompt(f"{p.prompt_id}/{k}", p.messages) for p in PROMPTS[:3] for k in range(4)]
    generator, read = TransformersGenerator(batch_tokens=100_000).of(saved, "cpu"), []
    model = generator._load()
    model.register_forward_pre_hook(
        lambda _, args, given: read.append(given["input_ids"].shape), with_kwargs=True
    )
    together = generate(generator, several, sampling, tmp_path / "together")
    assert [rows for rows, tokens in read if tokens > 1] == [3]
    assert read[1][0] == 12
    assert together == answers(saved, sampling, tmp_path / "alone", batch_tokens=1, prompts=several)
    if sampling.temperature:
        assert len({sample.text for sample in together}) > 6


STATES = {
    "mamba": {"hidden_size": 32, "num_hidden_layers": 2},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
}


@pytest.mark.parametrize("kind", STATES)
def test_models_that_keep_no_rows_of_keys_answer_as_their_plain_forward_says(saved, tmp_path, kind):
    """A state that runs along knows no padding in front, and cannot be cut to the rows that go on."""
    shape = {
        key: value for key, value in TINY.items() if key not in ("model_type", "max_position_embeddings")
    }
    tokenizer = load_tokenizer(saved)
    config = AutoConfig.for_model(kind, **{**shape, **STATES[kind]}, vocab_size=len(tokenizer))
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        model.get_output_embeddings().weight.normal_()
    generator = TransformersGenerator().of(saved, "cpu")
    generator.loaded, sampling = model, Sampling(1.0, 1.0, 8, 3)
    prompts = [PROMPTS[n] for n in (0, 3, 5, 11)]
    found = [sample.text for sample in generate(generator, prompts, sampling, tmp_path)]
    for prompt, text in zip(prompts, found, strict=True):
        ids, new = prompt_ids(tokenizer, prompt), []
        key = torch.tensor([prompt_key(3, prompt.prompt_id)])
        while len(new) < 8 and not set(new[-1:]) & set(stop_ids(tokenizer)):
            with torch.no_grad():
                score = model(input_ids=torch.tensor([ids + new]), use_cache=False).logits[:, -1].double()
            new.append(int((score + gumbel_noise(key, len(new), score.shape[1])).argmax()))
        assert text == tokenizer.decode([token for token in new if token not in stop_ids(tokenizer)],
                                        skip_special_tokens=True)  # fmt: skip


def test_greedy_answers_are_the_argmax_of_plain_forward_passes(saved, tmp_path):
    """The oracle has no cache, no padding and no generation code: one forward pass a token."""
    tokenizer, model = load_tokenizer(saved), load_model(saved, seed=0).eval()
    for sample, prompt in zip(
        answers(saved, Sampling(0.0, max_new_tokens=8), tmp_path), PROMPTS[:4], strict=False
    ):
        ids, new = prompt_ids(tokenizer, prompt), []
        while len(new) < 8 and not (set(new) & set(stop_ids(tokenizer))):
            new.append(int(model(torch.tensor([ids + new])).logits[0, -1].argmax()))
        kept = [token for token in new if token not in stop_ids(tokenizer)]
        assert sample.text == tokenizer.decode(kept, skip_special_tokens=True)
        assert sample.truncated == (len(kept) == 8)


def test_a_prompts_sample_does_not_depend_on_the_other_prompts(saved, tmp_path):
    sampling = Sampling(max_new_tokens=12)
    everyone = {sample.prompt_id: sample for sample in answers(saved, sampling, tmp_path)}
    few = answers(saved, sampling, tmp_path / "another cache", prompts=PROMPTS[7:3:-2])
    assert few == [everyone["p7"], everyone["p5"]]


def test_seeds_give_different_samples_and_one_seed_the_same(saved, tmp_path):
    texts = [
        [s.text for s in answers(saved, Sampling(seed=seed), tmp_path / str(n))]
        for n, seed in enumerate((1, 1, 2))
    ]
    assert texts[0] == texts[1]
    assert sum(a != b for a, b in zip(texts[0], texts[2], strict=True)) > 20


def test_keyed_noise_draws_from_the_softmax():
    """argmax(log p + Gumbel) over 40,000 keys: each share lies within 4 standard errors of p."""
    probability = torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64)
    keys = torch.tensor([prompt_key(0, str(n)) for n in range(40_000)])
    drawn = (probability.log() + gumbel_noise(keys, 3, 4)).argmax(-1)
    for token, p in enumerate(probability.tolist()):
        assert abs((drawn == token).double().mean().item() - p) < 4 * math.sqrt(p * (1 - p) / 40_000)


def test_keyed_noise_is_independent_over_steps_tokens_and_neighbouring_keys():
    noise = torch.stack([gumbel_noise(torch.arange(200), step, 50) for step in range(4)]).reshape(4, -1)
    assert torch.corrcoef(noise).fill_diagonal_(0).abs().max() < 0.04
    assert len(noise.unique()) == noise.numel()
    assert abs(noise.mean().item() - 0.5772) < 0.03  # Euler's constant, the mean of a standard Gumbel


def test_the_nucleus_is_taken_at_the_sampling_temperature(saved, tmp_path):
    """A tiny nucleus holds the most probable token alone, at any temperature: the answers are greedy ones."""
    greedy = answers(saved, Sampling(0.0, max_new_tokens=6), tmp_path)
    nucleus = answers(saved, Sampling(0.7, 1e-6, max_new_tokens=6), tmp_path)
    assert [sample.text for sample in nucleus] == [sample.text for sample in greedy]


def test_prompts_begin_with_one_beginning_of_text_token_and_end_with_the_assistant_header(saved):
    tokenizer = load_tokenizer(saved)
    tokenizer.chat_template = "{{ bos_token }}" + tokenizer.chat_template
    ids = prompt_ids(tokenizer, PROMPTS[0])
    assert ids.count(tokenizer.bos_token_id) == 1
    assert tokenizer.decode(ids).endswith("<|assistant|>")


def test_a_doubled_beginning_of_text_token_is_refused(saved):
    tokenizer = load_tokenizer(saved)
    tokenizer.chat_template = "{{ bos_token }}{{ bos_token }}" + tokenizer.chat_template
    with pytest.raises(AssertionError, match="begins with two '<bos>'"):
        prompt_ids(tokenizer, PROMPTS[0])


def test_answers_stop_at_the_end_of_turn_token_and_at_the_end_of_text_token(saved):
    tokenizer = load_tokenizer(saved)
    assert stop_ids(tokenizer) == [tokenizer.convert_tokens_to_ids("<|end|>")]


def test_truncated_answers_are_counted(saved, tmp_path):
    """One new token: an answer that did not stop at once was cut, whatever its text."""
    samples = answers(saved, Sampling(max_new_tokens=1), tmp_path)
    assert all(sample.truncated == (sample.tokens == 1) for sample in samples)
    assert any(sample.truncated for sample in samples)


def test_a_second_evaluation_loads_no_model(saved, tmp_path, monkeypatch):
    first = answers(saved, Sampling(max_new_tokens=4), tmp_path)
    monkeypatch.setattr("sgdpo.models.load.load_model", lambda *a, **k: pytest.fail("loaded again"))
    assert answers(saved, Sampling(max_new_tokens=4), tmp_path) == first


@pytest.mark.parametrize("change", [{"temperature": 0.5}, {"top_p": 0.5}, {"max_new_tokens": 5}, {"seed": 9}])
def test_every_setting_is_part_of_the_cache_key(tmp_path, change):
    generator = Scripted()
    generate(generator, PROMPTS[:3], Sampling(), tmp_path)
    generate(generator, PROMPTS[:3], Sampling(**change), tmp_path)
    assert generator.asked == ["p0", "p1", "p2"] * 2


def test_other_weights_are_a_miss(saved, tmp_path):
    before = TransformersGenerator().of(saved, "cpu").identity()
    other = load_model(saved, seed=0)
    with torch.no_grad():
        other.lm_head.weight[0, 0] += 1
    other.save_pretrained(tmp_path)
    load_tokenizer(saved).save_pretrained(tmp_path)
    after = TransformersGenerator().of(ModelConfig(name="other", path=str(tmp_path)), "cpu").identity()
    assert {key for key in before if before[key] != after[key]} == {"weights"}


def test_an_interrupted_generation_goes_on_where_it_stopped(tmp_path):
    """Two of three batches are written; a torn line is left behind them; the rest alone is asked for."""
    with pytest.raises(KeyboardInterrupt):
        generate(Scripted(fail_after=4), PROMPTS[:6], Sampling(), tmp_path)
    with cached(tmp_path).open("a") as file:
        file.write('{"prompt_id": "p4", "te')
    again = Scripted()
    samples = generate(again, PROMPTS[:6], Sampling(), tmp_path)
    assert again.asked == ["p4", "p5"]
    assert [sample.text for sample in samples] == [f"to \u2028 p{n}" for n in range(6)]


def cached(folder: Path) -> Path:
    (file,) = (folder / "generations").glob("*.jsonl")
    return file


@pytest.mark.parametrize(
    "damage", ["no JSON\n", "[]\n", '{"key": "x"}\n', '{"key": 3, "sample": []}\n', "\0\n", "\xff"]
)
def test_a_damaged_cache_is_made_anew(tmp_path, damage):
    """The answers are as before; at most the damaged ones are asked for again."""
    before = generate(Scripted(), PROMPTS[:4], Sampling(), tmp_path)
    rows = cached(tmp_path).read_text().splitlines(keepends=True)
    cached(tmp_path).write_text("".join([rows[0], damage, *rows[2:]]), encoding="latin-1")
    again = Scripted()
    assert generate(again, PROMPTS[:4], Sampling(), tmp_path) == before
    assert again.asked
    third = Scripted()
    assert generate(third, PROMPTS[:4], Sampling(), tmp_path) == before
    assert not third.asked


def test_more_prompts_of_the_same_benchmark_ask_for_the_further_ones_alone(tmp_path):
    generator = Scripted()
    few = generate(generator, PROMPTS[:2], Sampling(), tmp_path)
    assert generate(generator, PROMPTS[:3], Sampling(), tmp_path)[:2] == few
    generate(generator, [Prompt.user("p1", "another question"), PROMPTS[2]], Sampling(), tmp_path)
    assert generator.asked == ["p0", "p1", "p2", "p1"]


def test_the_cache_holds_one_json_object_a_line(tmp_path):
    generate(Scripted(), PROMPTS[:3], Sampling(), tmp_path)
    rows = cached(tmp_path).read_text().splitlines()
    assert [json.loads(row)["sample"]["prompt_id"] for row in rows] == ["p0", "p1", "p2"]


@pytest.mark.parametrize(
    ("prompts", "sampling", "words"),
    [
        ([], Sampling(), "no prompt"),
        ([PROMPTS[0], PROMPTS[0]], Sampling(), "'p0' come more than once"),
        ([Prompt.user("x", "  ")], Sampling(), "'x' are empty"),
        (PROMPTS, Sampling(temperature=-1.0), "temperature must be 0"),
        (PROMPTS, Sampling(top_p=0.0), "top_p must lie"),
        (PROMPTS, Sampling(max_new_tokens=0), "max_new_tokens must be"),
    ],
)
def test_bad_prompts_and_settings_are_refused_with_advice(tmp_path, prompts, sampling, words):
    with pytest.raises(ValueError, match=words):
        generate(Scripted(), prompts, sampling, tmp_path)


def test_a_prompt_too_long_is_cut_from_the_left_and_answered_as_in_any_batch(saved, tmp_path):
    """A context of 128 and 40 new tokens leave 88 for the prompt; the cut row and its neighbours stay the same."""
    prompts = [Prompt.user("long", "a" * 200), Prompt.user("fits", "a" * 100), *PROMPTS[:4]]
    settings = Sampling(max_new_tokens=40)
    found = []
    for batch_tokens in (1, 100_000):
        generator = TransformersGenerator(batch_tokens=batch_tokens, long_prompts="cut").of(saved, "cpu")
        found.append(generate(generator, prompts, settings, tmp_path / str(batch_tokens)))
    assert found[0] == found[1]
    assert [sample.prompt_cut for sample in found[0]] == [True, True, False, False, False, False]
    assert found[0][2:] == answers(saved, settings, tmp_path, prompts=PROMPTS[:4])


def test_a_prompt_too_long_for_the_model_is_named(saved, tmp_path):
    generator = TransformersGenerator(long_prompts="error").of(saved, "cpu")
    with pytest.raises(ValueError, match=r"prompt 'long' has \d+ tokens.*Lower max_new_tokens to \d+"):
        generate(generator, [Prompt.user("long", "a" * 90)], Sampling(max_new_tokens=40), tmp_path)
