"""Every way in which an endpoint goes wrong, against a real HTTP server on loopback."""

from __future__ import annotations

import time
import traceback
from dataclasses import replace
from email.utils import formatdate

import pytest

from evaluation_fixtures import KEY, Cut, chat, chat_server, endpoint_settings, http_judge_at, slow
from lab.judging.judges import JudgeRequest, ask_all
from lab.serving.endpoint import Endpoint, EndpointError, EndpointSettings
from lab.serving.ledger import BudgetError
from lab.serving.reply import Tokens

HELLO = ({"role": "user", "content": "hello"},)


@pytest.fixture(autouse=True)
def _key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


@pytest.fixture
def ask(tmp_path):
    """Return (endpoint, a function that asks it one question) of a server, with a ledger of this test's."""

    def make(server, **changes):
        endpoint = Endpoint(endpoint_settings(server, **changes), tmp_path)
        return endpoint, lambda **kwargs: endpoint.chat(
            HELLO, **{"max_tokens": 5, "temperature": 0.0, **kwargs}
        )

    return make


def requests(count: int) -> list[JudgeRequest]:
    return [JudgeRequest(({"role": "user", "content": f"question {n}"},), 5, 0.0) for n in range(count)]


def test_an_answer_is_read_with_its_usage_and_the_key_is_sent(ask):
    with chat_server(lambda request, n: chat("fine", used=(7, 2), finish="length")) as server:
        endpoint, say = ask(server)
        reply = say(seed=3)
    assert (reply.text, reply.used, reply.finish) == ("fine", Tokens(7, 2), "length")
    assert server.headers[0]["authorization"] == f"Bearer {KEY}"
    assert server.requests[0]["seed"] == 3
    assert endpoint.ledger.report() == {
        "requests": 1,
        "failed": 0,
        "possibly_billed": 0,
        "prompt_tokens": 7,
        "completion_tokens": 2,
        "dollars": 0.0,
    }


@pytest.mark.parametrize(
    "failure",
    [
        (429, {"error": {"message": "slow down"}}, {"Retry-After": "0"}),
        (500, {"error": {"message": "oops"}}, {}),
        (503, b"busy", {}),
        Cut(),
        b"this is no JSON",
        b"{}",
        b"",
        {"choices": []},
        {"object": "chat.completion", "choices": None},
    ],
    ids=["429", "500", "503", "cut off", "no JSON", "empty object", "empty", "no choices", "null choices"],
)
def test_a_passing_failure_is_tried_again(ask, failure):
    with chat_server(lambda request, n: failure if n < 2 else chat("fine")) as server:
        endpoint, say = ask(server)
        assert say().text == "fine"
    assert len(server.requests) == 3
    assert endpoint.ledger.failed == 2


@pytest.mark.parametrize(
    ("failure", "words"),
    [
        ((429, {"error": {"message": "slow down"}}, {"Retry-After": "0"}), "status 429.*slow down"),
        (Cut(), "cut off in the middle"),
        (b"this is no JSON", "not the API's JSON|without choices"),
        (b"", "not the API's JSON|without choices|cut off"),
        ({"choices": []}, "without choices"),
    ],
    ids=["429", "cut off", "no JSON", "empty", "no choices"],
)
def test_a_lasting_failure_is_named_after_the_last_try(ask, failure, words):
    with chat_server(lambda request, n: failure) as server:
        _, say = ask(server, retries=2)
        with pytest.raises(EndpointError, match=f"{server.base_url}.*({words}).*gave up after 3 tries"):
            say()
    assert len(server.requests) == 3


def test_an_endpoint_that_is_down_is_named(tmp_path):
    with chat_server(lambda request, n: chat("fine")) as server:
        settings = endpoint_settings(server, retries=1)
    with pytest.raises(EndpointError, match=r"127\.0\.0\.1.*no connection.*Is the server up"):
        Endpoint(settings, tmp_path).chat(HELLO, max_tokens=5, temperature=0.0)


def test_a_slow_endpoint_times_out_and_what_may_be_billed_is_counted(ask):
    """5 bytes of "hello" + 16 for the turn + 5 new tokens are the worst case of the lost request."""
    with chat_server(
        lambda request, n: slow(0.6, chat("late")) if n == 0 else chat("fine", used=(1, 1))
    ) as server:
        endpoint, say = ask(server, timeout=0.2, retries=1)
        assert say().text == "fine"
    report = endpoint.ledger.report()
    assert report["possibly_billed"] == 1
    assert (report["prompt_tokens"], report["completion_tokens"]) == (21 + 1, 5 + 1)


def test_the_servers_retry_after_is_obeyed(ask):
    failure = (429, {"error": {"message": "slow down"}}, {"Retry-After": "0.3"})
    with chat_server(lambda request, n: failure if n == 0 else chat("fine")) as server:
        _, say = ask(server)
        start = time.monotonic()
        say()
    assert time.monotonic() - start >= 0.3


@pytest.mark.parametrize(
    ("header", "waited"),
    [
        (lambda: "90", 90),
        (lambda: formatdate(time.time() + 90, usegmt=True), 90),
        (lambda: formatdate(time.time() - 90, usegmt=True), 0),
        (lambda: "soon", 0),
    ],
    ids=["seconds", "date", "date that is past", "no time"],
)
def test_a_pause_is_as_long_as_the_server_asks_in_either_form(ask, monkeypatch, header, waited):
    """The wait itself is taken out: what it was asked for is looked at."""
    failure = (429, {"error": {"message": "slow down"}}, {"Retry-After": header()})
    pauses = []
    monkeypatch.setattr("lab.serving.endpoint._wait", pauses.append)
    with chat_server(lambda request, n: failure if n == 0 else chat("fine")) as server:
        assert ask(server)[1]().text == "fine"
    assert max(pauses) == pytest.approx(waited, abs=2)


def test_nobody_waits_for_hours_and_the_server_is_not_asked_again(ask):
    failure = (429, {"error": {"message": "no more today"}}, {"Retry-After": "30000"})
    with chat_server(lambda request, n: failure) as server:
        with pytest.raises(EndpointError, match=r"no more today; it asks for a pause of 30000 s"):
            ask(server)[1]()
        assert len(server.requests) == 1


def test_a_wrong_key_is_refused_at_once_and_appears_nowhere(ask, caplog, capsys):
    def refuse(request, n):
        return 401, {"error": {"message": f"Incorrect API key provided: {KEY}"}}, {}

    with chat_server(refuse) as server:
        _, say = ask(server)
        with pytest.raises(EndpointError, match=r"status 401.*key in OPENAI_API_KEY is wrong") as caught:
            say()
    assert len(server.requests) == 1
    whole = "".join(traceback.format_exception(caught.value))
    seen = [str(caught.value), repr(caught.value), whole, caplog.text, *capsys.readouterr()]
    assert not [text for text in seen if KEY in text]


def test_a_key_that_a_server_echoes_is_cut_out_of_the_reply_and_never_stored(tmp_path):
    with chat_server(lambda request, n: chat(f"your key is {KEY}")) as server:
        judge = http_judge_at(server, tmp_path)
        replies = ask_all(judge, requests(1))
    assert replies[0].text == "your key is ***"
    assert not [file for file in tmp_path.rglob("*") if file.is_file() and KEY in file.read_text()]


def test_a_missing_key_is_an_error_before_anything_is_sent(monkeypatch, tmp_path):
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(EndpointError, match="needs a key: export OPENAI_API_KEY"):
        Endpoint(EndpointSettings("https://judge.invalid/v1", "gpt"), tmp_path)


def test_a_local_endpoint_needs_no_key(ask, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    with chat_server(lambda request, n: chat("fine")) as server:
        assert ask(server)[1]().text == "fine"


def test_an_unknown_model_is_refused_with_advice(ask):
    with chat_server(lambda request, n: (404, {"error": {"message": "no such model"}}, {})) as server:  # noqa: SIM117
        with pytest.raises(EndpointError, match=r"404.*no such model.*Check base_url.*'judge'"):
            ask(server)[1]()
    assert len(server.requests) == 1


@pytest.mark.parametrize("answer", [chat("m"), chat("m", top={})], ids=["ignored", "empty"])
def test_a_server_that_ignores_log_probs_is_a_clear_error(tmp_path, answer):
    with (
        chat_server(lambda request, n: answer) as server,
        pytest.raises(
            EndpointError, match=r"127\.0\.0\.1.*'judge' answered without log-probs.*weighted=false"
        ),
    ):
        ask_all(
            http_judge_at(server, tmp_path), [replace(request, top_logprobs=5) for request in requests(9)]
        )
    assert len(server.requests) <= 8, "what is under way is all that is paid for"


def test_log_probs_of_the_first_token_are_read(ask):
    with chat_server(lambda request, n: chat("m", top={"m": -0.1, "M": -2.5})) as server:
        reply = ask(server)[1](top_logprobs=5)
    assert reply.top_logprobs == (("m", -0.1), ("M", -2.5))
    assert (server.requests[0]["logprobs"], server.requests[0]["top_logprobs"]) == (True, 5)


def test_an_empty_text_is_an_answer_and_is_kept_as_one(ask):
    with chat_server(lambda request, n: chat("")) as server:
        assert ask(server)[1]().text == ""


def test_a_token_budget_stops_before_it_is_passed(tmp_path):
    """A request's worst case is 10 bytes + 16 + 5 = 31 tokens; it then really uses 11. The budget of 60 lets four
    through (33 used + 31 > 60 stops the fourth: after three, 33 + 31 = 64), so exactly three are asked.
    """
    with chat_server(lambda request, n: chat("fine")) as server:
        judge = http_judge_at(server, tmp_path, concurrency=1, budget_tokens=60)
        with pytest.raises(BudgetError, match=r"budget_tokens=60 \(33 used.*3 of 10 judgments are kept"):
            ask_all(judge, requests(10))
    assert len(server.requests) == 3


def test_a_dollar_budget_holds_with_many_requests_at_once(tmp_path):
    """2 dollars a token, and as much as asked for is used: 31 tokens are 62 dollars; a budget of 200 holds 3."""
    with chat_server(lambda request, n: slow(0.02, chat("fine", used=(26, 5)))) as server:
        prices = {"price_prompt": 2e6, "price_completion": 2e6}
        judge = http_judge_at(server, tmp_path, concurrency=8, budget_dollars=200.0, **prices)
        with pytest.raises(BudgetError, match="could pass budget_dollars"):
            ask_all(judge, requests(20))
    assert len(server.requests) == 3
    assert judge.cost()["dollars"] == 186.0


def test_a_budget_in_dollars_without_prices_is_refused():
    assert [error[:33] for error in EndpointSettings("https://x/v1", "m", budget_dollars=1.0).errors()] == [
        "budget_dollars needs price_prompt"
    ]


@pytest.mark.parametrize(
    "url",
    ["", "judge:8000/v1", "https://user:pass@host/v1", "https://host/v1?key=abc", "http://127.0.0.1/v1\n"],
)
def test_an_address_that_is_none_or_holds_a_key_is_refused(url, tmp_path):
    with pytest.raises(EndpointError, match="base_url must"):
        Endpoint(EndpointSettings(url, "m"), tmp_path)


def test_concurrency_is_bounded(tmp_path):
    with chat_server(lambda request, n: slow(0.05, chat("fine"))) as server:
        ask_all(http_judge_at(server, tmp_path, concurrency=3), requests(9))
    assert server.most_under_way == 3


def test_the_rate_limit_spaces_requests(tmp_path):
    """1,200 requests a minute are 50 ms apart: seven requests take at least 300 ms."""
    with chat_server(lambda request, n: chat("fine")) as server:
        judge = http_judge_at(server, tmp_path, requests_per_minute=1200)
        start = time.monotonic()
        ask_all(judge, requests(7))
    assert time.monotonic() - start >= 0.3


def test_judgments_are_paid_for_once_and_an_interrupted_judging_goes_on(tmp_path):
    """The fourth question fails: three are kept. Again: the fourth and later ones alone are asked. Again: none."""
    broken = (400, {"error": {"message": "too long"}}, {})
    with chat_server(
        lambda request, n: broken if "3" in request["messages"][0]["content"] else chat("fine")
    ) as server:
        judge = http_judge_at(server, tmp_path, concurrency=1)
        with pytest.raises(EndpointError, match=r"too long.*3 of 6 judgments are kept; the same command"):
            ask_all(judge, requests(6))
        server.reply = lambda request, n: chat(request["messages"][0]["content"])
        before = len(server.requests)
        replies = ask_all(judge, requests(6))
        asked = [request["messages"][0]["content"] for request in server.requests[before:]]
        assert asked == ["question 3", "question 4", "question 5"]
        assert [reply.text for reply in replies[3:]] == asked
        assert ask_all(judge, requests(6)) == replies
        assert len(server.requests) == before + 3


def test_a_torn_line_in_the_ledger_is_asked_again_and_the_others_are_kept(tmp_path):
    """The killed writer's answer is lost, its worst case (10 + 16 + 5) stays counted: 31 + 3 answers of 11."""
    with chat_server(lambda request, n: chat("fine")) as server:
        ask_all(http_judge_at(server, tmp_path, concurrency=1), requests(3))
        file = next((tmp_path / "served").glob("*.jsonl"))
        file.write_text(file.read_text()[:-20])
        judge = http_judge_at(server, tmp_path, concurrency=1, budget_tokens=2 * 11 + 31 + 31)
        ask_all(judge, requests(3))
        assert [request["messages"][0]["content"][-1] for request in server.requests] == ["0", "1", "2", "2"]
        with pytest.raises(BudgetError, match=rf"{2 * 11 + 31 + 11} used"):
            ask_all(judge, requests(4))


def test_another_judge_model_is_another_judgment(tmp_path):
    with chat_server(lambda request, n: chat(request["model"])) as server:
        texts = [
            ask_all(http_judge_at(server, tmp_path, model=model), requests(1))[0].text
            for model in ("one", "two", "one")
        ]
    assert texts == ["one", "two", "one"]
    assert len(server.requests) == 2


def test_repeats_are_judged_apart(tmp_path):
    """Judge variance asks the same question again; the cache must not answer it, but keep both answers."""
    with chat_server(lambda request, n: chat(f"answer {n}")) as server:
        judge = http_judge_at(server, tmp_path, concurrency=1)
        asked = [replace(requests(1)[0], repeat=n) for n in (0, 1)]
        first = ask_all(judge, asked)
        assert [reply.text for reply in first] == ["answer 0", "answer 1"]
        assert ask_all(judge, asked) == first
    assert len(server.requests) == 2
