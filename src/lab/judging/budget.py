"""What an endpoint has cost, and the budget that it may not pass.

Before a request is sent its worst case is reserved; after it the server's own count replaces the reservation.
A request that may have been billed without an answer (it timed out, or the answer was broken) keeps its worst
case.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any


class BudgetError(ValueError):
    """Say that the next request could pass the budget; nothing was sent."""


@dataclass(frozen=True)
class Prices:
    """Hold prices in dollars a million tokens."""

    prompt: float
    completion: float

    def dollars(self, prompt_tokens: int, new_tokens: int) -> float:
        """Return what these tokens cost."""
        return (prompt_tokens * self.prompt + new_tokens * self.completion) / 1e6


class Ledger:
    """Count requests, tokens and dollars; refuse what could pass the budget. Safe for threads."""

    def __init__(self, prices: Prices, budget_tokens: int | None, budget_dollars: float | None):
        self.prices, self.budget_tokens, self.budget_dollars = prices, budget_tokens, budget_dollars
        self.requests = self.failed = self.possibly_billed = 0
        self.prompt_tokens = self.completion_tokens = 0
        self._reserved_prompt = self._reserved_new = 0
        self._lock = threading.Lock()

    @property
    def dollars(self) -> float:
        """Return what was spent."""
        return self.prices.dollars(self.prompt_tokens, self.completion_tokens)

    def reserve(self, prompt_tokens: int, new_tokens: int) -> None:
        """Set the worst case of a request aside. Raise BudgetError if the budget might not hold it."""
        with self._lock:
            prompt = self.prompt_tokens + self._reserved_prompt + prompt_tokens
            new = self.completion_tokens + self._reserved_new + new_tokens
            if self.budget_tokens is not None and prompt + new > self.budget_tokens:
                raise BudgetError(
                    f"the next request could pass budget_tokens={self.budget_tokens} "
                    f"({self.prompt_tokens + self.completion_tokens} used, up to {prompt + new} with it)"
                )
            dollars = self.prices.dollars(prompt, new)
            if self.budget_dollars is not None and dollars > self.budget_dollars:
                raise BudgetError(
                    f"the next request could pass budget_dollars={self.budget_dollars} "
                    f"({self.dollars:.4f} spent, up to {dollars:.4f} with it)"
                )
            self._reserved_prompt += prompt_tokens
            self._reserved_new += new_tokens

    def settle(self, prompt_tokens: int, new_tokens: int, used: Any) -> None:
        """Replace a reservation by the server's count; without one the worst case stands."""
        prompt = getattr(used, "prompt_tokens", None)
        new = getattr(used, "completion_tokens", None)
        with self._lock:
            self._unreserve(prompt_tokens, new_tokens)
            self.prompt_tokens += prompt_tokens if prompt is None else prompt
            self.completion_tokens += new_tokens if new is None else new
            self.requests += 1

    def release(self, prompt_tokens: int, new_tokens: int, *, lost: bool) -> None:
        """Give the reservation of a failed request back; one possibly billed counts as spent."""
        with self._lock:
            self._unreserve(prompt_tokens, new_tokens)
            self.failed += 1
            if lost:
                self.possibly_billed += 1
                self.prompt_tokens += prompt_tokens
                self.completion_tokens += new_tokens

    def report(self) -> dict[str, Any]:
        """Return the cost as it goes into a result."""
        return {
            "requests": self.requests,
            "failed": self.failed,
            "possibly_billed": self.possibly_billed,
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "dollars": round(self.dollars, 6),
        }

    def _unreserve(self, prompt_tokens: int, new_tokens: int) -> None:
        self._reserved_prompt -= prompt_tokens
        self._reserved_new -= new_tokens
