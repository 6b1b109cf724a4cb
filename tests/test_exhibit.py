"""A table or figure and its settings: what binds, what is refused before anything is made."""

from __future__ import annotations

import re

import pytest

from lab.report.exhibit import exhibit_names, find_exhibit


@pytest.mark.parametrize("name", exhibit_names())
def test_every_exhibit_binds_and_names_what_there_is(name):
    exhibit = find_exhibit(name)
    assert exhibit.caption or "lab.report" in exhibit.config["function"]


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
    ],
)
def test_a_setting_that_would_break_an_exhibit_is_refused_before_it_is_made(name, change):
    with pytest.raises(ValueError, match=rf"report\.{change.partition('=')[0]}"):
        find_exhibit(name, [change])


def test_a_setting_of_an_exhibit_is_read_as_a_run_reads_its_own():
    assert find_exhibit("league", ["bound=1e-1", "baseline=bco"]).settings["bound"] == 0.1
