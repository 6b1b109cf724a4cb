"""What a judge is asked; importing this loads nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

NOT_KEYED = ("prompt_id", "facts", "decided")


@dataclass(frozen=True)
class JudgeRequest:
    """Hold one question to a judge.

    repeat: tells apart askings of the same question (judge variance). grammar: the form of a reply in GBNF, for
    judges that can be held to one. The last three change no reply and are not part of its key: prompt_id names
    what is judged, facts go into the judgment's row beside its score, decided is the score of what needs no judge
    (a checker's, a tie).
    """

    messages: tuple[Mapping[str, str], ...] = ()
    max_tokens: int = 1
    temperature: float = 0.0
    top_p: float = 1.0
    top_logprobs: int = 0
    repeat: int = 0
    grammar: str = ""
    prompt_id: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict, hash=False)
    decided: float | None = None

    def keyed(self) -> dict[str, Any]:
        """Return all that a reply depends on."""
        return {key: value for key, value in asdict(self).items() if key not in NOT_KEYED}
