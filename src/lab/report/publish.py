"""Gather the tables and figures that stand into one tracked folder, with the command and the commit that made them."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from lab.report.entries import commit_text
from lab.report.exhibit import PUBLISHED, Work, standing, whose
from sgdpo.drawing.table import Table
from sgdpo.runs.provenance import git_state
from sgdpo.store import write_whole

FORMS = (".md", ".csv", ".json", ".png", ".pdf")
BLOCK = re.compile(r"<!-- ([\w-]+):begin -->\n(.*?)<!-- \1:end -->", re.S)


def publish(outputs: Path, suffix: str = "", *, mixed: bool = False) -> list[Path]:
    """Copy what stands under <outputs>/<exhibit><suffix>/ to <outputs>/published/ and write RESULTS.md beside it.

    suffix: "-smollm2" or "-paper" for another scale. mixed: results of several commits are published all the same,
    and RESULTS.md says so. Raises ValueError if nothing stands yet, if something is damaged, or for a mixture.
    """
    works, damaged = standing(outputs)
    named = [
        (path, work) for path, work in works if path.parent.name == f"{whose(work).get('exhibit')}{suffix}"
    ]
    if damaged or not named:
        nothing = f"no table or figure stands under {outputs} yet. Make them: make paper"
        raise ValueError("; ".join(damaged) or nothing)
    mixture = _mixture(named)
    if mixture and not mixed:
        raise ValueError(f"these results rest on several commits: {mixture}. Make them again, or say --mixed")
    folder = outputs / PUBLISHED
    folder.mkdir(parents=True, exist_ok=True)
    copied = []
    for path, _ in named:
        files = [path.with_suffix(form) for form in FORMS if path.with_suffix(form).is_file()]
        copied += [Path(shutil.copy(file, folder / published_name(file, suffix))) for file in files]
    copied.append(folder / f"RESULTS{suffix}.md")
    write_whole(copied[-1], "\n".join([_head(suffix, mixture), *_sections(named, suffix)]))
    return copied


def _mixture(works: Sequence[Work]) -> str:
    commits: dict[str, list[str]] = {}
    for path, work in works:
        for commit in whose(work).get("commits", ["unknown"]):
            commits.setdefault(commit, []).append(path.stem)
    named = [f"{commit} ({', '.join(names)})" for commit, names in commits.items()]
    return "; ".join(named) if len(named) > 1 else ""


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
    """Name a file among the published ones: another scale's do not replace the tiny one's."""
    return f"{path.stem}{suffix}{path.suffix}"


def _head(suffix: str, mixture: str) -> str:
    memory = psutil.virtual_memory().total / 2**30
    runs = "All runs are of one commit, below each table."
    if mixture:
        runs = f"The runs are of several commits: {mixture}."
    return (
        f"# Results: {suffix.removeprefix('-') or 'tiny'} scale\n\n"
        f"Gathered by `make publish` at commit {commit_text(git_state())} on a machine with {psutil.cpu_count()} CPU "
        f"cores and {memory:.0f} GiB of memory. {runs} Numbers come from records only.\n"
    )


def _sections(works: Sequence[Work], suffix: str) -> list[str]:
    scale = f" SCALE={suffix.removeprefix('-')}" if suffix else ""
    exhibits: dict[str, list[Work]] = {}
    for path, work in works:
        exhibits.setdefault(whose(work)["exhibit"], []).append((path, work))
    lines = []
    for name, own in exhibits.items():
        seeds = max(len(whose(work).get("seeds", [])) for _, work in own)
        lines += [f"## {name}", "", f"`make {name}{scale}{f' SEEDS={seeds}' if seeds > 1 else ''}`", ""]
        lines += [_shown(path, work, suffix) for path, work in own]
    return lines


def _shown(path: Path, work: Table | Mapping[str, Any], suffix: str) -> str:
    if isinstance(work, Table):
        return work.markdown()
    return f"![{work['title']}]({published_name(path.with_suffix('.png'), suffix)})\n"
