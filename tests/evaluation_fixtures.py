"""A real HTTP server that speaks the chat API as scripted, and a finished run that takes no training."""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from lab.answers.generators import OpenAIGenerator
from lab.judging.judges import OpenAIJudge
from lab.serving.endpoint import EndpointSettings
from sgdpo.config.compose import compose_run, to_run_config
from sgdpo.config.identity import Identity
from sgdpo.models.load import load_model, load_tokenizer
from sgdpo.runs.records import Record
from sgdpo.store import seal

KEY = "sk-secret-0123456789"


class ChatServer(ThreadingHTTPServer):
    """Answer POST /v1/chat/completions by `reply(request, number)`; keep every request and its headers.

    `reply` returns a dict (sent as JSON), bytes (sent as they are), (status, dict, headers), a Cut or a Drip.
    """

    daemon_threads = True

    def __init__(self, reply: Callable[[dict, int], Any]):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.reply, self.requests, self.headers = reply, [], []
        self.lock = threading.Lock()
        self.under_way = self.most_under_way = 0

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class Cut:
    """Close the connection in the middle of the answer."""


class Drip:
    """Send an answer byte by byte, without end."""


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server: ChatServer = self.server
        with server.lock:
            server.requests.append(body)
            server.headers.append({name.lower(): value for name, value in self.headers.items()})
            number = len(server.requests) - 1
            server.under_way += 1
            server.most_under_way = max(server.most_under_way, server.under_way)
        try:
            answer = server.reply(body, number)
        finally:
            with server.lock:  # before it is sent: whoever has read it may ask again at once
                server.under_way -= 1
        self._answer(answer)

    def _answer(self, answer: Any) -> None:
        status, headers = 200, {}
        if isinstance(answer, tuple):
            status, answer, headers = answer
        if isinstance(answer, Cut):
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", "5000")
            self.end_headers()
            self.wfile.write(b'{"choices": [{"mess')
            self.close_connection = True
            return
        if isinstance(answer, Drip):
            self.send_response(200)
            self.end_headers()
            with suppress(OSError):
                while True:
                    self.wfile.write(b" ")
                    time.sleep(0.02)
            return
        data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        with suppress(OSError):  # a client that gave up, or was killed
            self.wfile.write(data)

    def log_message(self, *args: Any) -> None:
        """Keep quiet."""


@contextmanager
def chat_server(reply: Callable[[dict, int], Any]):
    """Serve `reply` on loopback for the length of a block."""
    server = ChatServer(reply)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def chat(
    text: str, *, top: dict[str, float] | None = None, used: tuple[int, int] = (10, 1), finish: str = "stop"
) -> dict:
    """Return an answer of the chat API; `top` are the first token's top log-probs."""
    choice: dict[str, Any] = {
        "index": 0,
        "finish_reason": finish,
        "message": {"role": "assistant", "content": text},
    }
    if top is not None:
        entries = [{"token": token, "logprob": value, "bytes": None} for token, value in top.items()]
        first = {"token": text, "logprob": 0.0, "bytes": None, "top_logprobs": entries}
        choice["logprobs"] = {"content": [first], "refusal": None}
    usage = {"prompt_tokens": used[0], "completion_tokens": used[1], "total_tokens": sum(used)}
    return {
        "id": "x",
        "object": "chat.completion",
        "created": 0,
        "model": "judge",
        "choices": [choice],
        "usage": usage,
    }


def slow(seconds: float, answer: Any) -> Any:
    """Answer late."""
    time.sleep(seconds)
    return answer


def asked(server: ChatServer, **changes: Any) -> dict[str, Any]:
    """Return settings for a scripted server: no waiting between tries."""
    return {
        "base_url": server.base_url,
        "model": "judge",
        "timeout": 5.0,
        "retries": 3,
        "backoff": 0.0,
        **changes,
    }


def endpoint_settings(server: ChatServer, **changes: Any) -> EndpointSettings:
    return EndpointSettings(**asked(server, **changes))


def opened(kind: type, server: ChatServer, cache: Path, **changes: Any) -> Any:
    """Return a judge or a generator that asks a scripted server, ready to answer."""
    made = kind(**asked(server, **changes))
    made.cache = cache
    made.open(ExitStack())
    return made


def http_judge_at(server: ChatServer, cache: Path, **changes: Any) -> OpenAIJudge:
    return opened(OpenAIJudge, server, cache, **changes)


def http_generator_at(server: ChatServer, cache: Path, **changes: Any) -> OpenAIGenerator:
    return opened(OpenAIGenerator, server, cache, **changes)


def finished_run(folder: Path, *, start: str | None = None, seed: int = 0, prompts: int = 6) -> Path:
    """Write a finished run of a random tiny model, as training would leave it."""
    overrides = [f"seed={seed}", f"data.world.prompts={prompts}", "tracking=off"]
    config = to_run_config(compose_run(["model.tiny.hidden_size=32", *overrides]))
    config.model.tiny |= {"intermediate_size": 64, "num_hidden_layers": 2}
    settings = asdict(config)
    record = Record.open(folder, Identity(folder.name, settings, {}, *[folder.name] * 4), phase="preference")
    load_model(config.model, seed=seed).save_pretrained(folder / "model")
    load_tokenizer(config.model).save_pretrained(folder / "model")
    seal(folder / "model")
    OmegaConf.save(OmegaConf.create(settings), folder / "config.yaml")
    record.note(start=start)
    record.finish()
    return folder


INSTRUCTIONS = [f"Write {n} words about otters." for n in range(20)]


def baseline_rows(count: int = 20) -> list[dict]:
    return [
        {"instruction": text, "output": "otter " * (n % 7 + 1), "generator": "base", "dataset": "made up"}
        for n, text in enumerate(INSTRUCTIONS[:count])
    ]


def fair_judge(request: dict, number: int) -> dict:
    """Prefer the longer of the two shown answers with probability 0.9, whichever label it has."""
    text = request["messages"][-1]["content"]
    first, second = [part.split('"""')[1] for part in text.split('"output": ')[1:3]]
    p = 0.9 if len(first) > len(second) else 0.1
    return chat("m", top={"m": math.log(p), "M": math.log(1 - p), "The": -9.0})


def alpaca_setup(tmp_path: Path) -> tuple[Path, list[str]]:
    """Return a run, and overrides that name the files of a small AlpacaEval and of answers to it."""
    run = finished_run(tmp_path / "outputs" / "exp" / "dpo")
    (tmp_path / "baseline.json").write_text(json.dumps(baseline_rows()))
    ours = [
        {**row, "output": row["output"] + "swims " * (n % 2), "generator": "ours"}
        for n, row in enumerate(baseline_rows())
    ]
    (tmp_path / "ours.json").write_text(json.dumps(ours))
    words = [
        f"runs=['{run}']",
        f"outputs='{tmp_path / 'outputs'}'",
        "benchmark=alpaca_eval",
        f"benchmark.baseline='{tmp_path / 'baseline.json'}'",
        "benchmark.difficulties=null",
        "benchmark.gamed=null",
        "generator=file",
        f"generator.path='{tmp_path / 'ours.json'}'",
    ]
    return run, words


def http_judge(server, **changes) -> list[str]:
    values = {"base_url": server.base_url, "model": "m1", "backoff": 0.0, **changes}
    return ["judge=openai", *[f"judge.{key}={value}" for key, value in values.items()]]


def result_folder(run: Path, result: dict) -> Path:
    """Return where an evaluation wrote; its name holds a hash where settings are not those of conf/."""
    return (run / result["samples"]).parent
