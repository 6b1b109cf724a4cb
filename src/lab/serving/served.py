"""What judges and generators share that ask a chat endpoint: somebody's, or our own on loopback."""

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Annotated, Any, cast

from lab.serving.endpoint import Endpoint, EndpointSettings
from lab.serving.local_server import local_server, model_at, server_errors
from lab.serving.service import Service
from sgdpo.store import hash_file
from sgdpo.values import Range


class Served(Service):
    """Ask an endpoint, which `open` sets; concurrency, unusable: as in conf/judge/openai.yaml."""

    concurrency = 1
    unusable = "count"
    endpoint = cast(Endpoint, None)  # no annotation, which would make it a setting

    def cost(self) -> dict[str, Any]:
        return self.endpoint.ledger.report()


@dataclass(kw_only=True)
class Remote(EndpointSettings, Served):
    """Ask an OpenAI-compatible endpoint."""

    def open(self, stack: ExitStack) -> None:
        self.endpoint = Endpoint(self, self.cache)


@dataclass(kw_only=True)
class Local(Served):
    """Ask a GGUF model that llama.cpp serves on loopback as long as it is asked."""

    retries = 1
    backoff = 1.0

    model_file: str | None = None
    context: Annotated[int, Range("[256, 1048576]")] = 8192
    timeout: Annotated[float, Range("(0, 86400]")] = 600.0

    def errors(self) -> list[str]:
        return server_errors(self.model_file)

    def how(self) -> dict[str, Any]:
        """Its answers are the model's, whichever port it has."""
        model = model_at(self.model_file)
        content = hash_file(model, self.cache / "hashes")[:16]
        return {"local": model.name, "sha256": content, "context": self.context}

    def open(self, stack: ExitStack) -> None:
        model = model_at(self.model_file)
        url = stack.enter_context(local_server(model, context=self.context))
        patience = {"timeout": self.timeout, "retries": self.retries, "backoff": self.backoff}
        settings = EndpointSettings(url, model.stem, concurrency=1, unusable=self.unusable, **patience)
        self.endpoint = Endpoint(settings, self.cache, self.how())
