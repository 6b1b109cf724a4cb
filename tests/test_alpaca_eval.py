"""AlpacaEval: the judge's question, its reading, the file formats both ways, and answers that talk to the judge."""

from __future__ import annotations

import json
import math

import pytest

from evaluation_fixtures import (
    INSTRUCTIONS,
    alpaca_setup,
    baseline_rows,
    chat,
    chat_server,
    fair_judge,
    http_judge,
)
from lab.benchmarks.alpaca_eval import (
    TEMPLATE,
    Duel,
    judge_request,
    preference,
    summarise_annotations,
    switched,
)
from lab.evaluation.evaluate import evaluate
from lab.evaluation.settings import compose_evaluation
from lab.serving.endpoint import EndpointError
from lab.serving.reply import Reply
from sgdpo.store import hash_text, read_jsonl


@pytest.fixture
def setup(tmp_path, monkeypatch):
    """Return a run, the files of a small benchmark and the overrides that name them."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test-123456")
    return alpaca_setup(tmp_path)


def test_the_judges_prompt_is_the_published_one():
    """SHA-256 of alpaca_eval_clf.txt in alpaca-eval 0.6.6: every result carries its first 16 digits."""
    assert hash_text(TEMPLATE.read_text("utf-8")) == "784227e6dc2832fc"


def test_the_question_shows_both_answers_in_the_drawn_order():
    duel = Duel("Why?", "theirs", "ours", switched=False)
    messages = judge_request(duel, TEMPLATE.read_text("utf-8"))[0].messages
    assert [message["role"] for message in messages] == ["system", "user"]
    text = messages[1]["content"]
    assert '"instruction": """Why?"""' in text
    assert text.index('"m",\n        "output": """theirs"""') < text.index(
        '"M",\n        "output": """ours"""'
    )
    other = judge_request(Duel("Why?", "theirs", "ours", switched=True), TEMPLATE.read_text("utf-8"))[0]
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
    found = preference(Reply("m", top), was_switched)
    assert found == (None if expected is None else pytest.approx(expected))


def test_without_weights_the_text_decides():
    assert preference(Reply(" M\n"), was_switched=False) == 2.0
    assert preference(Reply("m"), was_switched=True) == 2.0
    assert preference(Reply("neither"), was_switched=False) is None


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
    folder = run / "eval" / "alpaca_eval-m1"
    record = json.loads((run / "record.json").read_text())
    assert record["eval"]["alpaca_eval-m1"]["win_rate"] == result["win_rate"]
    judgments = read_jsonl(folder / "judgments.jsonl")
    assert [round(row["preference"], 6) for row in judgments] == [0.5, 0.9] * 10
    assert record["eval"]["alpaca_eval-m1"]["samples"] == "eval/alpaca_eval-m1/samples.jsonl"


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
    file = run / "eval" / "alpaca_eval-m1" / "annotations.json"
    second = evaluate(compose_evaluation([*words, "judge=cached", f"judge.file='{file}'"]))[str(run)]
    for key in ("win_rate", "win_rate_se", "lc_win_rate", "lc_win_rate_se", "characters_mean", "n"):
        assert second[key] == first[key], key


def test_annotations_of_other_answers_are_refused(setup, tmp_path):
    _, words = setup
    rows = [
        {"instruction": row["instruction"], "output_1": row["output"], "output_2": "other", "preference": 1.2}
        for row in baseline_rows()
    ]
    (tmp_path / "annotations.json").write_text(json.dumps(rows))
    config = compose_evaluation([*words, "judge=cached", f"judge.file='{tmp_path / 'annotations.json'}'"])
    with pytest.raises(ValueError, match=r"judges other answers for 20 of 20 instructions"):
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


def test_raw_numbers_of_an_annotation_file_are_alpaca_evals():
    """Preferences 1, 2, 1.25, 0 (an old draw), None: (0 + 1 + 0.25 + 0.5) / 4 = 43.75; one of 21 is unparsable."""
    rows = [{"output_1": "a", "output_2": "ab", "preference": value} for value in [1.0, 2.0, 1.25, 0, None]]
    rows += [{"output_1": "a", "output_2": "ab", "preference": 1.4375}] * 16
    result = summarise_annotations(rows)
    assert result["win_rate"] == pytest.approx(43.75)
    assert result["unparsable"] == 1
    assert result["characters_mean"] == 2


def test_more_than_five_per_cent_without_a_verdict_are_refused_and_kept(setup, tmp_path):
    run, words = setup
    with (
        chat_server(lambda request, n: chat("Both", top={"Both": -0.1})) as server,
        pytest.raises(ValueError, match="10 of 20 judgments name no verdict"),
    ):
        evaluate(compose_evaluation([*words, *http_judge(server)]))
    kept = read_jsonl(next((tmp_path / "outputs/cache/served").glob("*.jsonl")))
    assert [row["event"] for row in kept].count("answer") == 10
    assert len(read_jsonl(run / "eval" / "alpaca_eval-m1" / "judgments.jsonl")) == 20


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
