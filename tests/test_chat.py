"""A talk with a model: what is drawn is what was asked for, whatever its folder and its lines hold."""

from __future__ import annotations

import io
import json
import shutil
import sys
from pathlib import Path

import pytest

from evaluation_fixtures import finished_run
from lab.chat import Chat, talk
from sgdpo.config.schema import ModelConfig


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return finished_run(tmp_path_factory.mktemp("chat") / "exp" / "run") / "model"


def said(model: Path, line: bytes, temperature: float, monkeypatch) -> str:
    """Return what a model answers to a line that comes by a pipe."""
    lines = io.TextIOWrapper(io.BytesIO(line), "utf-8", errors="surrogateescape")
    monkeypatch.setattr(sys, "stdin", lines)
    chat = Chat(ModelConfig(name="m", path=str(model)), "cpu", temperature, 12, 0)
    talk(chat)
    assert chat.turns[-1]["role"] == "assistant"
    return chat.turns[-1]["content"]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_models_own_generation_settings_change_no_answer(model, tmp_path, monkeypatch, temperature):
    other = shutil.copytree(model, tmp_path / "other")
    own = {
        "min_new_tokens": 12,
        "repetition_penalty": 9.0,
        "no_repeat_ngram_size": 1,
        "top_k": 1,
        "top_p": 0.01,
        "temperature": 5.0,
    }
    (other / "generation_config.json").write_text(json.dumps(own))
    plain, theirs = (said(place, b"Sort: cab\n", temperature, monkeypatch) for place in (model, other))
    assert plain == theirs


def test_bytes_that_are_no_text_are_answered(model, monkeypatch):
    said(model, b"Sort: \xff\xfe cab\n", 0.0, monkeypatch)


def test_a_turn_that_the_template_refuses_ends_the_conversation_and_not_the_talk(
    model, tmp_path, monkeypatch, capsys
):
    other = shutil.copytree(model, tmp_path / "other")
    template = other / "chat_template.jinja"
    refusing = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('No system here') }}{% endif %}"
    template.write_text(refusing + template.read_text())
    said(other, b"/system Be nice\nSort: cab\nSort: cab\n", 0.0, monkeypatch)
    assert "No system here: a new conversation)" in capsys.readouterr().out


def test_a_device_that_is_not_here_is_said_before_the_model_loads(tmp_path):
    with pytest.raises(ValueError, match=r"device=cuda:99, but . CUDA devices are visible"):
        Chat(ModelConfig(name="m", path=str(tmp_path)), "cuda:99", 0.0, 1, 0)
