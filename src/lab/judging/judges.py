"""What a judge is, the judges there are, and asking one many questions at once.

A judge is a class and a YAML in conf/judge that names it. It answers a JudgeRequest with a Reply; reading a
preference or a score out of the reply is the benchmark's business.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from tqdm import tqdm

from lab.serving.endpoint import ask_each
from lab.serving.reply import Reply
from lab.serving.served import Local, Remote, Served
from lab.serving.service import Service, open_service, service_errors
from sgdpo.contract import Kind
from sgdpo.store import hash_file, hash_json
from sgdpo.values import Range

JUDGE = Kind("judge", key="class", required=("label",), parts=("ask",))
SEEDS = 2**31  # what servers take
# What changes no reply: it is no part of a request's key.
NOT_KEYED = ("prompt_id", "facts", "decided")


@dataclass(frozen=True)
class JudgeRequest:
    """Hold one question to a judge.

    repeat: tells apart askings of the same question (judge variance). grammar: the form of a reply in GBNF, for
    judges that can be held to one. The last three change no reply and are not part of its key: prompt_id names
    what is judged, facts go into the judgment's row beside its score, decided is the score of what needs no judge
    (a checker's, a tie).
    """

    messages: tuple[Mapping[str, str], ...] = ()
    max_tokens: int = 1
    temperature: float = 0.0
    top_p: float = 1.0
    top_logprobs: int = 0
    repeat: int = 0
    grammar: str = ""
    prompt_id: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict, hash=False)
    decided: float | None = None

    def keyed(self) -> dict[str, Any]:
        """Return all that a reply depends on."""
        return {key: value for key, value in asdict(self).items() if key not in NOT_KEYED}


class Judge(Service):
    """Answer judge requests. Derive from it: `ask` is all that a judge must have.

    asks: whether benchmarks put questions to it. judgments: the file of its verdicts, if they were given before.
    unusable: as in conf/judge/openai.yaml.
    """

    kind = "judge"
    asks = True
    judgments = None
    concurrency = 1
    unusable = "count"

    @abstractmethod
    def ask(self, request: JudgeRequest) -> Reply:
        """Answer one request; called from several threads if `concurrency` says so."""


class Checker(Judge):
    """Stand for the checker of a benchmark that needs no judge."""

    asks = False

    def ask(self, request: JudgeRequest) -> Reply:
        raise AssertionError("it is asked nothing")


@dataclass(kw_only=True)
class CachedJudge(Checker):
    """Stand for judgments that were made elsewhere; the benchmark reads its own format."""

    file: str | None = None
    model: str | None = None

    def errors(self) -> list[str]:
        there = self.file and Path(self.file).is_file()
        return [] if there else [f"file={self.file} is none; judge=cached reads judgments from a file"]

    @property
    def judgments(self) -> Path:
        return Path(str(self.file))

    def identity(self) -> dict[str, Any]:
        return {"judgments": hash_file(self.judgments)[:16]}


@dataclass(kw_only=True)
class EndpointJudge(Served, Judge):
    """Judge with a served model; temperature and seed None: as the benchmark asks."""

    temperature: Annotated[float, Range("[0, 2]")] | None = None
    seed: Annotated[int, Range("[0, 2147483647]")] | None = None
    top_logprobs: Annotated[int, Range("[1, 1000]")] = 5
    grammar: bool = False
    unusable: Literal["count", "again", "error"] = "count"

    def ask(self, request: JudgeRequest) -> Reply:
        """Ask the endpoint; a repeat changes the sampling seed, where the server takes one."""
        seeded = self.seed is not None or request.repeat
        return self.endpoint.chat(
            request.messages,
            max_tokens=request.max_tokens,
            temperature=request.temperature if self.temperature is None else self.temperature,
            top_p=request.top_p,
            seed=((self.seed or 0) + request.repeat) % SEEDS if seeded else None,
            top_logprobs=self.top_logprobs if request.top_logprobs else 0,
            grammar=request.grammar if self.grammar else "",
        )

    def identity(self) -> dict[str, Any]:
        how = {name: getattr(self, name) for name in ("grammar", "temperature", "seed", "top_logprobs")}
        return {**self.endpoint.identity, **how}


@dataclass(kw_only=True)
class OpenAIJudge(Remote, EndpointJudge):
    """Judge with an OpenAI-compatible endpoint."""


@dataclass(kw_only=True)
class LocalJudge(Local, EndpointJudge):
    """Judge with a small model that is served on loopback while the evaluation lasts."""

    retries: Annotated[int, Range("[0, 100]")] = 1
    backoff: Annotated[float, Range("[0, 60]")] = 1.0


judge_errors = partial(service_errors, JUDGE)
open_judge = partial(open_service, JUDGE)


def ask_all(judge: Judge, requests: Sequence[JudgeRequest]) -> list[Reply]:
    """Return a reply to each request, in order; equal requests are asked once.

    A reply that cannot be used comes back with its problem. Raises EndpointError if more than MOST_UNUSABLE are
    such, EndpointError or BudgetError if none comes, after what is under way has been kept: the same command
    goes on from there.
    """
    keys = [hash_json(request.keyed()) for request in requests]
    different = dict(zip(keys, requests, strict=True))
    replies = ask_each(
        lambda key: judge.ask(different[key]),
        list(different),
        workers=judge.concurrency,
        strict=judge.unusable == "error",
        what="judgments",
    )
    found = dict(tqdm(replies, total=len(different), desc="judgments", unit="judgment"))
    return [found[key] for key in keys]
