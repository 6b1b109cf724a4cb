"""The shared cache can be looked at and cleaned, and what a run uses stays."""

from __future__ import annotations

import os
import time

import numpy as np
import pytest
from filelock import FileLock

from sgdpo.reference.caches import entries, listing, prune
from sgdpo.reference.store import write_table

KEY = {"weights": "abc", "dtype": "float32"}


@pytest.fixture
def cache(tmp_path):
    """A whole table, a torn one, a half-written one, and a tokenised set of 1 MiB from ten days ago."""
    for name in ("whole", "torn"):
        values = np.zeros(3, np.float32)
        write_table(
            tmp_path / "reference" / name, KEY, np.array([4]), np.array([[2, 1]]), values, {"rows": 1}
        )
    (tmp_path / "reference" / "torn" / "values.f32").write_bytes(b"")
    (tmp_path / "reference" / ".half.partial").mkdir()
    tokens = tmp_path / "tokens" / "set"
    tokens.mkdir(parents=True)
    (tokens / "data.arrow").write_bytes(bytes(2**20))
    old = time.time() - 10 * 86_400
    os.utime(tokens, (old, old))
    return tmp_path


def names(found) -> set[str]:
    return {entry.path.name for entry in found}


def test_everything_is_listed_the_largest_first(cache) -> None:
    found = entries(cache)
    assert names(found) == {"whole", "torn", ".half.partial", "set"}
    assert found[0].path.name == "set"
    text = listing(found)
    assert "1 examples, weights abc, float32" in text
    assert "half written" in text
    assert "4 entries, 1.0 MB" in text


def test_nothing_is_deleted_unless_asked(cache) -> None:
    assert len(prune(entries(cache), kind=None, older_than=None, broken=False, delete=False)) == 4
    assert len(entries(cache)) == 4


@pytest.mark.parametrize(
    ("conditions", "gone"),
    [
        ({"kind": "tokens"}, {"set"}),
        ({"older_than": 9.0}, {"set"}),
        ({"older_than": 11.0}, set()),
        ({"broken": True}, {"torn", ".half.partial"}),
        ({"kind": "reference", "older_than": 9.0}, set()),
    ],
)
def test_pruning_takes_what_matches_every_condition(cache, conditions, gone) -> None:
    wanted = {"kind": None, "older_than": None, "broken": False, **conditions}
    assert names(prune(entries(cache, check=True), **wanted, delete=True)) == gone
    assert names(entries(cache)) == {"whole", "torn", ".half.partial", "set"} - gone


def test_a_table_that_a_run_computes_now_stays(cache) -> None:
    with FileLock(cache / "reference" / "half.lock"):
        gone = prune(entries(cache), kind="reference", older_than=None, broken=False, delete=True)
    assert names(gone) == {"whole", "torn"}
    assert ".half.partial" in names(entries(cache))
