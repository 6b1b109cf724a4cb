"""One table and its forms: Markdown to read, LaTeX to print, CSV and JSON to compute with, a screen to look at."""

from __future__ import annotations

import csv
import io
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sgdpo.store import read_json, write_json, write_whole

DASH = "–"
FORMS = (".md", ".tex", ".csv", ".json")
LEAST_LABEL = 8  # characters of a row's name that a narrow screen leaves beside each other
TEX = {
    **{character: rf"\{character}" for character in "&%_#${}"},
    **{
        "±": r"$\pm$",
        DASH: "--",
        "−": "$-$",
        "×": r"$\times$",
        "α": r"$\alpha$",
        "β": r"$\beta$",
        "τ": r"$\tau$",
        "†": r"$\dagger$",
    },
    **{"~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\\": r"\textbackslash{}"},
    **{"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}"},
}


@dataclass(frozen=True)
class Entry:
    """Hold one entry: its text, a mark beside it (significance), and the footnote it needs.

    value, error and seeds are for computing; status says why there is no value.
    """

    text: str = DASH
    mark: str = ""
    note: str | None = None
    value: float | None = None
    error: float | None = None
    seeds: int | None = None
    status: str = "text"


def number(
    value: float | None, digits: int, error: float | None = None, *, sign: str = "", **more: Any
) -> Entry:
    """Make an entry of a number: "27.53 ± 0.41", or a dash; a NaN is no error. sign: "+" also on positive numbers."""
    error = None if error is None or math.isnan(error) else error
    if value is None:
        return Entry(**{"status": "missing", **more})
    text = f"{value:{sign}.{digits}f}".replace("-", "−")
    text += "" if error is None else f" ± {error:.{digits}f}"
    return Entry(text, **{"value": value, "error": error, "status": "finished", **more})


def signed(*values: float) -> list[Entry]:
    """Make entries of numbers around 0: "+0.123"."""
    return [number(value, 3, sign="+") for value in values]


@dataclass(frozen=True)
class Table:
    """Hold a table: header, rows of entries or texts (the first `labels` columns name the row), facts below.

    No title: the Markdown has no heading. origin: whose numbers these are, e.g. {"seeds": [42], "commits": []}.
    """

    name: str = ""
    title: str = ""
    header: Sequence[str] = ()
    rows: Sequence[Sequence[Entry | str]] = ()
    labels: int = 1
    facts: Sequence[str] = field(default_factory=tuple)
    origin: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        rows = [
            [entry if isinstance(entry, Entry) else Entry(str(entry)) for entry in row] for row in self.rows
        ]
        assert all(len(row) == len(self.header) for row in rows), (
            f"{self.name}: a row is not as long as the header"
        )
        object.__setattr__(self, "rows", rows)

    @classmethod
    def read(cls, path: Path) -> Table:
        """Read a table's JSON. Raise ValueError naming the file if it is no such table."""
        try:
            found = dict(read_json(path))
            rows = [[Entry(**entry) for entry in row] for row in found.pop("rows")]
            return cls(rows=rows, **found)
        except (OSError, ValueError, TypeError, KeyError, AttributeError, AssertionError) as error:
            raise ValueError(f"{path} is not a table's JSON ({error}); make the table again") from None

    def footnotes(self) -> list[str]:
        return list(dict.fromkeys(entry.note for row in self.rows for entry in row if entry.note))

    def shown(self) -> list[list[tuple[str, str]]]:
        """Give each entry's text with its mark, and the number of its footnote or ""."""
        number_of = {note: str(n) for n, note in enumerate(self.footnotes(), 1)}
        return [[(e.text + e.mark, number_of.get(e.note or "", "")) for e in row] for row in self.rows]

    def notes(self) -> list[tuple[str, str]]:
        """List (number or "", text) of what stands below: the footnotes, then the facts."""
        return [(str(n), note) for n, note in enumerate(self.footnotes(), 1)] + [("", f) for f in self.facts]

    def markdown(self) -> str:
        rule = ["---" if column < self.labels else "---:" for column in range(len(self.header))]
        lines = [f"### {self.title}", ""] if self.title else []
        lines += [_row([_md(head) for head in self.header]), f"|{'|'.join(rule)}|"]
        lines += [_row([_md(t) + (f" <sup>{n}</sup>" if n else "") for t, n in row]) for row in self.shown()]
        notes = [(f"<sup>{n}</sup> " if n else "") + _md(text) for n, text in self.notes()]
        below = ["", "  \n".join(notes)] if notes else []
        return "\n".join([*lines, *below, ""])

    def latex(self) -> str:
        columns = "l" * self.labels + "r" * (len(self.header) - self.labels)
        return "\n".join(
            [
                r"\begin{table}[t]\centering\small",
                rf"\begin{{tabular}}{{{columns}}}",
                r"\toprule",
                " & ".join(map(_tex, self.header)) + r" \\",
                r"\midrule",
                *(" & ".join(_tex(t) + _super(n) for t, n in row) + r" \\" for row in self.shown()),
                r"\bottomrule",
                r"\end{tabular}",
                rf"\caption{{{_tex(self.title)}}}\label{{tab:{self.name}}}",
                r"\par\footnotesize " + " ".join(_super(n) + _tex(text) for n, text in self.notes()),
                r"\end{table}",
                "",
            ]
        )

    def csv(self) -> str:
        """Write one line a number: the row's labels, the column, text, value, error, seeds, status."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow([*self.header[: self.labels], "column", "text", "value", "error", "seeds", "status"])
        for row in self.rows:
            names = [entry.text for entry in row[: self.labels]]
            for head, e in zip(self.header[self.labels :], row[self.labels :], strict=True):
                writer.writerow([*names, head, e.text + e.mark, e.value, e.error, e.seeds, e.status])
        return out.getvalue()

    def console(self) -> str:
        """Draw the table as wide as the terminal; a pipe has room for every column.

        Where it is narrow, names and heads fold and numbers stay whole; the terminal folds what is wider still.
        """
        from rich.cells import cell_len
        from rich.console import Console
        from rich.table import Table as Grid
        from rich.text import Text

        rows = [[text + (f" ({n})" if n else "") for text, n in row] for row in self.shown()]
        columns = list(zip(self.header, *rows, strict=True))
        wide = [max(map(cell_len, texts)) for texts in columns]
        least = [
            LEAST_LABEL
            if column < self.labels
            else max((cell_len(word) for text in texts[1:] for word in text.split()), default=0)
            for column, texts in enumerate(columns)
        ]
        frame = 3 * len(columns) + 1
        room = max(shutil.get_terminal_size((200, 24)).columns, 60) - frame
        while sum(wide) > room and (loose := [c for c, width in enumerate(wide) if width > least[c]]):
            wide[max(loose, key=wide.__getitem__)] -= 1
        grid = Grid()
        for column, head in enumerate(self.header):
            side = "left" if column < self.labels else "right"
            grid.add_column(Text(head), justify=side, overflow="fold", width=wide[column])
        for row in rows:
            grid.add_row(*map(Text, row))
        screen = Console(file=io.StringIO(), width=frame + sum(wide))
        screen.print(grid)
        lines = [line.rstrip() for line in screen.file.getvalue().splitlines()]
        title = [self.title] if self.title else []
        notes = [(f"({n}) " if n else "") + text for n, text in self.notes()]
        return "\n".join([*title, *lines, *notes])

    def write(self, folder: Path) -> list[Path]:
        folder.mkdir(parents=True, exist_ok=True)
        paths = [folder / f"{self.name}{form}" for form in FORMS]
        for path, text in zip(paths, (self.markdown(), self.latex(), self.csv()), strict=False):
            write_whole(path, text)
        write_json(paths[-1], asdict(self))
        return paths


def _row(texts: Sequence[str]) -> str:
    return "| " + " | ".join(texts) + " |"


def _md(text: str) -> str:
    return text.replace("|", r"\|").replace("<", "&lt;").replace("*", r"\*").replace("\n", " ")


def _tex(text: str) -> str:
    return "".join(TEX.get(character, character) for character in text.replace("\n", " "))


def _super(number: str) -> str:
    return rf"\textsuperscript{{{number}}} " if number else ""
