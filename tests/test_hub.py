"""The hub as it is met: out of reach, refusing, broken, answering; by its real client, not by its offline switch."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest
from huggingface_hub import hf_hub_download, snapshot_download

from sgdpo import hub
from sgdpo.places import ROOT

CLOSED = "http://127.0.0.1:9"
INFO = b'{"id": "org/name", "sha": "0123abc", "siblings": [], "tags": [], "private": false}'
ANSWERS = {
    "closed": (0, b"", "main"),
    "cut": (-1, b"", "main"),
    "no json": (200, b"<html>", "main"),
    "unauthorised": (401, b"{}", "main"),
    "unknown": (404, b"{}", "main"),
    "broken": (500, b"", "main"),
    "answering": (200, INFO, "0123abc"),
}


class Hub(BaseHTTPRequestHandler):
    status, body = 200, INFO

    def do_HEAD(self) -> None:
        self.send_response(200)
        self.end_headers()

    def do_GET(self) -> None:
        if self.status < 0:
            self.connection.close()
            return
        self.send_response(self.status)
        self.send_header("Content-Length", str(len(self.body)))
        self.end_headers()
        self.wfile.write(self.body)

    def log_message(self, *words: object) -> None: ...


@pytest.fixture
def endpoint(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[None]:
    """Point the hub's client to a server that answers as the test's parameter says, or to no server."""
    status, body, _ = ANSWERS[request.param]
    server = HTTPServer(("127.0.0.1", 0), type("Answering", (Hub,), {"status": status, "body": body}))
    Thread(target=server.serve_forever, daemon=True).start()
    where = f"http://127.0.0.1:{server.server_port}" if status else CLOSED
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", where)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)  # what is out of reach sets it
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")  # a word for no
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    hub._reachable.cache_clear()
    hub.hub_commit.cache_clear()
    yield
    server.shutdown()
    hub._reachable.cache_clear()
    hub.hub_commit.cache_clear()


@pytest.mark.parametrize(
    ("endpoint", "commit"), [(name, answer[2]) for name, answer in ANSWERS.items()], indirect=["endpoint"]
)
def test_the_commit_is_the_hubs_word_and_no_failure_of_it_ends_a_run(endpoint: None, commit: str) -> None:
    assert hub.hub_commit("org/name", None, "dataset") == commit


@pytest.mark.parametrize("endpoint", ["closed"], indirect=True)
def test_out_of_reach_each_way_of_loading_is_one_line(endpoint: None) -> None:
    for load in (lambda: hf_hub_download("org/name", "config.json"), lambda: snapshot_download("org/name")):
        with pytest.raises(ValueError, match=r"^it cannot be loaded: the hub cannot be reached"):
            hub.from_hub(load, "it")


def test_without_network_a_run_by_a_hubs_id_is_one_line(tmp_path: Path) -> None:
    words = ("data=hub", "data.train=org/name")
    env = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    done = subprocess.run(
        [sys.executable, "src/train.py", *words, f"outputs={tmp_path}/o", f"cache={tmp_path}/c", "tracking=off"],
        cwd=ROOT, env={**env, "HF_ENDPOINT": CLOSED, "HF_HOME": str(tmp_path)}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode in (1, 2)
    error = done.stderr.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert "org/name" in error
    assert "the hub cannot be reached" in error
    assert "Traceback" not in done.stderr
