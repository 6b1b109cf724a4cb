"""Tiny models of real architectures, a character tokenizer and a chat template of its own; no download."""

from collections.abc import Mapping
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers import decoders as token_decoders
from transformers import PreTrainedConfig, PreTrainedTokenizerFast

from sgdpo.models.architectures import described

# Printable ASCII and the line break, a token each; every other byte is <unk>.
ALPHABET = "\n" + "".join(map(chr, range(32, 127)))
# How a byte-level tokenizer writes the two of them that it does not write as they are (GPT-2's table).
BYTE_LEVEL = str.maketrans({"\n": "\u010a", " ": "\u0120"})
ROLES = ("<|system|>", "<|user|>", "<|assistant|>")
SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>", *ROLES, "<|end|>")

# One token opens a turn and one closes it: a character model should not spend its context on spelling roles.
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|assistant|>' }}{%- endif -%}"
)


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Return the character tokenizer: 8 special tokens, then the alphabet in order; a template of its own.

    The token that closes a turn, `<|end|>`, is the end token, at which generation stops; bos, eos, pad and unk
    are distinct. It is a byte-level BPE without merges, not a list of words: transformers rebuilds the tokenizer
    of a saved Qwen-2 folder as one, whatever was saved, and would lose the spaces.
    """
    vocabulary = {token: index for index, token in enumerate([*SPECIAL, *ALPHABET.translate(BYTE_LEVEL)])}
    backend = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = token_decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<|end|>",  # what closes a turn, as in Qwen-2 and Llama-3.1 instruct models
        unk_token="<unk>",
        extra_special_tokens=[*ROLES, "<|end|>"],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=1 << 20,
    )


def tiny_config(tiny: Mapping[str, Any]) -> PreTrainedConfig:
    """Return the architecture's config. Raise ValueError for a model type, a key or a value that it refuses."""
    tokenizer = tiny_tokenizer()
    return described(
        "model.tiny",
        tiny,
        vocab_size=len(tokenizer),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.convert_tokens_to_ids("<|end|>"),
        pad_token_id=tokenizer.pad_token_id,
    )
