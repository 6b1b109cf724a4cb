"""Read a row of a data set, in any of its common forms, as conversations of messages.

Preference rows: {prompt, chosen, rejected} with strings or message lists, where a list may be the response
alone or the full conversation (UltraFeedback: a string prompt and full conversations); or {chosen,
rejected}, two full conversations that differ in their last turn, as messages or as one string of "Human: " and
"Assistant: " (HH), whose prompt may stand apart. SFT rows: {messages}, or {prompt, chosen},
or {chosen}.

A message may say `train`: true or false (is this assistant's turn trained?), or [[from, to], ...], the characters of it
that are. So may the columns mask (of messages), chosen_mask and rejected_mask, with an entry a message. Where nothing
is said SFT trains every assistant's turn and a pair its last one. Scores {score_chosen, score_rejected} and a weight
{weight} are read if they are there.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import index
from pathlib import Path
from typing import Any

Message = dict[str, Any]
SCORES = ("score_chosen", "score_rejected")
# A role is written into the prompt as it is: an unknown one could spell a control token there.
ROLES = ("system", "developer", "user", "assistant", "tool")
# What a message may hold beside its content, for a chat template to write.
_THOUGHTS = ("reasoning_content", "reasoning", "thinking")
# How messages begin that somebody wrote into a cell of a csv, as JSON or as Python shows them.
_WRITTEN = re.compile(r"""\s*\[\s*\{\s*['"](role|content)['"]\s*:""")


@dataclass(frozen=True)
class Rows:
    """Hold the rows of one split before any is read: what a data source returns.

    name: what messages call it. read: gives the rows, from the first at each call. count: how many there are.
    key: a hash of the content, for caches; takes a folder that remembers hashes of files. size: bytes on the disk.
    remote: reading needs the network, so nothing is read before the run begins.
    """

    name: str
    read: Callable[[], Iterable[Mapping[str, Any]]]
    count: Callable[[], int]
    key: Callable[[Path | None], str]
    size: int = 0
    remote: bool = False


class RefusedError(ValueError):
    """Say why a sound row cannot be trained on here; `data.refused` drops such rows or stops at the first."""


@dataclass(frozen=True)
class PairRow:
    """Hold a preference row: the shared messages and both answers, each of one turn or, where `train` says so, of more.

    scores: of the chosen and the rejected answer; None unless both are finite numbers.
    unscored: a score is there that is no finite number.
    """

    prompt: list[Message]
    answers: tuple[list[Message], list[Message]]
    scores: tuple[float, float] | None
    unscored: bool = False

    @property
    def chosen(self) -> str:
        """Return the last words of the chosen answer."""
        return self.answers[0][-1]["content"]

    @property
    def rejected(self) -> str:
        """Return the last words of the rejected answer."""
        return self.answers[1][-1]["content"]

    @property
    def tie(self) -> bool:
        """Say whether both answers have the same score."""
        return self.scores is not None and self.scores[0] == self.scores[1]


def missing_columns(found: Sequence[str], phase: str) -> str:
    """Say which columns are missing for the phase, or an empty string if the rows can be read."""
    if phase == "prompts":
        return (
            ""
            if {"prompt", "messages", "chosen"} & set(found)
            else (
                f"has no prompts: it needs the column prompt (or messages); found: {', '.join(found) or 'none'}"
            )
        )
    if phase == "preference" and not {"chosen", "rejected"} <= set(found):
        need = "chosen and rejected (and prompt, unless both are full conversations)"
    elif phase == "sft" and not {"messages", "chosen"} & set(found):
        need = "messages (or prompt and chosen)"
    else:
        return ""
    return f"needs the columns {need}; found: {', '.join(found) or 'none'}"


def pair_row(row: Mapping[str, Any]) -> PairRow:
    """Read a preference row. Raises ValueError that says what is wrong; the caller names the row."""
    chosen, rejected = (
        _conversation(row.get("prompt"), row.get(side), side, row.get(f"{side}_mask"))
        for side in ("chosen", "rejected")
    )
    given = [row.get(column) for column in SCORES]
    unscored = any(score is not None and not _is_number(score) for score in given)
    scores = None if unscored or None in given else (float(given[0]), float(given[1]))
    prompt, answers = _answers(chosen, rejected)
    _refuse_lost(row, "chosen", "rejected")
    _refuse_nothing_asked([*prompt, *answers[0], *answers[1]])
    return PairRow(prompt, answers, scores, unscored)


def _answers(
    chosen: list[Message], rejected: list[Message]
) -> tuple[list[Message], tuple[list[Message], list[Message]]]:
    """Part the shared messages from the answers, which begin at the first turn that asks to be trained, or the last."""
    sides = (chosen, rejected)
    asked = [n for side in sides for n, message in enumerate(side) if message.get("train")]
    starts = [min(asked)] * 2 if asked else [len(side) - 1 for side in sides]
    prompts = [bare(side[:start]) for side, start in zip(sides, starts, strict=True)]
    if prompts[0] != prompts[1] or len(rejected) <= starts[1] or len(chosen) <= starts[0]:
        raise ValueError(
            "chosen and rejected have different prompts: both must be the same conversation up to the last "
            "turn, or to the first one with train: true; correct the row or leave it out"
        )
    # A turn between is trained only if it asks.
    own = [
        [*({"train": False, **m} for m in side[start:-1]), side[-1]]
        for side, start in zip(sides, starts, strict=True)
    ]
    for name, answer in zip(("chosen", "rejected"), own, strict=True):
        if answer[0]["role"] != "assistant":
            raise ValueError(
                f"{name} has a {answer[0]['role']}'s turn where the other side's training begins"
            )
        if not any(m["role"] == "assistant" and m.get("train", True) for m in answer):
            raise ValueError(f"{name} has no turn to train: one must not say train: false")
    return prompts[0], (own[0], own[1])


def bare(messages: Sequence[Message]) -> list[Message]:
    """Return messages as a chat template knows them."""
    return [{"role": m["role"], "content": m["content"]} for m in messages]


def row_weight(row: Mapping[str, Any], policy: str) -> float | None:
    """Return what a row weighs; None if it does not say. policy: `data.weights`.

    Raises ValueError for what is no weight, and for none where one is required.
    """
    weight = None if policy == "ignore" else row.get("weight")
    if weight is None and policy == "require":
        raise ValueError(
            f"no weight, which data.weights=require asks for in the column weight; found: {', '.join(row)}. "
            "data.columns={weight: ...} names another one"
        )
    if weight is not None and not (_is_number(weight) and weight >= 0):
        raise ValueError(f"weight is {weight!r}, and must be a finite number, at least 0")
    return None if weight is None else float(weight)


def _is_number(score: Any) -> bool:
    return isinstance(score, (int, float)) and not isinstance(score, bool) and math.isfinite(score)


def sft_row(row: Mapping[str, Any]) -> list[Message]:
    """Read an SFT row as one conversation that ends with an assistant's turn.

    Turns after the last assistant's are left out: nothing in them is trained.
    Raises ValueError that says what is wrong; the caller names the row.
    """
    if row.get("messages") is None:
        messages = _conversation(row.get("prompt"), row.get("chosen"), "chosen", row.get("chosen_mask"))
    else:
        messages = _messages(row["messages"], "messages", row.get("mask"))
    while messages and messages[-1]["role"] != "assistant":
        messages.pop()
    if not messages:
        raise ValueError("messages has no assistant turn: there is nothing to train on; leave the row out")
    if len(messages) == 1:
        raise ValueError("messages begins with its only assistant turn: a user's turn must come before it")
    if not any(m["role"] == "assistant" and m.get("train", True) for m in messages[1:]):
        raise ValueError("no turn is left to train: all say train: false; leave the row out")
    _refuse_lost(row, "chosen" if row.get("messages") is None else "messages")
    _refuse_nothing_asked(messages)
    return messages


def prompt_row(row: Mapping[str, Any]) -> list[Message]:
    """Read what is to be answered: a conversation up to the last assistant's turn, as pairs have it, or the prompt.

    Raises ValueError that says what is wrong; the caller names the row.
    """
    prompt, chosen = row.get("prompt"), row.get("chosen")
    if row.get("messages") is not None:
        messages = _messages(row["messages"], "messages")
    elif prompt is None or (isinstance(chosen, Sequence) and not isinstance(chosen, str)):
        messages = _conversation(prompt, chosen, "chosen")
    else:
        messages = _asked(prompt) if isinstance(prompt, str) else _messages(prompt, "prompt")
    while messages and messages[-1]["role"] == "assistant":
        messages.pop()
    if not messages or not messages[-1]["content"].strip():
        raise RefusedError("its prompt is empty")
    _refuse_lost(row)
    if not _is_text(messages[-1]["content"]):
        raise RefusedError("prompt holds half of a surrogate pair, which is no character")
    return messages


def _refuse_lost(row: Mapping[str, Any], *answers: str) -> None:
    """Raise RefusedError for what a template would write and nobody here hands it: tools, what an answer thought."""
    tools = row.get("tools")
    if isinstance(tools, Sequence) and tools and tools != "[]":
        raise RefusedError(
            "its column tools would be lost: only messages are rendered; write tools into a system turn, or take the "
            "column away"
        )
    for name in answers:
        last = row[name][-1] if row.get(name) and not isinstance(row[name], str) else {}
        if key := next((key for key in _THOUGHTS if last.get(key)), None):
            raise RefusedError(f"{name} ends with {key}, which would be lost: write it into the content")


def _refuse_nothing_asked(messages: Sequence[Message]) -> None:
    """Raise RefusedError for a user's turn that says nothing: its answer would be learnt as one to anything."""
    if any(message["role"] == "user" and not message["content"].strip() for message in messages):
        raise RefusedError("its prompt is empty")


def _conversation(prompt: Any, response: Any, name: str, mask: Any = None) -> list[Message]:
    """Join a prompt and a response, where either may be a string or messages, into one conversation."""
    asked = _asked(prompt) if isinstance(prompt, str) else prompt
    apart = isinstance(prompt, str) and asked != [
        {"role": "user", "content": prompt}
    ]  # HH's, without the answer
    prompt = asked if apart else prompt
    if isinstance(response, str) and (prompt is None or apart) and (turns := _transcript(response)):
        response = turns
    elif isinstance(response, str):
        response = [{"role": "assistant", "content": _plain(response.strip() if apart else response, name)}]
        if prompt is None:
            raise ValueError(
                f"{name} is a string but there is no prompt; add a prompt column, or use message lists"
            )
    answer = _messages(response, name, mask)
    before = _messages(asked or [], "prompt")
    if not answer or answer[-1]["role"] != "assistant":
        raise ValueError(f"{name} must end with an assistant's turn")
    if len(answer) > 1 and before and answer[0]["role"] != "assistant":
        return _full_conversation(prompt, before, answer, name)
    if not before and len(answer) == 1:
        raise ValueError(f"{name} is an answer without a prompt; add a prompt column or the user's turn")
    if before and before[-1]["role"] == answer[0]["role"] == "assistant":
        raise RefusedError(
            f"prompt ends with an assistant's turn that {name} would go on as one of its own: join the two in {name}"
        )
    return before + answer


def _asked(prompt: str) -> list[Message]:
    """Return a prompt's turns: the user's one, or those of a transcript that ends where the assistant is to speak."""
    turns = _transcript(prompt)
    if turns and turns[-1] == {"role": "assistant", "content": ""}:
        return turns[:-1]
    return [{"role": "user", "content": _plain(prompt, "prompt")}]


def _plain(text: str, name: str) -> str:
    """Return what somebody says. Raises RefusedError for messages that were written into one text."""
    if _WRITTEN.match(text):
        raise RefusedError(
            f"{name} is a list of messages written as one text, as a csv holds it; save the set as jsonl or parquet"
        )
    return text


def _transcript(text: str) -> list[Message]:
    """Read a conversation written as one string, as Anthropic's HH sets are; empty if it is none."""
    parts = re.split(r"(?:^|\n\n)(Human|Assistant): ?", text)
    if parts[0].strip() or len(parts) < 3:
        return []
    roles = {"Human": "user", "Assistant": "assistant"}
    return [
        {"role": roles[role], "content": said.strip()}
        for role, said in zip(parts[1::2], parts[2::2], strict=True)
    ]


def _full_conversation(prompt: Any, before: list[Message], answer: list[Message], name: str) -> list[Message]:
    """Return a response that is a full conversation already, after a look whether it is the prompt's."""
    shared = answer[:-1]
    texts = [message["content"] for message in shared if message["role"] == "user"]
    agrees = prompt in texts if isinstance(prompt, str) else bare(shared) == bare(before)
    if not agrees:
        raise ValueError(
            f"{name} is a conversation with a different prompt than the prompt column; drop the column if "
            f"the conversations are complete, or correct the row"
        )
    return answer


def _messages(value: Any, name: str, mask: Any = None) -> list[Message]:
    """Return plain messages; a null content reads as empty. Raises RefusedError for what is no plain text."""
    if not isinstance(value, Sequence) or isinstance(value, str):
        kinds = "a list of messages" if name == "messages" else "a string or a list of messages"
        raise ValueError(f"{name} must be {kinds}, not {type(value).__name__}")
    for message in value:
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise ValueError(f"{name} has an entry that is no message; each is {{role: ..., content: ...}}")
        if not isinstance(message.get("content", 0), str | None):
            raise ValueError(f"{name} has a message whose content is no text; only text is supported")
        if message["role"] not in ROLES:
            raise RefusedError(f"{name} has the role {message['role']!r}; known: {', '.join(ROLES)}")
        if message.get("tool_calls") or message.get("function_call"):
            raise RefusedError(f"{name} has a tool call, which would be lost: only text is trained")
        if message["content"] and not _is_text(message["content"]):
            raise RefusedError(f"{name} holds half of a surrogate pair, which is no character")
    messages = [{"role": message["role"], "content": message["content"] or ""} for message in value]
    if mask is not None and (
        isinstance(mask, str) or not isinstance(mask, Sequence) or len(mask) != len(messages)
    ):
        raise ValueError(
            f"the mask of {name} must be a list with an entry for each of {len(messages)} messages: {mask!r}"
        )
    said = [message.get("train") for message in value] if mask is None else mask
    for number, (message, train) in enumerate(zip(messages, said, strict=True)):
        if train is not None:
            message["train"] = _trained(train, message, f"{name}, message {number}")
    return messages


def _trained(train: Any, message: Message, where: str) -> bool | list[tuple[int, int]]:
    """Return what of a turn is trained: all, nothing, or spans of characters."""
    length = len(message["content"])
    if train in (True, False) and not isinstance(train, float):
        found: bool | list[tuple[int, int]] = bool(train)
    else:
        try:
            found = [(index(start), index(end)) for start, end in train]
        except (TypeError, ValueError):
            raise ValueError(
                f"{where}: train must be true, false or [[from, to], ...], not {train!r}"
            ) from None
        edges = [edge for span in found for edge in span]
        if edges != sorted(set(edges)) or (edges and not 0 <= edges[0] < edges[-1] <= length):
            raise ValueError(f"{where}: train {train!r} must be ascending spans of its {length} characters")
    if found and message["role"] != "assistant":
        raise ValueError(f"{where}: only an assistant's turn can be trained, not the {message['role']}'s")
    return found


def _is_text(content: str) -> bool:
    try:
        content.encode()
    except UnicodeEncodeError:
        return False
    return True


# How a row is read, by phase.
READ: dict[str, Callable[[Mapping[str, Any]], Any]] = {
    "preference": pair_row,
    "sft": sft_row,
    "prompts": prompt_row,
}
