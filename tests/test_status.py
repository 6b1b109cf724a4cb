"""The status page: every state a cell can be in, from the sweep's roster and the records."""

import os
import resource
import subprocess
import sys
import time

import pytest

from lab.sweeps.cells import SweepError
from lab.sweeps.screen import clock
from lab.sweeps.status import (
    ROSTER,
    CellState,
    experiment_status,
    open_roster,
    overview,
    read_roster,
    render_grid,
)
from report_fixtures import write_run
from sgdpo.runs.records import Record
from sgdpo.store import write_json
from sweep_fixtures import SCRIPTS, cells_of

ARGUMENTS = ("method=sgdpo", "experiment=x", "ratio.chosen=0.6,0.7,0.8", "ratio.rejected=0.9,1.0")


def record_of(cell) -> Record:
    record = Record.open(cell.folder, cell.run.identity, phase="preference")
    record.note(steps=150)
    return record


@pytest.fixture
def page(tmp_path):
    """Return the page of six cells: done, running, failed, interrupted, one that died without a record, missing.

    The running one is at step 45 of 150, 32 pairs a step at 64 pairs a second: (150 - 45) * 32 / 64 = 52.5 s left.
    """
    cells = cells_of(*ARGUMENTS, f"outputs={tmp_path}")
    with open_roster(cells, "python src/train.py -m the command") as roster:
        roster.note(cells[4].name, "Traceback ...\nOSError: no room")
    record_of(cells[0]).finish()
    running = record_of(cells[1])
    running.log({"step": 45, "epoch": 0.3, "split": "train", "pairs_per_second": 64.0})
    running.log({"step": 45, "epoch": 0.3, "split": "eval", "loss": 1.0})
    record_of(cells[2]).fail("Traceback ...\nValueError: the loss is NaN at step 7")
    record_of(cells[3]).note(pid=2**22 + 1)
    return experiment_status(tmp_path, "x")


class TestPage:
    def test_totals(self, page):
        assert page.startswith("x: 6 cells: 1 done, 1 running, 2 failed, 1 interrupted, 1 missing\n")

    def test_the_grid_has_the_axes_of_the_sweep(self, page):
        rows = [line.split() for line in page.splitlines() if "ratio.chosen=" in line and "  " in line][:3]
        header = next(line for line in page.splitlines() if line.strip().startswith("ratio.rejected=0.9"))
        assert header.split() == ["ratio.rejected=0.9", "ratio.rejected=1.0"]
        assert rows == [
            ["ratio.chosen=0.6", "✓", "done", "▶", "running"],
            ["ratio.chosen=0.7", "✗", "failed", "◌", "interrupted"],
            ["ratio.chosen=0.8", "✗", "failed", "–", "missing"],
        ]

    def test_running_has_step_and_time_left(self, page):
        assert "ratio.chosen=0.6 ratio.rejected=1.0  running: step 45/150, 0:53 left" in page

    def test_failed_has_the_last_error_line(self, page):
        assert "failed: ValueError: the loss is NaN at step 7" in page
        assert "failed: OSError: no room" in page

    def test_what_to_run_next(self, page):
        assert page.endswith("next (finished cells are skipped): python src/train.py -m the command")

    def test_values_with_spaces_are_apart_on_the_grid(self):
        labels = [
            f"data.train='my {f}' seed={s} optimizer.lr={r}" for f in "ab" for s in (1, 2) for r in (1, 2)
        ]
        page = "\n".join(render_grid([CellState(label, "done") for label in labels]))
        assert page.count("done") == len(labels)

    def test_a_forced_sweep_does_not_promise_to_skip_what_is_finished(self, tmp_path):
        cells = cells_of(*ARGUMENTS, f"outputs={tmp_path}")
        for word in ("force=true", "force=True"):
            with open_roster(cells, f"python src/train.py {word}"):
                pass
            page = experiment_status(tmp_path, "x")
            assert page.endswith(f"next (force=true: finished cells too): python src/train.py {word}")

    @pytest.mark.parametrize("hours", [-3, 3])
    def test_a_clock_that_is_set_ends_no_sweep(self, tmp_path, monkeypatch, hours):
        cells, real = cells_of(*ARGUMENTS, f"outputs={tmp_path}"), time.time
        with open_roster(cells, "the command"):
            monkeypatch.setattr(time, "time", lambda: real() + hours * 3600)
            assert f"the sweep is running (process {os.getpid()})" in experiment_status(tmp_path, "x")

    def test_when_all_is_done_the_next_step_is_the_selection(self, tmp_path):
        cells = cells_of(*ARGUMENTS, f"outputs={tmp_path}")
        with open_roster(cells, ""):
            for cell in cells:
                record_of(cell).finish()
        assert "nothing is left to run; next: make results EXPERIMENT=x" in experiment_status(tmp_path, "x")


class TestCommand:
    def command(self, *arguments):
        done = subprocess.run(
            [sys.executable, str(SCRIPTS / "status.py"), *arguments],
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, done.stdout + done.stderr

    def test_no_records_and_unknown_experiments_are_one_clear_error(self, tmp_path):
        code, words = self.command("--outputs", str(tmp_path))
        assert (code, words.startswith(f"error: no records under {tmp_path} yet.")) == (2, True)
        record_of(cells_of("method=sgdpo", "experiment=x", "seed=1,2", f"outputs={tmp_path}")[0]).finish()
        code, words = self.command("nope", "--outputs", str(tmp_path))
        assert (code, "There are: x" in words) == (2, True)
        code, words = self.command("--outputs", str(tmp_path))
        assert (code, "x  1 cells: 1 done" in words) == (0, True)

    @pytest.mark.parametrize("script", ["status", "best", "results", "heatmap"])
    @pytest.mark.parametrize("name", ["/etc", "../x"])
    def test_a_path_is_no_experiment(self, tmp_path, script, name):
        done = subprocess.run(
            [sys.executable, str(SCRIPTS / f"{script}.py"), name], cwd=tmp_path, capture_output=True, text=True,
            check=False,
        )  # fmt: skip
        assert done.returncode == 2
        assert done.stderr == f"error: an experiment is named like a folder, without a path: not {name!r}\n"

    def test_a_thousand_runs_take_less_than_two_seconds_of_the_processor(self, tmp_path):
        for seed in range(1000):
            write_run(tmp_path, "grid", "dpo", seed=seed, evaluated=False)
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        code, words = self.command("grid", "--outputs", str(tmp_path))
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert (code, words.startswith("grid: 1000 cells: 1000 done")) == (0, True)
        assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 2.0

    def test_runs_without_a_sweep_have_a_page_too(self, tmp_path):
        cell = cells_of("method=sgdpo", "experiment=x", "seed=1,2", f"outputs={tmp_path}")[0]
        record_of(cell).finish()
        assert f"{cell.name}  ✓ done" in experiment_status(tmp_path, "x")
        assert overview(tmp_path).startswith("x  1 cells: 1 done")

    def test_a_roster_of_another_version_is_refused(self, tmp_path):
        (tmp_path / "x").mkdir()
        write_json(tmp_path / "x" / ROSTER, {"format": 7})
        with pytest.raises(SweepError, match="has format 7, this code reads format 2"):
            read_roster(tmp_path / "x")
        (tmp_path / "x" / ROSTER).write_text("{")
        with pytest.raises(SweepError, match="delete it and start the sweep again"):
            read_roster(tmp_path / "x")

    @pytest.mark.parametrize(("seconds", "text"), [(7, "0:07"), (750, "12:30"), (11100, "3:05:00")])
    def test_durations(self, seconds, text):
        assert clock(seconds) == text
