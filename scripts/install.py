"""Install what a run needs into this environment: the torch build that fits the machine, then the locked packages.

python scripts/install.py                 the CPU build without a GPU, the CUDA build with one, then requirements.lock
python scripts/install.py --torch cpu     or cuda: this build, whatever the machine is
python scripts/install.py --no-lock       newest allowed versions (requirements.txt) instead of the locked ones

Runs before anything is installed, so it imports nothing but Python's own modules. Exit code 1 if pip fails.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
import urllib.parse
import urllib.request
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# torch's builds differ from machine to machine, so the lock leaves them out. PyPI's build for Linux is the CUDA one.
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
CUDA_PACKAGES = ("nvidia-", "cuda-")
PATIENCE = 5  # seconds


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--torch", choices=("auto", "cpu", "cuda"), default="auto", help="which build of torch"
    )
    parser.add_argument(
        "--no-lock", action="store_true", help="requirements.txt instead of requirements.lock"
    )
    given = parser.parse_args()
    found = re.search(r"^torch==(\S+)", (ROOT / "requirements.txt").read_text(), re.MULTILINE)
    assert found, "requirements.txt pins torch"
    install_torch(found[1], given.torch)
    if given.no_lock:
        pip("install", "--quiet", "-r", str(ROOT / "requirements.txt"))
    else:
        pip("install", "--quiet", "--no-deps", "--require-hashes", "-r", str(ROOT / "requirements.lock"))
    pip("install", "--quiet", "--no-deps", "--editable", str(ROOT))


def install_torch(version: str, wanted: str) -> None:
    """Install torch unless this version is there, in the build that is wanted if one is named.

    Which build and how large is said before anything is downloaded.
    """
    there = build_there(version)
    if there and wanted in ("auto", there):
        return
    gpu = has_gpu()
    build = wanted if wanted != "auto" else "cuda" if gpu else "cpu"
    index: list[str] = []
    if build == "cpu" and sys.platform == "linux":
        if answers(f"{CPU_INDEX}/torch/"):
            index = ["--index-url", CPU_INDEX]
        else:
            print(f"{CPU_INDEX} does not answer: taking the build that the configured index has", flush=True)
    # Both builds have one version, of which pip says that it is there.
    torch = [*index, *(["--force-reinstall"] if there else []), f"torch=={version}"]
    report = json.loads(pip("install", "--dry-run", "--quiet", "--report", "-", *torch))
    print(describe(report["install"], "a GPU was found" if gpu else "no GPU was found"), flush=True)
    pip("install", "--quiet", *torch)


def build_there(version: str) -> str | None:
    """Return the build of torch that is installed, "cpu" or "cuda"; None if there is none of this version."""
    try:
        torch = metadata.distribution("torch")
    except metadata.PackageNotFoundError:
        return None
    libraries = [need for need in torch.requires or [] if need.startswith(CUDA_PACKAGES)]
    return None if torch.version.split("+")[0] != version else "cuda" if libraries else "cpu"


def has_gpu() -> bool:
    """Tell whether an NVIDIA driver lists a GPU."""
    if shutil.which("nvidia-smi") is None:
        return False
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    return listed.returncode == 0 and "GPU" in listed.stdout


def describe(packages: list[dict], machine: str) -> str:
    """Return what is about to be installed: version, build, number of packages and size."""
    names = {package["metadata"]["name"].lower(): package for package in packages}
    libraries = [name for name in names if name.startswith(CUDA_PACKAGES)]
    build = f"the CUDA build with {len(libraries)} CUDA libraries" if libraries else "the CPU build"
    sizes = [size_of(package["download_info"]["url"]) for package in packages]
    known = sum(size or 0 for size in sizes) / 1e6
    unknown = f" and {sizes.count(None)} of unknown size" if None in sizes else ""
    return (
        f"torch {names['torch']['metadata']['version']} ({machine}): {build}, "
        f"{len(packages)} packages, {known:,.0f} MB{unknown}"
    )


def size_of(url: str) -> int | None:
    """Return a file's size in bytes, or None where its server does not say."""
    if url.startswith("file:"):
        return Path(urllib.request.url2pathname(urllib.parse.urlsplit(url).path)).stat().st_size
    try:
        request = urllib.request.Request(url, method="HEAD")
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            return int(answer.headers["Content-Length"])
    except (OSError, TypeError, ValueError):
        return None


def answers(url: str) -> bool:
    """Tell whether an address answers, asked once."""
    try:
        with urllib.request.urlopen(url, timeout=PATIENCE):
            return True
    except OSError:
        return False


def pip(*arguments: str) -> str:
    """Run pip in this environment and return what it printed; its complaints go to the screen."""
    command = [sys.executable, "-m", "pip", *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        sys.exit(
            f"error: {' '.join(command[1:])} failed; see above. Mend the network or the index, run it again"
        )
    return done.stdout


if __name__ == "__main__":
    main()
