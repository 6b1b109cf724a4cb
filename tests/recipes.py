"""The recipes of README and CONTRIBUTING, as printed: the files of each kind, and the commands that use them."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text("utf-8")
CONTRIBUTING = (ROOT / ".github" / "CONTRIBUTING.md").read_text("utf-8")
ADDING = README.split("\n## Adding things\n")[1].split("\n## ")[0]


def _sections() -> dict[str, str]:
    """Return the text of each recipe by its kind: the README has the method's, CONTRIBUTING the others'."""
    parts = re.split(r"\n### An? ([\w ]+)\n", CONTRIBUTING.split("\n## Adding things\n")[1])
    return {"method": ADDING, **dict(zip(parts[1::2], parts[2::2], strict=True))}


SECTIONS = _sections()


def files(kind: str) -> dict[str, str]:
    """Return path and text of the two files of a kind; each block begins with its path."""
    blocks = re.findall(r"```(?:python|yaml|jinja)\n(.*?)```", SECTIONS[kind], re.S)
    return {re.match(r"(?:# |\{#- )(\S+)", text)[1]: text for text in blocks}


def commands(kind: str, start: str) -> list[list[str]]:
    """Return the words behind `start` of every command of a recipe that begins so."""
    lines = "\n".join(re.findall(r"```bash\n(.*?)```", SECTIONS[kind], re.S)).splitlines()
    found = [shlex.split(line, comments=True) for line in lines]
    words = start.split()
    return [line[len(words) :] for line in found if line[: len(words)] == words]


def write(house: Path, *kinds: str) -> Path:
    """Write the files of the kinds into a folder as printed; none may be there."""
    for kind in kinds:
        for path, text in files(kind).items():
            target = house / path
            assert not target.exists(), f"{path} would edit a file"
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text)
    return house


def copy_house(folder: Path) -> Path:
    """Copy what a checkout needs to run."""
    for name in ("conf", "src", "scripts"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("Makefile", "pyproject.toml", "requirements.txt"):
        shutil.copy(ROOT / name, folder / name)
    return folder
