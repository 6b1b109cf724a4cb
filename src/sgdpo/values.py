"""What a setting may be: types and ranges, declared once beside the setting and checked in one place.

lr: Annotated[float, Range("(0, 100]")]
"""

import math
import re
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, is_dataclass
from typing import Annotated, Any, Literal, Union


@dataclass(frozen=True)
class Range:
    """Hold the interval of a number, written as in mathematics: "(0, 1]", "[1, inf)"."""

    interval: str

    @property
    def bounds(self) -> tuple[float, float]:
        low, high = self.interval[1:-1].split(",")
        return float(low), float(high)

    def __contains__(self, value: float) -> bool:
        low, high = self.bounds
        above = value >= low if self.interval[0] == "[" else value > low
        return above and (value <= high if self.interval[-1] == "]" else value < high)

    def problem(self, value: Any) -> str | None:
        """Say what a number outside must do, after its key: " must be at least 1, not 0"."""
        if isinstance(value, bool) or not isinstance(value, (int, float)) or value in self:
            return None
        return f" must {self._expected(value)}, not {value!r}"

    def _expected(self, value: float) -> str:
        low, high = self.bounds
        if high <= 1:
            return f"lie in {self.interval}"
        if low == 0 and self.interval[0] == "(" and (value <= 0 or not -math.inf < value < math.inf):
            return "be a positive number"
        if value <= low:
            return f"be {'at least' if self.interval[0] == '[' else 'above'} {low:.10g}"
        if value != value:
            return "be a number"
        return f"be {'at most' if self.interval[-1] == ']' else 'below'} {high:.10g}"


class OneOf:
    """Hold the words that a setting may be."""

    def __init__(self, *options: str):
        self.options = options

    def problem(self, value: Any) -> str | None:
        """Say which words a value may be, after its key."""
        if value is None or value in self.options:
            return None
        return f" must be one of {', '.join(self.options)}, not {value!r}"


class Name:
    """What becomes the name of a file or folder: one plain part of a path, of bounded length.

    empty: it may be left out.
    """

    def __init__(self, length: int = 60, reserved: tuple[str, ...] = (), empty: bool = False):
        self.length, self.reserved, self.empty = length, reserved, empty

    def problem(self, value: Any) -> str | None:
        """Say why a name cannot be one, after its key."""
        if value is None or (self.empty and value == ""):
            return None
        shown = repr(value if len(str(value)) <= 80 else f"{str(value)[:77]}...")
        if not isinstance(value, str) or not re.fullmatch(r"\w[\w.+@=~-]*", value):
            return (
                f" {shown} must be a plain folder name: letters, digits and . _ - + = @ ~, and no separator"
            )
        if len(value.encode()) > self.length:
            return f" {shown} must be at most {self.length} bytes long, not {len(value.encode())}"
        return f" {shown} is kept for other files; take another name" if value in self.reserved else None


class Place:
    """A path that is written to: a folder, made if it is missing."""

    def problem(self, value: Any) -> str | None:
        """Say why a path cannot be one, after its key."""
        if value is None:
            return None
        if not str(value).strip() or not str(value).isprintable():
            return f"={value!r} is no folder; outputs=outputs is the default"
        if max(map(len, str(value).encode().split(b"/"))) > 255 or len(str(value).encode()) > 2048:
            return f"={str(value)[:60]}... is too long for a path"
        return None


class Keys:
    """Hold what the keys of a mapping may be, each by its annotation.

    needed: those that must be there. others: whether keys beside them, which somebody else reads, may be there too.
    """

    def __init__(self, hints: Mapping[str, Any], *, needed: tuple[str, ...] = (), others: bool = False):
        self.hints, self.needed, self.others = hints, needed, others

    def problem(self, value: Any) -> str | None:
        """Say what is wrong with the first bad key, after the mapping's own: ".stage=7 does not fit ..."."""
        if value is None:
            return None
        if lacking := [key for key in self.needed if key not in value]:
            return f" lacks {', '.join(lacking)}"
        if not self.others and (unknown := [str(key) for key in value if key not in self.hints]):
            return f" has {', '.join(unknown)}; it takes {', '.join(self.hints)}"
        found = ((key, value_error(value[key], hint)) for key, hint in self.hints.items() if key in value)
        return next((f".{key}{problem}" for key, problem in found if problem), None)


FINITE = Range("(-inf, inf)")
# Ranges with a name: hyper-parameters and settings alike.
Above0 = Annotated[float, Range("(0, 1e6]")]
AtLeast0 = Annotated[float, Range("[0, 1e6]")]
Share = Annotated[float, Range("[0, 1]")]
HalfOpenShare = Annotated[float, Range("(0, 1]")]
BelowHalf = Annotated[float, Range("[0, 0.5)")]
OpenHalf = Annotated[float, Range("(0, 0.5)")]
NAME = Name()
PLACE = Place()


class Opaque(type):
    """The type of what an annotation names and no YAML can hold, a tensor for example."""

    def __getitem__(cls, item: Any) -> Any:
        return cls

    def __getattr__(cls, name: str) -> Any:
        return cls


class Unreadable(metaclass=Opaque):
    """Stands for an annotation that no YAML can hold."""


def value_error(value: Any, hint: Any) -> str | None:
    """Say what a value should be and is not ("=2 does not fit bool", " must lie in (0, 1], not 2"), or None.

    A number whose annotation carries no range must be finite.
    """
    if not fits(value, hint):
        return f"={value!r} does not fit {words(hint)}"
    return next(filter(None, (mark.problem(value) for mark in [*marks_of(hint), FINITE])), None)


def schema_errors(settings: Any, prefix: str = "") -> Iterator[str]:
    """Hold every value of a typed configuration against its annotation, the nested ones too."""
    for key, hint in typing.get_type_hints(type(settings), include_extras=True).items():
        value = getattr(settings, key)
        if is_dataclass(value):
            yield from schema_errors(value, f"{prefix}{key}.")
        elif problem := value_error(value, hint):
            yield f"{prefix}{key}{problem}"


def fits(value: Any, hint: Any) -> bool:
    """Say whether a YAML's value is of an annotated type; an int serves as a float, a bool as no number."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return True
    if origin is Annotated:
        return fits(value, arguments[0])
    if origin is Literal:
        return any(value == option and type(value) is type(option) for option in arguments)
    if origin in (Union, types.UnionType):
        return any(fits(value, option) for option in arguments)
    if origin in (list, tuple):
        if not isinstance(value, (list, tuple)):
            return False
        kinds = arguments[:1] * len(value) if origin is list or Ellipsis in arguments else arguments
        return len(value) == len(kinds) and all(map(fits, value, kinds))
    if origin is dict:
        return isinstance(value, Mapping) and all(all(map(fits, pair, arguments)) for pair in value.items())
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return isinstance(value, hint) and (hint is bool or not isinstance(value, bool))


def marks_of(hint: Any) -> list[Any]:
    """Return the ranges, options and names that an annotation carries, an optional one's too."""
    parts = typing.get_args(hint)
    own = [part for part in parts if isinstance(part, (Range, OneOf, Name, Place, Keys))]
    return own + [mark for part in parts if part not in own for mark in marks_of(part)]


def words(hint: Any) -> str:
    """Name an annotated type for a person."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return words(arguments[0])
    if origin is Literal:
        return "one of " + ", ".join(map(str, arguments))
    if origin in (Union, types.UnionType):
        return " or ".join("null" if part is type(None) else words(part) for part in arguments)
    if hint is Unreadable:
        return "a YAML's values: annotate it as int, float, bool, str, Literal, list or dict"
    return str(hint) if origin else hint.__name__
