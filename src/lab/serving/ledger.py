"""What was asked of an endpoint, what it answered, what that cost: one file of JSON lines, shared by processes.

A request is written down with its worst case before it is sent, and the server's answer before anything reads
it. So a budget holds over resumes and over processes that run at once, an answer that was paid for is never lost,
whatever it holds, and nobody pays for it twice. A request without an answer (cut off, too late, its process
killed) may have been billed: its worst case stays counted. The tokens of all lines add up to what was spent.
"""

import json
import os
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from lab.serving.reply import Tokens
from sgdpo.store import DamagedError, JsonLines


class BudgetError(ValueError):
    """Say that the next request could pass the budget; nothing was sent."""


@dataclass(frozen=True)
class Budget:
    """Hold prices in dollars a million tokens, and what may be spent in all; None: without limit."""

    price_prompt: float = 0.0
    price_completion: float = 0.0
    tokens: int | None = None
    dollars: float | None = None

    def cost(self, used: Tokens) -> float:
        """Return dollars."""
        return (used.prompt * self.price_prompt + used.new * self.price_completion) / 1e6

    def check(self, spent: Tokens, after: Tokens, file: Path) -> None:
        for name, limit, before, with_it in (
            ("budget_tokens", self.tokens, spent.prompt + spent.new, after.prompt + after.new),
            ("budget_dollars", self.dollars, self.cost(spent), self.cost(after)),
        ):
            if limit is not None and with_it > limit:
                raise BudgetError(
                    f"the next request could pass {name}={limit} ({before:.10g} used, up to {with_it:.10g} with it; "
                    f"{file} holds all that was asked of this model so far)"
                )


@dataclass(frozen=True)
class Sent:
    """Hold one sending of a request: its own number, the request's key, its worst case."""

    number: str
    key: str
    bound: Tokens


class Ledger:
    """Keep one endpoint's requests and answers; safe for threads and processes. Counts are of this process."""

    def __init__(self, path: Path, budget: Budget):
        self.path, self.budget = path, budget
        self.requests = self.failed = self.possibly_billed = 0
        self.used = Tokens(0, 0)
        self._spent = Tokens(0, 0)  # by all processes, ever
        self._answers: dict[str, str] = {}
        self._offset = self._rows = 0
        self._lines = JsonLines(path)
        self._thread_lock, self._file_lock = threading.RLock(), FileLock(f"{path}.lock", mode=0o666)

    def find(self, key: str) -> str | None:
        """Return the answer to a request, whichever process received it."""
        with self._current():
            return self._answers.get(key)

    @contextmanager
    def alone(self, key: str) -> Iterator[None]:
        """Let one thread of one process at a time pay for this request; a dead one's turn ends by itself."""
        file = self.path.with_suffix(".asked") / f"{key}.lock"
        file.parent.mkdir(exist_ok=True)
        with FileLock(file, mode=0o666, thread_local=False):
            yield
            # Whoever waits for this file finds the answer in the ledger; without one the file stays.
            file.unlink(missing_ok=True)

    def reserve(self, key: str, bound: Tokens) -> Sent:
        """Write down a request that is about to be sent. Raise BudgetError if it may not be."""
        with self._current():
            self.budget.check(self._spent, self._spent + bound, self.path)
            sent = Sent(uuid.uuid4().hex, key, bound)
            self._write("sent", sent, bound)
        return sent

    def keep(self, sent: Sent, answer: str, used: Tokens | None) -> None:
        """Write the server's answer down, with its own count; without one the worst case stands."""
        used = used or sent.bound
        with self._current():
            self._write("answer", sent, used - sent.bound, text=answer)
            self.requests += 1
            self.used += used

    def give_up(self, sent: Sent, why: str, *, billed: bool, answer: str) -> None:
        """Write down why a request has no answer; one that may have been billed counts its worst case."""
        cost = sent.bound if billed else Tokens(0, 0)
        with self._current():
            event = "lost" if billed else "free"
            self._write(event, sent, cost - sent.bound, why=why, text=answer)
            self.failed += 1
            self.possibly_billed += billed
            self.used += cost

    def report(self) -> dict[str, Any]:
        return {
            "requests": self.requests,
            "failed": self.failed,
            "possibly_billed": self.possibly_billed,
            "prompt_tokens": self.used.prompt,
            "completion_tokens": self.used.new,
            "dollars": round(self.budget.cost(self.used), 6),
        }

    @contextmanager
    def _current(self) -> Iterator[None]:
        """Hold the file, with what other processes wrote read."""
        with self._thread_lock, self._file_lock:
            self._catch_up()
            yield

    def _write(self, event: str, sent: Sent, more: Tokens, **row: Any) -> None:
        tokens = {"prompt_tokens": more.prompt, "completion_tokens": more.new}
        head = {"event": event, "id": sent.number, "key": sent.key, "at": round(time.time(), 3)}
        self._lines.append({**head, **tokens, **row}, durable=True)
        self._catch_up()

    def _catch_up(self) -> None:
        if os.stat(self.path).st_size == self._offset:
            return
        with open(self.path, "rb") as file:
            file.seek(self._offset)
            for line in file:
                if not line.endswith(b"\n"):
                    # The lock is ours, so its writer was killed; what it sent is counted at its worst.
                    os.truncate(self.path, self._offset)
                    return
                # A damaged line is not passed: no thread of this process pays on beyond it.
                self._take(line)
                self._rows += 1
                self._offset += len(line)

    def _take(self, line: bytes) -> None:
        try:
            row = json.loads(line)
            spent = self._spent + Tokens(int(row["prompt_tokens"]), int(row["completion_tokens"]))
            if row["event"] == "answer":
                self._answers[row["key"]] = str(row["text"])
            self._spent = spent
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise DamagedError(
                f"{self.path}, line {self._rows + 1}: not a line of this ledger ({error!r}); remove the line (its "
                "answer is then paid for again), or the file to start from nothing"
            ) from None
