"""Ask a judge many questions: in parallel, each paid for once, and none lost when it is interrupted.

A judge answers a JudgeRequest with a Reply. Replies are kept under a key of the judge, the messages (which
hold the prompt and both answers) and the settings, so a finished judgment is never asked again, by any later
evaluation. Reading a preference or a score out of a reply is the benchmark's business, and costs nothing to
repeat.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from filelock import FileLock
from tqdm import tqdm

from lab.judging.budget import BudgetError
from lab.judging.endpoint import Endpoint, EndpointError
from lab.judging.requests import JudgeRequest, Reply
from sgdpo.store import cut_jsonl, line

FORMAT = 1


# What a reply may be, for llama.cpp servers (judge.grammar): a small model would else not keep to the form.
GRAMMARS = {
    "label": 'root ::= "m" | "M"',
    "rating": 'root ::= "Rating: [[" ("10" | [1-9]) "]]"',
}


class Judge(Protocol):
    """Answer judge requests; `identity` holds all that an answer depends on beside the request."""

    concurrency: int

    def identity(self) -> dict[str, Any]:
        """Return a JSON-able description of the judge."""
        ...

    def ask(self, request: JudgeRequest) -> Reply:
        """Return the judge's reply."""
        ...

    def cost(self) -> dict[str, Any]:
        """Return requests, tokens and dollars of this process."""
        ...


class EndpointJudge:
    """Judge with an OpenAI-compatible endpoint."""

    def __init__(
        self, endpoint: Endpoint, identity: Mapping[str, Any] | None = None, *, grammar: bool = False
    ):
        self.endpoint, self.grammar = endpoint, grammar
        self.concurrency = endpoint.settings.concurrency
        settings = endpoint.settings
        self._identity = dict(identity or {"base_url": settings.base_url, "model": settings.model})

    def identity(self) -> dict[str, Any]:
        """Return who judges: an address and a model, or what the caller said (a local file's hash)."""
        return {**self._identity, "grammar": self.grammar}

    def ask(self, request: JudgeRequest) -> Reply:
        """Ask the endpoint; a repeat changes the sampling seed, where the server takes one."""
        return self.endpoint.chat(
            request.messages,
            max_tokens=request.max_tokens,
            temperature=request.temperature,
            top_p=request.top_p,
            seed=request.repeat or None,
            top_logprobs=request.top_logprobs,
            extra_body={"grammar": GRAMMARS[request.verdict]} if self.grammar else None,
        )

    def cost(self) -> dict[str, Any]:
        """Return what the endpoint's ledger holds."""
        return self.endpoint.ledger.report()


class JudgmentStore:
    """Keep replies by key in an append-only file, one line each; a torn last line is asked again."""

    def __init__(self, cache: Path, judge: Judge):
        name = hashlib.sha256(json.dumps(judge.identity(), sort_keys=True).encode()).hexdigest()[:16]
        self.path = cache / "judgments" / f"{name}.jsonl"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file_lock, self._lock = FileLock(f"{self.path}.lock"), threading.Lock()
        with self._file_lock:
            rows = cut_jsonl(self.path)
        self._replies = {row["key"]: _reply(row["reply"]) for row in rows if row["format"] == FORMAT}

    def find(self, request: JudgeRequest) -> Reply | None:
        """Return the reply to exactly this request, or None."""
        return self._replies.get(request_key(request))

    def keep(self, request: JudgeRequest, reply: Reply) -> None:
        """Append a reply; other threads and processes may append too."""
        key = request_key(request)
        row = {"format": FORMAT, "key": key, "reply": asdict(reply)}
        with self._lock, self._file_lock, self.path.open("a", encoding="utf-8") as file:
            file.write(line(row))
            self._replies[key] = reply


def ask_all(judge: Judge, requests: Sequence[JudgeRequest], cache: Path) -> list[Reply]:
    """Return a reply to each request, in order; ask only what the cache does not hold.

    Raises EndpointError or BudgetError after what is under way has been kept: the same command goes on from
    there.
    """
    store = JudgmentStore(cache, judge)
    missing = {request_key(request): request for request in requests if store.find(request) is None}
    done = len(requests) - len(missing)
    bar = tqdm(total=len(requests), initial=done, desc="judgments", unit="judgment")
    with bar, ThreadPoolExecutor(judge.concurrency) as pool:
        _ask_missing(judge, list(missing.values()), store, pool, bar)
    return [store.find(request) for request in requests]


def _ask_missing(
    judge: Judge, requests: list[JudgeRequest], store: JudgmentStore, pool: ThreadPoolExecutor, bar: tqdm
) -> None:
    stop = threading.Event()

    def ask(request: JudgeRequest) -> None:
        if stop.is_set():
            return
        try:
            store.keep(request, judge.ask(request))
        except BaseException:
            stop.set()
            raise
        bar.update()

    futures: list[Future] = [pool.submit(ask, request) for request in requests]
    try:
        wait(futures)
    finally:
        # An interruption (or a failure, above) sends nothing more; what is under way is kept.
        stop.set()
    failed = [future.exception() for future in futures if future.exception()]
    if not failed:
        return
    kept = sum(store.find(request) is not None for request in requests)
    left = f"{kept} of {len(requests)} new judgments are kept; the same command goes on from there"
    if isinstance(failed[0], BudgetError | EndpointError):
        raise type(failed[0])(f"{failed[0]}. {left}") from None
    raise failed[0]


def request_key(request: JudgeRequest) -> str:
    """Return the key of a request: its messages and every setting."""
    return hashlib.sha256(json.dumps(request.keyed(), sort_keys=True).encode()).hexdigest()[:32]


def _reply(row: dict[str, Any]) -> Reply:
    top = row["top_logprobs"]
    return Reply(**{**row, "top_logprobs": None if top is None else tuple((t, p) for t, p in top)})
