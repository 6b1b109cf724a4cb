"""Ask the Hugging Face hub: one quick, clear error without network, for a gated repository or a wrong name."""

import re
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

SECONDS = 4.0
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
T = TypeVar("T")


def from_hub(load: Callable[[], T], what: str) -> T:
    """Return what `load` gets from the hub, or from its cache on this machine if the hub is out of reach."""
    from huggingface_hub import errors

    if not _reachable():
        _go_offline()
    try:
        return load()
    except Exception as error:  # the libraries raise dozens of kinds, often one inside another
        causes = list(_causes(error))
        raise ValueError(f"{what} cannot be loaded: {_advice(causes, errors)}") from error


@cache
def hub_commit(name: str, revision: str | None, kind: str) -> str:
    """Return the commit that a hub id means now; without network the one that was loaded last."""
    from huggingface_hub import HfApi, constants

    wanted = revision or "main"
    if _reachable():
        # No access, no such name, whatever the transport raises: loading says it better.
        with suppress(Exception):
            return str(HfApi().repo_info(name, repo_type=kind, revision=wanted, timeout=SECONDS).sha)
    ref = Path(constants.HF_HUB_CACHE) / f"{kind}s--{name.replace('/', '--')}" / "refs" / wanted
    return ref.read_text().strip() if ref.is_file() else wanted


@cache
def _reachable() -> bool:
    """Say whether the hub answers; asked once a process, by the way that downloads take (proxies too)."""
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        get_session().head(constants.ENDPOINT, timeout=SECONDS)
    except Exception:  # whatever the transport raises, there is no way through
        return False
    return True


def _go_offline() -> None:
    """Make the libraries look into their caches alone, instead of waiting for each file of a list."""
    import sys

    from huggingface_hub import constants

    constants.HF_HUB_OFFLINE = True
    if "datasets" in sys.modules:
        sys.modules["datasets"].config.HF_HUB_OFFLINE = True


def _causes(error: BaseException | None) -> Any:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _advice(causes: list[BaseException], errors: Any) -> str:
    def is_a(*kinds: type) -> bool:
        return any(isinstance(cause, kinds) for cause in causes)

    status = {getattr(getattr(cause, "response", None), "status_code", None) for cause in causes}
    if is_a(errors.GatedRepoError) or status & {401, 403}:
        return (
            "it is gated or private; accept its terms on its page of the hub, then log in with `hf auth login` "
            "(or set HF_TOKEN)"
        )
    if not _reachable():
        return (
            "the hub cannot be reached and this machine has no whole copy; check the network (or unset "
            "HF_HUB_OFFLINE), or download it elsewhere and give a folder or files (model.path, data=local, a "
            "path in place of hub:...)"
        )
    if is_a(errors.RepositoryNotFoundError, errors.RevisionNotFoundError):
        return "the hub knows no such repository or revision; check the name"
    return f"{first_line(causes[0])}; check the name and the split"


def first_line(error: BaseException) -> str:
    """Return the first line of what an error says, or its kind where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
