"""Instructions whose fulfilment a program decides: every kind, what is held out, what a loop or empty talk gains."""

from __future__ import annotations

import re
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from evaluation_fixtures import finished_run
from lab.evaluation.evaluate import evaluate
from lab.evaluation.settings import compose_evaluation, runs_first
from lab.report.cells import with_evaluation
from lab.report.exhibit import find_exhibit
from lab.report.samples import samples
from lab.reproduce import Options, call_python, make_commands, reproduce, runs_to_judge
from sgdpo.config.compose import compose_run, to_run_config
from sgdpo.constraints.checker import check
from sgdpo.constraints.instructions import (
    Instruction,
    draw_instructions,
    forbids_itself,
    instruction_of,
    topics,
)
from sgdpo.constraints.kinds import Constraint, kind_errors, load_kinds
from sgdpo.data.sources import data_errors, load_rows
from sgdpo.drawing.table import Table
from sgdpo.runs.records import view_run
from sgdpo.store import read_jsonl, seal

KINDS = load_kinds()
# An answer that keeps the constraint and one that does not, for each kind: (arguments, kept, broken).
CASES = {
    "words_at_most": ({"count": 3}, "One two-three, four's.", "One two three four."),
    "words_at_least": ({"count": 3}, "a b c", "a b"),
    "words_between": ({"low": 2, "high": 3}, "a b c", "a b c d"),
    "sentences": ({"count": 2}, 'It is late. "Go home!"', "It is 3.5 miles."),
    "sentences_at_most": ({"count": 2}, "One. Two?", "One.\nTwo\nThree"),
    "paragraphs": ({"count": 2}, "a\n \nb", "a\nb"),
    "lines": ({"count": 2}, "a\n\nb\n", "a"),
    "bullets": ({"count": 2}, "- a\n- b", "- a\n* b"),
    "numbered": ({"count": 2}, "1. a\n2) b", "1. a\n3. b"),
    "headings": ({"count": 1}, "# A\ntext\n#b", "## A\ntext"),
    "contains": ({"word": "friend"}, "My Friend!", "friendly"),
    "without_word": ({"word": "the"}, "then", "The end"),
    "without_letter": ({"letter": "z"}, "abc", "Zoo"),
    "letter_at_least": ({"letter": "b", "count": 2}, "Bob", "bar"),
    "word_times": ({"word": "good", "count": 2}, "Good, good.", "good goods"),
    "in_order": ({"items": ["red", "green"]}, "Red, then green and red", "green, red"),
    "language": ({"tongue": "French"}, "le pain est dans la cuisine avec vous", "the bread is with you"),
    "numbers_at_least": ({"count": 2}, "3 and 4.5", "3.5"),
    "without_digits": ({}, "three", "3"),
    "lower": ({}, "all small, 3!", "Not"),
    "upper": ({}, "ALL, 3!", "ALl"),
    "starts_with": ({"words": "To begin with"}, "to begin with, no", "Well, to begin with"),
    "ends_with": ({"words": "Good luck!"}, "so good luck! ", "Good luck! Bye"),
    "quoted": ({}, ' "all of it" ', '"some" of "it"'),
    "title": ({}, "<<A day>>\nText", "<<A day>>"),
    "without_commas": ({"mark": ","}, "a b", "a, b"),
    "without_exclamation": ({"mark": "!"}, "a", "a!"),
    "question": ({}, "is it? ", "is it? Yes."),
    "bold": ({"count": 2}, "**a** and **b c**", "**a** and *b*"),
    "placeholders": ({"count": 1}, "Dear [name]", "Dear []"),
    "postscript": ({}, "Text\nP.S. More", "Text\nP.S."),
    "json_keys": ({"keys": ["a", "b"]}, '```json\n{"a": 1, "b": "x"}\n```', '{"a": 1, "b": ""}'),
}  # fmt: skip


# Answers that people write, by kind and arguments: those that keep it, and those that only seem to.
WRITTEN = [
    ("contains", {"word": "friend"}, [r'{"title": "Bread", "text": "Hello,\nfriend."}'], [r'{"text": "a\nbefriend"}']),
    ("word_times", {"word": "café", "count": 2}, [r'{"a": "caf\u00e9", "b": "\tCafé"}'], []),
    ("sentences", {"count": 2}, [
        "Meine Oma sagt immer: „Geduld ist alles.“ Dann bäckt sie das Brot.",
        "Mia nonna dice: «Serve pazienza.» Poi cuoce il pane.", "I waited… Then the bread rose.",
        "_Wait for it._ Then eat.", "[It is 3.5 miles.] Walk.", "I saw Dr. Smith, e.g. today. He was kind.",
        "Join us at 7 p.m. on Friday. Bring bread.", "We met at 7 p.m. Then we ate.",
        "1. Bread is good.\n2. Bake it.", "1) Bread is good. Bake it.", "I bake in the U.S. and eat. It is fun.",
    ], ["It is 3.5 miles.", "1. Bread is good.\nBake it. Eat it."]),
    ("words_at_most", {"count": 2}, [
        "re\u0301sume\u0301 writing", "well\u2011known facts", "costs $1,000", "at 10:30", "9 a.m.",
    ], ["one two three", "9 a.m. now", "bread,salt,flour"]),
    ("without_word", {"word": "a"}, ["We meet at 9 a.m. on Friday."], ["Take a b.", "A."]),
    ("paragraphs", {"count": 2}, ["One.\n\n---\n\nTwo."], ["One.\n\n---"]),
    ("bullets", {"count": 2}, ["So:\n- **a**\n- b"], ["- a\n- b\n* c", "\u2022 a\n\u2022 b"]),
    ("headings", {"count": 1}, ["# A\n#b"], ["# A\ntext\n## B"]),
    ("numbered", {"count": 2}, ["**1.** a\n**2. b**"], ["**1.** a\n**3.** b", "1. a\n2.5 b"]),
    ("quoted", {}, ['**"All of it."**'], ['"a" **"b"**']),
    ("title", {}, ["**<<A day>>**\nText", "_<<A day>>_\n\nText"], ["A <<day>>\nText"]),
    ("placeholders", {"count": 1}, ["Dear [your name]"], ["- [ ] milk", "[]", "See [here](http://a.b)."]),
    ("starts_with", {"words": "Good news"}, ["**Good news**: bread!", "good news", "_Good news_!",
     '"Good news, friends."'], ["Good newspapers cost money.", "1. Good news", "My Good news"]),
    ("ends_with", {"words": "That is all."}, [
        "So: **That is all.**", '"So: That is all."', "That is all. \U0001f600",
    ], ["xThat is all.", "That is all. Bye"]),
    ("question", {}, ["Do you **agree?**", "_Do you?_", 'She asked: "Do you?"', "Do you? \U0001f600"],
     ["**Do you?** Yes.", "Do you? 5", ""]),
    ("bullets", {"count": 2}, [], ["- a\n-b", "- a\n\u2022 b"]),
    ("headings", {"count": 1}, [], ["#A\ntext"]),
    ("bold", {"count": 1}, ["a **b c** d"], ["2 ** 3 and 4 ** 5", "** a **"]),
    ("postscript", {}, ["Text\n\n**P.S.** Bring some.", "Text\nP.S.\nBring some.", "p. s.: more"],
     ["P.S. I love bread.\n\nDear neighbour, come by.", "Hello there.\n\nP.S.:", ""]),
    ("json_keys", {"keys": ["pros", "cons"]}, ['{"pros": ["a"], "cons": 0}'],
     ['{"pros": [], "cons": {}}', '{"pros": " ", "cons": "\\n"}', '{"pros": [""], "cons": 1}',
      f'{{"pros": {"[" * 900}{"]" * 900}, "cons": 1}}', '{"pros": NaN, "cons": 1}']),
    ("language", {"tongue": "French"}, [
        "C'est l'histoire d'un jardin qu'on aime.", "Bonjour ! J'aime beaucoup cuisiner, surtout quand il fait froid.",
        "Le pain est bon.",
    ], ["The bread is good, les amis.", "Il pane è buono.", "Bonjour"]),
    ("language", {"tongue": "Spanish"}, [
        "Me gusta mucho cocinar porque nos hace felices.", "La cocina une a una familia y a los amigos.",
    ], ["La cucina unisce una famiglia e gli amici.", "Le pain est bon."]),
    ("language", {"tongue": "Italian"}, ["Mi piace molto cucinare perché rende tutti felici."],
     ["Me gusta mucho cocinar."]),
    ("language", {"tongue": "German"}, [
        "Ich koche gern, weil es Spaß macht.", "Wir lieben unseren Garten, denn dort wachsen Tomaten.",
        "Kochen macht mir viel Freude, besonders am Abend.",
    ], ["I cook because it is fun.", "We love our garden, and in it tomatoes grow."]),
]  # fmt: skip


@pytest.mark.parametrize(("name", "arguments", "kept", "broken"), WRITTEN)
def test_what_people_write_is_known_from_what_only_seems_right(name, arguments, kept, broken) -> None:
    assert {said: KINDS[name].holds(said, **arguments) for said in kept + broken} == (
        dict.fromkeys(kept, True) | dict.fromkeys(broken, False)
    )


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_knows_an_answer_that_keeps_it_from_one_that_does_not(name: str) -> None:
    if name not in CASES:  # somebody's own kind, which its own test knows
        pytest.skip("no case")
    arguments, kept, broken = CASES[name]
    assert KINDS[name].holds(kept, **arguments)
    assert not KINDS[name].holds(broken, **arguments)
    said = {KINDS[name].one(Random(n)).text for n in range(20)}
    assert not [text for text in said if re.search(r"\b(least|most|exactly) 1 \w+s\b", text)], (
        "one is no plural"
    )


def test_there_are_twenty_kinds_and_none_fails_on_any_string() -> None:
    assert len(KINDS) >= 20
    random = Random(0)
    letters = "aA1 .!?\n\"'<>[]{}*#-,\u00e9\u2028\U0001f600\x00"
    texts = ["", " ", *("".join(random.choices(letters, k=k)) for k in range(1, 80))]
    for instruction in draw_instructions(KINDS, 60, combined=(1, 3), seed=1, held_out=False):
        for text in texts:
            assert 0 <= check(instruction, text, KINDS).total <= 1


def test_thousands_of_instructions_are_different_fit_together_and_are_held_out_by_topic() -> None:
    train, test = (
        list(draw_instructions(KINDS, n, combined=(2, 3), seed=0, held_out=held_out))
        for n, held_out in ((3000, False), (800, True))
    )
    for rows in (train, test):
        assert len({row.prompt for row in rows}) == len(rows)
        assert {len(row.constraints) for row in rows} == {2, 3}
        asked = Counter(c.kind for row in rows for c in row.constraints)
        assert set(asked) == set(KINDS)
        assert min(asked.values()) > 0.6 * max(asked.values())
        for row in rows:
            aspects = [aspect for c in row.constraints for aspect in KINDS[c.kind].aspects]
            assert len(aspects) == len(set(aspects)), row.prompt
            assert "{" not in row.prompt, row.prompt
            assert not forbids_itself(row, KINDS), row.prompt
    assert not {row.topic for row in train} & {row.topic for row in test}
    other = draw_instructions(KINDS, 200, combined=(2, 3), seed=7, held_out=True)
    assert not {row.topic for row in other} & set(topics(held_out=False))
    assert instruction_of(train[0].row(), KINDS).row() == train[0].row()


@pytest.mark.parametrize(
    ("topic", "constraints", "forbidden"),
    [
        ("baking bread", [("without_letter", {"letter": "b"})], True),  # every word of the topic has it
        ("baking bread", [("without_letter", {"letter": "k"})], False),
        ("a day out", [("without_word", {"word": "is"}), ("ends_with", {"words": "That is all."})], True),
        ("a day out", [("without_word", {"word": "is"}), ("ends_with", {"words": "Good luck!"})], False),
        (
            "a day out",
            [("without_letter", {"letter": "q"}), ("json_keys", {"keys": ["question", "answer"]})],
            True,
        ),
        (
            "a day out",
            [("letter_at_least", {"letter": "b", "count": 3}), ("without_letter", {"letter": "b"})],
            True,
        ),
        ("a day out", [("language", {"tongue": "French"})], False),
    ],
)
def test_no_instruction_forbids_what_it_asks_for(topic, constraints, forbidden) -> None:
    asked = tuple(Constraint(*each) for each in constraints)
    assert forbids_itself(Instruction(topic, "", asked), KINDS) == forbidden


def test_a_loop_the_instruction_again_and_silence_gain_nothing() -> None:
    """All but silence keep the constraint; only the answer that says something about the topic has the whole score."""
    constraint = Constraint("words_at_least", {"count": 12}, "Use at least 12 words.")
    prompt = "Write a short text about baking bread. Use at least 12 words."
    asked = Instruction("baking bread", prompt, (constraint,))
    good = "Warm bread needs flour, water, salt and patience; knead the dough well and let it rise."
    scores = {
        name: check(asked, text, KINDS)
        for name, text in {
            "good": good, "loop": "bread is good " * 20, "echo": prompt + " " + prompt, "silence": " ",
            "off": "Seven quiet trains left every evening while children counted clouds above our tall houses.",
        }.items()
    }  # fmt: skip
    assert {name: found.met for name, found in scores.items()} == dict.fromkeys(scores, 1.0) | {
        "silence": 0.0
    }
    assert scores["good"].total == 1.0
    assert scores["off"].total == 0.5
    assert [scores[name].total for name in ("loop", "echo", "silence")] == [0.0, 0.0, 0.0]


def test_words_that_are_in_every_text_are_about_no_topic() -> None:
    asked = (Constraint("lower", {}),)
    said = "i say that they who go up and around with you come after them, without a word."
    for topic in (*topics(held_out=False), *topics(held_out=True)):
        assert check(Instruction(topic, "", asked), said, KINDS).empty == 0.5, topic


def test_what_is_wrong_with_a_kind_is_said_with_the_file_and_the_value() -> None:
    good = {
        "name": "words_at_most", "function": "sgdpo.constraints.lengths.words_at_most", "say": ["At most {count}."],
        "draw": {"count": [3]}, "aspects": ["length"],
    }  # fmt: skip
    assert not kind_errors("words_at_most", good)
    for change, words in (
        ({"draw": {"count": [3, "many"]}}, "constraint.count='many' does not fit int"),
        ({"draw": {"count": 3}}, "must give each argument a list"),
        ({"draw": {"letters": [3]}}, "constraint.letters is not a setting"),
        ({"say": ["At most {number}."]}, "does not fit the arguments"),
        ({"say": []}, "say must be a list"),
        ({"say": [5]}, "say must be a list of at least one text"),
        ({"draw": None}, "conf/constraint/words_at_most.yaml: draw must give each argument a list"),
        ({"function": "sgdpo.constraints.lengths.nothing"}, "no function or class 'nothing'"),
        ({"name": "other"}, "it is the file's"),
    ):
        try:
            said = "\n".join(kind_errors("words_at_most", good | change))
        except ValueError as error:
            said = str(error)
        assert words in said, said


def test_the_source_gives_instructions_to_sample_and_says_what_training_needs() -> None:
    data = to_run_config(compose_run(["data=constraints", "data.instructions=50"])).data
    assert not data_errors(data, "prompts")
    rows = load_rows(data, "prompts", "train")
    assert rows is not None
    assert rows.count() == len(list(rows.read())) == 50
    (said,) = data_errors(data, "preference")
    assert "scripts/sample.py" in said
    for change, words in (
        ("data.least=4", "must not exceed"),
        ("data.kinds=[rhymes]", "no kind of constraint"),
    ):
        wrong = to_run_config(compose_run(["data=constraints", change])).data
        assert any(words in error for error in data_errors(wrong, "prompts"))


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory) -> tuple[Path, dict]:
    """A tiny model's answers to six held-out instructions, by the real command's road."""
    run = finished_run(tmp_path_factory.mktemp("outputs") / "exp" / "dpo")
    words = ["benchmark=constraints", "benchmark.limit=6", "benchmark.max_new_tokens=8"]
    return run, evaluate(compose_evaluation([*runs_first([str(run)]), *words]))[str(run)]


def test_the_benchmark_reads_any_runs_answers_and_says_what_it_counted(evaluated) -> None:
    run, result = evaluated
    rows = read_jsonl(run / result["samples"])
    assert len(rows) == result["n"] == 6
    for row in rows:
        (asked,) = [a for a in draw_instructions(KINDS, 400, combined=(2, 3), seed=0, held_out=True)
                    if a.prompt == row["prompt"]]  # fmt: skip
        found = check(asked, row["response"], KINDS)
        assert (row["score"], row["met"]) == (found.total, found.met)
        assert list(row["kept"].values()) == list(found.kept)
    assert result["constraint_rate"] == pytest.approx(100 * sum(row["met"] for row in rows) / 6)
    assert result["constraint_rate_low"] <= result["constraint_rate"] <= result["constraint_rate_high"]
    assert result["ended"] == pytest.approx(100 * sum(row["ended"] for row in rows) / 6)
    certain = [name for name in ("all_met", "ended", "looping", "empty") if result[name] in (0, 100)]
    assert certain
    assert all(result[f"{name}_high"] - result[f"{name}_low"] > 20 for name in certain), (
        "six answers leave doubt"
    )
    assert set(result["by_kind"]) == {kind for row in rows for kind in row["kept"]}


def test_the_page_of_samples_shows_every_methods_answer_to_the_same_prompts(evaluated) -> None:
    run, result = evaluated
    table = samples([view_run(run)], benchmarks=("constraints",), prompts=3)
    assert len(table.rows) == 3
    shown = read_jsonl(run / result["samples"])
    assert [row[0].text for row in table.rows] == [shown[n]["prompt"] for n in (0, 2, 4)]
    with pytest.raises(ValueError, match="no run has the evaluation"):
        with_evaluation([view_run(run)], "constraints-other")


def test_make_finds_the_results_of_changed_settings_and_shows_them_in_every_table(evaluated) -> None:
    """By the real command, for the study and the page of samples; other settings are judged."""
    run, result = evaluated
    exhibit = replace(find_exhibit("constraints"), experiment="exp")
    asked = ("benchmark.limit=6", "benchmark.max_new_tokens=8")
    options = Options("constraints", outputs=str(run.parents[1]), arguments=asked)
    assert runs_to_judge(exhibit, options) == []
    for other in ((), asked[:1], (*asked, "generator.dtype=bfloat16")):
        assert runs_to_judge(exhibit, replace(options, arguments=other)) == [str(run)]
    command, *_ = make_commands(exhibit, options)
    assert call_python(command) == 0
    arms = Table.read(Path(options.folder(exhibit)) / "constraints-arms.json")
    (shown,) = [row for row in arms.rows if row[1].text == "SGDPO"]
    assert shown[2].value == pytest.approx(result["constraint_rate"])


def test_make_constraints_samples_before_it_sweeps_and_stops_where_nothing_was_sampled(
    tmp_path, capsys
) -> None:
    """A dry run says all of it, the tuning too."""
    options = Options("constraints", outputs=str(tmp_path), arguments=("sample.data.limit=20", "seed=7"))
    commands: list[list[str]] = []
    with pytest.raises(ValueError, match="not evaluated"):  # nothing ran: the tuning has no judged run
        reproduce(options, lambda command: commands.append(command) or 0)
    assert [command[0] for command in commands[:4]] == [
        "scripts/smollm2.py", "scripts/sample.py", "scripts/start.py", "src/train.py",
    ]  # fmt: skip
    assert commands[1][-1] == "data.limit=20"
    assert f"into={tmp_path}/constraints-pairs" in commands[1]
    assert "seed=7" in commands[3]
    assert not any("data.limit=20" in command for command in commands[2:])
    assert reproduce(options, lambda command: int(command[0] == "scripts/sample.py")) == 1
    capsys.readouterr()
    assert reproduce(replace(options, dry_run=True), lambda command: 1) == 0, "nothing is run"
    said = capsys.readouterr().out
    scripts = [*(command[0] for command in commands[:4]), "scripts/evaluate.py", *["scripts/exhibit.py"] * 3]
    assert re.findall(r"then: python (\S+)", said) == scripts
    assert "experiment=tuning-constraints" in said
    assert "each method's best optimizer.lr on fresh seeds" in said
    for word in (f"{commands[3][1]}", "sweep=smollm2_ultrafeedback"):
        assert find_exhibit(word.removeprefix("sweep=").replace("_", "-")).before


@pytest.mark.proof
def test_make_constraints_goes_from_nothing_to_its_tables(tmp_path) -> None:
    """The real commands, one after the other, a tiny model in SmolLM2's place; a second time nothing trains."""
    run = finished_run(tmp_path / "tiny" / "exp" / "start")
    place = tmp_path / "o" / "cache" / "models" / "smollm2-135m-instruct"
    shutil.copytree(run / "model", place)
    seal(place)
    asked = ["sample.data.limit=40", "sample.data.test_limit=20", "method=sft,dpo", "optimizer.lr=5e-6,2e-5",
             "optimizer.batch_size=4", "optimizer.max_steps=2", "tracking=off", "benchmark.limit=40"]  # fmt: skip
    options = Options("constraints", outputs=str(tmp_path / "o"), arguments=tuple(asked))
    assert reproduce(options) == 0
    trained = {path: path.stat().st_mtime_ns for path in (tmp_path / "o").rglob("metrics.jsonl")}
    assert len(trained) == 3 + 2 * 2 + 2 * 3, "the start of each seed, the tuning, the best rates"
    findings = Table.read(tmp_path / "o" / "constraints" / "constraints.json")
    assert [row[1].text for row in findings.rows] == ["SFT less start", "DPO less start"]
    arms = Table.read(tmp_path / "o" / "constraints" / "constraints-arms.json")
    shown = {row[1].text: row[2].value for row in arms.rows}
    assert all(shown[arm] is not None for arm in ("start", "SFT", "DPO"))
    page = Table.read(tmp_path / "o" / "constraints-samples" / "constraints-samples.json")
    assert {row[1].text for row in page.rows} == {"Start", "SFT", "DPO"}
    assert page.rows[0][1].text == "Start", "what the others are held against comes first"
    assert reproduce(options) == 0
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "o").rglob("metrics.jsonl")} == trained
