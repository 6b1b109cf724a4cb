"""What a judge is asked and what it answers; importing this loads nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

NOT_KEYED = ("prompt_id", "facts", "decided")


@dataclass(frozen=True)
class JudgeRequest:
    """Hold one question to a judge.

    repeat: tells apart askings of the same question (judge variance). verdict: the form asked for, label or
    rating. The last three change no reply and are not part of its key: prompt_id names what is judged, facts go
    into the judgment's row beside its score, decided is the score of what needs no judge (a checker's, a tie).
    """

    messages: tuple[Mapping[str, str], ...] = ()
    max_tokens: int = 1
    temperature: float = 0.0
    top_p: float = 1.0
    top_logprobs: int = 0
    repeat: int = 0
    verdict: str = ""
    prompt_id: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict, hash=False)
    decided: float | None = None

    def keyed(self) -> dict[str, Any]:
        """Return all that a reply depends on."""
        return {key: value for key, value in asdict(self).items() if key not in NOT_KEYED}


@dataclass(frozen=True)
class Reply:
    """Hold one answer: its text, the first token's top log-probs if asked for, and what it used."""

    text: str
    top_logprobs: tuple[tuple[str, float], ...] | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    finish: str = "stop"
