"""The W&B workspace and report are built and validated without a network, with the keys that runs log."""

from __future__ import annotations

import json
import re
import socket
from importlib import metadata
from pathlib import Path

import pytest
from wandb.sdk.lib import wbauth

from lab.report.wandb_views import push, validated, views
from sgdpo.runs.tracking import wandb_row
from sgdpo.training.metrics import metric_names
from toy_pairs import bind

LOGGED = ("rewards/chosen", "rewards/rejected", "rewards/accuracies", "pairs_per_second", "tokens_per_second")


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """No key, no home, and a socket that refuses."""

    def refuse(*arguments):
        raise AssertionError("a view was built with the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


def test_both_views_are_valid_and_hold_the_panels_of_figures_2_and_3(offline):
    workspace, report = validated("", "sgdpo")
    for view in (workspace, report):
        text = json.dumps(view, default=str)
        for group in ("method.value.name", "ratio.value.chosen", "ratio.value.rejected"):
            assert text.count(f'"groupBy": "{group}"') >= 2, "chosen and rejected rewards, each grouped"
        assert text.count('"train/rewards/chosen"') >= 3
        assert "train/pairs_per_second" in text
        assert "memory" in text
    names = [section["name"] for section in workspace["spec"]["section"]["panelBankConfig"]["sections"]]
    assert names == [theme["title"] for theme in views()["themes"]]


def test_the_panels_name_metrics_that_runs_log(offline):
    """A panel of a metric that nobody logs would stay empty for ever."""
    row = {
        "step": 1,
        "epoch": 0.1,
        "split": "train",
        **dict.fromkeys([*LOGGED, *metric_names(bind("sgdpo"))], 0.0),
    }
    known = set(wandb_row(row)) | set(wandb_row({**row, "split": "eval"}))
    text = json.dumps(validated("", "sgdpo"), default=str)
    named = set(re.findall(r'"(?:summary:)?((?:train|eval)/[a-z_/]+)"', text))
    assert named
    assert named <= known


def test_the_library_is_the_one_these_views_were_written_for():
    pinned = (Path(__file__).parents[1] / "requirements.txt").read_text()
    assert f"wandb-workspaces=={metadata.version('wandb-workspaces')}" in pinned


def test_push_without_a_key_says_how_to_get_one(offline, monkeypatch):
    monkeypatch.setattr("wandb.login", lambda **options: False)
    with pytest.raises(ValueError, match="WANDB_API_KEY"):
        push("", "sgdpo")


def test_push_with_a_malformed_key_is_one_clear_error(offline, monkeypatch):
    wbauth.unauthenticate_session(update_settings=True)
    monkeypatch.setenv("WANDB_API_KEY", "short")
    with pytest.raises(ValueError, match=r"^W&B: WANDB_API_KEY invalid: .*; put it right, then --push again"):
        push("", "sgdpo")
