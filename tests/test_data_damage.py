"""Every kind of data file against everything that may be wrong with one: read as it is, or one error that names it."""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_helpers import local
from sgdpo.data.sources import data_errors, load_rows

ROWS = [{"prompt": f"Süße {n}?", "chosen": f"{n}, ja", "rejected": f"nein, {n}"} for n in range(60)]
TABLE = pa.Table.from_pylist(ROWS)
TEXT = (".json", ".jsonl", ".csv", ".tsv")
OUTCOMES: Counter[str] = Counter()


def write(path: Path) -> Path:
    """Write the rows in the form that the name says."""
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(write(path.with_suffix("")).read_bytes()))
    elif path.suffix == ".parquet":
        pq.write_table(TABLE, path)
    elif path.suffix == ".arrow":
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, TABLE.schema) as stream:
            stream.write_table(TABLE)
    elif path.suffix == ".json":
        path.write_text(json.dumps(ROWS, indent=1, ensure_ascii=False))
    elif path.suffix in (".jsonl", ".ndjson"):
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS))
    else:
        comma = "\t" if path.suffix == ".tsv" else ","
        cells = [list(ROWS[0]), *(list(row.values()) for row in ROWS)]
        path.write_text("".join(comma.join(f'"{cell}"' for cell in line) + "\n" for line in cells))
    return path


def replaced(path: Path, make: Callable[[Path], object]) -> None:
    path.unlink()
    make(path)


def changed(path: Path, change: Callable[[bytes], bytes]) -> None:
    path.write_bytes(change(path.read_bytes()))


def late(old: bytes, new: bytes) -> Callable[[bytes], bytes]:
    """Change the last place where a text stands: beyond what is looked at before a run."""
    return lambda content: new.join(content.rsplit(old, 1))


# What is done to the file; of which kinds; what must be said beside its name, None if the rows are the same.
DAMAGES: dict[str, tuple[Callable[[Path], object], tuple[str, ...], str | None]] = {
    "byte order mark": (lambda p: changed(p, lambda c: b"\xef\xbb\xbf" + c), TEXT, None),
    "windows line ends": (lambda p: changed(p, lambda c: c.replace(b"\n", b"\r\n")), TEXT, None),
    "latin-1": (lambda p: changed(p, lambda c: c.decode().encode("latin-1")), TEXT, r"line \d+, byte \d+"),
    "latin-1 late": (lambda p: changed(p, late("ü".encode(), b"\xfc")), TEXT, r"line \d+, byte \d+"),
    "utf-16": (lambda p: changed(p, lambda c: c.decode().encode("utf-16")), TEXT, r"line 1, byte 1 of it"),
    "empty": (lambda p: changed(p, lambda c: b""), (), "empty|damaged"),
    "cut in half": (lambda p: changed(p, lambda c: c[: len(c) // 2 + 5]), (), r"line \d+|damaged"),
    "cut by a byte": (lambda p: changed(p, lambda c: c.rstrip()[:-1]), (), r"line \d+|damaged"),
    "zeros in the middle": (
        lambda p: changed(p, lambda c: c[: len(c) // 2] + bytes(64) + c[len(c) // 2 + 64 :]), (".json", ".jsonl"),
        r"line \d+",
    ),
    "all zeros": (lambda p: changed(p, lambda c: bytes(len(c))), (), ".+"),
    "deep": (lambda p: p.write_text("[" * 200_000), (".json", ".jsonl"), "nested too deeply"),
    "deep late": (
        lambda p: changed(p, late(b'"nein, 59"', b"[" * 200_000)), (".json", ".jsonl"), "nested too deeply"
    ),
    "a number": (lambda p: p.write_text("7\n"), (".json", ".jsonl"), "no object"),
    "half a pair": (lambda p: changed(p, late(b"nein, 59", b"\\ud800")), (".json", ".jsonl"), None),
    "a cell too many": (lambda p: changed(p, late(b'"nein, 59"', b'"a","b"\t"c"')), (".csv", ".tsv"), r"line \d+"),
    "an open quote": (lambda p: changed(p, late(b'59"\n', b"59\n")), (".csv", ".tsv"), r"line \d+"),
    "of another kind": (
        lambda p: shutil.copy(write(p.with_name("other.parquet")), p), (*TEXT, ".arrow", ".jsonl.gz"), ".+"
    ),
    "a folder": (lambda p: replaced(p, Path.mkdir), (), "a folder"),
    "a dangling link": (lambda p: replaced(p, lambda q: q.symlink_to("nowhere")), (), "a link to nowhere"),
    "a link to itself": (lambda p: replaced(p, lambda q: q.symlink_to(q.name)), (), ".+"),
    "a pipe": (lambda p: replaced(p, os.mkfifo), (), "no ordinary file"),
    "nothing": (lambda p: None, (".jsonl.gz", ".csv.gz", ".ndjson"), None),
    "gone": (lambda p: replaced(p, lambda q: None), (), "does not exist"),
    "no permission": (lambda p: p.chmod(0), (), "Permission denied|cannot be read"),
}  # fmt: skip
SUFFIXES = (*TEXT, ".parquet", ".arrow", ".jsonl.gz")


def outcome(path: Path) -> str:
    """Read a data set as a run does: the first rows before anything loads, then all of them."""
    data = local(str(path))
    try:
        if errors := data_errors(data, "preference"):
            return "\n".join(errors)
        rows = load_rows(data, "preference", "train")
        found = list(rows.read())
        assert rows.count() == len(found)
        rows.key(None)
    except (ValueError, OSError) as error:
        return f"{error}"
    return f"read {len(found)}"


MATRIX = [(suffix, damage) for damage, (_, kinds, _) in DAMAGES.items() for suffix in kinds or SUFFIXES]


@pytest.mark.parametrize(("suffix", "damage"), MATRIX)
def test_a_damaged_file_is_read_as_it_is_or_named_in_one_error(
    tmp_path: Path, suffix: str, damage: str
) -> None:
    spoil, _, said = DAMAGES[damage]
    path = write(tmp_path / f"pairs{suffix}")
    spoil(path)
    nobody = damage == "no permission" and os.geteuid() == 0
    if nobody:
        for folder in (tmp_path, *tmp_path.parents[:2]):
            folder.chmod(0o755)
        os.seteuid(65534)
    try:
        got = outcome(path)
    finally:
        if nobody:
            os.seteuid(0)
    OUTCOMES["read" if said is None else "named"] += 1
    if said is None:
        assert got == f"read {len(ROWS)}"
    else:
        assert path.name in got, got
        assert re.search(said, got), got
        assert len(got) < 1000, got
        assert not re.search("Traceback|pyarrow\\.lib|object at 0x", got), got


def test_the_matrix_is_not_a_few_cases() -> None:
    print(dict(OUTCOMES))
    assert len(MATRIX) >= 99
    assert OUTCOMES["named"] > OUTCOMES["read"] or OUTCOMES.total() < len(MATRIX)
