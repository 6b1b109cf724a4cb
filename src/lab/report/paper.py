"""The paper's numbers (conf/report/paper.yaml), to stand beside ours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import yaml

from sgdpo.config.compose import CONF


@dataclass(frozen=True)
class Paper:
    """Hold the paper's tables and the names of its models."""

    titles: dict[str, str]
    stands_for: dict[str, str]
    table1: dict[str, list[float] | None]
    default_ratio: list[float]
    table2: dict[str, dict[str, Any]]
    table3: dict[str, dict[str, list[float]]]
    table4: dict[str, float]
    mtbench: dict[str, float]

    def title(self, model: str) -> str:
        """Return a model's name for people."""
        return self.titles.get(model, model)

    def beside(self, model: str) -> str | None:
        """Return the paper's model whose numbers stand beside `model`: itself, or the one it stands for."""
        name = self.stands_for.get(model, model)
        return name if name in self.table1 else None


def load_paper() -> Paper:
    """Read the paper's numbers."""
    return Paper(**yaml.safe_load((CONF / "report" / "paper.yaml").read_text("utf-8")))
