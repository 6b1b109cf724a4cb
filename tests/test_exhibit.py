"""A table or figure and its settings: what binds, what is refused before anything is made."""

from __future__ import annotations

import re
import shutil

import pytest

from lab.report import exhibit
from lab.report.exhibit import exhibit_names, find_exhibit


@pytest.mark.parametrize("name", exhibit_names())
def test_every_exhibit_binds_and_names_what_there_is(name):
    found = find_exhibit(name)
    assert found.caption or "lab.report" in found.config["function"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("metrik=x", "metrik is not a setting"),
        ("metric=[1]", "metric=[1] does not fit"),
        ("sweep=mine", "no setting of table1"),
        ("metric", "give key=value"),
        ("metric=[1", "'metric=[1': what stands behind the = is no value"),
    ],
)
def test_a_wrong_setting_of_an_exhibit_is_one_error_with_what_there_is(change, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        find_exhibit("table1", [change])


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("theorems", "count=0"),
        ("pilot_theory", "draws=1"),
        ("pilot_theory", "lengths=[5]"),
        ("table4", "methods=[dpo]"),
        ("study1", "figure=banana"),
        ("study1", "arms={a: b}"),
        ("study1", "contrasts={a: {b: high}}"),
        ("study6", "matched={m: 1}"),
    ],
)
def test_a_setting_that_would_break_an_exhibit_is_refused_before_it_is_made(name, change):
    with pytest.raises(ValueError, match=rf"report\.{change.partition('=')[0]}"):
        find_exhibit(name, [change])


@pytest.mark.parametrize(
    "line",
    ["order: first", "seeds: 0", "n_jobs: two", "judged: [x]", "models: [a]", "before: scripts/x.py", "experiment: a/b",
     "beside: table2", "tuned: {key: optimizer.lr}", "sweep: nope"],
)  # fmt: skip
def test_what_an_exhibit_says_of_its_training_is_checked_and_breaks_no_other(tmp_path, monkeypatch, line):
    own = (exhibit.FOLDER / "table4.yaml").read_text()
    key = line.partition(":")[0]
    kept = [each for each in own.splitlines() if not each.startswith(f"{key}:")]
    (tmp_path / "mine.yaml").write_text("\n".join([*kept, line]))
    shutil.copy(exhibit.FOLDER / "table2.yaml", tmp_path)
    monkeypatch.setattr(exhibit, "FOLDER", tmp_path)
    with pytest.raises(ValueError, match=rf"conf/report/mine\.yaml: .*{key}"):
        find_exhibit("mine")
    assert sorted(exhibit_names()) == ["mine", "table2"]
    assert find_exhibit("table2")


def test_a_setting_of_an_exhibit_is_read_as_a_run_reads_its_own():
    assert find_exhibit("league", ["bound=1e-1", "baseline=bco"]).settings["bound"] == 0.1
