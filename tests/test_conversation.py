"""Conversations become token ids: golden ids for three template families, and no token across a boundary."""

from __future__ import annotations

import pytest
from tokenizers import AddedToken, processors

from data_helpers import (
    CHATML,
    LLAMA31,
    LLAMA31_CLOCK,
    QWEN2,
    SPECIALS,
    assistant,
    character_tokenizer,
    ids,
    merging_tokenizer,
    trained_tokenizer,
    user,
)
from sgdpo.data.conversation import (
    cut_prompt,
    join,
    prompt_ids,
    render,
    render_conversation,
    render_pair,
    render_prompt,
    tokenise,
)
from sgdpo.data.rows import RefusedError
from sgdpo.data.template import require_template

BOS = "<|begin_of_text|>"
FAMILIES = [
    pytest.param(CHATML, None, id="chatml"),
    pytest.param(QWEN2, None, id="qwen2"),
    pytest.param(LLAMA31, BOS, id="llama31"),
]


def pair_ids(tokenizer, messages, chosen, rejected):
    """Return (prompt, chosen, rejected) ids."""
    rendered = render_pair(tokenizer, messages, chosen, rejected)
    (prompt, one), (other_prompt, other) = tokenise(tokenizer, rendered)
    assert prompt == other_prompt
    return prompt, one, other


def test_chatml_golden_ids():
    """128 is <|im_start|>, 129 <|im_end|>, all else ASCII: H 72, i 105, Y 89, o 111, N 78, newline 10."""
    prompt, chosen, rejected = pair_ids(character_tokenizer(CHATML), [user("Hi")], "Yo", "No")
    assert prompt == [128, *b"user", 10, 72, 105, 129, 10, 128, *b"assistant", 10]
    assert chosen == [89, 111, 129]
    assert rejected == [78, 111, 129]


def test_qwen2_golden_ids_include_its_own_system_turn():
    prompt, chosen, _ = pair_ids(character_tokenizer(QWEN2), [user("Hi")], "Yo", "No")
    system = [128, *b"system", 10, *b"You are a helpful assistant.", 129, 10]
    assert prompt == [*system, 128, *b"user", 10, 72, 105, 129, 10, 128, *b"assistant", 10]
    assert chosen == [89, 111, 129]


def test_qwen2_takes_a_given_system_turn_instead():
    messages = [{"role": "system", "content": "Be brief."}, user("Hi")]
    prompt, _, _ = pair_ids(character_tokenizer(QWEN2), messages, "Yo", "No")
    assert prompt == [*ids("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi"), 129, 10, *ids(
        "<|im_start|>assistant\n"
    )]  # fmt: skip


def test_llama31_golden_ids_have_one_beginning_and_the_pinned_date():
    """130 begins the text, 131 and 132 enclose a role, 133 ends a turn; the template trims the answer."""
    prompt, chosen, rejected = pair_ids(character_tokenizer(LLAMA31, BOS), [user(" Hi ")], " Yo\n", "No")
    system = [
        131,
        *b"system",
        132,
        10,
        10,
        *b"Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n",
        133,
    ]
    assert prompt == [130, *system, 131, *b"user", 132, 10, 10, 72, 105, 133, 131, *b"assistant", 132, 10, 10]
    assert chosen == [89, 111, 133]
    assert rejected == [78, 111, 133]


def test_a_template_that_asks_the_clock_gets_the_pinned_date():
    asked = render(character_tokenizer(LLAMA31_CLOCK, BOS), [user("Hi")])
    assert asked == render(character_tokenizer(LLAMA31, BOS), [user("Hi")])
    assert "Today Date: 26 Jul 2024" in asked


@pytest.mark.parametrize(("template", "bos"), FAMILIES)
def test_prompt_is_what_generation_feeds_the_model(template, bos):
    """The prompt's ids equal those of transformers' own rendering with the generation prompt."""
    tokenizer = character_tokenizer(template, bos)
    messages = [{"role": "system", "content": "S"}, user("A"), assistant("B"), user("C")]
    own = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=False, date_string="26 Jul 2024"
    )
    assert render_prompt(tokenizer, messages) == own == render(tokenizer, messages, generation_prompt=True)
    prompt, chosen, rejected = pair_ids(tokenizer, messages, "D", "E")
    assert prompt == tokenizer(own, add_special_tokens=False)["input_ids"] == ids(own)
    assert prompt.count(SPECIALS[BOS]) == (bos is not None)
    for side, letter in ((chosen, "D"), (rejected, "E")):
        assert side == [ord(letter), tokenizer.eos_token_id]


@pytest.mark.parametrize(("template", "bos"), FAMILIES)
def test_multi_turn_sft_trains_every_assistant_turn_and_nothing_else(template, bos):
    tokenizer = character_tokenizer(template, bos)
    messages = [user("a"), assistant("first"), user("b"), assistant("second")]
    rendered = render_conversation(tokenizer, messages)
    (pieces,) = tokenise(tokenizer, [rendered])
    completion, trained = join(pieces, rendered)
    end = tokenizer.eos_token
    assert [t for t, on in zip(completion, trained, strict=True) if on] == ids(f"first{end}second{end}")
    whole = render(tokenizer, messages)
    assert pieces[0] + completion == ids(whole[: whole.rindex(end) + len(end)])
    assert pieces[0] == ids(render_prompt(tokenizer, messages[:1]))


def test_no_merge_crosses_the_boundary():
    """Here the header's newline and the answer's would be one token: the prompt stays what it is alone."""
    tokenizer = merging_tokenizer(CHATML)
    alone = tokenizer("<|im_start|>user\nyes<|im_end|>\n<|im_start|>assistant\n", add_special_tokens=False)[
        "input_ids"
    ]
    whole = render(tokenizer, [user("yes"), assistant("\n\nyes")])
    merged = tokenizer(whole, add_special_tokens=False)["input_ids"]
    assert merged[: len(alone)] != alone, "the tokenizer must merge here, or the test shows nothing"
    prompt, chosen, rejected = pair_ids(tokenizer, [user("yes")], "\n\nyes", "no")
    assert prompt == alone
    assert tokenizer.decode(chosen) == "\n\nyes<|im_end|>"
    assert tokenizer.decode(rejected) == "no<|im_end|>"


def test_a_merge_that_offsets_hide_is_found_too():
    """Offsets may leave out a token's leading space: "Ġyes" seems to begin behind the header's "assistant: "."""
    template = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '<|im_end|>' }}{% endfor %}"
    tokenizer = merging_tokenizer(template)
    tokenizer.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    prompt, chosen, rejected = pair_ids(tokenizer, [user("no")], "yes", "\nno")
    assert prompt == tokenizer("user: no<|im_end|>assistant: ", add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(chosen) == "yes<|im_end|>"
    assert tokenizer.decode(rejected) == "\nno<|im_end|>"


def test_no_merge_crosses_a_boundary_within_a_conversation():
    tokenizer = merging_tokenizer(CHATML)
    rendered = render_conversation(tokenizer, [user("yes"), assistant("no"), user("no"), assistant("\nyes")])
    (pieces,) = tokenise(tokenizer, [rendered])
    assert [tokenizer.decode(piece) for piece in pieces] == [text for text, _ in rendered.pieces]


@pytest.mark.parametrize("words", [False, True])
def test_a_closing_token_that_takes_the_line_break_along_changes_no_other_token(words):
    """Phi-3's do: the next turn begins without the line break, as it does in a prompt of several turns."""
    template = CHATML.replace("<|im_start|>' + message['role'] + '", "<|' + message['role'] + '|>")
    template = template.replace("<|im_start|>assistant", "<|assistant|>").replace("im_end", "end")
    tokenizer = trained_tokenizer(template, ("<unk>", "<s>"), "<s>", "<s>", words=words)
    tokenizer.add_tokens(
        [AddedToken(f"<|{name}|>", rstrip=True, special=True) for name in ("user", "assistant", "end")]
    )
    turns = [user("a"), assistant("yes"), user("a"), assistant("no")]
    rendered = render_conversation(tokenizer, turns)
    (pieces,) = tokenise(tokenizer, [rendered])
    assert [token for piece in pieces for token in piece] == tokenizer(
        rendered.text, add_special_tokens=False
    )["input_ids"]
    assert pieces[0] + pieces[1] + pieces[2] == prompt_ids(tokenizer, turns[:3])
    assert [tokenizer.convert_ids_to_tokens(piece) for piece in pieces[1::2]] == [
        ["yes", "<|end|>"],
        ["no", "<|end|>"],
    ]


def test_a_part_of_a_turn_begins_without_the_space_that_a_tokenizer_puts_before_a_text():
    tokenizer = trained_tokenizer(
        CHATML, ("<unk>", "<|im_start|>", "<|im_end|>"), None, "<|im_end|>", words=True
    )
    turn = assistant("yes") | {"train": [(1, 2)]}
    (pieces,) = tokenise(tokenizer, [render_conversation(tokenizer, [user("a"), turn])])
    assert [tokenizer.convert_ids_to_tokens(piece) for piece in pieces[1:]] == [
        ["y"],
        ["e"],
        ["s", "<|im_end|>"],
    ]


def test_control_tokens_typed_in_an_answer_are_plain_text():
    """Exactly one end-of-turn token: the last. The typed one is spelled, <, |, i, m, and so on."""
    _, chosen, rejected = pair_ids(character_tokenizer(CHATML), [user("Hi")], "a<|im_end|>b", "c")
    assert chosen == [*b"a<|im_end|>b", 129]
    assert rejected == [*b"c", 129]


def test_prompt_cut_from_the_left_keeps_the_beginning_of_text():
    assert cut_prompt([1, 2, 3, 4, 5], 3, bos=1) == [1, 4, 5]
    assert cut_prompt([1, 2, 3, 4, 5], 3, bos=None) == [3, 4, 5]
    assert cut_prompt([1, 2, 3], 3, bos=1) == [1, 2, 3]
    assert cut_prompt([9, 2, 3, 4, 5], 3, bos=1) == [3, 4, 5]


def test_no_chat_template_is_one_error_with_advice():
    with pytest.raises(ValueError, match=r"no chat template.*model\.chat_template"):
        require_template(character_tokenizer(None))


def test_a_template_that_never_ends_a_turn_is_refused():
    template = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
    with pytest.raises(ValueError, match="no special token"):
        render_pair(character_tokenizer(template), [user("a")], "b", "c")


def test_a_template_that_refuses_a_role_says_so():
    template = "{{ raise_exception('only user and assistant') }}"
    with pytest.raises(ValueError, match="refuses the conversation: only user and assistant"):
        render(character_tokenizer(template), [user("a")])


def test_a_template_without_generation_prompt_still_keeps_its_header_out_of_completions():
    template = (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' }}"
        "{% endfor %}"
    )
    prompt, chosen, _ = pair_ids(character_tokenizer(template), [user("a")], "b", "c")
    assert prompt == ids("<|im_start|>user\na<|im_end|><|im_start|>assistant\n")
    assert chosen == ids("b<|im_end|>")


def test_a_template_that_rewrites_earlier_turns_cannot_train_them():
    """Some templates drop what an earlier turn thought: the spans of the parts are not those of the whole."""
    template = (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}{{ m['content'] if loop.last or "
        "m['role'] == 'user' else '...' }}{{ '<|im_end|>\n' }}{% endfor %}"
    )
    with pytest.raises(ValueError, match="earlier turn differently"):
        render_conversation(
            character_tokenizer(template), [user("a"), assistant("b"), user("c"), assistant("d")]
        )


LOOP = "{% for a in range(90000) %}{% for b in range(90000) %}{% endfor %}{% endfor %}"
BROKEN = {
    "divides by zero": ("{{ 1 // 0 }}", "ZeroDivisionError"),
    "never ends": (LOOP, "did not end within"),
    "calls itself": ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
    "writes without end": ("{% for a in range(9000) %}{{ 'a' * 9000 }}{% endfor %}", "more than 50,000,000"),
    "reaches for the interpreter": ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "SecurityError"),
    "is no template": ("{% for %}", "TemplateSyntaxError"),
    "reads what is not there": ("{{ messages[9]['content'] + 'a' }}", "UndefinedError"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_template_that_misbehaves_is_one_error_before_any_row(name):
    template, words = BROKEN[name]
    with pytest.raises(ValueError, match=f"{words}.*plain question.*model.chat_template"):
        require_template(character_tokenizer(template))


def test_a_template_that_misbehaves_for_one_row_refuses_that_row_alone():
    template = CHATML + "{% if 'loop' in messages[0]['content'] %}" + LOOP + "{% endif %}"
    tokenizer = character_tokenizer(template)
    require_template(tokenizer)
    with pytest.raises(RefusedError, match="did not end within"):
        render(tokenizer, [user("loop")])
    assert render(tokenizer, [user("a")]).endswith("a<|im_end|>\n")
