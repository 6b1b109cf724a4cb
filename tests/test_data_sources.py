"""Rows come from parquet, json, json lines or a saved set; what is wrong is said before anything loads."""

from __future__ import annotations

import gzip
import json
import pickle

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict

from data_helpers import assistant, generated, local, user, write_jsonl
from sgdpo.data.sources import data_errors, load_rows

ROWS = [
    {
        "prompt": f"Q{i}",
        "chosen": [user(f"Q{i}"), assistant("yes")],
        "rejected": [user(f"Q{i}"), assistant("no")],
    }
    for i in range(5)
]


def write_parquet(folder):
    pq.write_table(pa.Table.from_pylist(ROWS), folder / "rows.parquet")
    return folder / "rows.parquet"


def write_json_array(folder):
    (folder / "rows.json").write_text(json.dumps(ROWS, indent=1))
    return folder / "rows.json"


def write_json_lines_named_json(folder):
    write_jsonl(folder / "rows.json", ROWS)
    return folder / "rows.json"


def write_json_lines(folder):
    write_jsonl(folder / "rows.jsonl", ROWS)
    return folder / "rows.jsonl"


def write_zipped_splits(folder):
    """Lay the files as HH-RLHF has them: a folder of folders, each with its splits, zipped."""
    for name, rows in {"base/train": ROWS[:2], "more/train": ROWS[2:], "base/test": ROWS[:1]}.items():
        file = folder / "splits" / f"{name}.jsonl.gz"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    return folder / "splits"


def write_saved(folder):
    Dataset.from_list(ROWS).save_to_disk(folder / "saved")
    return folder / "saved"


def write_saved_splits(folder):
    splits = {"train": Dataset.from_list(ROWS), "test": Dataset.from_list(ROWS[:1])}
    DatasetDict(splits).save_to_disk(folder / "splits")
    return folder / "splits"


WRITERS = [
    write_parquet,
    write_json_array,
    write_json_lines_named_json,
    write_json_lines,
    write_zipped_splits,
    write_saved,
    write_saved_splits,
]


def test_the_id_of_a_hubs_set_is_told_where_it_belongs_and_a_missing_file_is_not_taken_for_one():
    (said,) = data_errors(local("org/name"), "preference")
    assert said.endswith("and sets of the hub come with data=hub data.train=org/name")
    for path in ("pairs.parquet", "mine/pairs.jsonl.gz", "/nowhere/pairs"):
        (said,) = data_errors(local(path), "preference")
        assert said.endswith("relative to the folder you start from")


@pytest.mark.parametrize("write", WRITERS)
def test_every_kind_of_file_gives_the_same_rows_in_its_order(write, tmp_path):
    data = local(str(write(tmp_path)))
    assert data_errors(data, "preference") == []
    source = load_rows(data, "preference", "train")
    assert source.count() == 5
    assert list(source.read()) == list(source.read()) == ROWS


def test_the_key_is_the_content_and_not_the_name(tmp_path):
    paths = [write_jsonl(tmp_path / name, rows) for name, rows in [("a.jsonl", ROWS), ("b.jsonl", ROWS)]]
    paths.append(write_jsonl(tmp_path / "c.jsonl", ROWS[:4]))
    same, copy, other = (load_rows(local(path), "preference", "train").key() for path in paths)
    assert same == copy != other


def test_no_test_set_is_none(tmp_path):
    assert load_rows(local(str(write_json_lines(tmp_path))), "preference", "test") is None


def test_without_an_sft_file_the_chosen_conversations_serve(tmp_path):
    data = local(str(write_json_lines(tmp_path)))
    assert data_errors(data, "sft") == []
    assert load_rows(data, "sft", "train").count() == 5


def test_with_an_sft_file_its_own_test_set_is_used_or_none(tmp_path):
    """Held-out pairs beside foreign demonstrations would measure another distribution."""
    demonstrations = write_jsonl(tmp_path / "sft.jsonl", [{"messages": [user("a"), assistant("b")]}])
    pairs = str(write_json_lines(tmp_path))
    data = local(pairs, test=pairs, sft=demonstrations)
    assert load_rows(data, "sft", "train").count() == 1
    assert load_rows(data, "sft", "test") is None


def empty_folder(folder):
    (folder / "empty").mkdir()
    return folder / "empty"


def bad_file(folder, name, content):
    path = folder / name
    path.write_bytes(content)
    return str(path)


def test_bad_files_are_each_one_clear_error(tmp_path):
    cases = {
        str(tmp_path / "absent.parquet"): "does not exist",
        bad_file(tmp_path, "torn.parquet", b"PAR1 not really"): "cannot be read",
        bad_file(tmp_path, "torn.jsonl", b'{"prompt": "a", '): "line 1, column 17",
        bad_file(tmp_path, "latin.jsonl", b"\xff\xfe\x00"): "not UTF-8",
        bad_file(tmp_path, "list.jsonl", b"[1, 2]\n"): "row 0 is no object with named fields",
        bad_file(tmp_path, "empty.jsonl", b""): "is empty",
        bad_file(
            tmp_path, "twice.csv", b"prompt,chosen,chosen,rejected\na,b,c,d\n"
        ): "several columns of the name chosen",
        bad_file(tmp_path, "object.json", b'{\n "prompt": ["a"]\n}'): "one object over several lines",
        bad_file(tmp_path, "table.xls", b"a,b"): "no known kind",
        bad_file(tmp_path, "rows.jsonl", b'{"question": "a", "answer": "b"}'): "found: question, answer",
        str(tmp_path): "holds files of several kinds",
        str(empty_folder(tmp_path)): "no saved data set",
    }
    for path, words in cases.items():
        (error,) = data_errors(local(path), "preference")
        assert path in error
        assert words in error, error


def test_a_pickle_is_never_loaded(tmp_path):
    class Bomb:
        def __reduce__(self):
            return open, (str(tmp_path / "exploded"), "w")

    for name in ("rows.pkl", "rows.pt", "rows.jsonl"):
        (tmp_path / name).write_bytes(pickle.dumps(Bomb()))
        assert data_errors(local(str(tmp_path / name)), "preference")
    assert not (tmp_path / "exploded").exists()


def test_different_prompts_are_found_before_anything_loads_and_name_the_row(tmp_path):
    rows = [*ROWS, {"chosen": [user("A"), assistant("b")], "rejected": [user("B"), assistant("c")]}]
    (error,) = data_errors(local(write_jsonl(tmp_path / "rows.jsonl", rows)), "preference")
    assert "row 5: chosen and rejected have different prompts" in error


def test_missing_split_names_those_found(tmp_path):
    (error,) = data_errors(local(str(write_saved_splits(tmp_path)), train_split="validation"), "preference")
    assert "train, test" in error


def test_all_errors_come_at_once(tmp_path):
    data = local(
        str(tmp_path / "a.parquet"),
        test=str(tmp_path / "b.parquet"),
        ties="maybe",
        identical="no",
        empty="keep",
        limit=0,
        max_length=64,
        max_prompt_length=64,
    )
    errors = "\n".join(data_errors(data, "preference"))
    for words in (
        "a.parquet",
        "b.parquet",
        "data.ties",
        "data.identical",
        "data.empty",
        "data.limit",
        "max_prompt",
    ):
        assert words in errors


def test_no_training_file_is_an_error():
    assert "data.train is not set" in data_errors(local(), "preference")[0]


def test_a_generated_world_out_of_range_is_an_error():
    errors = "\n".join(data_errors(generated(pairs=-1, ties=1.5, typo=1), "preference"))
    assert "data.world.typo is not a setting" in errors
    assert "data.world.pairs" in errors
    assert "data.world.ties" in errors


def folder_of(path, *names):
    """Return a folder of shards whose only row is their name."""
    for name in names:
        file = path / "shards" / f"{name}.jsonl"
        file.parent.mkdir(parents=True, exist_ok=True)
        write_jsonl(file, [{"prompt": name, "chosen": "a", "rejected": "b"}])
    return str(path / "shards")


ULTRAFEEDBACK = [
    f"data/{half}_{kind}-00000-of-00001" for half in ("test", "train") for kind in ("gen", "prefs", "sft")
]


@pytest.mark.parametrize(
    ("split", "names", "others"),
    [
        ("train", ["train-00000-of-00002", "train-00001-of-00002"], ["test-00000-of-00001"]),
        ("test", ["test-00000-of-00001-b42a775f407cee45"], ["train-00000-of-00001-ab32875e407cee45"]),
        ("train", ["train"], ["train_sft"]),
        ("train", ["train_000", "train_001"], ["train_sft", "validation"]),
        ("train", ["train1", "train2"], ["test1"]),
        ("train", ["Train"], ["Test"]),
        ("train", ["train.v2"], ["test.v2"]),
        ("train", ["train_prefs-00000-of-00001"], ["test_prefs-00000-of-00001"]),
        (
            "train_prefs",
            ["data/train_prefs-00000-of-00001"],
            [name for name in ULTRAFEEDBACK if "n_prefs" not in name],
        ),
        ("train", ["default/train/0000", "default/train/0001"], ["default/test/0000"]),
        ("train", ["part-00000-of-00002", "part-00001-of-00002"], []),
        ("round_2", ["round_2"], ["round_1"]),
        ("train", ["tests", "trains"], []),
        ("train", ["pairs"], [".ipynb_checkpoints/pairs-checkpoint", "._pairs"]),
    ],
)
def test_a_folder_gives_the_shards_of_one_split(tmp_path, split, names, others):
    data = local(folder_of(tmp_path, *names, *others), train_split=split)
    assert data_errors(data, "preference") == []
    assert [row["prompt"] for row in load_rows(data, "preference", "train").read()] == names


@pytest.mark.parametrize(
    ("names", "split", "words"),
    [
        (
            ["train-00000-of-00001", "validation-00000-of-00001"],
            "test",
            "splits train, validation but not of 'test'",
        ),
        (["train/0000", "dev/0000"], "test", "splits dev, train but not of 'test'"),
        (["train"], "train_prefs", "splits train but not of 'train_prefs'"),
        (
            ULTRAFEEDBACK,
            "train",
            "splits test_gen, test_prefs, test_sft, train_gen, train_prefs, train_sft but not of",
        ),
        (
            ["train_a", "train_b"],
            "train",
            "set data.train_split (or kin) to one of them, or name the files train-00000",
        ),
    ],
)
def test_a_folder_that_holds_other_splits_names_them_and_mixes_nothing(tmp_path, names, split, words):
    (error,) = data_errors(local(folder_of(tmp_path, *names), train_split=split), "preference")
    assert words in error


PLAIN = {"prompt": "q", "chosen": "a", "rejected": "b"}


@pytest.mark.parametrize(
    ("columns", "row", "expected"),
    [
        ({"prompt": "question"}, {"question": "q", "chosen": "a", "rejected": "b"}, PLAIN),
        (
            {"prompt": "question"},
            {
                "question": "q",
                "chosen": "a",
                "rejected": "b",
                "weight": 3.0,
                "score_chosen": 5.0,
                "topic": "t",
            },
            PLAIN | {"weight": 3.0, "score_chosen": 5.0, "topic": "t"},
        ),
        ({"prompt": "question"}, PLAIN | {"question": "better"}, PLAIN | {"prompt": "better"}),
        ({"chosen": "rejected", "rejected": "chosen"}, PLAIN, PLAIN | {"chosen": "b", "rejected": "a"}),
        ({"chosen": "messages"}, {"prompt": "q", "messages": "a", "rejected": "b"}, PLAIN),
        ({"messages": "turns", "mask": "trains"}, PLAIN, PLAIN),
    ],
)
def test_columns_are_renamed_and_what_is_not_mapped_stays(tmp_path, columns, row, expected):
    data = local(write_jsonl(tmp_path / "rows.jsonl", [row]), columns=columns)
    assert data_errors(data, "preference") == []
    assert list(load_rows(data, "preference", "train").read()) == [expected]


def test_a_mapped_column_that_pairs_lack_is_named_and_other_phases_may_lack_it(tmp_path):
    pairs = write_jsonl(tmp_path / "pairs.jsonl", [{"question": "q", "good": "a", "bad": "b"}])
    demonstrations = [{"messages": [user("q"), assistant("a")], "weight": 2.0}]
    sft = write_jsonl(tmp_path / "sft.jsonl", demonstrations)
    columns = {"prompt": "question", "chosen": "good", "rejected": "bad"}
    both = local(pairs, sft=sft, columns=columns)
    assert data_errors(both, "preference") == data_errors(both, "sft") == []
    assert list(load_rows(both, "sft", "train").read()) == demonstrations
    (error,) = data_errors(local(pairs, columns=columns | {"weight": "share"}), "preference")
    assert "row 0 has no column share, which data.columns names; found: question, good, bad" in error
    (error,) = data_errors(local(pairs, columns={"chosen": "god"}), "sft")
    assert "needs the columns messages (or prompt and chosen); found: question, good, bad" in error
    (error,) = data_errors(local(pairs, sft=sft, columns=columns | {"mask": "trains"}), "sft")
    assert "row 0 has no column trains, which data.columns names; found: messages, weight" in error
