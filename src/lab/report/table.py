"""A table and its three forms: Markdown to read, LaTeX to print, CSV to compute with."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

DASH = "–"
TEX = {"&": r"\&", "%": r"\%", "_": r"\_", "#": r"\#", "±": r"$\pm$", "–": "--", "−": "$-$", "×": r"$\times$"}
TEX |= {
    "$": r"\$",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "β": r"$\beta$",
}
TEX |= {"\\": r"\textbackslash{}", "<": r"\textless{}", ">": r"\textgreater{}", "τ": r"$\tau$"}


@dataclass(frozen=True)
class Entry:
    """Hold one entry: its text, a mark beside it (significance), and the footnote it needs.

    value, error and seeds go into the CSV; status says why there is no value.
    """

    text: str = DASH
    mark: str = ""
    note: str | None = None
    value: float | None = None
    error: float | None = None
    seeds: int | None = None
    status: str = "text"


@dataclass(frozen=True)
class Table:
    """Hold a table: header, rows of entries (the first `labels` columns name the row) and facts below."""

    name: str
    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[Entry]]
    labels: int = 1
    facts: Sequence[str] = field(default_factory=tuple)

    def footnotes(self) -> list[str]:
        """Return the footnotes in reading order, each once."""
        return list(dict.fromkeys(entry.note for row in self.rows for entry in row if entry.note))

    def _text(self, entry: Entry) -> tuple[str, str]:
        number = "" if not entry.note else str(self.footnotes().index(entry.note) + 1)
        return entry.text + entry.mark, number

    def markdown(self) -> str:
        """Return GitHub Markdown: title, table, footnotes, facts."""
        lines = [f"### {self.title}", "", _row([_md(head) for head in self.header])]
        lines.append(
            "|" + "|".join("---" if i < self.labels else "---:" for i in range(len(self.header))) + "|"
        )
        for row in self.rows:
            texts = [self._text(entry) for entry in row]
            lines.append(_row([_md(text) + (f" <sup>{n}</sup>" if n else "") for text, n in texts]))
        notes = [f"<sup>{n}</sup> {_md(note)}" for n, note in enumerate(self.footnotes(), 1)]
        paragraphs = [*notes, *(_md(fact) for fact in self.facts)]
        return "\n".join(lines) + "\n\n" + "  \n".join(paragraphs) + "\n"

    def latex(self) -> str:
        """Return a LaTeX table for booktabs, with the footnotes and facts in the caption's note."""
        columns = "l" * self.labels + "r" * (len(self.header) - self.labels)
        body = [self._tex_row(row) for row in self.rows]
        notes = [rf"\textsuperscript{{{n}}} {_tex(note)}" for n, note in enumerate(self.footnotes(), 1)]
        return "\n".join(
            [
                r"\begin{table}[t]\centering\small",
                rf"\begin{{tabular}}{{{columns}}}",
                r"\toprule",
                " & ".join(map(_tex, self.header)) + r" \\",
                r"\midrule",
                *body,
                r"\bottomrule",
                r"\end{tabular}",
                rf"\caption{{{_tex(self.title)}}}\label{{tab:{self.name}}}",
                r"\par\footnotesize " + " ".join([*notes, *map(_tex, self.facts)]),
                r"\end{table}",
                "",
            ]
        )

    def _tex_row(self, row: Sequence[Entry]) -> str:
        texts = [self._text(entry) for entry in row]
        return " & ".join(_tex(t) + (rf"\textsuperscript{{{n}}}" if n else "") for t, n in texts) + r" \\"

    def csv(self) -> str:
        """Return one line a number: the row's labels, the column, value, error, seeds, status."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow([*self.header[: self.labels], "column", "text", "value", "error", "seeds", "status"])
        for row in self.rows:
            names = [entry.text for entry in row[: self.labels]]
            for head, entry in zip(self.header[self.labels :], row[self.labels :], strict=True):
                numbers = [entry.value, entry.error, entry.seeds]
                writer.writerow([*names, head, entry.text + entry.mark, *numbers, entry.status])
        return out.getvalue()

    def write(self, folder: Path) -> list[Path]:
        """Write <name>.md, .tex and .csv into the folder; return their paths."""
        folder.mkdir(parents=True, exist_ok=True)
        paths = []
        for suffix, text in ((".md", self.markdown()), (".tex", self.latex()), (".csv", self.csv())):
            paths.append(folder / f"{self.name}{suffix}")
            paths[-1].write_text(text, encoding="utf-8")
        return paths


def _row(texts: Sequence[str]) -> str:
    return "| " + " | ".join(texts) + " |"


def _md(text: str) -> str:
    return text.replace("|", r"\|").replace("<", "&lt;").replace("*", r"\*").replace("\n", " ")


def _tex(text: str) -> str:
    return "".join(TEX.get(character, character) for character in text.replace("\n", " "))
