"""One OpenAI-compatible chat endpoint: deadlines, retries, rate, budget; the key comes from the environment alone.

An answer that the ledger holds is not asked for again. A new one is written down as it came, before it is read:
a reply that cannot be used (no log-probs, filtered, numbers that are none) stays kept and says why it is none.
The key goes to the host of `base_url` and nowhere else: no redirect is followed, and no error shows it.
"""

import asyncio
import json
import logging
import os
import random
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextvars import ContextVar
from dataclasses import dataclass, replace
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import httpx

from lab.serving.ledger import Budget, BudgetError, Ledger
from lab.serving.reply import Reply, Tokens, read_reply, read_usage, what_is_wrong
from sgdpo.store import hash_json
from sgdpo.values import Range

log = logging.getLogger("sgdpo")
FORMAT = 2
LOOPBACK = ("127.0.0.1", "localhost", "::1")
LONGEST_PAUSE = 60.0
# A server may ask for more, up to this.
LONGEST_ASKED = 3600.0
LARGEST_ANSWER = 32 << 20  # bytes
# The share of replies that may be unusable or name no verdict; with more, the mean of the others would mislead.
MOST_UNUSABLE = 0.05
# Statuses that say no to this one request; it costs nothing, and others may pass.
REFUSALS = (400, 413, 422)
# Statuses that say "not now" before any work was done; other 5xx may come from a gateway behind which work was.
NOT_NOW = (409, 429, 500, 503)
# Of whoever asks in this thread: set once nothing more may be sent.
STOP: ContextVar[threading.Event | None] = ContextVar("stop", default=None)


class EndpointError(ValueError):
    """Say why the endpoint gave no answer, and what to do."""


class RefusedError(EndpointError):
    """Say why the endpoint refuses this one request."""


class StoppedError(Exception):
    """Say that whoever asked wants nothing more sent."""


@dataclass
class EndpointSettings:
    """Hold how an endpoint is asked; the comments are in conf/judge/openai.yaml.

    Units: seconds, requests a minute, dollars, dollars a million tokens.
    """

    base_url: str = ""
    model: str = ""
    key_variable: str = "OPENAI_API_KEY"
    timeout: Annotated[float, Range("(0, 86400]")] = 120.0
    retries: Annotated[int, Range("[0, 100]")] = 6
    backoff: Annotated[float, Range("[0, 60]")] = 1.0
    concurrency: Annotated[int, Range("[1, 1024]")] = 8
    requests_per_minute: Annotated[float, Range("[0, 1e6]")] = 0.0
    budget_dollars: Annotated[float, Range("[0, 1e9]")] | None = None
    budget_tokens: Annotated[int, Range("[0, 1e15]")] | None = None
    price_prompt: Annotated[float, Range("[0, 1e6]")] | None = None
    price_completion: Annotated[float, Range("[0, 1e6]")] | None = None
    unusable: Literal["count", "again", "error"] = "count"

    def errors(self) -> list[str]:
        errors = []
        try:
            address = urlsplit(self.base_url)
            # urlsplit drops line ends without a word.
            spelled = self.base_url.isprintable() and " " not in self.base_url
            known = spelled and address.scheme in ("http", "https") and address.hostname and address.port != 0
        except ValueError:  # a port that is none
            known = False
        if not known:
            errors.append(f"base_url must look like https://host/v1, not {self.base_url!r}")
        elif address.username or address.password or address.query:
            errors.append("base_url must not hold a key or a password; put the key in the environment")
        if not self.model:
            errors.append("set the model that the endpoint is asked for")
        if self.budget_dollars is not None and None in (self.price_prompt, self.price_completion):
            errors.append("budget_dollars needs price_prompt and price_completion (dollars a million tokens)")
        return errors

    def absent(self) -> list[str]:
        """Say so if the key is not in the environment."""
        try:
            _read_key(self)
        except EndpointError as error:
            return [str(error)]
        return []


@dataclass(frozen=True)
class _Outcome:
    """Hold what came of one sending. final: the error that no further try would mend."""

    text: str = ""
    problem: str = ""
    billed: bool = False
    pause: float | None = None
    final: type[EndpointError] | None = None


class Endpoint:
    """Ask a chat endpoint, from any thread; raises EndpointError, RefusedError and BudgetError.

    cache: the folder under which the ledger is kept. identity: what an answer depends on beside the request;
    the address and the model, unless the same model moves between addresses.
    """

    def __init__(self, settings: EndpointSettings, cache: Path, identity: Mapping[str, Any] | None = None):
        if errors := settings.errors():
            raise EndpointError("; ".join(errors))
        self.settings = settings
        self.identity = dict(identity or {"base_url": settings.base_url.rstrip("/"), "model": settings.model})
        self._key = _read_key(settings)
        name = re.sub(r"[^\w.-]+", "-", settings.model)[:60]
        prices = (settings.price_prompt or 0.0, settings.price_completion or 0.0)
        budget = Budget(*prices, settings.budget_tokens, settings.budget_dollars)
        self.ledger = Ledger(cache / "served" / f"{name}-{hash_json(self.identity)}.jsonl", budget)
        self._wire = _Wire({"Authorization": f"Bearer {self._key}"})
        self._lock, self._next = threading.Lock(), 0.0
        self._paid_now: set[str] = set()
        self._models = {settings.model, str(None)}

    def chat(
        self,
        messages: Sequence[Mapping[str, str]],
        *,
        max_tokens: int,
        temperature: float,
        top_p: float = 1.0,
        seed: int | None = None,
        top_logprobs: int = 0,
        grammar: str = "",
    ) -> Reply:
        """Return the endpoint's answer to this request: the kept one, or a new one that is paid for and kept."""
        request: dict[str, Any] = {
            "model": self.settings.model,
            "messages": [{name: _sendable(text) for name, text in turn.items()} for turn in messages],
            "max_tokens": max_tokens,
            "temperature": temperature,
            "top_p": top_p,
        }
        request |= {"logprobs": True, "top_logprobs": top_logprobs} if top_logprobs else {}
        request |= {"seed": seed} if seed is not None else {}
        request |= {"grammar": grammar} if grammar else {}
        key = hash_json([FORMAT, self.identity, request], 32)
        reply = self._kept(key, top_logprobs)
        if reply is None:
            with self.ledger.alone(key):
                reply = self._kept(key, top_logprobs) or read_reply(self._pay(key, request), top_logprobs)
        return replace(reply, problem=reply.problem and self._named(reply.problem))

    def _kept(self, key: str, top_logprobs: int) -> Reply | None:
        text = self.ledger.find(key)
        reply = None if text is None else read_reply(text, top_logprobs)
        again = self.settings.unusable == "again" and key not in self._paid_now
        return None if reply and reply.problem and again else reply

    def _pay(self, key: str, request: Mapping[str, Any]) -> str:
        """Try until an answer comes or the retries are used up; return it as it is kept."""
        for attempt in range(self.settings.retries + 1):
            self._wait_for_turn()
            sent = self.ledger.reserve(key, _worst_case(request))
            # A gateway that knows the header bills a request once, however often it arrives.
            outcome = self._try(sent.number if self.ledger.find(key) else key, request)
            if not outcome.problem:
                answer = json.loads(outcome.text)
                # Written anew, so that a key in the answer looks as it does here, however it was escaped.
                text = self._scrub(json.dumps(answer))
                self.ledger.keep(sent, text, read_usage(answer))
                self._paid_now.add(key)
                self._say_model(self._scrub(str(answer.get("model"))))
                return text
            self.ledger.give_up(sent, outcome.problem, billed=outcome.billed, answer=outcome.text)
            if outcome.final:
                raise outcome.final(self._named(outcome.problem))
            if (outcome.pause or 0) > LONGEST_ASKED:
                later = f"it asks for a pause of {outcome.pause:.0f} s, and nobody waits for that here"
                raise EndpointError(self._named(f"{outcome.problem}; {later}"))
            if attempt < self.settings.retries:
                self._pause(attempt, outcome.pause)
        tries = f"{self.settings.retries + 1} tries"
        raise EndpointError(self._named(f"{outcome.problem}; gave up after {tries}. Is the server up?"))

    def _try(self, key: str, request: Mapping[str, Any]) -> _Outcome:
        address = f"{self.settings.base_url.rstrip('/')}/chat/completions"
        try:
            status, headers, text = self._wire.post(address, request, key, self.settings.timeout)
        except TimeoutError:
            return _Outcome(problem=f"no whole answer within {self.settings.timeout:g} s", billed=True)
        except httpx.ConnectError as error:
            return _Outcome(problem=f"no connection ({error})")
        except httpx.HTTPError as error:
            return _Outcome(problem=f"cut off in the middle ({error or type(error).__name__})", billed=True)
        text = self._scrub(text)
        problem, pause = what_is_wrong(status, text), _retry_after(headers)
        if status in NOT_NOW:
            return _Outcome(text, problem, pause=pause)
        if 300 <= status < 500 and status != 408:
            final = RefusedError if status in REFUSALS else EndpointError
            return _Outcome(text, problem + _advice(status, headers, self.settings), final=final)
        return _Outcome(text, problem, billed=bool(problem), pause=pause)

    def _say_model(self, model: str) -> None:
        if model not in self._models:
            self._models.add(model)
            where, asked = self.settings.base_url, self.settings.model
            log.info("%s was asked for %s and answers as %s", where, asked, model)

    def _wait_for_turn(self) -> None:
        limit = self.settings.requests_per_minute
        with self._lock:
            turn = max(self._next, time.monotonic())
            self._next = turn + 60 / limit if limit else turn
        _wait(turn - time.monotonic())

    def _pause(self, attempt: int, asked: float | None) -> None:
        """Wait as long as the server asked, else twice as long each time, with jitter, a minute at most."""
        doubled = self.settings.backoff * 2 ** min(attempt, 10) * random.uniform(0.75, 1.25)
        if asked is not None and asked > LONGEST_PAUSE:
            log.info("%s asks for a pause of %.0f s", self.settings.base_url, asked)
        _wait(min(LONGEST_PAUSE, doubled) if asked is None else asked)

    def _named(self, problem: str) -> str:
        return self._scrub(f"{self.settings.base_url}: {problem}")

    def _scrub(self, text: str) -> str:
        return text.replace(self._key, "***") if len(self._key) > 5 else text


class _Wire:
    """Send a request from any thread, with one deadline for all of it; one event loop in a thread of its own."""

    def __init__(self, headers: Mapping[str, str]):
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True, name="endpoint").start()
        unlimited = {"timeout": None, "limits": httpx.Limits(max_connections=None)}
        self._client = httpx.AsyncClient(headers=headers, follow_redirects=False, **unlimited)

    def post(self, url: str, body: Any, key: str, seconds: float) -> tuple[int, httpx.Headers, str]:
        """Return status, headers and text. Raise TimeoutError, or what httpx raises."""
        return asyncio.run_coroutine_threadsafe(self._post(url, body, key, seconds), self._loop).result()

    async def _post(self, url: str, body: Any, key: str, seconds: float) -> tuple[int, httpx.Headers, str]:
        asking = self._client.stream("POST", url, json=body, headers={"Idempotency-Key": key})
        async with asyncio.timeout(seconds), asking as response:
            received = bytearray()
            async for part in response.aiter_bytes():
                received += part
                if len(received) > LARGEST_ANSWER:
                    break
            return response.status_code, response.headers, received.decode("utf-8", "replace")


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds that a server asks for, as such or as a date; None if it does not."""
    asked = headers.get("retry-after", "")
    try:
        return max(0.0, float(asked))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(asked).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None


def _advice(status: int, headers: Mapping[str, str], settings: EndpointSettings) -> str:
    if status < 400:
        where = urlsplit(headers.get("location", "")).netloc or "another address"
        return f". It sends on to {where}; nothing was sent there. If you trust it, set it as base_url"
    if status in (401, 403):
        return f". The key in {settings.key_variable} is wrong, or not allowed to use {settings.model!r}"
    if status == 404:
        return f". Check base_url and that the server has the model {settings.model!r}"
    return ""


def _wait(seconds: float) -> None:
    """Sleep. Raise StoppedError, at once, if nothing more may be sent."""
    if (STOP.get() or threading.Event()).wait(max(0.0, seconds)):
        raise StoppedError


def _sendable(text: str) -> str:
    """Return the text without lone surrogates, which no request can carry."""
    return text.encode("utf-8", "replace").decode()


def _worst_case(request: Mapping[str, Any]) -> Tokens:
    """Bound the tokens of a request from above: no tokenizer in use makes more tokens than bytes."""
    prompt = sum(len(message["content"].encode()) + 16 for message in request["messages"])
    return Tokens(prompt, request["max_tokens"])


def _read_key(settings: EndpointSettings) -> str:
    key = os.environ.get(settings.key_variable, "").strip()
    if key and not (key.isascii() and key.isprintable()):
        raise EndpointError(
            f"the key in {settings.key_variable} holds characters that no key has; set it again"
        )
    if key:
        return key
    if urlsplit(settings.base_url).hostname in LOOPBACK:
        return "none"
    raise EndpointError(
        f"{settings.base_url} needs a key: export {settings.key_variable}=... (it is never written to a file)"
    )


def ask_each(
    ask: Callable[[str], Reply], items: Sequence[str], *, workers: int, strict: bool, what: str
) -> Iterator[tuple[str, Reply]]:
    """Yield (item, reply) as they come; one that the server refuses has a problem, like one that is unusable.

    As soon as more than MOST_UNUSABLE of all have a problem (strict: one), or on an error or an interruption,
    nothing more is sent, no further try of what failed either. what: the plural of what is asked for, in messages.
    """
    kept: list[str] = []
    problems: list[str] = []
    stop = threading.Event()
    allowed = 0 if strict else int(MOST_UNUSABLE * len(items))

    def one(item: str) -> Reply | None:
        if stop.is_set():
            return None
        STOP.set(stop)
        try:
            reply = ask(item)
            kept.append(item)
        except StoppedError:
            return None
        except RefusedError as error:
            reply = Reply("", used=Tokens(0, 0), problem=str(error))
        except BaseException:
            stop.set()
            raise
        problems.extend([reply.problem] if reply.problem else [])
        if len(problems) > allowed:
            stop.set()
        return reply

    try:
        with ThreadPoolExecutor(workers) as pool:
            futures = {pool.submit(one, item): item for item in items}
            try:
                for future in as_completed(futures):
                    reply = future.result()
                    if len(problems) > allowed:
                        raise EndpointError(_unusable(problems, len(items), what, strict))
                    if reply is not None:
                        yield futures[future], reply
            finally:
                stop.set()
    except (EndpointError, BudgetError) as error:
        left = f"{len(kept)} of {len(items)} {what} are kept; the same command goes on from there"
        raise type(error)(f"{error}. {left}") from None


def _unusable(problems: Sequence[str], total: int, what: str, strict: bool) -> str:
    share = "unusable=error allows none" if strict else f"over {MOST_UNUSABLE:.0%}"
    return f"{len(problems)} of {total} {what} are unusable, {share}: {problems[-1]}"
