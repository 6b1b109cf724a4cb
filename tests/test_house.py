"""The house keeps its order: imports go down, files stay short, nobody knows a method by name."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SRC = ROOT / "src" / "sgdpo"

# The floor of each room; a module may import from its own floor and from those below.
FLOORS = {
    "pairs": 1, "jsonio": 1, "provenance": 1, "records": 1, "pilot": 1, "theory": 1, "method": 1,
    "config": 1, "data": 1, "console": 1,
    "methods": 2, "models": 2, "tracking": 2,
    "reference": 3, "training": 3, "evaluation": 3,
    "assemble": 4, "report": 4, "run": 4, "bench": 4,
    "engine": 5, "validate": 5, "execute": 5, "sweeps": 5, "summary": 5, "demo": 5, "reproduce": 5,
}  # fmt: skip


def python_files(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def imported_rooms(path: Path) -> set[str]:
    """Return the rooms of src/sgdpo that a file imports, late imports included."""
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module == "sgdpo":
            names += [f"sgdpo.{alias.name}" for alias in node.names]
        rooms |= {name.split(".")[1] for name in names if name.startswith("sgdpo.")}
    return rooms


def room_of(path: Path) -> str:
    return path.relative_to(SRC).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", python_files("src/sgdpo"), ids=lambda p: str(p.relative_to(SRC)))
def test_imports_never_point_up(path: Path) -> None:
    if path.name == "__init__.py" and path.parent == SRC:
        return
    room = room_of(path)
    assert room in FLOORS, f"{room} has no floor: give it one in this test"
    upward = {other for other in imported_rooms(path) if FLOORS[other] > FLOORS[room]}
    assert not upward, f"{path.relative_to(ROOT)} on floor {FLOORS[room]} imports {upward} from above"


def test_rooms_import_each_other_without_a_circle() -> None:
    graph = {room: set() for room in FLOORS}
    for path in python_files("src/sgdpo"):
        if path.parent != SRC or path.name != "__init__.py":
            graph[room_of(path)] |= imported_rooms(path) - {room_of(path)}
    done: set[str] = set()

    def visit(room: str, trail: tuple[str, ...]) -> None:
        assert room not in trail, f"circle: {' -> '.join([*trail, room])}"
        if room not in done:
            for other in graph[room]:
                visit(other, (*trail, room))
            done.add(room)

    for room in graph:
        visit(room, ())


@pytest.mark.parametrize(
    "path", python_files("src", "scripts", "tests"), ids=lambda p: str(p.relative_to(ROOT))
)
def test_files_stay_below_300_lines_and_functions_below_60(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= 300, f"{path.relative_to(ROOT)} has {text.count(chr(10))} lines: split it"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            length = node.end_lineno - node.lineno + 1
            assert length <= 60, f"{path.name}:{node.lineno} {node.name} has {length} lines"


def test_no_method_is_known_by_name_outside_its_own_file() -> None:
    """`if name == "dpo"` is how a code base stops taking new methods."""
    names = {path.stem for path in (ROOT / "conf" / "method").glob("*.yaml")}
    compared = re.compile(r"(==|!=|\bin\b)\s*[\[({]?\s*['\"](" + "|".join(names - {"sft"}) + r")['\"]")
    for path in python_files("src/sgdpo"):
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
    allowed |= {"pyproject.toml", "LICENSE"}
    assert {name for name in top if not name.startswith(".")} <= allowed
