"""One OpenAI-compatible chat endpoint: retries, rate, budget; the key comes from the environment alone.

Every request is paid for once: its worst case is reserved before it is sent and replaced by the server's own
count after. A request that timed out may have been billed, so its reservation stays. Errors never show the
key: the library's own exceptions are replaced by ours, with the key cut out of whatever the server said.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import openai

from lab.judging.budget import Ledger, Prices
from lab.judging.requests import Reply

LOOPBACK = ("127.0.0.1", "localhost", "::1")


class EndpointError(ValueError):
    """Say why the endpoint gave no usable answer, and what to do."""


@dataclass
class EndpointSettings:
    """Hold how an endpoint is asked; conf/judge and conf/generator extend it (Hydra's dataclasses are not frozen).

    Units: seconds, requests a minute, dollars, dollars a million tokens.
    """

    base_url: str = ""
    model: str = ""
    key_variable: str = "OPENAI_API_KEY"
    timeout: float = 60.0
    retries: int = 6
    backoff: float = 1.0
    concurrency: int = 8
    requests_per_minute: float = 0.0
    budget_dollars: float | None = None
    budget_tokens: int | None = None
    price_prompt: float = 0.0
    price_completion: float = 0.0

    def errors(self) -> list[str]:
        """List what is wrong with the settings, as sentences with advice."""
        errors = []
        address = urlsplit(self.base_url or "")
        if address.scheme not in ("http", "https") or not address.hostname:
            errors.append(f"base_url must look like https://host/v1, not {self.base_url!r}")
        if address.username or address.password or address.query:
            errors.append("base_url must not hold a key or a password; put the key in the environment")
        if not self.model:
            errors.append("set the model that the endpoint is asked for")
        if self.budget_dollars is not None and not (self.price_prompt or self.price_completion):
            errors.append("budget_dollars needs price_prompt and price_completion (dollars a million tokens)")
        if self.concurrency < 1 or self.retries < 0 or self.timeout <= 0:
            errors.append("concurrency must be 1 or more, retries 0 or more, timeout above 0 seconds")
        return errors


class Endpoint:
    """Ask a chat endpoint, from any thread. Raises EndpointError and BudgetError, not the library's."""

    def __init__(self, settings: EndpointSettings):
        if errors := settings.errors():
            raise EndpointError("; ".join(errors))
        self.settings = settings
        prices = Prices(settings.price_prompt, settings.price_completion)
        self.ledger = Ledger(prices, settings.budget_tokens, settings.budget_dollars)
        self._lock, self._next = threading.Lock(), 0.0
        self._key = _read_key(settings)
        self._client = openai.OpenAI(
            base_url=settings.base_url, api_key=self._key, timeout=settings.timeout, max_retries=0
        )

    def chat(
        self,
        messages: Sequence[Mapping[str, str]],
        *,
        max_tokens: int,
        temperature: float,
        top_p: float = 1.0,
        seed: int | None = None,
        top_logprobs: int = 0,
        extra_body: Mapping[str, Any] | None = None,
    ) -> Reply:
        """Return the endpoint's answer. With top_logprobs, one whose first token lacks them is an error."""
        extra: dict[str, Any] = {"logprobs": True, "top_logprobs": top_logprobs} if top_logprobs else {}
        if seed is not None:
            extra["seed"] = seed
        request = {
            "model": self.settings.model,
            "messages": [dict(message) for message in messages],
            "max_tokens": max_tokens,
            "temperature": temperature,
            "top_p": top_p,
            **extra,
        }
        if extra_body:
            request["extra_body"] = dict(extra_body)
        answer = self._send(request, *_worst_case(request))
        return self._read(answer, top_logprobs)

    def _send(self, request: dict[str, Any], prompt_tokens: int, new_tokens: int) -> Any:
        """Try until an answer comes or the retries are used up."""
        for attempt in range(self.settings.retries + 1):
            self.ledger.reserve(prompt_tokens, new_tokens)
            self._wait_for_turn()
            problem, pause, lost = "", None, False
            try:
                answer = self._client.chat.completions.create(**request)
                problem = _malformed(answer)
                if not problem:
                    self.ledger.settle(prompt_tokens, new_tokens, getattr(answer, "usage", None))
                    return answer
                lost = True
            except openai.APIStatusError as error:
                problem, pause = f"status {error.status_code}: {_words(error)}", _retry_after(error)
                if error.status_code not in (408, 409, 429) and error.status_code < 500:
                    self.ledger.release(prompt_tokens, new_tokens, lost=False)
                    raise self._error(problem + _advice(error.status_code, self.settings)) from None
            except openai.APITimeoutError:
                problem, lost = f"no answer within {self.settings.timeout:g} s", True
            except openai.APIConnectionError as error:
                problem = f"no connection, or cut off in the middle ({error.__cause__ or error})"
            except (openai.OpenAIError, ValueError) as error:
                problem, lost = f"an answer that is not the API's JSON ({error})", True
            self.ledger.release(prompt_tokens, new_tokens, lost=lost)
            if attempt < self.settings.retries:
                self._pause(attempt, pause)
        raise self._error(
            f"{problem}; gave up after {self.settings.retries + 1} tries. Is the server up?"
        ) from None

    def _read(self, answer: Any, top_logprobs: int) -> Reply:
        choice, usage = answer.choices[0], getattr(answer, "usage", None)
        return Reply(
            text=self._scrub(choice.message.content or ""),
            top_logprobs=self._first_token(choice) if top_logprobs else None,
            prompt_tokens=getattr(usage, "prompt_tokens", 0) or 0,
            completion_tokens=getattr(usage, "completion_tokens", 0) or 0,
            finish=choice.finish_reason or "stop",
        )

    def _first_token(self, choice: Any) -> tuple[tuple[str, float], ...]:
        content = getattr(choice.logprobs, "content", None)
        if not content or not content[0].top_logprobs:
            raise self._error(
                f"model {self.settings.model!r} answered without log-probs, which the weighted judge reads "
                "its preference from. Use a server that returns top_logprobs, or benchmark.weighted=false"
            )
        return tuple((entry.token, entry.logprob) for entry in content[0].top_logprobs)

    def _wait_for_turn(self) -> None:
        if not self.settings.requests_per_minute:
            return
        with self._lock:
            turn = max(self._next, time.monotonic())
            self._next = turn + 60 / self.settings.requests_per_minute
        time.sleep(max(0.0, turn - time.monotonic()))

    def _pause(self, attempt: int, asked: float | None) -> None:
        """Wait as long as the server asked, else twice as long each time, with jitter, a minute at most."""
        doubled = self.settings.backoff * 2**attempt * random.uniform(0.75, 1.25)
        time.sleep(min(60.0, doubled if asked is None else asked))

    def _error(self, problem: str) -> EndpointError:
        return EndpointError(self._scrub(f"{self.settings.base_url}: {problem}"))

    def _scrub(self, text: str) -> str:
        return text.replace(self._key, "***") if len(self._key) > 5 else text


def _read_key(settings: EndpointSettings) -> str:
    key = os.environ.get(settings.key_variable, "").strip()
    if key:
        return key
    if urlsplit(settings.base_url).hostname in LOOPBACK:
        return "none"
    raise EndpointError(
        f"{settings.base_url} needs a key: export {settings.key_variable}=... (it is never written to a file)"
    )


def _worst_case(request: Mapping[str, Any]) -> tuple[int, int]:
    """Bound the tokens of a request from above: no tokenizer in use makes more tokens than bytes."""
    prompt = sum(len(message["content"].encode()) + 16 for message in request["messages"])
    return prompt, request["max_tokens"]


def _malformed(answer: Any) -> str:
    choices = getattr(answer, "choices", None)
    if not choices or getattr(choices[0], "message", None) is None:
        return "an answer without choices: this is not an OpenAI-compatible chat endpoint, or it is broken"
    return ""


def _words(error: openai.APIStatusError) -> str:
    return " ".join(str(error.message).split())[:300]


def _retry_after(error: openai.APIStatusError) -> float | None:
    try:
        return max(0.0, float(error.response.headers.get("retry-after", "")))
    except ValueError:
        return None


def _advice(status: int, settings: EndpointSettings) -> str:
    if status in (401, 403):
        return f". The key in {settings.key_variable} is wrong, or not allowed to use {settings.model!r}"
    if status == 404:
        return f". Check base_url and that the server has the model {settings.model!r}"
    return ""
