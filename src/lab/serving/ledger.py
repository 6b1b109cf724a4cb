"""What was asked of an endpoint, what it answered, what that cost: one file of JSON lines, shared by processes.

A request is written down with its worst case before it is sent, and the server's answer, as it came, before
anything reads it. So a budget holds over resumes and over processes that run at once, an answer that was paid
for is never lost, whatever it holds, and nobody pays for it twice. A request without an answer (cut off, too
late, its process killed) may have been billed: its worst case stays counted.
"""

from __future__ import annotations

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


class Ledger:
    """Keep one endpoint's requests and answers; safe for threads and processes. Counts are of this process."""

    def __init__(self, path: Path, budget: Budget):
        self.path, self.budget = path, budget
        self.requests = self.failed = self.possibly_billed = 0
        self.used = Tokens(0, 0)
        self._whole = Tokens(0, 0)  # of all processes, ever
        self._bounds: dict[str, Tokens] = {}
        self._answers: dict[str, str] = {}
        self._offset = self._rows = 0
        self._lines = JsonLines(path)
        self._thread_lock, self._file_lock = threading.RLock(), FileLock(f"{path}.lock", mode=0o666)

    def find(self, key: str) -> str | None:
        """Return the answer to a request, whichever process received it, as the server sent it."""
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

    def reserve(self, key: str, bound: Tokens) -> str:
        """Write down a request that is about to be sent; return its number. Raise BudgetError if it may not be."""
        budget, number = self.budget, uuid.uuid4().hex
        with self._current():
            after = self._whole + bound
            spent = self._whole.prompt + self._whole.new
            if budget.tokens is not None and after.prompt + after.new > budget.tokens:
                raise BudgetError(
                    f"the next request could pass budget_tokens={budget.tokens} ({spent} used, up to "
                    f"{after.prompt + after.new} with it; {self.path} holds all that was asked so far)"
                )
            if budget.dollars is not None and budget.cost(after) > budget.dollars:
                raise BudgetError(
                    f"the next request could pass budget_dollars={budget.dollars} ({budget.cost(self._whole):.4f} "
                    f"spent, up to {budget.cost(after):.4f} with it; {self.path} holds all that was asked so far)"
                )
            self._write(event="sent", id=number, key=key, prompt_tokens=bound.prompt, new_tokens=bound.new)
        return number

    def keep(self, number: str, key: str, answer: str, used: Tokens | None) -> None:
        """Write the server's answer down, with its own count; without one the worst case stands."""
        with self._current():
            used = used or self._bounds[number]
            self._write(
                event="answer",
                id=number,
                key=key,
                prompt_tokens=used.prompt,
                new_tokens=used.new,
                text=answer,
            )
            self.requests += 1
            self.used += used

    def give_up(self, number: str, why: str, *, billed: bool, answer: str = "") -> None:
        """Write down why a request has no answer; one that may have been billed counts its worst case."""
        with self._current():
            bound = self._bounds[number]
            self._write(event="lost" if billed else "free", id=number, why=why, text=answer)
            self.failed += 1
            if billed:
                self.possibly_billed += 1
                self.used += bound

    @property
    def dollars(self) -> float:
        """Return what this process spent."""
        return self.budget.cost(self.used)

    def report(self) -> dict[str, Any]:
        """Return the cost as it goes into a result."""
        return {
            "requests": self.requests,
            "failed": self.failed,
            "possibly_billed": self.possibly_billed,
            "prompt_tokens": self.used.prompt,
            "completion_tokens": self.used.new,
            "dollars": round(self.dollars, 6),
        }

    @contextmanager
    def _current(self) -> Iterator[None]:
        """Hold the file, with what other processes wrote read."""
        with self._thread_lock, self._file_lock:
            self._catch_up()
            yield

    def _write(self, **row: Any) -> None:
        self._lines.append({**row, "at": round(time.time(), 3)}, durable=True)
        self._catch_up()

    def _catch_up(self) -> None:
        if os.stat(self.path).st_size == self._offset:
            return
        with open(self.path, "rb") as file:
            file.seek(self._offset)
            for text in file:
                if not text.endswith(b"\n"):
                    # The lock is ours, so its writer was killed; what it would have said is counted at its bound.
                    os.truncate(self.path, self._offset)
                    return
                self._rows += 1
                self._offset += len(text)
                self._take(text)

    def _take(self, text: bytes) -> None:
        try:
            row = json.loads(text)
            event, number = row["event"], row["id"]
            if event == "sent":
                self._bounds[number] = Tokens(row["prompt_tokens"], row["new_tokens"])
                self._whole += self._bounds[number]
            elif event == "answer":
                self._whole += Tokens(row["prompt_tokens"], row["new_tokens"]) - self._bounds[number]
                self._answers[row["key"]] = row["text"]
            elif event == "free":
                self._whole -= self._bounds[number]
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise DamagedError(
                f"{self.path}, line {self._rows}: not a line of this ledger ({error!r}); remove the line (its "
                "answer is then paid for again), or the file to start from nothing"
            ) from None
