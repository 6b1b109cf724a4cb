"""Turn conversations into token ids: which tokens are the prompt, which are trained.

A conversation is rendered by the tokenizer's own chat template, which writes every special token; the
tokenizer adds none. The prompt is what the template writes when asked for an answer (its generation prompt):
what a served model starts from. A completion is all that the template writes from there to the one token that
closes the turn: a space (Mistral), an empty think block (Qwen-3), a channel (gpt-oss), and the answer. What it
writes after that (ChatML's newline) is not trained.

The prompt's ids are those of the rendered prompt alone: exactly what generation feeds the model. The
completion's ids are found in the whole rendering by token offsets. Where the tokenizer merges characters
across a boundary (an answer that begins with a newline after ChatML's header), there is no such boundary;
then each piece is tokenised by itself, so that prompt ids stay an exact prefix of both sides. A closing token
that takes the white space behind it along belongs whole to the turn that it closes. Control tokens that
somebody typed into a message are tokenised as plain text: only the template writes real ones.

Departs from the authors' code, which applies the template to the assistant's turn alone and so trains on a
second beginning-of-text token, a system block, and a second end token.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np

from sgdpo.data.rows import Message, RefusedError, bare
from sgdpo.data.template import render

_MARK = "⸨answer⸩"
Span = tuple[int, int]


@dataclass(frozen=True)
class Rendered:
    """Hold a rendered conversation in pieces (text, is it trained?); the first piece is the prompt.

    typed: where in the whole text somebody typed a control token.
    """

    pieces: list[tuple[str, bool]]
    typed: tuple[Span, ...] = ()

    @property
    def text(self) -> str:
        """Return the whole text up to the last completion's closing token."""
        return "".join(text for text, _ in self.pieces)


def render_prompt(tokenizer: Any, messages: Sequence[Message]) -> str:
    """Render the messages up to where the assistant's next words begin."""
    return _around(tokenizer, messages)[0]


def prompt_ids(tokenizer: Any, messages: Sequence[Message]) -> list[int]:
    """Return the ids that generation starts from: those of a training example's prompt."""
    prompt = render_prompt(tokenizer, messages)
    twin = [*messages, {"role": "assistant", "content": _MARK}]
    typed = _typed(tokenizer, twin, render(tokenizer, twin), len(prompt))
    ((ids, _),) = _encode(tokenizer, [(prompt, typed)])
    return ids


def stop_ids(tokenizer: Any) -> list[int]:
    """Return the ids that end an answer: the tokenizer's end token and the template's end-of-turn token.

    The second is read off the template: the first special token that it writes after an assistant's words.
    """
    words = "zq"
    turns = [{"role": "user", "content": words}, {"role": "assistant", "content": words}]
    text = render(tokenizer, turns)
    after = tokenizer(text[text.rindex(words) + len(words) :], add_special_tokens=False)["input_ids"]
    special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    turn = next((token for token in after if token in special), None)
    found = {token for token in (tokenizer.eos_token_id, turn) if token is not None}
    if not found:
        raise ValueError(
            "the tokenizer has no end-of-text token and its template ends no turn; answers never stop"
        )
    return sorted(found)


def starts_elsewhere(tokenizer: Any) -> str:
    """Say so if the template's generation prompt is not how its own rendering of an answer begins, else ''."""
    messages = [{"role": "user", "content": "Hi"}]
    asked, prompt = render(tokenizer, messages, generation_prompt=True), render_prompt(tokenizer, messages)
    if prompt.startswith(asked) or not asked.startswith(prompt):
        return ""
    return (
        f"the chat template asks for an answer with {asked[len(prompt) :]!r} but writes given answers without "
        f"it: prompts end before it, in training and in evaluation"
    )


def render_pair(
    tokenizer: Any, messages: Sequence[Message], *answers: str | Sequence[Message]
) -> list[Rendered]:
    """Render both sides of a pair; their first pieces, the prompt, are equal. A template may trim answers."""
    turns = [[{"role": "assistant", "content": a}] if isinstance(a, str) else a for a in answers]
    if max(map(len, turns)) > 1:
        return [render_conversation(tokenizer, [*messages, *own], len(messages)) for own in turns]
    around = _around(tokenizer, messages)
    return [_side(tokenizer, messages, answer, around) for (answer,) in turns]


def render_conversation(tokenizer: Any, messages: Sequence[Message], start: int = 0) -> Rendered:
    """Render a conversation: assistant turns are trained as they say, by default; what lies between is context.

    start: the turn that the first piece, the prompt, ends before; 0: before the first trained one.
    """
    flagged, messages = messages, bare(messages)
    whole = render(tokenizer, messages)
    pieces, end = [], 0
    for index, message in enumerate(messages):
        if message["role"] != "assistant" or index < max(start, 1):
            continue
        if not flagged[index].get("train", True) and index != start:
            continue
        side = _side(tokenizer, messages[:index], flagged[index], _around(tokenizer, messages[:index]))
        (head, _), *parts = side.pieces
        if not whole.startswith(side.text) or len(head) < end:
            raise RefusedError(
                "the chat template renders an earlier turn differently once more turns follow, so several "
                "turns cannot be trained at once; split the conversation into rows of one answer"
            )
        pieces += [(head[end:], False), *parts]
        end = len(side.text)
    return Rendered(pieces, _typed(tokenizer, messages, whole, end))


def tokenise(tokenizer: Any, rendered: Sequence[Rendered]) -> list[list[list[int]]]:
    """Return for each rendered conversation the ids of each of its pieces."""
    whole = _encode(tokenizer, [(item.text, item.typed) for item in rendered])
    # Both sides of a pair share their prompt; tokenising is what preparing a large set costs.
    prompts = list(dict.fromkeys(next(_texts(item)) for item in rendered))
    prompt_ids = dict(zip(prompts, (ids for ids, _ in _encode(tokenizer, prompts)), strict=True))
    greedy = {i for i, token in tokenizer.added_tokens_decoder.items() if token.rstrip}
    found = []
    for item, both in zip(rendered, whole, strict=True):
        prompt, *rest = _texts(item)
        pieces = _split(item, *both, prompt_ids[prompt], greedy)
        found.append(pieces or [prompt_ids[prompt], *(_behind(tokenizer, *piece) for piece in rest)])
    return found


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
    """Return the prompt, and what the template writes after the words of the assistant's next turn."""
    text = render(tokenizer, [*messages, {"role": "assistant", "content": _MARK}])
    head, mark, tail = text.rpartition(_MARK)
    if not mark:
        raise ValueError("the chat template does not write the assistant's words; choose another template")
    asked = render(tokenizer, messages, generation_prompt=True)
    if not head.startswith(asked):
        return head, tail
    # A template that knows no generation prompt leaves the header out, which is not the model's to say.
    if head[len(asked) :].strip() and asked == render(tokenizer, messages):
        return head, tail
    return asked, tail


def _side(tokenizer: Any, messages: Sequence[Message], answer: Message, around: tuple[str, str]) -> Rendered:
    """Return the prompt and an answer as the template writes it, with its closing end-of-turn token."""
    prompt, tail = around
    turns = [*messages, *bare([answer])]
    text = render(tokenizer, turns)
    if not (text.startswith(prompt) and text[len(prompt) :].endswith(tail)):
        raise RefusedError(
            "the chat template writes the turns before an answer differently for different answers, so "
            "prompt and completion cannot be told apart; choose a plainer template with model.chat_template"
        )
    parts = _trained_parts(text[len(prompt) : len(text) - len(tail)], _closing(tokenizer, tail), answer)
    pieces = [(prompt, False), *parts]
    return Rendered(pieces, _typed(tokenizer, turns, text, sum(len(piece) for piece, _ in pieces)))


def _trained_parts(written: str, closing: str, message: Message) -> list[tuple[str, bool]]:
    """Cut a rendered turn into what is trained and what is not; its closing token goes with its last character."""
    train, content, completion = message.get("train", True), message["content"], written + closing
    if isinstance(train, bool):
        return [(completion, train)]
    # Its words are the last that the template writes: what stands before (a think block) may hold them too.
    at, kept = len(written) - len(content), content
    if not written.endswith(content):  # the template trims it
        kept, at = content.strip(), written.rfind(content.strip())
    if at < 0:
        raise RefusedError(
            "the chat template changes the words of a turn, so that spans of it cannot be found"
        )
    shift = at - (len(content) - len(content.lstrip()) if kept != content else 0)
    edges = [min(max(edge + shift, at), at + len(kept)) for span in train for edge in span]
    if train and train[-1][1] == len(content):
        edges[-1] = len(completion)
    cuts = [0, *edges, len(completion)]
    parts = [(completion[a:b], n % 2 == 1) for n, (a, b) in enumerate(pairwise(cuts))]
    return [part for part in parts if part[0]]


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


def _typed(tokenizer: Any, messages: Sequence[Message], text: str, end: int) -> tuple[Span, ...]:
    """Return where in the first `end` characters of the rendering a message's own control tokens stand.

    They are found in a twin of the conversation that holds as many placeholders instead.
    """
    special = _special_tokens(tokenizer)
    if not any(special.search(message["content"]) for message in messages):
        return ()
    used = set().union(*(message["content"] for message in messages))
    placeholder = next(chr(code) for code in range(0xE000, 0xF900) if chr(code) not in used)
    hidden = [
        message | {"content": special.sub(lambda found: placeholder * len(found[0]), message["content"])}
        for message in messages
    ]
    twin = render(tokenizer, hidden)
    if len(twin) != len(text) or any(b not in (a, placeholder) for a, b in zip(text, twin, strict=True)):
        raise RefusedError("the chat template treats the control tokens that a message holds as its own")
    return tuple(found.span() for found in re.finditer(f"{placeholder}+", twin[:end]))


def _texts(item: Rendered) -> Iterator[tuple[str, tuple[Span, ...]]]:
    """Yield each piece's text with what was typed into it, counted from the piece's start."""
    start = 0
    for text, _ in item.pieces:
        end = start + len(text)
        yield text, tuple((a - start, b - start) for a, b in item.typed if start <= a and b <= end)
        start = end


def _encode(
    tokenizer: Any, texts: Sequence[tuple[str, tuple[Span, ...]]]
) -> list[tuple[list[int], list[Span]]]:
    """Return ids and offsets of each text; what was typed is plain text."""
    if not texts:
        return []
    found = tokenizer([text for text, _ in texts], add_special_tokens=False, return_offsets_mapping=True)
    return [
        _plain(tokenizer, text, typed, ids, offsets) if typed else (ids, offsets)
        for (text, typed), ids, offsets in zip(
            texts, found["input_ids"], found["offset_mapping"], strict=True
        )
    ]


def _plain(
    tokenizer: Any, text: str, typed: Sequence[Span], ids: Sequence[int], offsets: Sequence[Span]
) -> tuple[list[int], list[Span]]:
    """Spell out the control tokens that lie in what was typed; the tokens around them stay."""
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    special |= set(tokenizer.all_special_ids)
    plain_ids, plain_offsets = [], []
    for token, (start, end) in zip(ids, offsets, strict=True):
        if token in special and any(a < end and start < b for a, b in typed):
            # Behind a line break, or a tokenizer that begins every text with a space would add one here.
            spelt = tokenizer("\n" + text[start:end], add_special_tokens=False, split_special_tokens=True,
                              return_offsets_mapping=True)  # fmt: skip
            for part, (a, b) in zip(spelt["input_ids"], spelt["offset_mapping"], strict=True):
                if b > 1:
                    plain_ids.append(part)
                    plain_offsets.append((start + max(a, 1) - 1, start + b - 1))
        else:
            plain_ids.append(token)
            plain_offsets.append((start, end))
    return plain_ids, plain_offsets


def _behind(tokenizer: Any, text: str, typed: Sequence[Span]) -> list[int]:
    """Return the ids of a text behind another: a tokenizer that begins every text with a space adds none."""
    for before in ("\n", "a"):  # what the text begins with may merge with one of them
        shifted = [(start + 1, end + 1) for start, end in typed]
        ((ids, offsets),) = _encode(tokenizer, [(before + text, tuple(shifted))])
        first = sum(end <= 1 for _, end in offsets)
        if first == len(ids) or offsets[first][0] >= 1:
            return ids[first:]
    ((ids, _),) = _encode(tokenizer, [(text, tuple(typed))])
    return ids


def _split(
    item: Rendered, ids: list[int], offsets: list[Span], prompt: list[int], greedy: set[int]
) -> list[list[int]] | None:
    """Cut the whole rendering's ids at the pieces' boundaries; None if a token lies across one.

    greedy: tokens that take white space along. Behind a turn it is theirs; what a prompt ends with is the prompt's.
    """
    pieces, first, end = [], 0, 0
    for text, _ in item.pieces:
        end += len(text)
        last = first
        while last < len(ids) and offsets[last][1] <= end:
            last += 1
        if last < len(ids) and offsets[last][0] < end:
            if not pieces or ids[last] not in greedy or not item.text[end : offsets[last][1]].isspace():
                return None
            last += 1
        pieces.append(ids[first:last])
        first = last
    return pieces if pieces[0] == prompt else None
