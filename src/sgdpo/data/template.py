"""Render conversations by a tokenizer's own chat template, which is a program of somebody else's.

transformers runs it in a sandbox without files and calls; here it also gets a pinned date and may take only
so long and write only so much, and whatever goes wrong in it is one error that says so.
"""

import ctypes
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from sgdpo.data.rows import Message, RefusedError

# Llama-3.1's template writes a date into the prompt: today's, unless it is given. This is the one it falls
# back to itself, so that no run depends on the day it started.
TEMPLATE_DATE = "26 Jul 2024"
# Some templates ask the clock instead. A macro of the same name in front of the template answers for it.
_PINNED_CLOCK = (
    "{% macro strftime_now(format) %}{{ format | replace('%d', '26') | replace('%b', 'Jul')"
    " | replace('%B', 'July') | replace('%Y', '2024') | replace('%m', '07')"
    " | replace('%y', '24') }}{% endmacro +%}"
)
# Of processor time, so that a machine that slept does not count; a real rendering takes milliseconds.
SECONDS = 3.0
CHARACTERS = 50_000_000


def default_template(given: str | Mapping[str, str] | None, owner: str) -> str | None:
    """Return what renders conversations of what a tokenizer holds: a template, or several by name."""
    if not given or isinstance(given, str):
        return given or None
    if "default" not in given:
        raise ValueError(
            f"{owner} has the chat templates {', '.join(sorted(given))}, and none of them is called default; write the "
            "one that is meant into a .jinja file and name it with model.chat_template"
        )
    return given["default"]


def require_template(tokenizer: Any) -> None:
    """Raise ValueError with advice for a tokenizer that cannot render a question or cannot give offsets."""
    if not default_template(tokenizer.chat_template, "the tokenizer"):
        raise ValueError(
            "the tokenizer has no chat template; name one with model.chat_template (a folder or hub id whose "
            "tokenizer has one, for a base model its instruct sibling, or a .jinja file)"
        )
    if not tokenizer.is_fast:
        raise ValueError(
            "the tokenizer is not a fast one (no tokenizer.json), so completions cannot be found by offsets; "
            "convert it with tokenizers, or choose a model that ships tokenizer.json"
        )
    try:
        render(tokenizer, [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}])
    except RefusedError as error:
        raise ValueError(
            f"{error}; it fails on a plain question, so give another with model.chat_template"
        ) from None


def render(
    tokenizer: Any, messages: Sequence[Message | Mapping[str, str]], *, generation_prompt: bool = False
) -> str:
    """Render messages by the chat template, the date pinned. Raises RefusedError if it does not render them."""
    template = default_template(tokenizer.chat_template, "the tokenizer")
    try:
        with _time_limit():
            text = tokenizer.apply_chat_template(
                list(messages),
                chat_template=_PINNED_CLOCK + template if "strftime_now" in template else template,
                tokenize=False,
                add_generation_prompt=generation_prompt,
                date_string=TEMPLATE_DATE,
            )
    except _TooLongError:
        raise RefusedError(f"the chat template did not end within {SECONDS:g} s of computing") from None
    except Exception as error:  # a template can raise anything: it is somebody else's program
        kind = "" if type(error).__name__ == "TemplateError" else f"{type(error).__name__}: "
        raise RefusedError(f"the chat template refuses the conversation: {kind}{error}") from None
    if len(text) > CHARACTERS:
        raise RefusedError(f"the chat template wrote {len(text):,} characters, more than {CHARACTERS:,}")
    return text


class _TooLongError(BaseException):
    """Raised inside a rendering that exceeds its time."""


class _Watch:
    """Raise _TooLongError in the thread whose rendering takes too long; one sleeping thread for all."""

    def __init__(self) -> None:
        self.lock, self.started = threading.Lock(), dict[int, float]()
        threading.Thread(target=self._run, daemon=True, name="template watch").start()

    def _run(self) -> None:
        while True:
            time.sleep(SECONDS / 10)
            with self.lock:
                for thread, start in list(self.started.items()):
                    if time.process_time() - start > SECONDS:
                        del self.started[thread]
                        # The only way to stop a loop in Python from outside that leaves signals to others.
                        ctypes.pythonapi.PyThreadState_SetAsyncExc(
                            ctypes.c_ulong(thread), ctypes.py_object(_TooLongError)
                        )


_watch: _Watch | None = None


@contextmanager
def _time_limit() -> Iterator[None]:
    global _watch
    _watch = _watch or _Watch()
    thread = threading.get_ident()
    _watch.started[thread] = time.process_time()
    try:
        yield
    finally:
        with _watch.lock:
            _watch.started.pop(thread, None)
