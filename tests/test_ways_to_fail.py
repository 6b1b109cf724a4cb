"""Every command fails in one way: through real processes, on a closed pipe, a full disk, an ASCII terminal, Ctrl-C."""

from __future__ import annotations

import ast
import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from sgdpo.runs.records import read_runs

ROOT = Path(__file__).resolve().parents[1]
# A suite that runs in the background ignores Ctrl-C, and its children would inherit that.
HEEDS_CTRL_C = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
# install.py runs before anything is installed, this package included.
SCRIPTS = [
    ROOT / "src" / "train.py",
    *(p for p in sorted((ROOT / "scripts").glob("*.py")) if p.stem != "install"),
]
EVERY = pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
HEAVY = {"torch", "transformers", "datasets", "wandb", "matplotlib", "deepspeed", "pandas"}
WATCHED = (
    "import json, runpy, sys\n"
    "try:\n    runpy.run_path(sys.argv[0], run_name='__main__')\n"
    f"finally:\n    print(json.dumps(sorted({HEAVY} & set(sys.modules))), file=sys.stderr)"
)


def call(script: Path, *words: str, cwd: Path, **options) -> subprocess.CompletedProcess:
    command = [sys.executable, str(script), *words]
    piped = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "check": False} | options
    return subprocess.run(command, cwd=cwd, timeout=120, **piped)


def is_one_line(text: str) -> bool:
    return text.startswith("error: ") and text.count("\n") == 1


@EVERY
def test_a_script_ends_in_the_one_handler(script: Path) -> None:
    last = ast.parse(script.read_text()).body[-1]
    assert ast.unparse(last.test) == "__name__ == '__main__'"
    assert [step.value.func.id for step in last.body] == ["run_command"]


def watched(script: Path, *words: str, cwd: Path, before: str = "") -> tuple[int, str, str, list[str]]:
    """Call a script; return its code, what it said, its errors, and what heavy it had imported by its end.

    What was imported says that it is quick, on a busy machine too.
    """
    program = f"import sys; sys.argv[:1] = [{str(script)!r}]\n{before}\n{WATCHED}"
    done = subprocess.run(
        [sys.executable, "-c", program, *words], cwd=cwd, capture_output=True, text=True, check=False
    )
    *errors, heavy = done.stderr.splitlines(keepends=True)
    return done.returncode, done.stdout, "".join(errors), json.loads(heavy)


@EVERY
def test_help_is_a_page_and_loads_nothing_heavy(script: Path, tmp_path: Path) -> None:
    code, said, errors, heavy = watched(script, "--help", cwd=tmp_path)
    assert (code, errors, heavy) == (0, "", [])
    assert len(said.splitlines()) > 5
    assert list(tmp_path.iterdir()) == []
    groups = said.partition("\nGroups (")[2].partition("\nKeys (")[0]
    options = [line for line in groups.splitlines() if line.startswith("    ")]
    assert [line for line in options if not line.endswith((".", ")", "`", "'"))] == [], "no sentence is cut"


@EVERY
def test_a_wrong_option_is_one_line_with_code_2_and_loads_nothing_heavy(script: Path, tmp_path: Path) -> None:
    code, _, errors, heavy = watched(script, "--nonsense", cwd=tmp_path)
    assert (code, heavy) == (2, [])
    assert is_one_line(errors), errors
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_value_is_said_and_a_run_is_announced_before_anything_heavy_loads(tmp_path: Path) -> None:
    train, scripts = ROOT / "src" / "train.py", ROOT / "scripts"
    for script, word in ((train, "optimizer.lr=-1"), (scripts / "sample.py", "temperature=-1")):
        code, _, errors, heavy = watched(script, word, cwd=tmp_path)
        assert (code, heavy, word.partition("=")[0] in errors) == (2, [], True), errors
    then_end = "import sgdpo.console as c; greet = c.greet; c.greet = lambda run: (greet(run), sys.exit(0))"
    code, said, _, heavy = watched(train, "seed=3", cwd=tmp_path, before=then_end)
    assert (code, heavy) == (0, [])
    assert said.startswith("sgdpo ratio=0.6,0.9 on verifiable with tiny_llama, seed 3")


def test_nothing_that_takes_long_is_imported_before_ctrl_c_is_answered() -> None:
    slow = HEAVY | {"hydra", "omegaconf"}
    program = f"import runpy, sys; [*map(runpy.run_path, sys.argv[1:])]; print({slow} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", program, *SCRIPTS], capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.stderr) == ("set()\n", "")


@EVERY
def test_a_reader_who_leaves_and_a_full_disk_are_expected(script: Path, tmp_path: Path) -> None:
    """`| head -1` ends quietly; `> /dev/full` says so."""
    read, write = os.pipe()
    os.close(read)
    left = call(script, "--help", cwd=tmp_path, stdout=write)
    os.close(write)
    assert (left.returncode, left.stderr) == (141, "")
    with open("/dev/full", "w") as full:
        done = call(script, "--help", cwd=tmp_path, stdout=full)
    assert (done.returncode, done.stderr) == (1, "error: No space left on device\n")


@EVERY
def test_an_ascii_terminal_gets_no_traceback(script: Path, tmp_path: Path) -> None:
    ascii_only = {**os.environ, "PYTHONIOENCODING": "ascii:strict", "LC_ALL": "C", "PYTHONUTF8": "0"}
    assert call(script, "--help", cwd=tmp_path, env=ascii_only).returncode == 0
    done = call(script, "ratio–none=–", "--nonsense–", cwd=tmp_path, env=ascii_only)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_the_processes_that_a_command_starts_print_like_it(tmp_path: Path) -> None:
    (tmp_path / "worker.py").write_text(
        "from sgdpo.console import set_up_process\nset_up_process()\nprint('\u2013')\n", "utf-8"
    )
    ascii_only = {**os.environ, "PYTHONIOENCODING": "ascii:strict"}
    done = call(tmp_path / "worker.py", cwd=tmp_path, env=ascii_only)
    assert (done.returncode, done.stdout) == (0, "\\u2013\n")


# ---- what happens between the first line and the last -----------------------------------------------------

PROGRAM = """
import sys, time
from sgdpo.console import run_command
from sgdpo.values import Range
from hydra.errors import HydraException

def main(arguments):
    print("begun", flush=True)
    {body}

run_command(main, stopped="the same command continues")
"""


@pytest.mark.parametrize(
    ("body", "code", "said"),
    [
        ("pass", 0, ""),
        ("return 1", 1, ""),
        ("open('/nowhere/x')", 1, "error: /nowhere/x: No such file or directory\n"),
        ("open('/dev/full', 'w', buffering=1).write(chr(10) * 9)", 1, "error: No space left on device\n"),
        ("raise HydraException('no such group')", 2, "error: no such group\n"),
        (
            "import yaml; open('x.yaml', 'w').write('a: [1'); yaml.safe_load(open('x.yaml'))",
            2,
            "error: while parsing a flow sequence: in \"x.yaml\", line 1, column 4: expected ',' or ']', but got "
            "'<stream end>': in \"x.yaml\", line 1, column 6\n",
        ),
        (
            "raise ValueError('a: b' + chr(10) + 'c: d' + chr(10) + '  more')",
            2,
            "error: a: b\nerror: c: d\n  more\n",
        ),
        ("sys.exit('error: by hand')", 1, "error: by hand\n"),
        (
            "try: raise KeyboardInterrupt\n    finally: raise HydraException('met in a clean-up')",
            130,
            "\nstopped; the same command continues\n",
        ),
    ],
)
def test_what_may_happen_to_a_user_is_said_in_lines(tmp_path: Path, body: str, code: int, said: str) -> None:
    (tmp_path / "program.py").write_text(PROGRAM.format(body=body))
    done = call(tmp_path / "program.py", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (code, said)


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_a_command_without_output_does_its_work(tmp_path: Path, closed: str) -> None:
    (tmp_path / "program.py").write_text(PROGRAM.format(body="print('done', file=sys.stderr); return 3"))
    shell = f"exec {sys.executable} program.py {closed}"
    done = subprocess.run(shell, shell=True, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, "Traceback" in done.stdout + done.stderr) == (3, False)


@pytest.mark.parametrize(
    "body", ["{}['a']", "int('x')", "import json; json.loads('{')", "import math; math.sqrt(-1)"]
)
def test_a_bug_keeps_its_traceback(tmp_path: Path, body: str) -> None:
    """A ValueError that a library or an operation raises is no advice for a user."""
    (tmp_path / "program.py").write_text(PROGRAM.replace("{body}", body))
    done = call(tmp_path / "program.py", cwd=tmp_path)
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "This is a bug" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize(("asked", "shown"), [({}, False), ({"HYDRA_FULL_ERROR": "1"}, True)])
def test_a_command_that_another_one_starts_fails_as_it_does_alone(
    tmp_path: Path, asked: dict, shown: bool
) -> None:
    """Hydra is kept from answering errors by a variable that children inherit."""
    body = "from lab.reproduce import call_python; return call_python(['scripts/compare.py', 'a', 'b'])"
    (tmp_path / "program.py").write_text(PROGRAM.format(body=body))
    environment = {key: value for key, value in os.environ.items() if not key.endswith("FULL_ERROR")} | asked
    done = call(tmp_path / "program.py", cwd=tmp_path, env=environment)
    assert ("Traceback" in done.stderr, done.stderr.startswith("error: ")) == (shown, not shown)


def test_ctrl_c_is_one_line_with_code_130(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM.format(body="time.sleep(60)"))
    command = [sys.executable, tmp_path / "program.py"]
    with subprocess.Popen(command, stdout=-1, stderr=-1, text=True, preexec_fn=HEEDS_CTRL_C) as process:
        assert process.stdout.readline() == "begun\n"
        process.send_signal(signal.SIGINT)
        assert process.stderr.read() == "\nstopped; the same command continues\n"
    assert process.returncode == 130


QUICK = [
    "experiment=stop", "tracking=off", "data.world.pairs=64", "data.world.demonstrations=64", "data.world.test_pairs=8",
    "optimizer.sft.max_steps=60", "trainer.save_steps=5", "optimizer.batch_size=8", "method=sft",
]  # fmt: skip


@pytest.mark.slow
def test_ctrl_c_in_a_run_leaves_one_that_the_same_command_continues(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "src" / "train.py"), *QUICK]
    with subprocess.Popen(
        command, cwd=tmp_path, stdout=-3, stderr=-1, text=True, preexec_fn=HEEDS_CTRL_C
    ) as process:
        while not list(tmp_path.glob("outputs/stop/*/checkpoints/checkpoint-10/manifest.json")):
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        said = process.stderr.read()
    assert process.returncode == 130, said
    assert said.splitlines()[-1] == "stopped; the same command continues from the newest checkpoint"
    assert "Traceback" not in said
    (view,) = read_runs(tmp_path / "outputs")
    assert view.status in ("interrupted", "failed")
    done = call(SCRIPTS[0], *QUICK[:-4], *QUICK[-3:], "optimizer.max_steps=60", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "continues after step" in done.stdout + done.stderr
