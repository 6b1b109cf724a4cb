"""Turn conversations into token ids: which tokens are the prompt, which are trained.

A conversation is rendered once by the tokenizer's own chat template, which writes every special token; the
tokenizer adds none. The assistant's header (the generation prompt) belongs to the prompt. A completion is
what the assistant says and the one token that closes the turn; what the template writes after that
(ChatML's newline) is not trained.

The prompt's ids are those of the rendered prompt alone: exactly what generation feeds the model. The
completion's ids are found in the whole rendering by token offsets. Where the tokenizer merges characters
across a boundary (an answer that begins with a newline after ChatML's header), there is no such boundary;
then each piece is tokenised by itself, so that prompt ids stay an exact prefix of both sides. Control
tokens that somebody typed inside an answer are tokenised as plain text: a completion has one end-of-turn
token, its last.

Departs from the authors' code, which applies the template to the assistant's turn alone and so trains on a
second beginning-of-text token, a system block, and a second end token.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from jinja2.exceptions import TemplateError

from sgdpo.data.rows import Message

# Llama-3.1's template writes a date into the prompt: today's, unless it is given. This is the one it falls
# back to itself, so that no run depends on the day it started.
TEMPLATE_DATE = "26 Jul 2024"
# Some templates ask the clock instead. A macro of the same name in front of the template answers for it.
_PINNED_CLOCK = (
    "{% macro strftime_now(format) %}{{ format | replace('%d', '26') | replace('%b', 'Jul')"
    " | replace('%B', 'July') | replace('%Y', '2024') | replace('%m', '07')"
    " | replace('%y', '24') }}{% endmacro +%}"
)
_MARK = "⸨answer⸩"


@dataclass(frozen=True)
class Rendered:
    """Hold a rendered conversation in pieces (text, is it trained?); the first piece is the prompt."""

    pieces: list[tuple[str, bool]]

    @property
    def text(self) -> str:
        """Return the whole text up to the last completion's closing token."""
        return "".join(text for text, _ in self.pieces)


def require_template(tokenizer: Any) -> None:
    """Raise ValueError with advice for a tokenizer that cannot render or cannot give offsets."""
    if not tokenizer.chat_template:
        raise ValueError(
            "the tokenizer has no chat template; name one with model.chat_template (a folder or hub id whose "
            "tokenizer has one, for a base model its instruct sibling, or a .jinja file)"
        )
    if not tokenizer.is_fast:
        raise ValueError(
            "the tokenizer is not a fast one (no tokenizer.json), so completions cannot be found by offsets; "
            "convert it with tokenizers, or choose a model that ships tokenizer.json"
        )


def render(tokenizer: Any, messages: Sequence[Message], *, generation_prompt: bool = False) -> str:
    """Render messages by the chat template, the date pinned. Raises ValueError if it refuses them."""
    template = tokenizer.chat_template
    try:
        return tokenizer.apply_chat_template(
            list(messages),
            chat_template=_PINNED_CLOCK + template if "strftime_now" in template else template,
            tokenize=False,
            add_generation_prompt=generation_prompt,
            date_string=TEMPLATE_DATE,
        )
    except TemplateError as error:
        raise ValueError(f"the chat template refuses the conversation: {error}") from None


def render_prompt(tokenizer: Any, messages: Sequence[Message]) -> str:
    """Render the messages up to where the assistant's next words begin."""
    return _around(tokenizer, messages)[0]


def render_pair(tokenizer: Any, messages: Sequence[Message], chosen: str, rejected: str) -> list[Rendered]:
    """Render both sides of a pair; their first pieces, the prompt, are equal. A template may trim answers."""
    around = _around(tokenizer, messages)
    sides = [_completion(tokenizer, messages, answer, around) for answer in (chosen, rejected)]
    return [Rendered([(around[0], False), (completion, True)]) for completion in sides]


def render_conversation(tokenizer: Any, messages: Sequence[Message]) -> Rendered:
    """Render a conversation for SFT: every assistant turn is trained, what lies between is context."""
    whole = render(tokenizer, messages)
    pieces, end = [], 0
    for index, message in enumerate(messages):
        if message["role"] != "assistant" or index == 0:
            continue
        head, tail = _around(tokenizer, messages[:index])
        completion = _completion(tokenizer, messages[:index], message["content"], (head, tail))
        if not whole.startswith(head + completion) or len(head) < end:
            raise ValueError(
                "the chat template renders an earlier turn differently once more turns follow, so several "
                "turns cannot be trained at once; split the conversation into rows of one answer"
            )
        pieces += [(head[end:], False), (completion, True)]
        end = len(head) + len(completion)
    return Rendered(pieces)


def tokenise(tokenizer: Any, rendered: Sequence[Rendered]) -> list[list[list[int]]]:
    """Return for each rendered conversation the ids of each of its pieces."""
    whole = _encode(tokenizer, [item.text for item in rendered])
    # Both sides of a pair share their prompt; tokenising is what preparing a large set costs.
    prompts = list(dict.fromkeys(item.pieces[0][0] for item in rendered))
    prompt_ids = dict(zip(prompts, (ids for ids, _ in _encode(tokenizer, prompts)), strict=True))
    return [
        (not _typed_control_token(tokenizer, item) and _split(item, *both, prompt_ids[item.pieces[0][0]]))
        or _piecewise(tokenizer, item)
        for item, both in zip(rendered, whole, strict=True)
    ]


def cut_prompt(ids: list[int], longest: int, bos: int | None) -> list[int]:
    """Cut a prompt from the left to `longest` ids; a beginning-of-text token stays in front."""
    if len(ids) <= longest:
        return ids
    if bos is not None and ids[0] == bos:
        return [bos, *ids[len(ids) - longest + 1 :]]
    return ids[len(ids) - longest :]


def join(pieces: Sequence[Sequence[int]], rendered: Rendered) -> tuple[list[int], list[bool]]:
    """Join the ids after the prompt, and say of each whether it is trained."""
    ids = [token for piece in pieces[1:] for token in piece]
    trained = zip(pieces[1:], rendered.pieces[1:], strict=True)
    return ids, list(np.concatenate([np.full(len(piece), flag) for piece, (_, flag) in trained]))


def _around(tokenizer: Any, messages: Sequence[Message]) -> tuple[str, str]:
    """Return what the template writes before and after the words of an assistant's next turn."""
    text = render(tokenizer, [*messages, {"role": "assistant", "content": _MARK}])
    head, mark, tail = text.rpartition(_MARK)
    if not mark:
        raise ValueError("the chat template does not write the assistant's words; choose another template")
    return head, tail


def _completion(tokenizer: Any, messages: Sequence[Message], answer: str, around: tuple[str, str]) -> str:
    """Return an answer as the template writes it, with its closing end-of-turn token."""
    head, tail = around
    text = render(tokenizer, [*messages, {"role": "assistant", "content": answer}])
    if not (text.startswith(head) and text[len(head) :].endswith(tail)):
        raise ValueError(
            "the chat template writes the turns before an answer differently for different answers, so "
            "prompt and completion cannot be told apart; choose a plainer template with model.chat_template"
        )
    return text[len(head) : len(text) - len(tail)] + _closing(tokenizer, tail)


def _closing(tokenizer: Any, tail: str) -> str:
    """Return the beginning of what follows an answer, up to its first special token."""
    match = _special_tokens(tokenizer).search(tail)
    if match is None:
        raise ValueError(
            f"the chat template closes an assistant's turn with no special token (it writes {tail!r}), so an "
            f"answer would never learn to end; give a template whose turns end, with model.chat_template"
        )
    return tail[: match.end()]


def _special_tokens(tokenizer: Any) -> re.Pattern[str]:
    added = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    return _alternatives(frozenset(added | set(tokenizer.all_special_tokens)))


@lru_cache(maxsize=8)
def _alternatives(words: frozenset[str]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, sorted(words, key=lambda w: (-len(w), w)))) or r"(?!)")


def _encode(tokenizer: Any, texts: Sequence[str]) -> list[tuple[list[int], list[tuple[int, int]]]]:
    if not texts:
        return []
    found = tokenizer(list(texts), add_special_tokens=False, return_offsets_mapping=True)
    return list(zip(found["input_ids"], found["offset_mapping"], strict=True))


def _split(
    item: Rendered, ids: list[int], offsets: list[tuple[int, int]], prompt: list[int]
) -> list[list[int]] | None:
    """Cut the whole rendering's ids at the pieces' boundaries; None if a token lies across one."""
    pieces, first, end = [], 0, 0
    for text, _ in item.pieces:
        end += len(text)
        last = first
        while last < len(ids) and offsets[last][1] <= end:
            last += 1
        if last < len(ids) and offsets[last][0] < end:
            return None
        pieces.append(ids[first:last])
        first = last
    return pieces if pieces[0] == prompt else None


def _piecewise(tokenizer: Any, item: Rendered) -> list[list[int]]:
    """Tokenise each piece by itself; in a completion all but the closing token is plain text."""
    ids = []
    for text, trained in item.pieces:
        words, closing = _without_closing(tokenizer, text) if trained else ("", text)
        plain = (
            tokenizer(words, add_special_tokens=False, split_special_tokens=True)["input_ids"]
            if words
            else []
        )
        ids.append(plain + tokenizer(closing, add_special_tokens=False)["input_ids"])
    return ids


def _without_closing(tokenizer: Any, text: str) -> tuple[str, str]:
    *_, last = _special_tokens(tokenizer).finditer(text)
    return text[: last.start()], text[last.start() :]


def _typed_control_token(tokenizer: Any, item: Rendered) -> bool:
    """Say whether a completion holds a control token beside its closing one."""
    find = _special_tokens(tokenizer).findall
    return any(trained and len(find(text)) > 1 for text, trained in item.pieces)
