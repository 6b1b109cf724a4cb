"""What the store writes is whole, what it reads is what was written, and what is built once is built once."""

from __future__ import annotations

import json
import logging
import os
import stat
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path

import pytest

from sgdpo.store import (
    DamagedError,
    JsonLines,
    build_once,
    cut_jsonl,
    hash_file,
    hash_folder,
    hash_json,
    hashes,
    read_json,
    read_jsonl,
    read_seal,
    seal,
    what_is_wrong,
    write_json,
    write_jsonl,
    write_whole,
)
from sgdpo.store.life import ALIVE

ROWS = [{"step": step, "loss": 1 / step, "text": "a\u2028b\n"} for step in range(1, 6)]
DAMAGES = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-3]),
    "bit flipped": lambda path: path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:]),
    "empty": lambda path: path.write_bytes(b""),
    "other content": lambda path: path.write_text("[1]\n"),
    "missing": lambda path: path.unlink(),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "no text": lambda path: path.write_bytes(b"\xff\xfe{\x00"),
    "too deep": lambda path: path.write_text("[" * 100_000),
}


class TestFiles:
    def test_several_write_one_file_at_once_and_it_stays_whole(self, tmp_path) -> None:
        """As two machines do that note the hash of one file in a cache that they share."""
        path = tmp_path / "note.json"
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda number: write_json(path, {"rows": [number] * 500}), range(60)))
        assert len(set(read_json(path)["rows"])) == 1
        assert os.listdir(tmp_path) == ["note.json"]

    @pytest.mark.parametrize("damage", DAMAGES)
    def test_damaged_json_is_one_error_that_names_the_file_and_what_to_do(self, tmp_path, damage) -> None:
        path = tmp_path / "record.json"
        write_json(path, {"status": "finished", "loss": float("nan")})
        assert read_json(path, kind=dict) == {"status": "finished", "loss": None}
        DAMAGES[damage](path)
        with pytest.raises(DamagedError) as raised:
            read_json(path, kind=dict, advice="delete it")
        assert str(raised.value).startswith(f"{path}: ")
        assert str(raised.value).endswith("; delete it")
        assert len(str(raised.value).splitlines()) == 1

    def test_an_error_names_line_and_column(self, tmp_path) -> None:
        (tmp_path / "a.json").write_text('{\n  "a": 1,\n  b\n}')
        with pytest.raises(DamagedError, match=r"a\.json: not JSON at line 3, column 3"):
            read_json(tmp_path / "a.json")

    def test_only_a_missing_file_has_a_default(self, tmp_path) -> None:
        assert read_json(tmp_path / "none.json", default={}) == {}
        (tmp_path / "link.json").symlink_to("nowhere")
        with pytest.raises(DamagedError):
            read_json(tmp_path / "link.json", default={})

    def test_a_failed_write_leaves_the_old_file_and_nothing_beside_it(self, tmp_path) -> None:
        write_whole(tmp_path / "a", "old")
        with pytest.raises(TypeError):
            write_json(tmp_path / "a", {"x": object()})
        with pytest.raises(UnicodeEncodeError):
            write_whole(tmp_path / "a", Broken("new"))
        assert [path.name for path in tmp_path.iterdir()] == ["a"]
        assert (tmp_path / "a").read_text() == "old"


class Broken(str):
    def encode(self, *_: object) -> bytes:
        raise UnicodeEncodeError("utf-8", "x", 0, 1, "broken")


class TestJsonLines:
    def test_rows_come_back_whatever_characters_they_hold(self, tmp_path) -> None:
        write_jsonl(tmp_path / "rows.jsonl", ROWS)
        assert read_jsonl(tmp_path / "rows.jsonl") == ROWS

    @pytest.mark.parametrize("at", [1, 3, 5])
    def test_a_damaged_line_is_named_and_may_be_left_out(self, tmp_path, at) -> None:
        path = tmp_path / "rows.jsonl"
        write_jsonl(path, ROWS)
        lines = path.read_text().split("\n")
        path.write_text("\n".join([*lines[: at - 1], "{broken", *lines[at:]]))
        for torn_end in (False, True):
            with pytest.raises(DamagedError, match=rf"rows\.jsonl, line {at}: not JSON at column 2"):
                read_jsonl(path, torn_end=torn_end)
        said: list[str] = []
        rest = read_jsonl(path, damaged=said.append)
        assert rest == [row for row in ROWS if row["step"] != at]
        assert len(said) == 1

    @pytest.mark.parametrize("left", [1, 10, 40])
    def test_a_torn_end_is_left_out_and_cut_off_before_anything_is_appended(self, tmp_path, left) -> None:
        path = tmp_path / "rows.jsonl"
        write_jsonl(path, ROWS)
        whole = path.read_bytes()
        path.write_bytes(whole[:-left])
        with pytest.raises(DamagedError) if left > 1 else nullcontext():
            read_jsonl(path)
        kept = ROWS[:4] if left > 1 else ROWS
        assert cut_jsonl(path) == kept
        with JsonLines(path) as lines:
            lines.append({"step": 9}, durable=True)
            assert lines.sync() == path.stat().st_size
        assert read_jsonl(path) == [*kept, {"step": 9}]

    def test_rows_after_a_step_are_cut_off(self, tmp_path) -> None:
        write_jsonl(tmp_path / "rows.jsonl", ROWS)
        assert cut_jsonl(tmp_path / "rows.jsonl", lambda row: row["step"] <= 2) == ROWS[:2]
        assert read_jsonl(tmp_path / "rows.jsonl") == ROWS[:2]
        assert cut_jsonl(tmp_path / "none.jsonl") == []
        assert not (tmp_path / "none.jsonl").exists()

    def test_what_was_appended_survives_a_kill(self, tmp_path) -> None:
        code = (
            "import os, signal, sys\nfrom pathlib import Path\nfrom sgdpo.store import JsonLines\n"
            "lines = JsonLines(Path(sys.argv[1]))\n"
            "for step in range(1000): lines.append({'step': step})\n"
            "os.kill(os.getpid(), signal.SIGKILL)"
        )
        done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "a.jsonl")], check=False)
        assert done.returncode == -9
        assert len(read_jsonl(tmp_path / "a.jsonl")) == 1000


class TestHashes:
    def test_the_order_of_keys_does_not_count_and_everything_else_does(self) -> None:
        assert hash_json({"a": 1, "b": [2]}) == hash_json({"b": [2], "a": 1})
        assert len({hash_json(value) for value in ({"a": 1}, {"a": 1.5}, {"a": "1"}, {"b": 1}, [1])}) == 5

    @pytest.mark.parametrize("times_restored", [False, True])
    def test_a_remembered_file_is_read_again_when_it_changed(self, tmp_path, times_restored) -> None:
        """Same size and, by way of utime, the same time: the inode's own time tells."""
        path, memory = tmp_path / "weights", tmp_path / "memory"
        path.write_bytes(b"a" * 100)
        before = os.stat(path)
        time.sleep(hashes.SETTLED_SECONDS)
        first = hash_file(path, memory)
        assert hash_file(path, memory) == first == hash_file(path)
        (note,) = memory.iterdir()
        write_json(note, read_json(note) | {"sha256": "remembered"})
        hashes._known.clear()
        assert hash_file(path, memory) == "remembered"
        path.write_bytes(b"b" * 100)
        if times_restored:
            os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert hash_file(path, memory) == hash_file(path) != first

    @pytest.mark.parametrize("damage", DAMAGES)
    def test_a_damaged_memory_is_not_believed(self, tmp_path, damage) -> None:
        path, memory = tmp_path / "weights", tmp_path / "memory"
        path.write_bytes(b"a" * 100)
        time.sleep(0.01)
        known = hash_file(path, memory)
        note = memory / f"{hashes.hash_text(str(path.resolve()))}.json"
        write_json_to(
            note, {"path": str(path.resolve()), "state": list(hashes._state(path)), "sha256": known}
        )
        DAMAGES[damage](note)
        hashes._known.clear()
        if damage != "a folder":
            assert hash_file(path, memory) == known

    def test_a_folder_is_its_names_and_bytes(self, tmp_path) -> None:
        for name in ("a", "b", "c"):
            (tmp_path / name / "sub").mkdir(parents=True)
            (tmp_path / name / "sub" / "x.safetensors").write_text("1")
        (tmp_path / "b" / "y.txt").write_text("1")
        (tmp_path / "c" / "sub" / "x.safetensors").rename(tmp_path / "c" / "x.safetensors")
        assert len({hash_folder(tmp_path / name) for name in "abc"}) == 3
        weights = ("**/*.safetensors",)
        assert hash_folder(tmp_path / "a", weights) == hash_folder(tmp_path / "b", weights)
        with pytest.raises(ValueError, match=r"holds no \*\.bin"):
            hash_folder(tmp_path / "a", ("*.bin",))


def write_json_to(path: Path, value: object) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(value))


class TestSealed:
    @pytest.mark.parametrize("damage", [name for name in DAMAGES if name != "a folder"])
    @pytest.mark.parametrize("name", ["model.safetensors", "sub/config.json", "manifest.json"])
    def test_every_damage_of_every_file_is_named(self, tmp_path, name, damage) -> None:
        (tmp_path / "sub").mkdir()
        (tmp_path / "model.safetensors").write_bytes(bytes(range(256)))
        (tmp_path / "sub" / "config.json").write_text("{}\n   ")
        seal(tmp_path, step=3)
        assert what_is_wrong(tmp_path) is None
        assert read_seal(tmp_path)["step"] == 3
        DAMAGES[damage](tmp_path / name)
        assert name in what_is_wrong(tmp_path)

    def test_a_folder_without_a_seal_or_without_itself_is_not_whole(self, tmp_path) -> None:
        assert "not written to its end" in what_is_wrong(tmp_path)
        assert what_is_wrong(tmp_path / "none") == "it is missing"

    def test_what_a_library_kept_to_its_owner_opens_as_the_umask_says(self, tmp_path) -> None:
        for name in ("model.safetensors", "sub/x"):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text("1")
            (tmp_path / name).chmod(0o600)
        seal(tmp_path)
        plain = tmp_path / "plain"
        plain.write_text("1")
        wanted = stat.S_IMODE(plain.stat().st_mode)
        for name in ("model.safetensors", "sub/x", "manifest.json"):
            assert stat.S_IMODE((tmp_path / name).stat().st_mode) == wanted


BUILDER = """
import sys, time
from pathlib import Path
from sgdpo.store import build_once
def build(folder):
    (folder / "half").write_text("1"); print("at it", flush=True); time.sleep(float(sys.argv[2]))
    (folder / "whole").write_text("1"); return {"count": 7}
print(build_once(Path(sys.argv[1]), build, what="the tokens")[1], flush=True)
"""


class TestBuildOnce:
    def builder(self, place: Path, seconds: float) -> subprocess.Popen:
        command = [sys.executable, "-c", BUILDER, str(place), str(seconds)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout.readline() == "at it\n"
        return process

    def test_the_second_process_waits_says_so_and_lives(self, tmp_path, caplog, monkeypatch) -> None:
        monkeypatch.setenv(ALIVE, str(tmp_path / "alive"))
        first = self.builder(tmp_path / "place", 1.0)
        with caplog.at_level(logging.INFO):
            manifest, built = build_once(tmp_path / "place", self.never, what="the tokens")
        assert (manifest["count"], built, first.communicate()[0]) == (7, False, "True\n")
        assert f"waiting for it: process {first.pid} makes the tokens, at it for 0:0" in caplog.text
        assert (tmp_path / "alive").exists()

    def test_a_killed_builder_leaves_nothing_that_counts(self, tmp_path) -> None:
        first = self.builder(tmp_path / "place", 60)
        first.kill()
        first.wait()
        assert not (tmp_path / "place").exists()
        assert build_once(tmp_path / "place", self.good, what="the tokens")[1]
        assert sorted(path.name for path in (tmp_path / "place").iterdir()) == ["manifest.json", "whole"]
        (tmp_path / "plain").mkdir()
        assert len({stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("place", "plain")}) == 1

    @pytest.mark.parametrize("damage", [name for name in DAMAGES if name != "a folder"])
    @pytest.mark.parametrize("name", ["whole", "manifest.json"])
    def test_what_is_damaged_is_built_again_with_a_word(self, tmp_path, caplog, name, damage) -> None:
        build_once(tmp_path / "place", self.good, what="the tokens")
        assert not build_once(tmp_path / "place", self.never, what="the tokens")[1]
        DAMAGES[damage](tmp_path / "place" / name)
        assert build_once(tmp_path / "place", self.good, what="the tokens")[1]
        assert "is damaged" in caplog.text
        assert not build_once(tmp_path / "place", self.never, what="the tokens")[1]

    def test_an_error_of_the_builder_is_raised_and_the_next_one_builds(self, tmp_path) -> None:
        with pytest.raises(ValueError, match="no row is left"):
            build_once(tmp_path / "place", self.bad, what="the tokens")
        assert [path.name for path in tmp_path.iterdir() if path.suffix != ".lock"] == []
        assert build_once(tmp_path / "place", self.good, what="the tokens")[1]

    @staticmethod
    def good(folder: Path) -> dict:
        (folder / "whole").write_text("12345")
        return {"count": 7}

    @staticmethod
    def bad(folder: Path) -> dict:
        (folder / "half").write_text("1")
        raise ValueError("no row is left")

    @staticmethod
    def never(folder: Path) -> dict:
        raise AssertionError("it is there already")
