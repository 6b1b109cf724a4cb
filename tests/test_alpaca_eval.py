"""AlpacaEval: the judge's question, its reading, the file formats both ways, and answers that talk to the judge."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from evaluation_fixtures import (
    INSTRUCTIONS,
    alpaca_setup,
    baseline_rows,
    chat,
    chat_server,
    fair_judge,
    http_judge,
    result_folder,
)
from lab.answers.prompts import Sample
from lab.benchmarks.alpaca_eval import TEMPLATE, AlpacaEval, read_difficulties, switched
from lab.evaluation.evaluate import evaluate
from lab.evaluation.settings import compose_evaluation
from lab.judging.judges import JudgeRequest
from lab.serving.endpoint import EndpointError
from lab.serving.reply import Reply
from sgdpo import hub
from sgdpo.console import is_advice
from sgdpo.store import hash_text, read_jsonl


@pytest.fixture
def setup(tmp_path, monkeypatch):
    """Return a run, the files of a small benchmark and the overrides that name them."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test-123456")
    return alpaca_setup(tmp_path)


def test_the_judges_prompt_is_the_published_one():
    """SHA-256 of alpaca_eval_clf.txt in alpaca-eval 0.6.6: every result carries its first 16 digits."""
    assert hash_text(TEMPLATE.read_text("utf-8")) == "784227e6dc2832fc"


def asked(tmp_path, instruction: str, theirs: str, ours: str, seed: int = 0) -> JudgeRequest:
    """Return the question of one duel."""
    (tmp_path / "one.json").write_text(json.dumps([{"instruction": instruction, "output": theirs}]))
    benchmark = AlpacaEval(baseline=str(tmp_path / "one.json"), order_seed=seed)
    return benchmark.questions([Sample(benchmark.prompts()[0].prompt_id, ours, None, False)])[0]


def test_the_question_shows_both_answers_in_the_drawn_order(tmp_path):
    seeds = {switched("Why?", seed): seed for seed in range(9)}
    messages = asked(tmp_path, "Why?", "theirs", "ours", seeds[False]).messages
    assert [message["role"] for message in messages] == ["system", "user"]
    text = messages[1]["content"]
    assert '"instruction": """Why?"""' in text
    assert text.index('"m",\n        "output": """theirs"""') < text.index(
        '"M",\n        "output": """ours"""'
    )
    other = asked(tmp_path, "Why?", "theirs", "ours", seeds[True])
    assert '"m",\n        "output": """ours"""' in other.messages[1]["content"]


def test_the_order_is_a_matter_of_instruction_and_seed():
    orders = [[switched(text, seed) for text in INSTRUCTIONS] for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]
    many = [switched(f"instruction {n}", 0) for n in range(1000)]
    assert 450 < sum(many) < 550


@pytest.mark.parametrize(
    ("top", "was_switched", "expected"),
    [
        ((("m", math.log(0.6)), ("M", math.log(0.2)), ("x", -3.0)), False, 1.25),
        ((("m", math.log(0.6)), ("M", math.log(0.2)), ("x", -3.0)), True, 1.75),
        ((("M", -0.1), ("Both", -5.0)), False, 2.0),
        ((("Both", -0.1), (" m", -5.0)), False, None),
    ],
)
def test_a_preference_is_the_share_of_the_labels_probabilities(top, was_switched, expected):
    """0.6 and 0.2: the first label has 0.75 of both, so 2 - 0.75 if the baseline was first, else 1 + 0.75."""
    found = AlpacaEval(baseline="").read(JudgeRequest(facts={"switched": was_switched}), Reply("m", top))
    assert found == (None if expected is None else pytest.approx(expected - 1))


def test_without_weights_the_text_decides():
    benchmark = AlpacaEval(baseline="", weighted=False)
    shown = {switched: JudgeRequest(facts={"switched": switched}) for switched in (False, True)}
    assert benchmark.read(shown[False], Reply(" M\n")) == 1.0
    assert benchmark.read(shown[True], Reply("m")) == 1.0
    assert benchmark.read(shown[False], Reply("neither")) is None
    assert AlpacaEval(baseline="").read(shown[True], Reply("m")) is None, "a weight was asked for"


def test_a_run_is_evaluated_over_http_and_a_second_time_for_nothing(setup):
    """Ours is longer on the odd rows (won with 0.9) and equal on the even ones (a tie, not asked): 70 %."""
    run, words = setup
    with chat_server(fair_judge) as server:
        config = compose_evaluation([*words, *http_judge(server)])
        result = evaluate(config)[str(run)]
        assert len(server.requests) == 10
        again = evaluate(config)[str(run)]
        assert len(server.requests) == 10
    assert result["win_rate"] == pytest.approx(70.0)
    assert (result["n"], result["unparsable"], result["lc_form"]) == (20, 0, "plain")
    assert result["cost"]["requests"] == 10
    assert again["cost"]["requests"] == 0
    assert {**again, "cost": None} == {**result, "cost": None}
    folder = result_folder(run, result)
    record = json.loads((run / "record.json").read_text())
    assert list(record["eval"]) == [folder.name]
    assert record["eval"][folder.name]["win_rate"] == result["win_rate"]
    assert result["discrete_win_rate"] == pytest.approx(75.0)
    judgments = read_jsonl(folder / "judgments.jsonl")
    assert [round(row["preference"], 6) for row in judgments] == [0.5, 0.9] * 10
    assert record["eval"][folder.name]["samples"] == f"eval/{folder.name}/samples.jsonl"


def test_the_key_is_in_no_file_no_record_and_no_output(setup, tmp_path, caplog, capsys):
    """A judge that echoes the key, then one that refuses it: nothing under the outputs and nothing said holds it."""
    run, words = setup

    def echo(request, number):
        return {
            **fair_judge(request, number),
            "note": "sk-test-123456",
            "system_fingerprint": "sk-test-123456",
        }

    with chat_server(echo) as server:
        assert server.base_url in str(evaluate(compose_evaluation([*words, *http_judge(server)]))[str(run)])
        server.reply = lambda request, n: (401, {"error": {"message": "Incorrect key sk-test-123456"}}, {})
        with pytest.raises(EndpointError) as caught:
            evaluate(compose_evaluation([*words, *http_judge(server, model="m2", concurrency=2)]))
    said = [str(caught.value), caplog.text, *capsys.readouterr()]
    files = [file.read_bytes().decode(errors="replace") for file in tmp_path.rglob("*") if file.is_file()]
    assert len(files) > 10
    assert not [text for text in [*said, *files] if "sk-test-123456" in text]


def test_annotations_move_out_and_in_again(setup):
    """judge=cached on the annotations that judge=openai wrote gives the same numbers without a server."""
    run, words = setup
    with chat_server(fair_judge) as server:
        first = evaluate(compose_evaluation([*words, *http_judge(server)]))[str(run)]
    file = result_folder(run, first) / "annotations.json"
    second = evaluate(compose_evaluation([*words, "judge=cached", f"judge.file='{file}'"]))[str(run)]
    for key in ("win_rate", "win_rate_se", "lc_win_rate", "lc_win_rate_se", "characters_mean", "n"):
        assert second[key] == pytest.approx(first[key]), key


def test_annotations_of_other_answers_are_refused(setup, tmp_path):
    _, words = setup
    rows = [
        {"instruction": row["instruction"], "output_1": row["output"], "output_2": "other", "preference": 1.2}
        for row in baseline_rows()
    ]
    (tmp_path / "annotations.json").write_text(json.dumps(rows))
    config = compose_evaluation([*words, "judge=cached", f"judge.file='{tmp_path / 'annotations.json'}'"])
    with pytest.raises(ValueError, match=r"judges other answers for 20 of 20 prompts"):
        evaluate(config)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda rows: rows[:-2], "does not answer 2 of 20"),
        (lambda rows: [*rows, rows[0]], "1 instructions come twice"),
        (lambda rows: [{**rows[0], "output": None}, *rows[1:]], r"row 0: \['output'\] must be strings"),
        (lambda rows: [], "at least one row"),
        (lambda rows: {"a": 1}, "must hold a JSON list"),
    ],
    ids=["missing", "double", "null", "empty", "no list"],
)
def test_wrong_rows_are_named(setup, tmp_path, change, words):
    _, overrides = setup
    rows = json.loads((tmp_path / "ours.json").read_text())
    (tmp_path / "ours.json").write_text(json.dumps(change(rows)))
    with chat_server(fair_judge) as server, pytest.raises(ValueError, match=words):
        evaluate(compose_evaluation([*overrides, *http_judge(server)]))
    assert not server.requests


def test_raw_numbers_of_an_annotation_file_are_alpaca_evals(tmp_path):
    """Preferences 1, 2, 1.25, 0 (an old draw), None: (0 + 1 + 0.25 + 0.5) / 4 = 43.75; one of 21 is unparsable.

    Discrete: 1.4375 is lost, so 2 wins and draws count 1.5 of 20.
    """
    values = [1.0, 2.0, 1.25, 0, None] + [1.4375] * 16
    file = annotations(tmp_path / "annotations.json", values)
    benchmark = AlpacaEval(baseline="")
    result = benchmark.summarise(benchmark.published(file))
    assert result["win_rate"] == pytest.approx(43.75)
    assert result["discrete_win_rate"] == pytest.approx(100 * 1.5 / 20)
    assert result["unparsable"] == 1


def annotations(file: Path, values: list, model: str = "ours") -> Path:
    rows = [
        {"instruction": f"i{n}", "output_1": "a", "output_2": "ab", "preference": value, "generator_2": model}
        for n, value in enumerate(values)
    ]
    file.write_text(json.dumps(rows))
    return file


def test_difficulties_are_matched_by_instruction_whatever_the_order(tmp_path):
    """The published file numbers the instructions; a shuffled or shortened baseline keeps each its difficulty."""
    names = [hash_text(f"i{n}") for n in range(5)]
    (tmp_path / "difficulty.csv").write_text(
        ",instruction_difficulty\n" + "".join(f"{n},{n / 10}\n" for n in range(5))
    )
    wanted = [names[3], names[0], names[4]]
    assert read_difficulties(str(tmp_path / "difficulty.csv"), names, wanted) == [0.3, 0.0, 0.4]
    (tmp_path / "named.csv").write_text("instruction,instruction_difficulty\ni4,1.5\ni3,2.5\n")
    assert read_difficulties(str(tmp_path / "named.csv"), [], [names[3], names[4]]) == [2.5, 1.5]
    with pytest.raises(ValueError, match="no difficulty for 1 of 2 instructions"):
        read_difficulties(str(tmp_path / "difficulty.csv"), names, [names[0], hash_text("another")])


HEADS = {
    "difficulties": ",instruction_difficulty",
    "gamed": "preference,std_delta_len,instruction_difficulty,not_gamed_baseline",
}


@pytest.mark.parametrize(
    ("key", "content", "message"),
    [
        *[("difficulties", f"{HEADS['difficulties']}\n{row}\n", "no difficulty for 20 of 20 instructions")
          for row in ("0,", "0,nan", "0,easy", "0,inf", "first,0.5")],
        *[("gamed", f"{HEADS['gamed']}\n0.5,0.1,0.2,0\n{row}\n", "line 3: .* must be numbers")
          for row in (",0.1,0.2,0", "nan,0.1,0.2,0", "won,0.1,0.2,0", "1.5,0.1,0.2,0", "0.5,inf,0.2,0", "0.5,0.1,,0")],
        *[(key, content, r"wrong\.csv cannot be read as a CSV file")
          for key in HEADS for content in ("", b"\xff\xfe\x00")],
    ],
)  # fmt: skip
def test_files_of_the_length_control_that_hold_no_numbers_are_refused_before_anybody_answers(
    tmp_path, key, content, message
):
    files = {"baseline": tmp_path / "baseline.json", **{name: tmp_path / f"{name}.csv" for name in HEADS}}
    files["baseline"].write_text(json.dumps(baseline_rows()))
    files["difficulties"].write_text(f"{HEADS['difficulties']}\n" + "".join(f"{n},0.1\n" for n in range(20)))
    files["gamed"].write_text(f"{HEADS['gamed']}\n0.5,0.1,0.2,False\n")
    AlpacaEval(**{name: str(file) for name, file in files.items()}).prompts()
    files[key] = tmp_path / "wrong.csv"
    files[key].write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=message):
        AlpacaEval(**{name: str(file) for name, file in files.items()}).prompts()


def test_an_address_that_the_hub_cannot_have_is_advice(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    hub._reachable.cache_clear()
    for address in ("hub:a//x.json", "hub:a/b/x.json"):
        with pytest.raises(ValueError, match=f"{address} cannot be loaded") as caught:
            AlpacaEval(baseline=address).prompts()
        assert is_advice(caught.value)


def test_a_shuffled_baseline_moves_no_length_controlled_rate(setup, tmp_path):
    """Twenty prompts with their difficulties, then the same in another order: the same number to the last digits."""
    _, words = setup
    rows = "".join(f"{n},{math.sin(n):.3f}\n" for n in range(20))
    (tmp_path / "difficulty.csv").write_text(",instruction_difficulty\n" + rows)
    words = [word for word in words if not word.startswith("benchmark.difficulties")]
    (tmp_path / "official.json").write_text(json.dumps(baseline_rows()))
    words += [f"benchmark.{key}='{tmp_path / file}'" for key, file in
              {"difficulties": "difficulty.csv", "numbering": "official.json"}.items()]  # fmt: skip
    rates = []
    for step in (1, 7):
        shuffled = [baseline_rows()[n * step % 20] for n in range(20)]
        (tmp_path / "baseline.json").write_text(json.dumps(shuffled))
        with chat_server(fair_judge) as server:
            rates.append(next(iter(evaluate(compose_evaluation([*words, *http_judge(server)])).values())))
    assert rates[0]["lc_win_rate"] == pytest.approx(rates[1]["lc_win_rate"], abs=0.05)


def test_more_than_five_per_cent_without_a_verdict_are_refused_and_kept(setup, tmp_path):
    run, words = setup
    with (
        chat_server(lambda request, n: chat("Both", top={"Both": -0.1})) as server,
        pytest.raises(ValueError, match="10 of 20 judgments name no verdict"),
    ):
        evaluate(compose_evaluation([*words, *http_judge(server)]))
    kept = read_jsonl(next((tmp_path / "outputs/cache/served").glob("*.jsonl")))
    assert [row["event"] for row in kept].count("answer") == 10
    (written,) = run.glob("eval/*/judgments.jsonl")
    assert len(read_jsonl(written)) == 20


def test_a_server_without_log_probs_is_named_not_averaged(setup):
    run, words = setup
    with (
        chat_server(lambda request, n: chat("m")) as server,
        pytest.raises(EndpointError, match="without log-probs"),
    ):
        evaluate(compose_evaluation([*words, *http_judge(server)]))
    assert json.loads((run / "record.json").read_text())["eval"] == {}


def test_a_duplicate_instruction_in_the_baseline_is_refused(setup, tmp_path):
    _, words = setup
    (tmp_path / "baseline.json").write_text(json.dumps([*baseline_rows(), baseline_rows()[3]]))
    with chat_server(fair_judge) as server, pytest.raises(ValueError, match=r"come twice.*Write 3 words"):
        evaluate(compose_evaluation([*words, *http_judge(server)]))
