"""What a judge and a generator have in common: a class and a YAML, made ready for the length of a command."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated, Any, cast

from sgdpo.contract import Kind, binding_errors, build, settings_of
from sgdpo.values import NAME, value_error


class Part:
    """Hold what open_part sets: the YAML's label, if it has one, its settings, and the folder to keep things in."""

    label = ""
    settings = cast("Mapping[str, Any]", {})
    cache = Path()

    def errors(self) -> list[str]:
        """List what is wrong with the settings together, as sentences with advice."""
        return []

    def open(self, stack: ExitStack) -> None:
        """Make ready to answer; what must be closed in the end goes onto the stack."""

    def own(self) -> dict[str, Any]:
        """Return who answers and its settings."""
        return {"class": f"{type(self).__module__}.{type(self).__qualname__}", **self.settings}

    def cost(self) -> dict[str, Any]:
        """Return requests, tokens and dollars of this process; nothing for a part that costs nothing."""
        return {}


def part_errors(kind: Kind, settings: Mapping[str, Any], extra: Sequence[str] = ()) -> list[str]:
    """List everything wrong with a YAML and its settings, as sentences with advice; nothing is started."""
    if errors := binding_errors(kind, settings, extra):
        return errors
    if "label" in settings and (problem := value_error(settings["label"], Annotated[str, NAME])):
        return [f"{kind.group}.label{problem}"]  # it becomes part of a folder's name
    return [f"{kind.group}.{error}" for error in build(kind, settings, extra).errors()]


@contextmanager
def open_part(
    kind: Kind, settings: Mapping[str, Any], cache: Path, extra: Sequence[str] = ()
) -> Iterator[Any]:
    """Give what a YAML describes for the length of a block. Raise ValueError with every error at once."""
    if errors := part_errors(kind, settings, extra):
        raise ValueError("\n".join(errors))
    part = build(kind, settings, extra)
    part.label, part.settings, part.cache = settings.get("label", ""), settings_of(kind, settings), cache
    with ExitStack() as stack:
        part.open(stack)
        yield part
