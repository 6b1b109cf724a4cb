"""Folders that hold a model, whole or spoilt in one way."""

from __future__ import annotations

import json
from pathlib import Path

from packed_rows import model_config, tiny_model
from sgdpo.config.schema import ModelConfig
from sgdpo.models.load import load_tokenizer


def tiny_folder(folder: Path) -> Path:
    """Return the folder with a tiny model and its tokenizer, as a finished run leaves it."""
    tiny_model().save_pretrained(folder)
    load_tokenizer(model_config()).save_pretrained(folder)
    return folder


def local(path, **values) -> ModelConfig:
    return ModelConfig(name="local", path=str(path), **values)


def broken_folder(tmp_path, saved, without: str = "", **config: object):
    folder = tmp_path / "broken"
    folder.mkdir()
    for file in saved.iterdir():
        if without not in file.name or not without:
            (folder / file.name).write_bytes(file.read_bytes())
    if config:
        values = json.loads((folder / "config.json").read_text()) | config
        (folder / "config.json").write_text(json.dumps(values))
    return folder
