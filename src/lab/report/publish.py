"""Gather the tables and figures that stand into one tracked folder, with the command and commit that made them."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import psutil

from lab.report.build import EXPERIMENTS, FIGURES, TABLES
from sgdpo.runs.provenance import git_state
from sgdpo.store import write_whole

PUBLISHED = "published"
NAMES = ("demo", *TABLES, *FIGURES, "theorems", "bench")
BLOCK = re.compile(r"<!-- ([\w-]+):begin -->\n(.*?)<!-- \1:end -->", re.S)
TARGETS = {
    "ratio_grid": "table1",
    "mtbench": "mtbench-table",
}  # whose target makes it, where the names differ


def publish(outputs: Path, names: Sequence[str] = NAMES, suffix: str = "") -> list[Path]:
    """Copy what stands under <outputs>/<name><suffix>/ to <outputs>/published/ and write RESULTS.md beside it.

    suffix: "-smollm2" or "-paper" for another scale. Raises ValueError if nothing stands yet.
    """
    folder = outputs / PUBLISHED
    sections, copied = [], []
    for name in names:
        made = outputs / f"{name}{suffix}"
        files = sorted(path for path in made.glob(f"{name}*") if path.suffix in (".md", ".csv", ".png"))
        if files:
            folder.mkdir(parents=True, exist_ok=True)
            copied += [Path(shutil.copy(path, folder / published_name(path, suffix))) for path in files]
            sections.append(_section(name, made, files, suffix))
    if not copied:
        raise ValueError(f"no table or figure stands under {outputs} yet. Make them: make paper")
    copied.append(folder / f"RESULTS{suffix}.md")
    write_whole(copied[-1], "\n".join([_head(suffix), *sections]))
    return copied


def refresh(readme: Path, published: Path) -> None:
    """Put each published table into the README, between `<!-- name:begin -->` and `<!-- name:end -->`.

    A block whose table is not published stays as it is: no number in it was ever typed.
    """

    def fresh(block: re.Match[str]) -> str:
        table = published / f"{block[1]}.md"
        text = table.read_text("utf-8") if table.is_file() else block[2]
        return f"<!-- {block[1]}:begin -->\n{text}<!-- {block[1]}:end -->"

    write_whole(readme, BLOCK.sub(fresh, readme.read_text("utf-8")))


def published_name(path: Path, suffix: str) -> str:
    """Return a file's name among the published ones: another scale's do not replace the tiny one's."""
    return f"{path.stem}{suffix}{path.suffix}"


def _head(suffix: str) -> str:
    commit = (git_state()["commit"] or "unknown")[:9]
    memory = psutil.virtual_memory().total / 2**30
    return (
        f"# Results: {suffix.removeprefix('-') or 'tiny'} scale\n\n"
        f"Gathered by `make publish` at commit {commit} on a machine with {psutil.cpu_count()} CPU cores and "
        f"{memory:.0f} GiB of memory. Each table names the commit of its own runs. Numbers come from records only.\n"
    )


def _section(name: str, made: Path, files: Sequence[Path], suffix: str) -> str:
    scale = f" SCALE={suffix.removeprefix('-')}" if suffix else ""
    lines = [f"## {name}", "", f"`make {TARGETS.get(name, name)}{scale}{_seeds(files)}`", ""]
    for path in files:
        if path.suffix == ".md":
            lines.append(path.read_text("utf-8"))
        elif path.suffix == ".png":
            lines.append(f"![{path.stem}]({published_name(path, suffix)})\n")
    claim = made / "claim.md"
    if claim.is_file() and name in EXPERIMENTS:
        lines.append(claim.read_text("utf-8").replace("\n", "  \n"))
    return "\n".join(lines)


def _seeds(files: Sequence[Path]) -> str:
    """Return " SEEDS=3" if a table's facts name several seeds."""
    texts = [path.read_text("utf-8") for path in files if path.suffix == ".md"]
    counts = [
        len(found[1].split(",")) for text in texts if (found := re.search(r"seeds: ([\d, ]+)[;.]", text))
    ]
    return f" SEEDS={max(counts)}" if counts and max(counts) > 1 else ""
