"""The page of `--help`, made from the comments of conf/: every group, every option, every key with its meaning."""

import re
from collections.abc import Iterator
from pathlib import Path

from sgdpo.places import CONF

KEY = re.compile(r"^([a-z]\w*):\s*(.*)$")


def help_asked(arguments: list[str]) -> bool:
    """Say whether the command line asks for the page (Hydra's own are --hydra-help and --cfg job)."""
    return bool({"--help", "-h"} & set(arguments))


def help_page(root: str, examples: str, arguments: list[str]) -> str:
    """Return the page of conf/<root>.yaml; a group's name beside --help gives that group's keys.

    examples: the script's docstring.
    """
    page = (CONF / f"{root}.yaml").read_text(encoding="utf-8")
    groups = dict.fromkeys(re.findall(r"^  - (?:override )?/?([a-z]+)(?:@\w+)?: \w+", page, re.M))
    if asked := [word for word in arguments if word in groups]:
        return "\n\n".join(_keys_of(CONF / word) for word in asked)
    lines = [examples.strip(), "", "Groups (GROUP=OPTION; `--help GROUP` explains its keys):"]
    for group in groups:
        lines.append(f"  {group}")
        lines += [
            f"    {path.stem:<20} {_first_comment(path)}" for path in sorted((CONF / group).glob("*.yaml"))
        ]
    lines += ["", "Keys (KEY=VALUE, a group's as GROUP.KEY=VALUE):", *_explained(page)]
    return "\n".join(
        [*lines, "", "--cfg job prints the composed configuration, --hydra-help Hydra's own options."]
    )


def _keys_of(folder: Path) -> str:
    parts = [
        f"{path.relative_to(CONF.parent)}\n{path.read_text(encoding='utf-8').rstrip()}"
        for path in sorted(folder.glob("*.yaml"))
    ]
    return "\n\n".join(parts)


def _first_comment(path: Path) -> str:
    """Say what an option is: the first comment that is neither Hydra's nor the file's own path."""
    lines = path.read_text(encoding="utf-8").splitlines()
    comments = (line.removeprefix("# ") for line in lines if line.startswith("# "))
    return next((text for text in comments if "@package" not in text and not text.endswith(path.name)), "")


def _explained(page: str) -> Iterator[str]:
    """Yield each top-level key with its default and the comment above it."""
    comment: list[str] = []
    for line in page.splitlines():
        if line.startswith("# "):
            comment.append(line.removeprefix("# "))
        elif (key := KEY.match(line)) and key[2] and comment:
            yield f"  {key[1]}={key[2]}"
            yield from (f"      {text}" for text in comment)
            comment = []
        else:
            comment = []
