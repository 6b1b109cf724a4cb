"""Small tokenizers with the genuine chat templates, and small data sets, for the tests of the data side."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from sgdpo.config.schema import DataConfig

CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + "
    "'<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Qwen-2 writes a system turn of its own where the conversation has none.
QWEN2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ "
    "'<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + "
    "message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ "
    "'<|im_start|>assistant\n' }}{% endif %}"
)
# Llama-3.1's, the parts for tools left out: it begins with the beginning-of-text token, writes a date, trims.
_LLAMA31_DATE = """{%- if not date_string is defined %}
    {%- set date_string = "26 Jul 2024" %}
{%- endif %}
"""
_LLAMA31 = """{{- bos_token }}
DATE
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{{- "Cutting Knowledge Date: December 2023\\n" }}
{{- "Today Date: " + date_string + "\\n\\n" }}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'
        + message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""
LLAMA31 = _LLAMA31.replace("DATE", _LLAMA31_DATE)
# The later kind of template that asks the clock whatever it is told.
LLAMA31_CLOCK = _LLAMA31.replace("DATE", '{%- set date_string = strftime_now("%d %b %Y") %}')

SPECIALS = {
    "<|im_start|>": 128,
    "<|im_end|>": 129,
    "<|begin_of_text|>": 130,
    "<|start_header_id|>": 131,
    "<|end_header_id|>": 132,
    "<|eot_id|>": 133,
    "<unk>": 134,
}


def character_tokenizer(template: str | None, bos: str | None = None) -> PreTrainedTokenizerFast:
    """Make a tokenizer whose ids are ASCII codes, and SPECIALS above them: golden ids are legible."""
    vocabulary = {chr(code): code for code in range(128)} | SPECIALS
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in SPECIALS])
    end = "<|eot_id|>" if template and "eot_id" in template else "<|im_end|>"
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=bos,
        eos_token=end,
        unk_token="<unk>",
        pad_token="<unk>",
        chat_template=template,
    )


def merging_tokenizer(template: str) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE that merges runs of newlines, and a space into the word behind it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=list(SPECIALS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["user\n\n\n\nyes no yes no\n\n\nassistant\n\n\nyes"] * 50, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", chat_template=template)


def ids(text: str) -> list[int]:
    """Return the ids that the character tokenizer must give, by reading: an oracle without a tokenizer."""
    found = []
    while text:
        name = next((name for name in SPECIALS if text.startswith(name)), text[0])
        found.append(SPECIALS.get(name, ord(name[0])))
        text = text[len(name) :]
    return found


def user(content: str) -> dict[str, str]:
    """Return a user's turn."""
    return {"role": "user", "content": content}


def assistant(content: str) -> dict[str, str]:
    """Return an assistant's turn."""
    return {"role": "assistant", "content": content}


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> str:
    """Write rows as json lines and return the path as a setting holds it."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def local(train: str | None = None, **settings: Any) -> DataConfig:
    """Return the settings of `data=local` with short maximum lengths."""
    common = {field.name for field in fields(DataConfig)}
    own = {"train": train} | {key: value for key, value in settings.items() if key not in common}
    given = {key: value for key, value in settings.items() if key in common}
    base = {"name": "local", "function": "sgdpo.data.files.read", "max_length": 128, "max_prompt_length": 96}
    return DataConfig(**(base | given), settings=own)


def generated(**world: Any) -> DataConfig:
    """Return the settings of `data=verifiable` with this world."""
    return DataConfig(
        name="verifiable", function="sgdpo.data.generated.read", settings={"world": world}, max_length=128,
        max_prompt_length=96,
    )  # fmt: skip


def pair(prompt: str = "Q", chosen: str = "yes", rejected: str = "no", **more: Any) -> dict[str, Any]:
    """Return a preference row of strings."""
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected} | more


# Of six rows three have equal scores, two equal answers, two an empty one.
MIXED = [
    pair("a", score_chosen=2, score_rejected=1),
    pair("b", score_chosen=2, score_rejected=2),
    pair("c", "same", "same", score_chosen=3, score_rejected=3),
    pair("d", "yes", "", score_chosen=3, score_rejected=1),
    pair("e", " \n", "no", score_chosen=3, score_rejected=3),
    pair("f", "same", "same"),
]


def trained_tokenizer(
    template: str, specials: Sequence[str], bos: str | None, eos: str, *, words: bool = False
) -> PreTrainedTokenizerFast:
    """Train a BPE with a family's special tokens: byte-level, or with sentencepiece's marked words (`words`).

    Its text holds what merges across boundaries: runs of line breaks, spaces before words, brackets.
    """
    tokenizer = Tokenizer(models.BPE(byte_fallback=words, unk_token="<unk>" if words else None))
    if words:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
        tokenizer.decoder = decoders.Sequence(
            [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
        )
        alphabet, bytes_ = [], ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    else:
        # Words are cut as Llama-3's and Qwen's tokenizers cut them: a run of line breaks is one.
        cut = Regex(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
            r"|\s*[\r\n]+|\s+(?!\S)|\s+"
        )
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Split(cut, "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
        )
        tokenizer.decoder = decoders.ByteLevel()
        alphabet, bytes_ = pre_tokenizers.ByteLevel.alphabet(), []
    trainer = trainers.BpeTrainer(
        vocab_size=900 + len(bytes_), special_tokens=[*specials, *bytes_], initial_alphabet=alphabet,
        show_progress=False,
    )  # fmt: skip
    text = f"{template}\n\n\n\nuser yes no [INST] yes [/INST] no\n\n assistant\n\n\nyes <|a|> It is so, I hope. é"
    tokenizer.train_from_iterator([text] * 20, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=bos, eos_token=eos, chat_template=template,
        additional_special_tokens=list(specials), clean_up_tokenization_spaces=False,
    )  # fmt: skip
