"""The one way in and out of every command: what it says, how it fails, how it behaves among others.

Exit codes: 0 done; 1 it failed on the way; 2 bad input, and nothing was begun; 130 stopped by Ctrl-C; 141 whoever
read the output closed it. An expected failure is one line a mistake, `error: ...`; a traceback is a bug of ours.
"""

from __future__ import annotations

import argparse
import contextlib
import dis
import functools
import logging
import os
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from sgdpo.source import PACKAGES, load_dotted
from sgdpo.values import Range

if TYPE_CHECKING:
    from sgdpo.config.schema import RunConfig

N = TypeVar("N", int, float)
ENVIRONMENT = {
    # Threads that spin for long while they wait make a step many times slower on a busy machine; threads that
    # do not spin at all make it slower on a quiet one.
    "GOMP_SPINCOUNT": "20000",
    # Large tensors begin where huge pages do: a tenth less memory on a CPU, for the next one fits the hole of the last.
    "THP_MEM_ALLOC_ENABLE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "DS_ACCELERATOR_QUIET": "1",
}
FULL_ERROR = "SGDPO_FULL_ERROR"  # 1 where the user asked for HYDRA_FULL_ERROR=1: every traceback is shown
EXIT_CODES = "exit codes: 0 done, 1 failed on the way, 2 bad input and nothing begun, 130 stopped by Ctrl-C"


class Failure(SystemExit):
    """End the program after its errors were printed; a sweep counts the cell as failed, for these reasons."""

    def __init__(self, errors: list[str], code: int) -> None:
        super().__init__(code)
        self.errors = errors


def fail(errors: list[str], code: int = 2) -> NoReturn:
    """Print every error, one a line, and end with an exit code."""
    _say("\n".join(error if error.startswith("error: ") else f"error: {error}" for error in errors))
    raise Failure(errors, code)


@contextlib.contextmanager
def expected_failures(code: int = 2) -> Iterator[None]:
    """Turn what may happen to a user (a bad value, a full disk) into one line; let our bugs through.

    A ValueError is advice for the user if our own code raised it, and a bug if a library did, or an operation.
    code: the exit code of advice; 1 once work was begun.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except Exception as error:
        if _interrupted(error):
            raise KeyboardInterrupt from error
        # Hydra's errors first, and those of the YAML it reads: some of them are OSErrors or ValueErrors too.
        if any(base.__module__.startswith(("hydra.", "omegaconf.", "yaml.")) for base in type(error).__mro__):
            from sgdpo.config.compose import composition_words

            fail([composition_words(error)])
        if isinstance(error, OSError):
            where = f"{error.filename}: " if error.filename else ""
            fail([f"{where}{error.strerror or error or type(error).__name__}"], code=1)
        if not isinstance(error, ValueError) or not is_advice(error):
            raise
        # A mistake a line; an indented line belongs to the one above.
        fail(re.split(r"\n(?=\S)", str(error)), code=code)


def _interrupted(error: BaseException | None) -> bool:
    """Say whether Ctrl-C is behind an error: met in the middle of a clean-up, a library raises one of its own."""
    return error is not None and (isinstance(error, KeyboardInterrupt) or _interrupted(error.__context__))


class Parser(argparse.ArgumentParser):
    """Read a script's command line; its docstring is the page of --help, a mistake is one line."""

    def __init__(self, description: str | None = None, **kwargs: Any) -> None:
        style = argparse.RawDescriptionHelpFormatter
        super().__init__(
            description=description, formatter_class=style, epilog=EXIT_CODES, allow_abbrev=False, **kwargs
        )

    def add_argument(self, *names: Any, **kwargs: Any) -> argparse.Action:
        """Take an argument; argparse names words that may be none among those it requires, but for a default."""
        if kwargs.get("nargs") == "*":
            kwargs.setdefault("default", [])
        return super().add_argument(*names, **kwargs)

    def error(self, message: str) -> NoReturn:
        """Say what is wrong in one line."""
        fail([f"{message} ({self.prog} --help)"])

    def print_help(self, file: Any = None) -> None:
        """Print the page; unlike argparse's, a full disk is said."""
        print(self.format_help(), end="", file=file or sys.stdout)

    def add_outputs(self) -> None:
        """Take --outputs, where the records are."""
        self.add_argument("--outputs", type=Path, default=Path("outputs"), help="where the records are")

    def add_trust(self) -> None:
        """Take --trust-remote-code: whoever runs the command trusts the code that a model brings."""
        self.add_argument(
            "--trust-remote-code", action="store_true", help="run Python code that the model brings"
        )


def number(kind: type[N], interval: str) -> Callable[[str], N]:
    """Return what reads a number of the command line: number(int, "[1, 100]")."""

    def read(text: str) -> N:
        value = kind(text)
        if problem := Range(interval).problem(value):
            raise argparse.ArgumentTypeError(problem.strip())
        return value

    read.__name__ = kind.__name__  # argparse names it where the text is no number
    return read


def run_command(main: Callable[[list[str]], int | None], stopped: str = "") -> NoReturn:
    """Run a script's `main(arguments)` and end the process, with one line for every expected failure.

    stopped: what Ctrl-C leaves behind and how to go on.
    """
    # What the user asked for, told on to the commands that this one starts; Hydra must not answer errors itself.
    full_traceback = os.environ.setdefault(FULL_ERROR, os.environ.get("HYDRA_FULL_ERROR", "0")) == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"
    _let_streams_take_all()
    code = 0
    try:
        with contextlib.nullcontext() if full_traceback else expected_failures():
            try:
                code = main(sys.argv[1:]) or 0
            finally:
                sys.stdout.flush()
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 0 if ended.code is None else 1
        if isinstance(ended.code, str):
            _say(ended.code)
    except KeyboardInterrupt:
        _say(f"\nstopped{'; ' + stopped if stopped else ''}")
        code = 130
    except BrokenPipeError:
        code = 141
    except Exception:
        _say(f"{traceback.format_exc()}This is a bug, not a mistake of yours: please report the lines above.")
        code = 1
    _leave(code)


def hydra_command(
    name: str,
    page: str,
    main: Callable[[Any], None],
    prepare: Callable[[list[str]], list[str]] = list,
    schema: str | None = None,
) -> Callable[[list[str]], None]:
    """Return the command around `main`: it answers --help, names bad words, then lets Hydra compose conf/<name> for it.

    page: the script's docstring. prepare: makes the command line what Hydra reads. schema: where the typed form lies,
    if it is no run's. Hydra is imported in here: it takes long, and Ctrl-C is answered by then.
    """

    def command(arguments: list[str]) -> None:
        import hydra

        from sgdpo.config.compose import list_errors, options_apart, register_schema
        from sgdpo.config.help import help_asked, help_page
        from sgdpo.places import CONF

        if help_asked(arguments):
            print(help_page(name, page, arguments))
            return
        register_schema()
        if schema is not None:
            register_schema(f"{name}_schema", load_dotted(schema))
        options, overrides = options_apart(prepare(arguments))
        sys.argv[1:] = [*options, *overrides]
        if errors := list_errors(sys.argv[1:]):
            fail(errors)
        hydra.main(str(CONF), name, version_base="1.3")(_one_run(main))()

    return command


def _one_run(main: Callable[[Any], None]) -> Callable[[Any], None]:
    """Return `main` that refuses a YAML's grid in a single run, unless the user's word hydra.mode=RUN leaves it out:
    Hydra drops it there without a word."""

    @functools.wraps(main)
    def checked(config: Any) -> None:
        from hydra.core.hydra_config import HydraConfig
        from hydra.types import RunMode

        hydra = HydraConfig.get()
        sweeper = hydra.sweeper
        single = hydra.mode != RunMode.MULTIRUN and "hydra.mode=RUN" not in sys.argv
        if single and any(sweeper.get(key) for key in ("params", "also", "search")):
            advice = "add -m, or `hydra: {mode: MULTIRUN}` to the YAML"
            fail([f"hydra.sweeper: there is a grid, but this is a single run: {advice}"])
        main(config)

    return checked


def _let_streams_take_all() -> None:
    """Let no text end a process: an ASCII terminal gets \\u2013, and what a closed stream is told is lost."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w"))
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _leave(code: int) -> NoReturn:
    """End the process; what cannot be written any more is dropped, or Python would complain while it ends."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    sys.exit(code)


def _say(text: str) -> None:
    with contextlib.suppress(OSError, ValueError):
        print(text, file=sys.stderr, flush=True)


def is_advice(error: ValueError) -> bool:
    """Say whether a `raise` of ours or of Hydra's raised it, and not another library or an operation like int("x")."""
    step = error.__traceback__
    assert step is not None, "it was raised"
    while step.tb_next is not None:
        step = step.tb_next
    frame = step.tb_frame
    room = frame.f_globals.get("__name__", "").split(".")[0]
    raised = dis.opname[frame.f_code.co_code[step.tb_lasti]] in ("RAISE_VARARGS", "RERAISE")
    return raised and room in {*PACKAGES, "hydra_plugins", "__main__", "hydra", "omegaconf"}


def greet(run: RunConfig) -> None:
    """Say in one line what is about to happen; a plan says it itself."""
    if run.dry_run:
        return
    ratio = f" ratio={run.ratio.chosen},{run.ratio.rejected}" if run.ratio.chosen is not None else ""
    print(
        f"{run.method['name']}{ratio} on {run.data.name} with {run.model.name}, seed {run.seed}, "
        f"{run.precision.name}, engine {run.engine.name}",
        flush=True,
    )


def set_up_process() -> None:
    """Make the process a good neighbour, let our messages through, keep the libraries' chatter out.

    Call it before torch is imported: its threads and its allocator read the environment once.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    _let_streams_take_all()
    logging.getLogger("sgdpo").setLevel(logging.INFO)
    for name in ("accelerate", "transformers", "datasets", "filelock", "wandb", "matplotlib", "httpx"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # DeepSpeed sets its own level when it is imported; a filter stays.
    logging.getLogger("DeepSpeed").addFilter(lambda record: record.levelno >= logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=UserWarning, module="torch|transformers|accelerate")
