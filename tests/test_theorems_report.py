"""`make theorems`: the tables, the picture, and a run's own values; and a clear error for a folder without
any.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import theorems
from lab.report.theorems import newest_run, report, run_values

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


def test_the_newest_finished_run_with_pilots_is_taken(tmp_path: Path) -> None:
    assert newest_run(tmp_path) is None
    write_run(tmp_path / "a" / "old", started="2026-01-01")
    newest = write_run(tmp_path / "b" / "new", started="2026-02-01")
    write_run(tmp_path / "a" / "dpo", method="dpo", started="2026-03-01")
    write_run(tmp_path / "a" / "failed", started="2026-04-01", status="failed")
    assert newest_run(tmp_path) == newest


def test_the_report_states_errors_monotonicity_and_the_three_cases(tmp_path: Path) -> None:
    text = report(tmp_path / "out", write_run(tmp_path / "a" / "one"), count=200, seed=0)
    assert text == (tmp_path / "out" / "theorems.md").read_text()
    errors = [float(number) for number in re.findall(r"\| (\d\.\de[-+]\d+) \|", text)]
    assert len(errors) == 10
    assert max(errors) < 1e-11
    assert text.count("800 of 800") == 2
    above, below = (re.search(rf"\| p q {sign} 1 .*\| (\d+) of (\d+) \|", text).groups() for sign in "><")
    assert above[0] == above[1]
    assert below[0] == below[1]
    assert int(above[1]) + int(below[1]) == 200
    assert "| logged log f: first, last | 0.2500, 0.5000 |" in text
    assert "| steps with p q > 1, p q < 1 | 1, 0 |" in text


def test_the_picture_is_drawn_with_and_without_a_run(tmp_path: Path) -> None:
    for run in (None, write_run(tmp_path / "a" / "one")):
        report(tmp_path / "out", run, count=10, seed=0)
        svg = (tmp_path / "out" / "theorems.svg").read_text()
        assert "p q = 4: grows" in svg
        assert ("mean log f" in svg) == (run is not None)
        assert (tmp_path / "out" / "theorems.png").read_bytes().startswith(b"\x89PNG")


def test_a_folder_without_pilots_is_one_clear_error_and_exit_code_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    folder = write_run(tmp_path / "a" / "dpo", method="dpo")
    monkeypatch.setattr("sys.argv", ["theorems.py", "--run", str(folder), "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as exited:
        theorems.main()
    assert exited.value.code == 2
    assert f"{folder} has no metrics.jsonl with pilots; give a run of method=sgdpo" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_script_takes_the_newest_run_and_names_its_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    write_run(tmp_path / "a" / "newest-one")
    monkeypatch.setattr("sys.argv", ["theorems.py", "--outputs", str(tmp_path), "--count", "10"])
    theorems.main()
    printed = capsys.readouterr().out
    assert "## Values of the run newest-one (mean rewards of 2 training steps)" in printed
    assert f"picture: {tmp_path / 'theorems' / 'theorems.png'}" in printed
