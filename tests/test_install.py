"""The environment is what the files say: the lock holds every requirement, and set-up says what it will download."""

import json
import re
import subprocess
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import install

ROOT = Path(__file__).parents[1]


def locked() -> dict[str, str]:
    text = (ROOT / "requirements.lock").read_text()
    return {
        canonicalize_name(name): version for name, version in re.findall(r"^([\w.-]+)==(\S+)", text, re.M)
    }


@pytest.mark.parametrize(
    "line",
    [
        line
        for line in (ROOT / "requirements.txt").read_text().splitlines()
        if line and not line.startswith(("#", "torch=="))
    ],
)
def test_the_lock_holds_every_requirement_at_a_version_it_allows(line: str) -> None:
    """`make lock` renews it. torch stays out: its build differs from machine to machine."""
    wanted = Requirement(line)
    assert locked()[canonicalize_name(wanted.name)] in wanted.specifier


def test_the_lock_has_hashes_and_no_build_of_torch() -> None:
    text = (ROOT / "requirements.lock").read_text()
    assert text.count("\n    --hash=sha256:") >= len(locked()) > 80
    assert not [
        name for name in locked() if name == "torch" or name.startswith(("nvidia-", "cuda-", "triton"))
    ]


def package(name: str, version: str, path: Path, size: int) -> dict:
    path.write_bytes(b"\0" * size)
    return {"metadata": {"name": name, "version": version}, "download_info": {"url": path.as_uri()}}


def test_what_will_be_downloaded_is_said_with_its_size(tmp_path: Path) -> None:
    torch = package("torch", "2.13.0+cpu", tmp_path / "torch.whl", 3_000_000)
    sympy = package("sympy", "1.14", tmp_path / "sympy with a space.whl", 1_000_000)
    said = install.describe([torch, sympy], "no GPU was found")
    assert said == "torch 2.13.0+cpu (no GPU was found): the CPU build, 2 packages, 4 MB"


def test_a_cuda_build_and_sizes_that_nobody_tells_are_said(tmp_path: Path) -> None:
    torch = package("torch", "2.13.0", tmp_path / "torch.whl", 2_000_000)
    cublas = {
        "metadata": {"name": "nvidia-cublas"},
        "download_info": {"url": "http://127.0.0.1:9/cublas.whl"},
    }
    said = install.describe([torch, cublas], "a GPU was found")
    assert said.endswith("the CUDA build with 1 CUDA libraries, 2 packages, 2 MB and 1 of unknown size")


def test_a_build_that_is_asked_for_by_name_takes_the_place_of_the_other(tmp_path: Path, monkeypatch) -> None:
    """An environment made where there is no GPU, as on a login node: TORCH=cuda puts the other build in."""
    version = metadata.version("torch").split("+")[0]
    there = install.build_there(version)
    other = {"cpu": "cuda", "cuda": "cpu"}[there]
    torch = package("torch", version, tmp_path / "torch.whl", 1)
    asked: list[tuple[str, ...]] = []
    monkeypatch.setattr(
        install, "pip", lambda *words: asked.append(words) or json.dumps({"install": [torch]})
    )
    monkeypatch.setattr(install, "answers", lambda url: True)
    for wanted in ("auto", there):
        install.install_torch(version, wanted)
    assert not asked
    install.install_torch(version, other)
    assert [("--dry-run" in words, "--force-reinstall" in words) for words in asked] == [
        (True, True),
        (False, True),
    ]
    (tmp_path / ".installed").touch()
    for word, runs in (("TORCH=auto", False), ("TORCH=cuda", True)):
        make = ["make", "-n", "setup", word, f"VENV={tmp_path}"]
        done = subprocess.run(make, cwd=ROOT, capture_output=True, text=True, check=True)
        assert ("scripts/install.py --torch cuda" in done.stdout) == runs
