"""Rows in all their common forms read as the same conversation, and malformed ones say what is wrong."""

from __future__ import annotations

import pytest

from data_helpers import assistant, user
from sgdpo.data.rows import RefusedError, pair_row, prompt_row, sft_row

SYSTEM = {"role": "system", "content": "S"}
# The same pair, in every way that it is written.
FORMS = {
    "strings": {"prompt": "A", "chosen": "B", "rejected": "C"},
    "prompt as messages": {"prompt": [user("A")], "chosen": "B", "rejected": "C"},
    "answers as messages": {"prompt": "A", "chosen": [assistant("B")], "rejected": [assistant("C")]},
    "all messages": {"prompt": [user("A")], "chosen": [assistant("B")], "rejected": [assistant("C")]},
    "ultrafeedback": {
        "prompt": "A",
        "chosen": [user("A"), assistant("B")],
        "rejected": [user("A"), assistant("C")],
    },
    "full conversations": {"chosen": [user("A"), assistant("B")], "rejected": [user("A"), assistant("C")]},
    "a null prompt": {
        "prompt": None,
        "chosen": [user("A"), assistant("B")],
        "rejected": [user("A"), assistant("C")],
    },
    "a transcript's prompt apart": {"prompt": "\n\nHuman: A\n\nAssistant:", "chosen": " B", "rejected": " C"},
    "a transcript's prompt and transcripts": {
        "prompt": "\n\nHuman: A\n\nAssistant:",
        "chosen": "\n\nHuman: A\n\nAssistant: B",
        "rejected": "\n\nHuman: A\n\nAssistant: C",
    },
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_reads_as_the_same_pair(form):
    row = pair_row(FORMS[form])
    assert (row.prompt, row.chosen, row.rejected, row.tie) == ([user("A")], "B", "C", False)


def test_what_only_looks_like_a_transcript_is_a_prompt_and_its_answer():
    for prompt in ("Human: A", "Who is the Assistant:"):
        row = pair_row({"prompt": prompt, "chosen": " Human: B\n\nAssistant: C ", "rejected": "D"})
        assert (row.prompt, row.chosen) == ([user(prompt)], " Human: B\n\nAssistant: C ")
    assert prompt_row({"prompt": "Human: A\n\nAssistant: B\n\nHuman: C\n\nAssistant:"})[-1] == user("C")


def test_multi_turn_and_system_turns_stay_in_the_prompt():
    before = [SYSTEM, user("A"), assistant("B"), user("C")]
    as_prompt = pair_row({"prompt": before, "chosen": "D", "rejected": "E"})
    as_conversations = pair_row({"chosen": [*before, assistant("D")], "rejected": [*before, assistant("E")]})
    # The string prompt of such sets is one of the user's turns.
    both = {"prompt": "A", "chosen": [*before, assistant("D")], "rejected": [*before, assistant("E")]}
    as_both = pair_row(both)
    assert as_prompt == as_conversations == as_both
    assert as_prompt.prompt == before
    assert prompt_row(both) == prompt_row({"prompt": before}) == before


@pytest.mark.parametrize(
    ("chosen", "rejected", "tie"), [(7.0, 7.0, True), (7, 6.5, False), (None, None, False)]
)
def test_equal_scores_are_a_tie(chosen, rejected, tie):
    row = FORMS["strings"] | {"score_chosen": chosen, "score_rejected": rejected}
    assert pair_row(row).tie is tie


BAD = {
    "different prompts": (
        {"chosen": [user("A"), assistant("B")], "rejected": [user("X"), assistant("C")]},
        "chosen and rejected have different prompts",
    ),
    "a prompt column of another conversation": (
        {"prompt": "X", "chosen": [user("A"), assistant("B")], "rejected": [user("A"), assistant("C")]},
        "different prompt than the prompt column",
    ),
    "no prompt at all": ({"chosen": "B", "rejected": "C"}, "there is no prompt"),
    "an answer alone": (
        {"chosen": [assistant("B")], "rejected": [assistant("C")]},
        "answer without a prompt",
    ),
    "ends with the user": (
        {"prompt": "A", "chosen": [user("B")], "rejected": "C"},
        "must end with an assistant",
    ),
    "a number": ({"prompt": "A", "chosen": 3, "rejected": "C"}, "chosen must be a string or a list"),
    "a null answer": ({"prompt": "A", "chosen": None, "rejected": "C"}, "chosen must be a string or a list"),
    "an entry without a role": ({"prompt": "A", "chosen": [{"content": "B"}], "rejected": "C"}, "no message"),
    "a picture": (
        {"prompt": "A", "chosen": [{"role": "assistant", "content": [{"type": "image"}]}], "rejected": "C"},
        "only text is supported",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_malformed_pair_says_what_is_wrong(name):
    row, words = BAD[name]
    with pytest.raises(ValueError, match=words):
        pair_row(row)


def test_sft_rows_read_from_messages_or_from_the_chosen_conversation():
    wanted = [user("A"), assistant("B")]
    assert sft_row({"messages": wanted, "prompt": "A"}) == wanted
    assert sft_row({"messages": [*wanted, user("thanks")]}) == wanted
    assert all(sft_row(form) == wanted for form in FORMS.values())


def test_a_users_turn_that_says_nothing_is_refused_wherever_it_stands():
    turns = [SYSTEM | {"content": ""}, user(" "), assistant("B")]
    later = [user("A"), assistant("B"), user(""), assistant("C")]
    for read, row in (
        (sft_row, {"messages": turns}), (sft_row, {"messages": later}), (pair_row, FORMS["strings"] | {"prompt": ""}),
        (pair_row, {"chosen": later, "rejected": [*later[:3], assistant("D")]}), (prompt_row, {"prompt": "\n"}),
    ):  # fmt: skip
        with pytest.raises(RefusedError, match="its prompt is empty"):
            read(row)
    assert sft_row({"messages": [turns[0], user("A"), assistant("B")]})[0]["content"] == ""


@pytest.mark.parametrize("messages", [[], [user("A")], [assistant("B")]])
def test_a_demonstration_without_an_answer_or_a_question_is_refused(messages):
    with pytest.raises(ValueError, match="assistant turn"):
        sft_row({"messages": messages})
