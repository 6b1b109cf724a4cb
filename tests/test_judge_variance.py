"""A judge against itself: the numbers by hand, over HTTP, and from files of judgments."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import pytest

import judge_variance
from evaluation_fixtures import chat, chat_server, finished_run
from lab.evaluation.variance import asked, measure_all, spread
from lab.report.entries import commit_text
from lab.report.figures import figure1
from sgdpo.console import run_command
from sgdpo.runs.records import view_run
from sgdpo.store import write_jsonl


def test_the_spread_by_hand():
    """0.2, 0.6, 0.9 then 0.4, 0.4, 0.9: differences 0.2, -0.2, 0; one of three changes sides of 0.5.

    Variances within: 0.02, 0.02, 0; mean 0.04 / 3; the interval is 1.96 * sqrt(0.04 / 3 / 3).
    """
    found = spread([[0.2, 0.6, 0.9], [0.4, 0.4, 0.9]], middle=0.5)
    assert found.differences == pytest.approx([0.2, -0.2, 0.0])
    assert found.flips == pytest.approx(1 / 3)
    assert found.interval == pytest.approx(1.959964 * math.sqrt(0.04 / 9))
    assert found.deviation == pytest.approx(math.sqrt(0.08 / 3))
    # Deviations from the means 17/30 each: -11, 1, 10 and -5, -5, 10 thirtieths: 150 / sqrt(222 * 150).
    assert found.correlation == pytest.approx(150 / math.sqrt(222 * 150))
    assert (found.same, found.n, found.repeats) == (pytest.approx(1 / 3), 3, 2)


def test_a_judge_that_agrees_with_itself_has_no_spread():
    found = spread([[1, 5, 9]] * 3, middle=None)
    assert (found.interval, found.deviation, found.correlation, found.flips) == (
        0.0,
        0.0,
        pytest.approx(1.0),
        None,
    )
    assert len(found.differences) == 9, "three repeats make three pairs of judgments for each answer"


def test_the_interval_is_what_repeated_means_show():
    """1,000 judgings of 50 answers with noise 0.3: 95 % of the means lie within the interval of the truth."""
    draws = random.Random(0)
    table = [[draws.gauss(5, 0.3) for _ in range(50)] for _ in range(1000)]
    interval = spread(table[:40], middle=None).interval
    means = [sum(row) / 50 for row in table]
    assert 0.92 < sum(abs(mean - 5) < interval for mean in means) / 1000 < 0.98


@pytest.mark.parametrize("table", [[[1, 2, 3]], [[1], [2]], [[], []]], ids=["once", "one answer", "none"])
def test_a_spread_of_nothing_is_refused(table):
    with pytest.raises(ValueError, match="at least 2"):
        spread(table, middle=None)


def test_unparsable_judgments_are_left_out_and_counted():
    found = spread([[1.0] * 39 + [None], [2.0] * 40], middle=None)
    assert (found.n, found.unparsable) == (39, 1)
    with pytest.raises(ValueError, match="3 of 40 judgments"):
        spread([[1.0] * 37 + [None] * 3, [2.0] * 40], middle=None)


@pytest.fixture
def words(tmp_path, monkeypatch):
    """Return the words of a command: a run, a small AlpacaEval, answers from a file."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test-123456")
    run = finished_run(tmp_path / "outputs" / "exp" / "dpo")
    rows = [{"instruction": f"i{n}", "output": f"base {n}", "generator": "base"} for n in range(10)]
    (tmp_path / "base.json").write_text(json.dumps(rows))
    (tmp_path / "ours.json").write_text(json.dumps([{**row, "output": "ours"} for row in rows]))
    return [
        str(run),
        f"outputs='{tmp_path / 'outputs'}'",
        f"benchmark.baseline='{tmp_path / 'base.json'}'",
        "benchmark.difficulties=null",
        "benchmark.gamed=null",
        "generator=file",
        f"generator.path='{tmp_path / 'ours.json'}'",
        "judge=openai",
        "judge.concurrency=1",
    ]


def test_the_same_answers_are_judged_twice_over_http_and_paid_for_once(words, tmp_path):
    """The first ten judgments give the first label 0.8, the next ten 0.3: every preference changes sides."""

    def reply(request, number):
        p = 0.8 if number < 10 else 0.3
        return chat("m", top={"m": math.log(p), "M": math.log(1 - p)})

    output = tmp_path / "figure1" / "judge_variance.json"
    with chat_server(reply) as server:
        command = [*words, f"judge.base_url={server.base_url}", "judge.model=j", "judge.temperature=0.7"]
        for _ in range(2):
            measure_all(asked(command, ["alpaca_eval"], 2), 2, [], output)
        assert len(server.requests) == 20
    found = json.loads(output.read_text())["alpaca_eval-j"]
    assert [abs(value) for value in found["differences"]] == pytest.approx([0.5] * 10)
    assert found["flips"] == 1.0
    run, picture = view_run(Path(words[0])), figure1([], data=str(output), benchmarks={"alpaca_eval": 1.0})
    commit = commit_text(run["git"])
    whose = f"judge j, temperature 0.7, exp/dpo, seed {run['seed']}, commit {commit}"
    assert picture.facts == [f"alpaca_eval-j: {whose}, 10 pairs of judgments"]
    assert picture.origin == {"commits": [commit]}


def test_the_checker_asked_twice_agrees_with_itself(words, tmp_path):
    """The control of the figure: an exact judge has differences of zero, and a tiny run can show it."""
    output = tmp_path / "judge_variance.json"
    measure_all(asked([*words[:2], "judge=checker"], ["verifiable"], 2), 2, [], output)
    found = json.loads(output.read_text())["verifiable-checker"]
    assert found["differences"] == [0.0] * 6
    assert found["interval"] == 0.0


def test_files_of_judgments_are_compared_and_other_benchmarks_are_kept(tmp_path):
    rows = [{"question_id": n, "turn": 1, "user_prompt": f"u{n}", "score": n + 1} for n in range(4)]
    for name, change in (("a", 0), ("b", 1)):
        text = "".join(json.dumps({**row, "score": row["score"] + change}) + "\n" for row in rows)
        (tmp_path / f"{name}.jsonl").write_text(text)
    output = tmp_path / "judge_variance.json"
    output.write_text(json.dumps({"alpaca_eval-j": {"differences": [0.1]}}))
    files = ["mt_bench", str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")]
    measure_all([], 2, [files], output)
    data = json.loads(output.read_text())
    assert data["mt_bench-files"]["differences"] == [1, 1, 1, 1]
    assert data["mt_bench-files"]["correlation"] == pytest.approx(1.0)
    assert data["alpaca_eval-j"] == {"differences": [0.1]}


def test_files_of_other_answers_are_refused(tmp_path):
    for name in ("a", "b"):
        rows = [{"question_id": n, "turn": 1, "user_prompt": name, "score": 5} for n in range(3)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = ["mt_bench", str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")]
    with pytest.raises(ValueError, match=r"b\.jsonl judges other answers"):
        measure_all([], 2, [files], tmp_path / "out.json")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["outputs/exp/run", "judge=openai", "--files", "mt_bench", "a", "b"],
            "leave outputs/exp/run judge=op",
        ),
        (["--files", "mt_bench", "a", "b", "--files", "mt_bench", "a", "none"], "none: no such file"),
        (["--files", "mt_bench", "a", "b", "--files", "mt_bench", "b", "a"], "names a benchmark twice"),
        (["outputs/exp/run", "--benchmarks", "judge=openai"], "--benchmarks names none"),
    ],
)
def test_nothing_is_passed_over_and_nothing_is_kept_of_a_command_that_cannot_work(
    tmp_path, monkeypatch, capsys, words, message
):
    monkeypatch.chdir(tmp_path)
    for name in "ab":
        write_jsonl(Path(name), [{"question_id": n, "turn": 1, "score": 5 + n} for n in range(3)])
    monkeypatch.setattr("sys.argv", ["judge_variance.py", "--output", "out.json", *words])
    with pytest.raises(SystemExit) as ended:
        run_command(judge_variance.main)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
    assert not Path("out.json").exists()


@pytest.mark.parametrize(
    ("command", "repeats", "message"),
    [
        ([], 2, "name a run whose answers are judged"),
        (["outputs/exp/run"], 1, "--repeats must be 2 or more"),
        (["outputs/nowhere", "judge=openai"], 2, "outputs/nowhere is not a run"),
    ],
)
def test_a_command_that_cannot_work_says_why(command, repeats, message):
    with pytest.raises(ValueError, match=message):
        asked(command, ["mt_bench"], repeats)


def test_a_benchmark_that_cannot_be_judged_is_named_before_the_first_is_paid_for(words):
    with pytest.raises(ValueError, match="judge=openai out") as said:
        asked([words[0], "judge=openai", "judge.budget_dollars=1"], ["constraints", "verifiable"], 2)
    for wrong in (
        "benchmark=constraints is judged",
        "benchmark=verifiable is judged",
        "budget_dollars needs",
    ):
        assert str(said.value).count(wrong) == 1
