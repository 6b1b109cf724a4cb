"""Nothing that was paid for is lost or paid for twice: faults x what asks, kills, processes, budgets."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from functools import partial
from pathlib import Path

import pytest

from evaluation_fixtures import (
    KEY,
    Cut,
    Drip,
    chat,
    chat_server,
    http_generator_at,
    http_judge_at,
    slow,
)
from lab.answers.generate import generate
from lab.answers.prompts import Prompt, Sampling
from lab.judging.judges import JudgeRequest, ask_all
from lab.serving.endpoint import EndpointError
from lab.serving.ledger import Budget, BudgetError, Ledger
from lab.serving.reply import Tokens
from sgdpo.store import DamagedError

TESTS = Path(__file__).parent
COUNT, BAD = 20, 7  # of 20 replies one may be unusable
GOOD = {"m": -0.1, "M": -2.5}


@pytest.fixture(autouse=True)
def _key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


def literal(value: str) -> bytes:
    """Return an answer whose first log-prob is this text, as no JSON library would write it."""
    return json.dumps(chat("m", top={"m": 0.125})).replace("0.125", value).encode()


def changed(**changes) -> dict:
    answer = chat("m", top=GOOD)
    answer["choices"][0].update(changes)
    return answer


def used(**usage) -> dict:
    return {**chat("m", top=GOOD), "usage": usage}


# What the server answers to one question, always: whether it can be used, is kept as unusable, refused at no cost,
# or stops the command; and if it stops, whether each try may have been billed.
USABLE, UNUSABLE, REFUSED, STOPS, MAYBE_BILLED = "usable", "unusable", "refused", "stops", "maybe billed"
FAULTS = {
    "500": ((500, {"error": "oops"}, {}), STOPS),
    "503": ((503, b"busy", {}), STOPS),
    "429": ((429, {"error": {"message": "slow down"}}, {"Retry-After": "0"}), STOPS),
    "429, retry-after nonsense": ((429, b"", {"Retry-After": "nan"}), STOPS),
    "502 of a gateway": ((502, b"<html>", {}), MAYBE_BILLED),
    "504 of a gateway": ((504, b"", {}), MAYBE_BILLED),
    "cut off": (Cut(), MAYBE_BILLED),
    "hangs": ("hang", MAYBE_BILLED),
    "drips": (Drip(), MAYBE_BILLED),
    "HTML": (b"<html><body>log in</body></html>", MAYBE_BILLED),
    "truncated JSON": (json.dumps(chat("m", top=GOOD)).encode()[:-40], MAYBE_BILLED),
    "no UTF-8": (b"\xff\xfe\x00", MAYBE_BILLED),
    "a number of 5,000 digits": (b'{"choices": ' + b"9" * 5000 + b"}", MAYBE_BILLED),
    "nested deeply": (b"[" * 100_000, MAYBE_BILLED),
    "a list": ([], MAYBE_BILLED),
    "empty choices": ({"choices": []}, MAYBE_BILLED),
    "choices of null": ({"choices": [None]}, MAYBE_BILLED),
    "choices as an object": ({"choices": {"0": {}}}, MAYBE_BILLED),
    "message as text": (changed(message="m"), MAYBE_BILLED),
    "wrong encoding": ((200, b"m", {"Content-Encoding": "gzip"}), MAYBE_BILLED),
    "redirect": ((307, b"", {"Location": "https://elsewhere.invalid/v1/chat/completions"}), STOPS),
    "unknown model": ((404, {"error": {"message": "no such model"}}, {}), STOPS),
    "wrong key": ((401, {"error": {"message": f"bad key {KEY}"}}, {}), STOPS),
    "no money": ((402, {"error": {"message": "pay first"}}, {}), STOPS),
    "refused by a filter": ((400, {"error": {"code": "content_filter", "message": "no"}}, {}), REFUSED),
    "too long": ((413, b"", {}), REFUSED),
    "content filter": (changed(finish_reason="content_filter", logprobs=None), UNUSABLE),
    "no log-probs": (chat("m"), UNUSABLE),
    "no top log-probs": (chat("m", top={}), UNUSABLE),
    "NaN": (literal("NaN"), UNUSABLE),
    "Infinity": (literal("Infinity"), UNUSABLE),
    "-Infinity": (literal("-Infinity"), UNUSABLE),
    "a log-prob above 0": (literal("0.7"), UNUSABLE),
    "a log-prob that no float holds": (literal("-1" + "0" * 400), UNUSABLE),
    "log-prob as text": (literal('"-0.1"'), UNUSABLE),
    "log-prob as list": (literal("[-0.1]"), UNUSABLE),
    "log-prob as object": (literal('{"value": -0.1}'), UNUSABLE),
    "log-prob of null": (literal("null"), UNUSABLE),
    "log-probs as text": (changed(logprobs={"content": "m"}), UNUSABLE),
    "log-probs as number": (changed(logprobs=3), UNUSABLE),
    "content as list": (changed(message={"content": [{"type": "text", "text": "m"}]}), UNUSABLE),
    "content as number": (changed(message={"content": 3.5}), UNUSABLE),
    "usage as text": (used(prompt_tokens="10", completion_tokens="1"), USABLE),
    "usage as list": (used(prompt_tokens=[10], completion_tokens={}), USABLE),
    "usage negative": (used(prompt_tokens=-5, completion_tokens=True), USABLE),
    "no usage": ({key: value for key, value in chat("m", top=GOOD).items() if key != "usage"}, USABLE),
    "finish as list": (changed(finish_reason=[]), USABLE),
    "another model": ({**chat("m", top=GOOD), "model": "judge-2024-08-06"}, USABLE),
}


def faulty(answer):
    def reply(request, number):
        if request["messages"][0]["content"] != f"question {BAD}":
            return chat("m", top=GOOD)
        return slow(1.5, chat("m", top=GOOD)) if answer == "hang" else answer

    return reply


def counted(server) -> Counter:
    """Return how often each question was asked."""
    return Counter(request["messages"][0]["content"] for request in server.requests)


def ledger_rows(cache: Path) -> list[dict]:
    (file,) = (cache / "served").glob("*.jsonl")
    return [json.loads(line, parse_constant=pytest.fail) for line in file.read_text().splitlines()]


def run_judge(server, cache: Path, **settings):
    judge = http_judge_at(server, cache, **settings)
    asked = [
        JudgeRequest(({"role": "user", "content": f"question {n}"},), 5, 0.0, top_logprobs=5)
        for n in range(COUNT)
    ]
    return judge, lambda: [reply.problem for reply in ask_all(judge, asked)]


def run_generator(server, cache: Path, **settings):
    generator = http_generator_at(server, cache, **settings)
    prompts = [Prompt.user(f"p{n}", f"question {n}") for n in range(COUNT)]
    sampling = Sampling(max_new_tokens=5)
    return generator, lambda: [sample.problem for sample in generate(generator, prompts, sampling, cache)]


@pytest.mark.parametrize("asking", [run_judge, run_generator], ids=["judge", "generator"])
@pytest.mark.parametrize("fault", FAULTS)
def test_one_faulty_answer_costs_no_other_and_nothing_is_paid_for_twice(tmp_path, asking, fault):
    """Asked by two commands in turn, and by a third once the server is well."""
    answer, kind = FAULTS[fault]
    if asking is run_generator and ("log-prob" in fault or fault in ("NaN", "Infinity", "-Infinity")):
        kind = USABLE  # a generator asks for none
    settings = {"retries": 1, "timeout": 1.0 if answer == "hang" or isinstance(answer, Drip) else 5.0}
    bad = f"question {BAD}"
    with chat_server(faulty(answer)) as server:
        for _ in range(2):
            _, run = asking(server, tmp_path, **settings)
            if kind in (STOPS, MAYBE_BILLED):
                with pytest.raises(EndpointError, match="are kept; the same command goes on from there"):
                    run()
            else:
                problems = run()
                assert [n for n, problem in enumerate(problems) if problem] == [BAD] * (kind != USABLE)
        tries = counted(server)[bad]
        assert tries == {USABLE: 1, UNUSABLE: 1, REFUSED: 2}.get(kind, tries)
        server.reply = faulty(chat("m", top=GOOD))
        _, run = asking(server, tmp_path, **settings)
        problems = run()
        assert problems[BAD:] == [""] * (COUNT - BAD) or kind == UNUSABLE
        paid = counted(server)
    assert len(paid) == COUNT
    assert {question for question, times in paid.items() if times > 1} <= {bad}
    rows = ledger_rows(tmp_path)
    events = Counter(row["event"] for row in rows)
    assert events["sent"] == sum(paid.values())
    assert events["lost"] == (tries if kind == MAYBE_BILLED else 0)
    assert not [row for row in rows if KEY in json.dumps(row)]


def test_unusable_answers_are_paid_for_again_only_if_asked_to(tmp_path):
    with chat_server(faulty(chat("m"))) as server:
        run_judge(server, tmp_path)[1]()
        server.reply = faulty(chat("m", top=GOOD))
        assert run_judge(server, tmp_path)[1]()[BAD]
        assert not any(run_judge(server, tmp_path, unusable="again")[1]())
        assert not any(run_judge(server, tmp_path)[1]())
    assert counted(server) == Counter({f"question {n}": 1 + (n == BAD) for n in range(COUNT)})


def test_one_unusable_answer_stops_if_asked_to(tmp_path):
    with chat_server(faulty(chat("m"))) as server:  # noqa: SIM117
        with pytest.raises(EndpointError, match="1 of 20 judgments are unusable, unusable=error allows none"):
            run_judge(server, tmp_path, unusable="error")[1]()


def test_nothing_reaches_the_host_that_a_server_sends_on_to(tmp_path):
    with chat_server(lambda request, n: chat("m")) as other:
        sent_on = (307, b"", {"Location": f"{other.base_url}/chat/completions"})
        with chat_server(lambda request, n: sent_on) as server:
            _, run = run_judge(server, tmp_path)
            host = other.base_url.split("/")[2]
            with pytest.raises(EndpointError, match=rf"sends on to {host}; nothing was sent there"):
                run()
        assert not other.requests


@pytest.mark.parametrize("asking", [run_judge, run_generator], ids=["judge", "generator"])
def test_a_group_does_not_wait_for_its_slowest_member(tmp_path, asking):
    """Two at a time; the first answer comes only once 15 questions have been asked."""
    enough = threading.Event()

    def reply(request, number):
        if number >= 14:
            enough.set()
        assert number or enough.wait(20), "nobody asked on"
        return chat("m", top=GOOD)

    with chat_server(reply) as server:
        _, run = asking(server, tmp_path, concurrency=2, timeout=30.0, retries=0)
        assert not any(run())
        assert server.most_under_way == 2


def client(server, cache: Path, count: int, *settings: str) -> subprocess.Popen:
    command = [sys.executable, str(TESTS / "asking_client.py"), server.base_url, str(cache), str(count)]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")]),
    }
    # A suite that runs in the background ignores Ctrl-C, and its children would inherit that.
    return subprocess.Popen(
        [*command, *settings], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip


def ended(process: subprocess.Popen) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_killed_client_is_continued_by_another_process(tmp_path, number):
    """4 are under way at the kill. Ctrl-C waits for them; after a SIGKILL they alone may be asked again."""
    with chat_server(lambda request, n: slow(0.05, chat(request["messages"][0]["content"]))) as server:
        first = client(server, tmp_path, 40, "concurrency=4")
        while len(server.requests) < 12:
            time.sleep(0.005)
        first.send_signal(number)
        assert ended(first)[0] != 0
        before = len(server.requests)
        assert before < 40
        code, out, err = ended(client(server, tmp_path, 40, "concurrency=4"))
        assert code == 0, err
        assert json.loads(out) == [f"question {n}" for n in range(40)]
        paid = counted(server)
        twice = [question for question, times in paid.items() if times > 1]
        keys: dict[str, set[str]] = {}
        for headers, request in zip(server.headers, server.requests, strict=True):
            keys.setdefault(request["messages"][0]["content"], set()).add(headers["idempotency-key"])
    assert len(paid) == 40
    assert max(paid.values()) <= 2
    assert len(twice) <= (0 if number == signal.SIGINT else 4)
    assert all(len(same) == 1 for same in keys.values()), (
        "a gateway could not tell that it is the same request"
    )
    events = Counter(row["event"] for row in ledger_rows(tmp_path))
    # A kill may fall between the ledger's line and the request.
    assert len(twice) <= events["sent"] - events["answer"] <= (0 if number == signal.SIGINT else 4), (
        "what was under way stays counted at its worst case"
    )


def test_ctrl_c_sends_nothing_more_neither_again_nor_what_waits_for_its_turn(tmp_path):
    """Of four under way one is to try again in a minute, and three have their turns in minutes: none was sent."""
    busy = (429, {"error": {"message": "slow down"}}, {"Retry-After": "60"})
    with chat_server(lambda request, n: busy) as server:
        asking = client(server, tmp_path, 20, "concurrency=4", "requests_per_minute=1")
        while not [file for file in tmp_path.glob("served/*.jsonl") if "free" in file.read_text()]:
            assert asking.poll() is None, ended(asking)
            time.sleep(0.005)
        asking.send_signal(signal.SIGINT)
        assert ended(asking)[0] != 0
        assert len(server.requests) == 1
    assert [row["event"] for row in ledger_rows(tmp_path)] == ["sent", "free"]


def test_processes_that_ask_the_same_at_once_pay_once(tmp_path):
    with chat_server(lambda request, n: slow(0.03, chat(f"answer {n}"))) as server:
        clients = [client(server, tmp_path, 30, "concurrency=4") for _ in range(3)]
        results = [ended(process) for process in clients]
        assert [code for code, _, _ in results] == [0, 0, 0], results
        assert len({out for _, out, _ in results}) == 1
        assert counted(server) == Counter({f"question {n}": 1 for n in range(30)})


def test_a_budget_holds_over_resumes_and_processes(tmp_path):
    """Each question costs 11 dollars, at worst 31 (10 bytes + 16 + 5 tokens); every third answer is cut off.

    Four commands in a row, then two at once, with a budget of 200 dollars: the server never bills more, and the
    last command says that all was spent.
    """
    billed = []

    def reply(request, number):
        billed.append(11)
        return Cut() if number % 3 == 2 else slow(0.01, chat("fine"))

    dear = {
        "price_prompt": 1e6,
        "price_completion": 1e6,
        "budget_dollars": 200,
        "retries": 0,
        "concurrency": 1,
    }
    questions = [JudgeRequest(({"role": "user", "content": f"question {n}"},), 5, 0.0) for n in range(40)]
    with chat_server(reply) as server:
        for _ in range(4):
            with pytest.raises((EndpointError, BudgetError)):
                ask_all(http_judge_at(server, tmp_path, **dear), questions)
        settings = [f"{key}={value}" for key, value in {**dear, "concurrency": 4}.items()]
        both = [client(server, tmp_path, 40, *settings) for _ in range(2)]
        assert [ended(process)[0] for process in both] == [1, 1]
        assert sum(billed) <= 200
        for _ in range(3):  # answers that were cut off may leave room for one more
            with pytest.raises((EndpointError, BudgetError)) as caught:
                ask_all(http_judge_at(server, tmp_path, **dear), questions)
        asked = len(server.requests)
        assert "could pass budget_dollars=200" in str(caught.value)
        assert str(tmp_path / "served") in str(caught.value), "the ledger is named"
        with pytest.raises(BudgetError):
            ask_all(http_judge_at(server, tmp_path, **dear), questions)
        assert len(server.requests) == asked
    rows = ledger_rows(tmp_path)
    total = sum(row["prompt_tokens"] + row["completion_tokens"] for row in rows)
    lost = sum(row["event"] == "lost" for row in rows)
    answered = sum(row["event"] == "answer" for row in rows)
    assert total == 11 * answered + 31 * lost
    assert 200 - 31 < total <= 200


def test_a_damaged_line_of_the_ledger_is_named_and_can_be_removed(tmp_path):
    with chat_server(lambda request, n: chat("m", top=GOOD)) as server:
        run_judge(server, tmp_path)[1]()
        (file,) = (tmp_path / "served").glob("*.jsonl")
        lines = file.read_text().splitlines(keepends=True)
        for damage in (
            "{\n",
            "[]\n",
            '{"event": "answer"}\n',
            lines[4].replace('"prompt_tokens": ', '"prompt_tokens": "x", "before": '),
            "\0\0\n",
            "3\n",
        ):
            file.write_text("".join([*lines[:4], damage, *lines[5:]]))
            with pytest.raises(
                ValueError, match=rf"{file}, line 5: not a line of this ledger.*remove the line"
            ):
                run_judge(server, tmp_path)[1]()
        file.write_text("".join(lines[:4] + lines[5:]))
        run_judge(server, tmp_path)[1]()
    assert len(server.requests) <= COUNT + 1


@pytest.mark.parametrize("event", ["sent", "answer"])
def test_no_thread_pays_on_beyond_a_damaged_line(event, tmp_path):
    path, budget, bound = tmp_path / "model.jsonl", Budget(), Tokens(30, 1)
    path.touch()
    before = Ledger(path, budget)
    for key in ("a", "b", "c"):
        before.keep(before.reserve(key, bound), "yes", Tokens(10, 1))
    lines = path.read_text().splitlines(keepends=True)
    assert json.loads(lines[2])["event"] == "sent"
    number = 2 if event == "sent" else 3
    path.write_text("".join([*lines[:number], "{\n", *lines[number + 1 :]]))
    damaged = path.read_bytes()
    ledger = Ledger(path, budget)
    for ask in [
        partial(ledger.find, "a"),
        partial(ledger.find, "b"),
        partial(ledger.reserve, "c", bound),
    ] * 2:
        with pytest.raises(DamagedError, match=f"line {number + 1}: not a line of this ledger"):
            ask()
    assert path.read_bytes() == damaged


@pytest.mark.parametrize(
    "budget", [{"budget_tokens": 0}, {"budget_dollars": 0, "price_prompt": 0.1, "price_completion": 0.1}]
)
def test_a_budget_of_nothing_sends_nothing(tmp_path, budget):
    with chat_server(lambda request, n: chat("m", top=GOOD)) as server:
        with pytest.raises(BudgetError, match="0 of 20 judgments are kept"):
            run_judge(server, tmp_path, **budget)[1]()
        assert not server.requests
