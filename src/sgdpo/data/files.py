"""Read rows from files: parquet, arrow, csv, json, json lines, folders of such shards, or saved data sets.

Text may be gzipped. Nothing here runs code or loads a pickle. What cannot be read is one error that names the file,
the line or the byte, and what to do. pyarrow and datasets load when a file of theirs is read.
"""

import csv
import gzip
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sgdpo.data.rows import Rows
from sgdpo.hub import HUB_ID
from sgdpo.store import hash_file, hash_json

_BATCH = 256
_TEXT = (".json", ".jsonl", ".ndjson", ".csv", ".tsv")
SUFFIXES = (".parquet", ".arrow", *_TEXT, *(f"{suffix}.gz" for suffix in _TEXT))
_KINDS = (
    f"a .parquet, .arrow, {', '.join(_TEXT)} file (the last {len(_TEXT)} also as .gz), a folder of such files, or one "
    "written by datasets' save_to_disk"
)
# How a shard is numbered, and how splits are called.
_NUMBER = re.compile(r"[-_.]?\d+-of-\d+(-[0-9a-f]+)?$|[-_.]?\d+$")
_SPLITS = "train|training|test|testing|validation|valid|val|dev|eval"
# A csv cell may hold a whole conversation.
csv.field_size_limit(2**31 - 1)


def read(
    phase: str,
    split: str,
    *,
    train: str | None = None,
    test: str | None = None,
    sft: str | None = None,
    sft_test: str | None = None,
    train_split: str = "train",
    test_split: str = "test",
    sft_split: str = "train",
    sft_test_split: str = "test",
) -> Rows | None:
    """Return the rows of a split. Without an SFT set the preference set's conversations serve."""
    where, name = split_location(
        phase, split, (train, train_split), (test, test_split), (sft, sft_split), (sft_test, sft_test_split)
    )
    if where is None:
        if split == "test":
            return None
        names = "data.train is not" if phase == "preference" else "neither data.sft nor data.train is"
        raise ValueError(f"{names} set; name {_KINDS}")
    path = Path(where).expanduser()
    shards = _shards(path, name)
    return Rows(
        name=where,
        read=lambda: (row for shard in shards for row in _rows(shard)),
        count=lambda: sum(map(_count, shards)),
        key=lambda memory=None: hash_json([[hash_file(file, memory) for file in _parts(s)] for s in shards]),
        size=sum(file.stat().st_size for shard in shards for file in _parts(shard)),
    )


Location = tuple[str | None, str]


def split_location(
    phase: str, split: str, train: Location, test: Location, sft: Location, sft_test: Location
) -> Location:
    """Return (path or hub id, name of the split) that serves a phase's split."""
    if phase == "sft":
        own = sft if split == "train" else sft_test
        # Held-out pairs beside foreign demonstrations would measure another distribution.
        if own[0] is not None or sft[0] is not None:
            return own
    return train if split == "train" else test


def _shards(path: Path, split: str) -> list[Path]:
    """Return the files to read one after the other, or the folder of the one saved set: nothing of another split."""
    if path.is_symlink() and not path.exists():
        raise ValueError(f"{path} is a link to {path.readlink()}, which does not exist")
    if not path.exists():
        named = HUB_ID.fullmatch(str(path)) and "/" in str(path) and _suffix(path) not in SUFFIXES
        hub = f", and sets of the hub come with data=hub data.train={path}" if named else ""
        raise ValueError(f"{path} does not exist; paths are relative to the folder you start from{hub}")
    if path.is_dir():
        if (path / "dataset_dict.json").is_file():
            return [_saved_split(path, split)]
        if any((path / name).is_file() for name in ("state.json", "dataset_info.json")):
            return [path]
        return _folder_shards(path, split)
    if not path.is_file():
        raise ValueError(f"{path} is no ordinary file (a pipe or a device); give {_KINDS}")
    if _suffix(path) not in SUFFIXES:
        raise ValueError(f"{path} is of no known kind; give {_KINDS}")
    return [path]


def _saved_split(path: Path, split: str) -> Path:
    listed = (path / "dataset_dict.json").read_text(errors="replace")
    folders = [folder.name for folder in path.iterdir() if folder.is_dir()]
    found = sorted(folders, key=lambda name: listed.find(f'"{name}"'))
    if split not in found:
        raise ValueError(
            f"{path} holds the splits {', '.join(found)} but not {split!r}; set data.train_split (or kin)"
        )
    return path / split


def _folder_shards(path: Path, split: str) -> list[Path]:
    """Return a folder's files in the order of their names; those of the split, if names say of which they are."""
    files = sorted(file for file in path.rglob("*") if _suffix(file) in SUFFIXES and file.is_file())
    # Notebooks and file systems keep copies and notes under hidden names.
    files = [file for file in files if not any(n.startswith(".") for n in file.relative_to(path).parts)]
    if not files:
        raise ValueError(
            f"{path} is a folder, but it holds no saved data set and no file of rows; give {_KINDS}"
        )
    wanted = split.lower()
    stems = [file.with_name(file.name.removesuffix(_suffix(file))).relative_to(path) for file in files]
    splits = [_split_of(stem, wanted) for stem in stems]
    found = sorted(set(filter(None, splits)))
    # train_prefs serves as train, but not beside train_sft.
    near = [name for name in found if name.startswith((f"{wanted}-", f"{wanted}_", f"{wanted}."))]
    near = [wanted] if wanted in found else near
    if found and len(near) != 1:
        raise ValueError(
            f"{path} holds files of the splits {', '.join(found)} but not of {split!r}; set data.train_split (or kin) "
            f"to one of them, or name the files {split}-00000, {split}-00001, ..."
        )
    files = [file for file, name in zip(files, splits, strict=True) if not near or name == near[0]]
    if len({_suffix(file).removesuffix(".gz") for file in files}) > 1:
        raise ValueError(
            f"{path} holds files of several kinds ({files[0].name}, {files[-1].name}); name one of them"
        )
    return files


def _suffix(path: Path) -> str:
    return f"{path.with_suffix('').suffix}.gz" if path.suffix == ".gz" else path.suffix


def _split_of(file: Path, split: str) -> str | None:
    """Return the split that a file's name carries before its number, or a folder's above it; None if none does."""
    for part in map(str.lower, reversed(file.parts)):
        name = part if part == split else _NUMBER.sub("", part)
        if re.match(rf"({re.escape(split)}|{_SPLITS})(?![a-z0-9])", name):
            return name
    return None


def _parts(shard: Path) -> list[Path]:
    return sorted(f for f in shard.rglob("*") if f.is_file()) if shard.is_dir() else [shard]


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    """Yield all rows in the file's order. Raises ValueError with advice for what cannot be read."""
    try:
        yield from _reader(path)
    except (OSError, EOFError, zlib.error, ValueError) as error:
        if isinstance(error, OSError) and error.strerror:
            raise ValueError(f"{path} cannot be read: {error.strerror}") from error
        if type(error) is ValueError:
            raise
        # What pyarrow and gzip raise says what is wrong with the bytes.
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"{path} cannot be read: damaged, or not what its name says ({first}); write it again or give {_KINDS}"
        ) from error


def _reader(path: Path) -> Iterator[dict[str, Any]]:
    if path.is_dir():
        return iter(_saved(path))
    if path.suffix in (".parquet", ".arrow"):
        return _columns(path)
    return _json(path) if "json" in _suffix(path) else _csv(path)


def _count(path: Path) -> int:
    if path.is_dir():
        return len(_saved(path))
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq

        return pq.read_metadata(path).num_rows
    return sum(1 for _ in _rows(path))


def _columns(path: Path) -> Iterator[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if path.suffix == ".parquet":
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=_BATCH):
                yield from batch.to_pylist()
        return
    with pa.memory_map(str(path)) as file:
        try:
            opened = pa.ipc.open_stream(file)
        except pa.ArrowInvalid:  # the other of arrow's two forms
            reader = pa.ipc.open_file(file)
            opened = map(reader.get_batch, range(reader.num_record_batches))
        for batch in opened:
            yield from batch.to_pylist()


def _csv(path: Path) -> Iterator[dict[str, Any]]:
    lines = _lines(path)
    reader = csv.DictReader(
        (line for _, line in lines), delimiter="\t" if ".tsv" in _suffix(path) else ",", strict=True
    )
    try:
        names = list(reader.fieldnames or [])
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"{path} has several columns of the name {', '.join(twice)}; rename all but one")
        for row in reader:
            if None in row or None in row.values():
                raise ValueError(
                    f"{path}, line {reader.line_num}: not as many cells as the {len(names)} names of "
                    f"the first line; quote cells that hold commas or line breaks"
                )
            yield row
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num}: {error}; write the csv again") from None


def _json(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the objects of a json array, or of json lines, whatever the file is called."""
    lines = _lines(path)
    first = next(((number, line) for number, line in lines if line.strip()), None)
    if first is None:
        return
    if first[1].lstrip().startswith("["):
        rows = _parse(path, first[0], "".join([first[1], *(line for _, line in lines)]))
        yield from (_object(path, f"row {number}", row) for number, row in enumerate(rows))
        return
    if first[1].strip() == "{":
        raise ValueError(
            f"{path} is one object over several lines; rows are a list, [{{...}}, {{...}}], or an object a line"
        )
    yield _object(path, f"line {first[0]}", _parse(path, *first))
    for number, line in lines:
        if line.strip():
            yield _object(path, f"line {number}", _parse(path, number, line))


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the lines of a text file with their numbers, from 1; a byte order mark is left out."""
    with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
        for number, raw in enumerate(file, 1):
            try:
                yield number, raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise ValueError(
                    f"{path}, line {number}, byte {error.start + 1} of it: not UTF-8; if the file is of another "
                    f"encoding convert it, for example `iconv -f latin1 -t utf-8`"
                ) from None


def _parse(path: Path, number: int, text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        where = f"line {number + error.lineno - 1}, column {error.colno}"
        raise ValueError(f"{path}, {where}: {error.msg}; correct or remove that line") from None
    except RecursionError:
        raise ValueError(f"{path}, line {number}: nested too deeply to be a row; remove that line") from None


def _object(path: Path, where: str, row: Any) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise ValueError(f"{path}, {where} is no object with named fields but {type(row).__name__}")
    return row


def _saved(path: Path) -> Any:
    from datasets import load_from_disk

    try:
        return load_from_disk(str(path))
    except Exception as error:  # the library raises whatever its files make it do
        raise ValueError(
            f"{path} is no whole saved data set ({error}); save it again or give {_KINDS}"
        ) from error
