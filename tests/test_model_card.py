"""A trained model on its way: its card, a talk with it in the terminal, and its push to a hub that answers here."""

import json
import os
import subprocess
import sys
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest
from huggingface_hub import ModelCard

from lab.push import plan_upload
from sgdpo.config.compose import compose_run, to_run_config
from sgdpo.runs.records import view_run
from sgdpo.runs.run import Run, execute
from sgdpo.store import what_is_wrong

ROOT = Path(__file__).resolve().parents[1]
SMALL = [
    "device=cpu", "init=pretrained", "model.tiny.num_hidden_layers=1", "model.tiny.hidden_size=32", "tracking=off",
    "model.tiny.intermediate_size=64", "data.world.pairs=16", "data.world.test_pairs=8", "data.world.demonstrations=8",
    "optimizer.batch_size=4", "optimizer.max_steps=2", "trainer.samples=0",
]  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return execute(to_run_config(compose_run([*SMALL, f"outputs={tmp_path_factory.mktemp('run')}"])))


def command(
    script: str, *arguments: str, said: str = "", **environment: str
) -> subprocess.CompletedProcess[str]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    return subprocess.run(
        [sys.executable, str(ROOT / "scripts" / script), *arguments], input=said, capture_output=True, text=True,
        check=False, cwd=ROOT, env={**clean, "HF_HOME": "/nonexistent", "OMP_NUM_THREADS": "1", **environment},
    )  # fmt: skip


class Hub(BaseHTTPRequestHandler):
    """Speak enough of the hub: make a repository, take a commit of plain files."""

    heard: list[tuple[str, str]] = []

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        type(self).heard.append((self.path, body))
        address = f"http://{self.headers['Host']}/me/mine"
        answer = {"url": address, "commitUrl": f"{address}/commit/1", "commitOid": "1", "name": "me/mine"}
        if "/preupload/" in self.path:
            files = [{"path": file["path"], "uploadMode": "regular"} for file in json.loads(body)["files"]]
            answer = {"files": [{**file, "shouldIgnore": False} for file in files]}
        text = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *words: object) -> None: ...


@pytest.fixture
def hub():
    server = HTTPServer(("127.0.0.1", 0), Hub)
    Hub.heard = []
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def test_the_card_is_what_the_record_says_and_the_users_to_go_on_with(run: Path) -> None:
    card, record = ModelCard.load(run / "model" / "README.md"), view_run(run)
    assert card.data.library_name == "transformers"
    assert card.data.license is None
    assert "SGDPO" in card.text
    assert f"| eval/rewards/margins | {record['final']['eval']['rewards/margins']:.4g} |" in card.text
    assert "16 of 16 rows of the generated train set, 2 steps" in card.text
    assert "| method.beta | 0.1 |" in card.text
    assert str(run.parent) not in card.content
    (run / "model" / "README.md").write_text(card.content + "\nMore of it.\n")
    assert what_is_wrong(run / "model") is None
    assert Run.of(to_run_config(compose_run([*SMALL, f"outputs={run.parents[1]}"]))).finished() is not None


def test_a_talk_by_a_pipe_answers_each_line_and_can_begin_anew(run: Path) -> None:
    said = "Add: 1 + 2\nReverse: abc\n/reset\n/help\nAdd: 1 + 2\n"
    done = command("chat.py", str(run), "--temperature", "0", "--tokens", "6", said=said)
    assert done.returncode == 0, done.stderr
    first, _, reset, told, again, *_ = [*done.stdout.split("\n"), ""]
    assert (reset, told.startswith("/reset")) == ("(a new conversation)", True)
    assert first == again, "the same words after a reset get the same answer"
    assert ">" not in done.stdout


def test_a_push_says_what_it_would_send_and_sends_nothing_unasked(run: Path, hub: str) -> None:
    dry = command("push.py", str(run), "me/mine", "--dry-run", HF_ENDPOINT=hub)
    assert (dry.returncode, "me/mine (private): " in dry.stdout, "nothing was sent" in dry.stdout) == (
        0,
        True,
        True,
    )
    assert "README.md (made of the record now; --card FILE sends yours)" in dry.stdout
    without = command("push.py", str(run), "me/mine", "--yes", HF_ENDPOINT=hub)
    assert (without.returncode, "there is no token for the hub" in without.stderr) == (2, True), (
        without.stderr
    )
    unasked = command("push.py", str(run), "me/mine", HF_ENDPOINT=hub, HF_TOKEN="hf_x")
    assert (unasked.returncode, "say --yes" in unasked.stderr) == (2, True), unasked.stderr
    assert Hub.heard == []


def test_a_card_that_its_user_wrote_is_sent_as_it_is(run: Path, tmp_path: Path) -> None:
    """One that is made now would go over the edits unasked."""
    card = tmp_path / "card.md"
    card.write_text("# Mine, edited\n")
    upload = partial(plan_upload, run, "me/mine", private=True, licence=None)
    assert upload(card=card).card == card.read_text()
    assert f"README.md (yours, {card})" in str(upload(card=card))
    for unreadable in (tmp_path / "none.md", tmp_path):
        with pytest.raises(ValueError, match=r"--card .* cannot be read"):
            upload(card=unreadable)


def test_a_push_is_one_commit_of_weights_tokenizer_and_the_card_of_today(run: Path, hub: str) -> None:
    arguments = (str(run), "me/mine", "--yes", "--licence", "apache-2.0")
    done = command("push.py", *arguments, HF_ENDPOINT=hub, HF_TOKEN="hf_x", HF_HUB_DISABLE_XET="1")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("/me/mine/commit/1")
    (made,) = [json.loads(body) for path, body in Hub.heard if path == "/api/repos/create"]
    assert made["visibility"] == "private"
    (sent,) = [body for path, body in Hub.heard if "/commit/" in path]
    files = {row["value"]["path"] for row in map(json.loads, sent.splitlines()) if row["key"] == "file"}
    assert {"README.md", "model.safetensors", "config.json", "tokenizer.json"} <= files
    assert not any("manifest" in name or "training_args" in name for name in files)


@pytest.mark.proof
def test_a_hub_out_of_reach_is_one_line(run: Path) -> None:
    done = command("push.py", str(run), "me/mine", "--yes", HF_ENDPOINT="http://127.0.0.1:9", HF_TOKEN="hf_x")
    assert done.returncode == 1
    assert done.stderr.startswith("error: me/mine was not pushed: ")
    assert "Traceback" not in done.stderr
