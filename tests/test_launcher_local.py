"""What a sweep promises whatever happens to its cells; stand-in cells in real processes."""

import json
import re
import shlex
import shutil
import signal
import time
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import psutil
import pytest
from rich.console import Console

from lab.sweeps.cells import SweepError
from lab.sweeps.pool import Pool, Task, gpu_slots, slots
from lab.sweeps.screen import Screen
from lab.sweeps.status import Roster, experiment_status, read_roster
from lab.sweeps.sweep import launch
from sgdpo.processes import how_it_ended
from sgdpo.runs.records import read_runs
from sgdpo.store import read_jsonl
from sweep_fixtures import APP, PLAIN, cells_of, composer_for, run_app, runs_by_seed, start_app

FAILURES = {1: "fail", 2: "die", 3: "exit", 4: "lazy"}


@pytest.fixture(scope="module")
def broken_sweep(tmp_path_factory):
    """Return (folder, exit code, screen) of a sweep over six seeds of which four fail, each in its own way."""
    folder = tmp_path_factory.mktemp("broken")
    named = ("sweep=seeds", *PLAIN[1:], "seed=0,1,2,3,4,5", "n_jobs=2")
    return (folder, *run_app(folder, *named, todo=FAILURES))


class TestFailures:
    def test_a_failed_cell_does_not_stop_the_others(self, broken_sweep):
        folder, code, screen = broken_sweep
        runs = runs_by_seed(folder)
        assert code == 1
        assert runs[0].status == runs[5].status == "finished"
        assert "2 of 6 cells done, 4 failed" in screen

    def test_the_traceback_is_on_screen_at_once_and_in_the_cells_own_log(self, broken_sweep):
        folder, _, screen = broken_sweep
        own = (runs_by_seed(folder)[1].folder / "output.log").read_text()
        other = (runs_by_seed(folder)[0].folder / "output.log").read_text()
        assert "ValueError: the loss is not finite" in own
        assert "Traceback" not in other
        at_once = screen[: screen.index("cells done, 4 failed")]
        assert "Traceback (most recent call last)" in at_once
        assert "standin_app.py" in at_once

    @pytest.mark.parametrize(
        ("seed", "why"),
        [(1, "ValueError: the loss is not finite"), (2, "its process was killed by SIGKILL"),
         (3, "no room on the disk"), (4, "it returned without a finished record")],
    )  # fmt: skip
    def test_the_end_names_every_failed_cell_why_and_how_to_rerun_it(self, broken_sweep, seed, why):
        end = broken_sweep[2].split("failed:\n")[1]
        assert re.search(rf"-s{seed}-\w+: .*{why}", end)
        assert re.search(rf"alone   python src/train.py .*seed={seed} .*hydra.mode=RUN", end)
        assert "run them again (finished cells are skipped): python" in end

    def test_the_command_of_a_failed_cell_runs_it_alone(self, broken_sweep, tmp_path):
        """Of a named sweep, whose grid stands in a YAML; the others stay as they are."""
        shutil.copytree(broken_sweep[0] / "outputs", tmp_path / "outputs")
        (command,) = re.findall(r"alone   python src/train.py (.*\bseed=1 .*)", broken_sweep[2])
        code, screen = run_app(tmp_path, *shlex.split(command))
        assert code == 0, screen
        finished = {seed for seed, run in runs_by_seed(tmp_path).items() if run.status == "finished"}
        assert finished == {0, 1, 5}

    def test_status_names_them_too(self, broken_sweep):
        page = experiment_status(broken_sweep[0] / "outputs", "x")
        assert "6 cells: 2 done, 4 failed" in page
        assert "seed=2  failed: its process was killed by SIGKILL" in page
        assert "next (finished cells are skipped): python" in page

    def test_the_same_command_runs_the_failed_ones_again_and_skips_the_finished(self, broken_sweep, tmp_path):
        shutil.copytree(broken_sweep[0] / "outputs", tmp_path / "outputs")
        before = runs_by_seed(tmp_path)[0]["started"], runs_by_seed(tmp_path)[0]["pid"]
        code, screen = run_app(tmp_path, *PLAIN, "seed=0,1,2,3,4,5", "n_jobs=2")
        assert code == 0
        assert "6 cells are valid; 2 are finished already" in screen
        assert "6 of 6 cells done (2 of them before), 0 failed" in screen
        assert (runs_by_seed(tmp_path)[0]["started"], runs_by_seed(tmp_path)[0]["pid"]) == before
        code, screen = run_app(tmp_path, *PLAIN, "seed=0,1,2,3,4,5")
        assert (code, "start" in screen) == (0, False)

    def test_a_start_that_fails_is_tried_once_for_all_its_cells(self, tmp_path):
        """Each trained it again, to the same end; those of another start run."""
        words = ("method=dpo,ipo", "seed=1,2", "experiment=x", "tracking=off", f"outputs={tmp_path}")
        slot = {"STANDIN": json.dumps({"1": "start"})}
        outcomes = Pool(Task(APP, "main"), {}, Mock(), Mock(), [slot]).run(cells_of(*words))
        (start,) = (run for run in read_runs(tmp_path) if run["phase"] == "sft")
        assert len(start["attempts"]) == 1
        told = {outcome.cell.name: outcome.error for outcome in outcomes}
        assert sum(error is None for error in told.values()) == 2
        assert f"its SFT start {start.name} failed: ValueError: too few rows" in told.values()


class TestProcesses:
    def test_cells_run_in_processes_of_their_own_with_their_share_of_the_cores(self, broken_sweep):
        """Two workers, and a fresh one after each of the failures that more cells follow."""
        logs = [run.folder / "output.log" for run in runs_by_seed(broken_sweep[0]).values()]
        output = "".join(log.read_text() for log in logs)
        assert len(set(re.findall(r"in process (\d+)", output))) >= 2
        share = max(1, len(psutil.Process().cpu_affinity()) // 2)
        assert set(re.findall(r"with (\d+) threads", output)) == {str(share)}

    @pytest.mark.proof
    def test_ctrl_c_stops_at_once_and_leaves_no_process(self, tmp_path):
        process, pids = self.hanging(tmp_path, 0)
        status = experiment_status(tmp_path / "outputs", "x")
        assert "running: step 1/4" in status
        assert f"the sweep is running (process {process.pid})" in status
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=20)
        assert process.returncode == 130
        assert not any(psutil.pid_exists(pid) for pid in pids)
        assert {run.status for run in runs_by_seed(tmp_path).values()} == {"interrupted"}
        why = "seed=0  failed: its process was killed by SIGKILL"
        assert why in status
        assert why in experiment_status(tmp_path / "outputs", "x"), (
            "known while it ran and forgotten at its end"
        )
        assert all(
            read_jsonl(run.folder / "metrics.jsonl", torn_end=True) for run in runs_by_seed(tmp_path).values()
        )

    @pytest.mark.proof
    def test_after_sigkill_the_same_command_continues(self, tmp_path):
        process, pids = self.hanging(tmp_path)
        process.kill()
        process.communicate(timeout=20)
        workers = [pid for pid in pids if pid in self.workers]
        psutil.wait_procs([psutil.Process(pid) for pid in workers if psutil.pid_exists(pid)], timeout=10)
        assert not any(psutil.pid_exists(pid) for pid in workers)
        for pid in set(pids) - set(workers):  # what a stand-in cell itself started and does not look after
            psutil.Process(pid).kill()
        assert "2 interrupted, 1 missing" in experiment_status(tmp_path / "outputs", "x")
        code, screen = run_app(tmp_path, *PLAIN, "seed=1,2,3", "n_jobs=2")
        assert code == 0, screen
        assert {run.status for run in runs_by_seed(tmp_path).values()} == {"finished"}

    @pytest.mark.proof
    def test_a_second_sweep_is_refused_while_one_runs_and_sigterm_ends_that_cleanly(self, tmp_path):
        process, pids = self.hanging(tmp_path)
        code, screen = run_app(tmp_path, *PLAIN, "seed=7,8")
        assert code == 2
        assert f"another sweep of experiment 'x' is running already (process {process.pid}: python" in screen
        process.terminate()
        process.communicate(timeout=20)
        assert process.returncode == 143
        assert not any(psutil.pid_exists(pid) for pid in pids)

    def hanging(self, folder, *dying):
        """Start a sweep of which two cells hang, each with a process of its own, after others that die; return it and
        all pids."""
        seeds = ",".join(map(str, (*dying, 1, 2, 3)))
        todo = {1: "hang", 2: "hang", **dict.fromkeys(dying, "die")}
        process = start_app(folder, *PLAIN, f"seed={seeds}", "n_jobs=2", todo=todo)
        until = time.monotonic() + 120
        while len(found := list((folder / "outputs").glob("hangs-*"))) < 2:
            assert time.monotonic() < until
            assert process.poll() is None, process.communicate()
            time.sleep(0.1)
        pairs = [tuple(map(int, path.name.split("-")[1:])) for path in found]
        self.workers = [worker for worker, _ in pairs]
        return process, [pid for pair in pairs for pid in pair]


class TestCommand:
    def test_n_jobs_0_and_unknown_sweeps_are_one_clear_error(self, tmp_path):
        code, screen = run_app(tmp_path, "sweep=ratio_grid", "n_jobs=0")
        assert code == 2
        assert screen.startswith("error: n_jobs must be at least 1, not 0")
        code, screen = run_app(tmp_path, "sweep=ratio_gird")
        assert code == 2
        assert "Could not find 'sweep/ratio_gird'" in screen
        assert "ratio_grid" in screen

    def test_a_named_sweep_needs_no_m_and_a_dry_run_starts_nothing(self, tmp_path):
        code, screen = run_app(tmp_path, "sweep=seeds", "seed=1,2", "dry_run=true")
        assert code == 0
        assert "2 cells, 2 would run: time not known yet; nothing was started" in screen
        assert not list(tmp_path.rglob("record.json"))
        assert read_roster(tmp_path / "outputs" / "seeds") is None

    def test_another_sweeper_is_refused_by_our_launchers(self, tmp_path):
        """Without a roster of this sweep: there is none, or an earlier sweep left its own."""
        composer = composer_for(*PLAIN[1:], f"outputs={tmp_path}")
        hydra = SimpleNamespace(config_loader=composer.loader)
        launcher = SimpleNamespace(hydra_context=hydra, config=composer.master)
        for _ in range(2):
            with pytest.raises(SweepError, match="leave hydra/sweeper="):
                launch(launcher, [["seed=1"]], 1, Pool)
            (tmp_path / "x").mkdir(exist_ok=True)
            Roster(tmp_path / "x", "", {}, pid=None).write()

    @pytest.mark.proof
    def test_hydras_own_launcher_runs_a_sweep_too(self, tmp_path):
        """Cells in this process, one after the other: n_jobs is no setting of it and does not collide."""
        code, screen = run_app(tmp_path, *PLAIN, "seed=1,2", "hydra/launcher=basic", "n_jobs=2")
        assert code == 0, screen
        assert "2 of 2 cells done, 0 failed" in screen

    @pytest.mark.proof
    def test_whoever_reads_the_first_line_only_gets_no_traceback(self, tmp_path):
        process = start_app(tmp_path, *PLAIN, "seed=1,2,3,4")
        assert "4 cells are valid" in process.stdout.readline()
        process.stdout.close()
        assert process.wait(60) in (1, 141)  # rich ends a command whose reader is gone with 1
        assert not any(run.status == "running" for run in runs_by_seed(tmp_path).values())


class TestGpus:
    def test_each_job_gets_its_own(self):
        assert gpu_slots(["0", "1", "2", "3"], 2, 1) == [
            {"CUDA_VISIBLE_DEVICES": "0"},
            {"CUDA_VISIBLE_DEVICES": "1"},
        ]
        assert [s["CUDA_VISIBLE_DEVICES"] for s in gpu_slots(["0", "1", "2", "3"], 2, 2)] == ["0,1", "2,3"]

    def test_more_jobs_than_gpus_share_them_in_turn(self):
        assert [s["CUDA_VISIBLE_DEVICES"] for s in gpu_slots(["4", "7"], 3, 1)] == ["4", "7", "4"]

    def test_one_job_or_no_gpu_changes_nothing(self):
        assert gpu_slots(["0", "1"], 1, 1) == [{}]
        assert gpu_slots([], 3, 1) == [{}, {}, {}]

    def test_cells_of_several_processes_that_do_not_fit_are_refused(self):
        with pytest.raises(SweepError, match="need 8 GPUs, 4 are visible; use n_jobs=1"):
            gpu_slots(["0", "1", "2", "3"], 2, 4)

    def test_a_system_that_tells_no_process_its_cores_shares_all_of_them(self, monkeypatch):
        monkeypatch.delattr("os.sched_getaffinity")  # there is none on macOS
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        monkeypatch.setattr("os.cpu_count", lambda: 8)
        assert [slot["OMP_NUM_THREADS"] for slot in slots(2, 1, on_gpus=False)] == ["4", "4"]

    def test_a_killed_process_is_named_by_its_signal(self):
        assert "SIGSEGV" in how_it_ended(-signal.SIGSEGV)
        assert "out of memory" in how_it_ended(-signal.SIGKILL)
        assert "exit code 3" in how_it_ended(3)


def test_the_live_view_gives_the_bar_a_line_of_its_own():
    screen = Screen(
        Console(width=100, force_terminal=True, color_system="standard"),
        {"a": "method=dpo"},
        skipped=0,
        n_jobs=1,
    )
    screen.running["a"] = (SimpleNamespace(folder=Path("nowhere"), run=SimpleNamespace(start=None)), 0.0)
    with screen.console.capture() as shown:
        screen.console.print(screen.draw())
    headline, bar, cell = re.sub(r"\x1b\[[\d;]*m", "", shown.get()).splitlines()
    assert headline.startswith("0 of 1 cells done, 1 running")
    assert set(bar.strip()) == {"━"}
    assert cell.startswith("method=dpo")
