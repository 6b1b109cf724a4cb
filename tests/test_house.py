"""The house keeps its order: imports go down, files stay short, nobody knows a method by name."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SRC = ROOT / "src"

# The rooms from the ground up; a module may import from its own room and from those before it.
ROOMS = (
    "sgdpo.places", "sgdpo.processes", "sgdpo.values", "sgdpo.source", "sgdpo.contract", "sgdpo.keyed", "sgdpo.overlap",
    "sgdpo.decimals", "sgdpo.pairs", "sgdpo.pilot", "sgdpo.selects", "sgdpo.theory", "sgdpo.mixtures", "sgdpo.method",
    "sgdpo.methods", "sgdpo.store", "sgdpo.hub",
    "sgdpo.config", "sgdpo.console", "sgdpo.world", "sgdpo.constraints",
    "sgdpo.data", "sgdpo.models", "sgdpo.reference", "sgdpo.training",
    "sgdpo.drawing", "sgdpo.engine", "sgdpo.runs",
    "lab.plan", "lab.serving", "lab.answers", "lab.judging", "lab.benchmarks", "lab.evaluation", "lab.sampling",
    "lab.report", "lab.sweeps", "lab.bench", "lab.pair", "lab.chat", "lab.push", "lab.soak", "lab.demo",
    "lab.asked", "lab.reproduce",
)  # fmt: skip


def python_files(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def imported_rooms(path: Path) -> set[str]:
    """Return the rooms that a file imports, late imports included."""
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module in ("sgdpo", "lab"):
            names += [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names.append(node.module or "")
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
    return {".".join(name.split(".")[:2]) for name in names if name.startswith(("sgdpo.", "lab."))}


def room_of(path: Path) -> str:
    return ".".join(path.relative_to(SRC).with_suffix("").parts[:2])


@pytest.mark.parametrize("path", python_files("src/sgdpo", "src/lab"), ids=lambda p: str(p.relative_to(SRC)))
def test_imports_never_point_up(path: Path) -> None:
    """With one order of all rooms there is no circle between them either."""
    if path.name == "__init__.py" and path.parent.parent == SRC:
        return
    room = room_of(path)
    assert room in ROOMS, f"{room} has no floor: give it one in this test"
    upward = {other for other in imported_rooms(path) if ROOMS.index(other) > ROOMS.index(room)}
    assert not upward, f"{path.relative_to(ROOT)} imports {upward} from above"


def test_the_tree_that_contributors_read_names_every_room() -> None:
    tree = (ROOT / ".github" / "CONTRIBUTING.md").read_text().split("\n## The house\n")[1].split("```")[1]
    named = set(re.findall(r"(\w+)(?:/|\.py)", tree))
    rooms = {room.split(".")[1] for room in ROOMS}
    assert rooms <= named, f".github/CONTRIBUTING.md: name {sorted(rooms - named)} in the tree of the house"
    assert named - rooms <= {"conf", "src", "scripts", "tests", "outputs", "published", "train", "sgdpo", "lab",
                             "hydra_plugins"}, "a room that is gone"  # fmt: skip


@pytest.mark.parametrize(
    "path", python_files("src", "scripts", "tests"), ids=lambda p: str(p.relative_to(ROOT))
)
def test_files_stay_below_400_lines_and_functions_below_60(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= 400, f"{path.relative_to(ROOT)} has {text.count(chr(10))} lines: split it"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            length = node.end_lineno - node.lineno + 1
            assert length <= 60, f"{path.name}:{node.lineno} {node.name} has {length} lines"


def test_no_method_is_known_by_name_outside_its_own_file() -> None:
    """`if name == "dpo"` is how a code base stops taking new methods."""
    names = {path.stem for path in (ROOT / "conf" / "method").glob("*.yaml")}
    compared = re.compile(r"(==|!=|\bin\b)\s*[\[({]?\s*['\"](" + "|".join(names - {"sft"}) + r")['\"]")
    for path in python_files("src/sgdpo", "src/lab"):
        if path.parent.name in ("methods", "report", "bench"):  # what is compared there is chosen by name
            continue
        for number, line in enumerate(path.read_text().splitlines(), 1):
            assert not compared.search(line), (
                f"{path.relative_to(ROOT)}:{number} knows a method: {line.strip()}"
            )


def test_every_config_key_has_a_comment() -> None:
    """A key is explained on its own line or on the line above; list items and nested data follow their head."""
    for path in sorted((ROOT / "conf").rglob("*.yaml")):
        if path.parent.name in ("report", "sweep"):
            continue
        previous = ""
        for number, line in enumerate(path.read_text().splitlines(), 1):
            key = re.match(r"^([a-z_]\w*):\s*(\S.*)?$", line)
            if key and key[1] not in ("defaults", "hydra", "name"):
                explained = "#" in line or previous.lstrip().startswith("#")
                assert explained, f"{path.relative_to(ROOT)}:{number} {key[1]} has no comment"
            if line.strip():
                previous = line


def test_nothing_is_left_open_and_no_path_of_a_machine_is_in_the_code() -> None:
    """The marks are spelt in two halves so that this test does not find itself."""
    marks = re.compile(r"\b(TO" + r"DO|FIX" + r"ME|XX" + r"X)\b|NotImplemented" + "Error")
    paths = re.compile(r"[\"'](/wo" + r"rk|/ho" + r"me|/ro" + r"ot)/")
    for path in python_files("src", "scripts", "tests"):
        for number, line in enumerate(path.read_text().splitlines(), 1):
            where = f"{path.relative_to(ROOT)}:{number} {line.strip()}"
            assert not marks.search(line), where
            assert not paths.search(line), where


def test_only_published_results_are_tracked() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "outputs"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.split()
    assert all(name.startswith("outputs/published/") for name in listed)


def test_the_top_level_holds_what_the_readme_says() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    top = {name.split("/")[0] for name in listed.stdout.split()}
    allowed = {"conf", "src", "scripts", "tests", "outputs", "Makefile", "requirements.txt", "README.md"}
    allowed |= {"pyproject.toml", "LICENSE", "CITATION.cff", "requirements.lock"}
    assert {name for name in top if not name.startswith(".")} <= allowed
