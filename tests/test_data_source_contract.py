"""What a data source may return, where it may lie, and what its contents are known by (test_adding.py adds one)."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal

import numpy as np
import pytest

from data_helpers import local
from sgdpo.data import files
from sgdpo.data.sources import data_contents, data_errors, load_rows


def source(tmp_path, name: str, body: str):
    file = tmp_path / f"{name}.py"
    file.write_text(f"def rows(phase, split):\n    {body}\n")
    return local(function=f"{name}.rows"), [str(file)]


WRONG = {
    "text": ("return 'rows'", "a data source returns Rows, a list of rows"),
    "no_rows": ("return []", "is empty: it holds no row"),
    "no_train": ("return None", "has no training rows for the preference phase"),
    "numbers": ("return [1]", "a data source returns Rows, a list of rows"),
    "columns": ("return [{'a': 1}]", "needs the columns chosen and rejected"),
    "raises": ("raise ValueError('the disk is on the moon')", "the disk is on the moon"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_source_that_returns_something_else_is_told_what_is_expected(tmp_path, name):
    body, words = WRONG[name]
    data, extra = source(tmp_path, f"wrong_{name}", body)
    data.settings.clear()
    errors = data_errors(data, "preference", extra)
    assert any(words in error for error in errors), errors


def test_a_source_is_reached_only_in_the_package_or_in_a_named_file(tmp_path):
    data, _ = source(tmp_path, "unnamed_source", "return []")
    data.settings.clear()
    assert any("cannot import 'unnamed_source.rows'" in error for error in data_errors(data, "preference"))
    for function in ("os.system", "sgdpo.data.files.absent", "sgdpo.data.files", 3):
        assert any("cannot import" in error for error in data_errors(local(function=function), "preference"))


def test_contents_change_with_the_rows_and_not_with_the_name(tmp_path):
    one, extra = source(tmp_path, "first_source", "return [{'prompt': 'a', 'chosen': 'b', 'rejected': 'c'}]")
    same, more = source(tmp_path, "second_source", "return [{'prompt': 'a', 'chosen': 'b', 'rejected': 'c'}]")
    other, third = source(
        tmp_path, "third_source", "return [{'prompt': 'a', 'chosen': 'b', 'rejected': 'd'}]"
    )
    for data in (one, same, other):
        data.settings.clear()
    found = [
        data_contents(data, "preference", None, files)
        for data, files in ((one, extra), (same, more), (other, third))
    ]
    assert found[0] == found[1] != found[2]
    assert set(found[0]) == {"train", "test"}
    assert [row["chosen"] for row in load_rows(one, "preference", "train", extra).read()] == ["b"]


def test_contents_are_known_whatever_kind_of_number_or_date_a_column_holds(monkeypatch):
    def key(**row) -> str:
        monkeypatch.setattr(files, "read", lambda *_, **__: [row])
        return load_rows(local(), "preference", "train").key(None)

    plain = key(score_chosen=3, scores=[1.5, 2.0], said={"by": ["a"]})
    assert plain == key(score_chosen=np.int64(3), scores=np.array([1.5, 2]), said={"by": ("a",)})
    assert key(cost=Decimal("1.5"), when=datetime(2024, 7, 26)) != key(
        cost=Decimal("1.5"), when=datetime(2024, 7, 27)
    )
    with pytest.raises(
        ValueError, match=r"local \(train\): a row holds a set; its columns may be text, numbers"
    ):
        key(topics={"a"})
