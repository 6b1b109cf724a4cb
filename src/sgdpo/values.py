"""What a setting may be: types and ranges, declared once beside the setting and checked in one place.

lr: Annotated[float, Range("(0, 100]")]
"""

from __future__ import annotations

import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
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

    def expected(self, value: float) -> str:
        """Say what a value outside must do, after "must"."""
        low, high = self.bounds
        if high <= 1:
            return f"lie in {self.interval}"
        if low == 0 and self.interval[0] == "(" and (value <= 0 or not math.isfinite(value)):
            return "be a positive number"
        if value <= low:
            return f"be {'at least' if self.interval[0] == '[' else 'above'} {low:g}"
        if value != value:
            return "be a number"
        return f"be {'at most' if self.interval[-1] == ']' else 'below'} {high:.10g}"


FINITE = Range("(-inf, inf)")


class Opaque(type):
    """The type of what an annotation names and no YAML can hold, a tensor for example."""

    def __getitem__(cls, item: Any) -> Any:
        return cls

    def __getattr__(cls, name: str) -> Any:
        return cls


class Unreadable(metaclass=Opaque):
    """Stands for an annotation that no YAML can hold."""


def value_error(value: Any, hint: Any, default: Range = FINITE) -> str | None:
    """Say what a value should be and is not ("=2 does not fit bool", " must lie in (0, 1], not 2"), or None.

    default: the range of a number whose annotation carries none.
    """
    if not fits(value, hint):
        return f"={value!r} does not fit {words(hint)}"
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        interval = range_of(hint) or default
        return None if value in interval else f" must {interval.expected(value)}, not {value!r}"
    return None


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
        return isinstance(value, (list, tuple)) and all(fits(item, arguments[0]) for item in value)
    if origin is dict:
        return isinstance(value, Mapping)
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return isinstance(value, hint) and (hint is bool or not isinstance(value, bool))


def range_of(hint: Any) -> Range | None:
    """Return the range that an annotation carries, an optional number's too."""
    for part in (*getattr(hint, "__metadata__", ()), *typing.get_args(hint)):
        if (found := part if isinstance(part, Range) else range_of(part)) is not None:
            return found
    return None


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
