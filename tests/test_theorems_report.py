"""`make theorems`: the tables, the picture, and a run's own values; and a clear error for a folder without
any.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from lab.report.exhibit import find_exhibit, make
from lab.report.theorems import newest_run, run_values
from sgdpo.drawing.table import Table
from sgdpo.runs.records import read_runs

# At step 2 log p = 0.5, log q = 0.7 and log u = 1.5: rewards are beta log X, pilots beta log Y.
ROWS = [
    {"step": 1, "rewards/chosen": 0.0, "rewards/rejected": 0.0, "pilot/chosen": 0.0, "pilot/rejected": 0.0},
    {
        "step": 2,
        "rewards/chosen": -0.5,
        "rewards/rejected": -2.0,
        "pilot/chosen": 0.0,
        "pilot/rejected": -1.3,
    },
]


def write_run(
    folder: Path, method: str = "sgdpo", started: str = "2026-01-01", status: str = "finished"
) -> Path:
    """Write a small finished run; only SGDPO logs pilots."""
    folder.mkdir(parents=True)
    pilots = method == "sgdpo"
    rows = [
        {"split": "train"} | row | ({"pilot/log_balance": 0.25 * row["step"]} if pilots else {})
        for row in ROWS
    ]
    rows = rows if pilots else [{k: v for k, v in row.items() if "pilot" not in k} for row in rows]
    rows.append({"step": 2, "split": "eval", "rewards/chosen": 9.0})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    record = {"format": 1, "status": status, "started": started, "final": {"train": rows[1]}}
    record["git"] = {"commit": started.replace("-", "")}
    (folder / "record.json").write_text(json.dumps(record))
    return folder


def test_a_runs_values_are_its_training_rows(tmp_path: Path) -> None:
    values = run_values(write_run(tmp_path / "a" / "one"))
    assert values.steps == [1, 2]
    assert values.point.x1.log().tolist() == pytest.approx([0.0, -0.5])
    assert values.point.x2.log().tolist() == pytest.approx([0.0, -2.0])
    assert values.point.y1.log().tolist() == pytest.approx([0.0, 0.0])
    assert values.point.y2.log().tolist() == pytest.approx([0.0, -1.3])
    assert values.log_balance.tolist() == [0.25, 0.5]


def made(outputs: Path, *settings: str) -> tuple[dict[str, Table], str]:
    """Make the exhibit; return its tables by name and its picture."""
    paths, _ = make(find_exhibit("theorems", settings), outputs, into=outputs / "out")
    tables = [
        Table.read(path) for path in paths if path.suffix == ".json" and path.with_suffix(".md").is_file()
    ]
    return {table.name: table for table in tables}, (outputs / "out" / "theorems.svg").read_text()


def values(table: Table) -> dict[str, str]:
    return {name.text: value.text for name, value in table.rows}


def test_the_newest_finished_run_with_pilots_is_taken(tmp_path: Path) -> None:
    assert newest_run(read_runs(tmp_path)) is None
    write_run(tmp_path / "a" / "old", started="2026-01-01")
    newest = write_run(tmp_path / "b" / "new", started="2026-02-01")
    write_run(tmp_path / "a" / "dpo", method="dpo", started="2026-03-01")
    write_run(tmp_path / "a" / "failed", started="2026-04-01", status="failed")
    assert newest_run(read_runs(tmp_path)) == newest
    tables, _ = made(tmp_path, "count=10")
    assert tables["theorems-run"].title == "Values of the run new (mean rewards of 2 training steps)"
    assert tables["theorems-run"].origin["commits"] == ["20260201"], "the run's"


def test_a_run_of_full_pilots_is_taken_only_where_there_is_no_other(tmp_path: Path) -> None:
    """At DPO's balance to its end it shows a line at zero."""
    full = write_run(tmp_path / "a" / "full", started="2026-02-01")
    record = json.loads((full / "record.json").read_text())
    record["final"]["train"]["pilot/log_balance"] = 0.0
    (full / "record.json").write_text(json.dumps(record))
    assert newest_run(read_runs(tmp_path)) == full
    older = write_run(tmp_path / "a" / "older", started="2026-01-01")
    assert newest_run(read_runs(tmp_path)) == older


def test_the_tables_state_errors_monotonicity_and_the_three_cases(tmp_path: Path) -> None:
    tables, _ = made(tmp_path, f"run={write_run(tmp_path / 'a' / 'one')}", "count=200")
    run = values(tables["theorems-run"])
    shown = [*values(tables["theorems-errors"]).values(), *run.values()]
    errors = [float(text) for text in shown if re.fullmatch(r"\d\.\de[-+]\d+", text)]
    assert len(errors) == 10
    assert max(errors) < 1e-11
    assert list(values(tables["theorems-monotone"]).values()) == ["800 of 800"] * 2
    above, below, flat = values(tables["theorems-cases"]).values()
    counts = [text.split(" of ") for text in (above, below)]
    assert all(held == count for held, count in counts)
    assert sum(int(count) for _, count in counts) == 200
    assert float(flat.rsplit(" ", 1)[1]) < 1e-12
    assert run["logged log f: first, last"] == "0.2500, 0.5000"
    assert run["steps with p q > 1, p q < 1"] == "1, 0"


def test_the_picture_is_drawn_with_and_without_a_run(tmp_path: Path) -> None:
    assert "p q = 4: grows" in made(tmp_path, "count=10")[1]
    assert "mean log f" not in made(tmp_path, "count=10")[1]
    write_run(tmp_path / "a" / "one")
    assert "mean log f" in made(tmp_path, "count=10")[1]
    assert (tmp_path / "out" / "theorems.png").read_bytes().startswith(b"\x89PNG")


def test_a_folder_without_pilots_is_one_clear_error(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a" / "dpo", method="dpo")
    with pytest.raises(
        ValueError, match=r"dpo has no metrics\.jsonl with pilots; give a run of method=sgdpo"
    ):
        made(tmp_path, f"run={folder}")
    assert not (tmp_path / "out").exists()
