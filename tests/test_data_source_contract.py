"""A data source is one function and one YAML: a third is added from two files and trains."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from data_helpers import local
from sgdpo.data.sources import data_contents, data_errors, load_rows

ROOT = Path(__file__).resolve().parents[1]
# As the README prints them.
SOURCE = '''
def rows(phase, split, *, count: int = 100, mistakes: float = 0.5):
    """Return sums; every second wrong answer is off by one."""
    first = 0 if split == "train" else count
    for number in range(first, first + (count if split == "train" else 8)):
        right, wrong = str(number + 7), str(number + (8 if number % 2 * mistakes else 9))
        yield {"prompt": f"{number} + 7", "chosen": right, "rejected": wrong}
'''
YAML = """# Sums, made on the spot.
name: sums
# How rows are read.
function: sums_source.rows
# How many pairs.
count: 40
# Share of wrong answers that are off by one.
mistakes: 0.5
# Longest prompt plus completion, tokens.
max_length: 96
# Longest prompt, tokens.
max_prompt_length: 64
"""


@pytest.fixture
def added(tmp_path):
    """Write the two files; return (source, folder of the YAML's config)."""
    source = tmp_path / "sums_source.py"
    source.write_text(SOURCE)
    (tmp_path / "conf" / "data").mkdir(parents=True)
    (tmp_path / "conf" / "data" / "sums.yaml").write_text(YAML)
    return source, tmp_path / "conf"


def train(added, tmp_path, *more: str) -> subprocess.CompletedProcess:
    source, conf = added
    command = [
        sys.executable, str(ROOT / "src" / "train.py"), f"hydra.searchpath=[file://{conf}]", "data=sums",
        f"extra=[{source}]", f"outputs={tmp_path / 'outputs'}", "tracking=off", "device=cpu", "init=pretrained",
        "optimizer.batch_size=20", "optimizer.max_steps=2", "model.tiny.num_hidden_layers=1", *more,
    ]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, timeout=300)


def test_a_third_source_is_two_files_and_trains_two_steps(added, tmp_path):
    done = train(added, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "40 rows read from sums (train), 40 kept" in done.stdout
    assert "8 rows read from sums (test), 8 kept" in done.stdout
    (record,) = (tmp_path / "outputs").rglob("record.json")
    assert '"status": "finished"' in record.read_text()


def test_what_is_wrong_with_a_third_source_is_one_error_before_anything_loads(added, tmp_path):
    done = train(added, tmp_path, "data.count=many", "+data.typo=1")
    assert done.returncode != 0
    assert "data.count='many' does not fit int" in done.stdout + done.stderr
    assert "data.typo is not a setting of 'sums'; it has ['count', 'mistakes']" in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr


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
