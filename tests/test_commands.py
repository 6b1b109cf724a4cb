"""Every command of the README and the Makefile is real: it composes, it is a target, its script answers."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf, open_dict

import recipes
from lab.evaluation.settings import compose_evaluation, evaluation_errors, runs_first
from lab.report.exhibit import BLOCK, exhibit_names, find_exhibit
from lab.sampling.rounds import Chain
from lab.sampling.settings import compose_sample, sample_errors
from sgdpo.config.compose import CONF, register_schema, to_run_config
from sgdpo.runs.validate import value_errors
from sgdpo.store import read_json

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
REST = README.replace(recipes.ADDING, "")  # the commands of the recipes are run by test_adding.py
MAKEFILE = (ROOT / "Makefile").read_text()
# Commands stand in fenced blocks, one a line, and in running text between backticks.
FENCED = [line for block in re.findall(r"```bash\n(.*?)```", REST, re.S) for line in block.splitlines()]
INLINE = re.findall(r"`((?:python|make) [^`]+)`", REST)
COMMANDS = [line.split("  #")[0].strip() for line in FENCED + INLINE if line.strip()]
EXHIBITS = exhibit_names()
TARGETS = re.findall(r"^([a-z][\w-]*):.*## ", MAKEFILE, re.M)


def starting(word: str) -> list[str]:
    return sorted({command for command in COMMANDS if command.startswith(word)})


def overrides_of(command: str) -> list[str]:
    words = shlex.split(command)
    words = words[words.index("src/train.py") + 1 :]
    return [word for word in words if "=" in word and not word.startswith("-")]


def test_the_readme_speaks_of_the_commands_that_matter() -> None:
    spoken = " ".join(COMMANDS)
    for needed in (
        "make demo",
        "make test",
        "src/train.py",
        "sweep=ratio_grid",
        "make table3",
        "evaluate.py",
    ):
        assert needed in spoken


@pytest.mark.parametrize("command", sorted({line for line in COMMANDS if "python src/train.py" in line}))
def test_every_training_command_composes(command: str) -> None:
    """A comma list is a sweep: its first value is composed; of an interval to search, the key must be there."""
    register_schema()
    words = overrides_of(command)
    searched = [word.split("=")[0] for word in words if "interval(" in word]
    singles = [re.sub(r"=([^,{]+),.*", r"=\1", word) for word in words if "interval(" not in word]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("config", singles, return_hydra_config=True)
    with open_dict(config):
        del config["hydra"]  # resolves only inside Hydra's application
    assert list(value_errors(to_run_config(config))) == []
    assert all(OmegaConf.select(config, key) is not None for key in searched)


@pytest.mark.parametrize("command", starting("make"))
def test_every_make_command_of_the_readme_is_a_target(command: str) -> None:
    target = shlex.split(command)[1]
    assert target in (*TARGETS, *EXHIBITS)


@pytest.mark.parametrize("target", TARGETS)
def test_every_target_expands_to_commands(target: str) -> None:
    done = subprocess.run(
        ["make", "-n", target, "FORCE=1", f"VENV={Path(sys.prefix)}"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for script in re.findall(r"((?:scripts|src)/\w+\.py)", done.stdout):
        assert (ROOT / script).is_file(), f"make {target} runs {script}, which does not exist"


def test_make_help_names_every_target_in_one_line() -> None:
    command = ["make", "--no-print-directory", "help"]  # a make under `make -C` names its folder otherwise
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    listed = [line.split()[0] for line in done.stdout.splitlines() if line.strip()]
    assert sorted(listed) == sorted(set(TARGETS))


def errors_of_evaluation(words: list[str]) -> list[str]:
    return evaluation_errors(compose_evaluation(runs_first(words)), runs=False)


def errors_of_variance(words: list[str]) -> list[str]:
    return [
        e for name in ("mt_bench", "alpaca_eval") for e in errors_of_evaluation([f"benchmark={name}", *words])
    ]


def errors_of_exhibit(words: list[str]) -> list[str]:
    find_exhibit(words[0], words[1:])  # raises what is wrong
    return []


def errors_of_rounds(words: list[str]) -> list[str]:
    chain = Chain.of(words)
    errors = [*value_errors(chain.run), *sample_errors(chain.sampling, policy=False)]
    return errors + evaluation_errors(chain.evaluation, runs=False)


# What each command looks at before it begins, but for runs and weights, which no README brings.
CHECKED = {
    "evaluate": errors_of_evaluation,
    "judge_variance": errors_of_variance,
    "sample": lambda words: sample_errors(compose_sample(words), policy=False),
    "rounds": errors_of_rounds,
    "exhibit": errors_of_exhibit,
}


@pytest.mark.parametrize("command", starting("python scripts/"))
def test_every_script_of_the_readme_takes_its_words(command: str, tmp_path: Path, monkeypatch) -> None:
    """Those that compose do and have nothing wrong with them; of the others, the script knows every option."""
    _, script, *words = shlex.split(command)
    text = (ROOT / script).read_text()
    if errors_of := CHECKED.get(Path(script).stem):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("OPENAI_API_KEY", "sk-test-123456")
        for name in re.findall(r"\w+\.jsonl", command):
            Path(name).write_text('{"prompt": "Say it."}\n')
        # Extras that the README tells to install.
        optional = ("needs the package", "run `make judge`", "run `make mtbench`")
        assert [error for error in errors_of(words) if not any(each in error for each in optional)] == []
    else:
        assert all(f'"{word}"' in text for word in words if word.startswith("--"))


def test_an_old_python_is_refused_before_it_makes_an_environment(tmp_path: Path) -> None:
    """An environment that is there keeps its Python, whatever PYTHON= says afterwards."""
    old = tmp_path / "python3.9"
    old.write_text(
        f'#!/bin/sh\nexec {sys.executable} -c "import sys; sys.version_info = (3, 9, 1); exec(sys.argv[2])" "$@"\n'
    )
    old.chmod(0o755)
    command = ["make", "setup", f"PYTHON={old}", f"VENV={tmp_path / 'venv'}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert done.stderr.startswith(
        f"error: {old} is Python 3.9, and 3.11 or newer is needed: make setup PYTHON=python3.11\n"
    )
    assert not (tmp_path / "venv").exists()


def test_clean_asks_before_it_removes(tmp_path: Path) -> None:
    (tmp_path / "outputs" / "demo").mkdir(parents=True)
    (tmp_path / "outputs" / "published").mkdir()
    command = ["make", "-f", str(ROOT / "Makefile"), "clean"]
    asked = subprocess.run(command, cwd=tmp_path, input="n\n", capture_output=True, text=True, check=False)
    assert asked.returncode != 0
    assert (tmp_path / "outputs" / "demo").exists()
    subprocess.run([*command, "FORCE=1"], cwd=tmp_path, env=os.environ, capture_output=True, check=True)
    assert [path.name for path in (tmp_path / "outputs").iterdir()] == ["published"]


def test_the_readmes_tables_are_the_published_ones() -> None:
    """The numbers in the README are files that commands wrote (`make publish`), not typed."""
    blocks = BLOCK.findall(README)
    assert {"demo"} <= {name for name, _ in blocks}
    for name, text in blocks:
        assert text == (ROOT / "outputs" / "published" / f"{name}.md").read_text(), name


def test_no_published_table_shares_its_name_with_a_picture() -> None:
    works = {path: read_json(path) for path in (ROOT / "outputs" / "published").glob("*.json")}
    assert works
    assert not [
        path.name for path, work in works.items() if "picture" in work and path.with_suffix(".md").exists()
    ]


@pytest.mark.parametrize("page", ["README.md", ".github/CONTRIBUTING.md", "outputs/published/LOG.md"])
def test_pictures_and_links_lead_to_files(page: str) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", (ROOT / page).read_text())
    assert links
    for link in links:
        assert ((ROOT / page).parent / link).exists(), link


def test_the_readme_is_read_in_one_sitting() -> None:
    assert README.count("\n") < 300
