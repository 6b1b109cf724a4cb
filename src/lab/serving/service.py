"""What judges, generators and scorers share: a class and a YAML that names it, open for the length of a block."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated, Any, cast

from sgdpo.contract import Kind, binding_errors, build, settings_of
from sgdpo.values import NAME, value_error


class Service:
    """Answer what it is asked. kind: judge, generator ... settings, label, cache: open_service sets them."""

    kind = "service"
    settings = cast("Mapping[str, Any]", {})
    label = ""
    cache = Path()

    def errors(self) -> list[str]:
        """List what is wrong with the settings together, as sentences with advice."""
        return []

    def absent(self) -> list[str]:
        """List what is not at hand yet to answer, as sentences with advice; whoever works for long before asks."""
        return []

    def open(self, stack: ExitStack) -> None:
        """Make ready to answer; what must be closed in the end goes onto the stack."""

    def identity(self) -> dict[str, Any]:
        """Return all that an answer depends on beside what is asked."""
        return {self.kind: f"{type(self).__module__}.{type(self).__qualname__}", **self.settings}

    def cost(self) -> dict[str, Any]:
        """Return requests, tokens and dollars of this process; nothing for what costs nothing."""
        return {}


def service_errors(kind: Kind, settings: Mapping[str, Any], extra: Sequence[str] = ()) -> list[str]:
    """List everything wrong with a YAML and its settings, as sentences with advice; nothing is started."""
    if errors := binding_errors(kind, settings, extra):
        return errors
    # A label becomes part of a folder's name.
    if "label" in settings and (problem := value_error(settings["label"], Annotated[str, NAME])):
        return [f"{kind.group}.label{problem}"]
    made = build(kind, settings, extra)
    if not isinstance(made, Service):
        base = kind.group.capitalize()
        return [
            f"{kind.group}.{kind.key}: {settings[kind.key]} must derive from {base}, as every {kind.group} does"
        ]
    return [f"{kind.group}.{error}" for error in made.errors()]


@contextmanager
def open_service(
    kind: Kind, settings: Mapping[str, Any], cache: Path, extra: Sequence[str] = (), **given: Any
) -> Iterator[Any]:
    """Give what a YAML names for the length of a block. Raise ValueError with every error at once."""
    if errors := service_errors(kind, settings, extra):
        raise ValueError("\n".join(errors))
    service = build(kind, settings, extra, **given)
    service.settings, service.cache = settings_of(kind, settings), cache
    service.label = settings.get("label", service.label)
    with ExitStack() as stack:
        service.open(stack)
        yield service
