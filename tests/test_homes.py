"""One notion, one home: hashing, JSON, building once, starting processes, loading tokenizers, writing tables."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted(path for folder in ("src", "scripts") for path in (ROOT / folder).rglob("*.py"))
BARE = "runs before anything is installed"
WIRE = "what is sent and received, or a line of a pipe; no file"


@dataclass(frozen=True)
class Notion:
    """uses: dotted names of which a use is counted. home: a module or a room. apart: who may, and why."""

    uses: tuple[str, ...]
    home: str
    apart: dict[str, str] = field(default_factory=dict)


NOTIONS = {
    "hashing": Notion(("hashlib.",), "src/sgdpo/store/hashes.py"),
    "building once": Notion(
        ("filelock.",), "src/sgdpo/store/",
        {"src/lab/serving/ledger.py": "taken for every line of a ledger; a turn's lock goes with its turn"},
    ),
    "starting processes": Notion(
        ("subprocess.run", "subprocess.call", "subprocess.Popen", "subprocess.check_call",
         "subprocess.check_output", "os.system", "os.popen", "os.fork", "os.spawn", "multiprocessing."),
        "src/sgdpo/processes.py", {"scripts/install.py": BARE},
    ),
    "loading tokenizers, as they were saved": Notion(
        ("transformers.AutoTokenizer.",), "src/sgdpo/models/load.py",
        {"src/sgdpo/models/smollm2.py": "out of a GGUF file, which holds no tokenizer's files"},
    ),
    "JSON": Notion(
        ("json.",), "src/sgdpo/store/",
        {
            "scripts/install.py": BARE,
            "src/lab/bench/trl_worker.py": "runs in an environment of its own, without these packages",
            "src/lab/serving/endpoint.py": WIRE,
            "src/lab/serving/reply.py": WIRE,
            "src/lab/sweeps/evaluations.py": WIRE,
            "src/lab/sweeps/pool.py": WIRE,
            "src/lab/sweeps/worker.py": WIRE,
            "src/lab/report/page.py": "data inside a page of HTML",
            "src/lab/serving/ledger.py": "reads on from where it stood, under its own lock",
            "src/lab/sweeps/screen.py": "the last row of a file that grows, several times a second",
            "src/sgdpo/constraints/shapes.py": "whether a model's answer is JSON",
            "src/sgdpo/data/files.py": "a user's rows by the million, one at a time, with advice for their data",
            "src/sgdpo/training/trainer.py": "sums of a checkpoint keep NaN, which the store's JSON does not",
        },
    ),
}  # fmt: skip


def uses(path: Path) -> Iterator[str]:
    """Yield the dotted names that a file calls or reads as attributes of what it imports; types are none."""
    tree = ast.parse(path.read_text())
    modules = {
        alias.asname or alias.name: alias.name
        for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names
    }  # fmt: skip
    names = {
        alias.asname or alias.name: f"{node.module}.{alias.name}"
        for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names
    }  # fmt: skip
    for node in ast.walk(tree):
        target = node.func if isinstance(node, ast.Call) else None
        if isinstance(target, ast.Name) and target.id in names:
            yield names[target.id]
        elif isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name):
            module = modules.get(target.value.id) or names.get(target.value.id)
            if module:
                yield f"{module}.{target.attr}"


USES = {path.relative_to(ROOT).as_posix(): set(uses(path)) for path in FILES}


@pytest.mark.parametrize("name", NOTIONS)
def test_a_notion_has_one_home(name: str) -> None:
    notion = NOTIONS[name]
    users = {file for file, used in USES.items() if any(use.startswith(notion.uses) for use in used)}
    assert any(file.startswith(notion.home) for file in users), "the pattern finds what it looks for"
    strangers = {file for file in users if not file.startswith(notion.home)} - set(notion.apart)
    assert not strangers, f"{name} is at home in {notion.home}: take it from there"
    assert set(notion.apart) <= users, "an exception that is none any more goes from this list"


def test_tables_have_one_writer() -> None:
    """Markdown, LaTeX, CSV and tables on the screen are written by sgdpo/drawing/table.py, and read back by nobody."""
    row = re.compile(r"""---+:?\s*\||["'] \| ["']\.join|["']\| .* \|["']|toprule|csv\.writer|rich\.table""")
    home, screen = "src/sgdpo/drawing/table.py", "src/lab/sweeps/screen.py"  # a live screen, with bars in it
    writers = {path.relative_to(ROOT).as_posix() for path in FILES if row.search(path.read_text())}
    assert home in writers, "the pattern finds what it looks for"
    assert writers <= {home, screen}


def test_an_identity_is_computed_in_one_place() -> None:
    """A run's identity is made once, in `Run.of`, and passed on."""
    assert [file for file, used in USES.items() if "sgdpo.config.identity.identify" in used] == [
        "src/sgdpo/runs/run.py"
    ]
