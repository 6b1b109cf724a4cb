"""Marks of parametrised tests."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def proofs_but(values: Iterable[Any], *kept: Any) -> list[Any]:
    """Return values for parametrize: `make test` runs those that are kept, `make proofs` all others."""
    return [value if value in kept else pytest.param(value, marks=pytest.mark.proof) for value in values]
