"""What the launcher and the ranks share: the files of a launch.

A launch keeps its files in <run>/ranks/ (over several machines <run>/ranks/node<k>/): the composed run, one
log for each rank, one report for each rank that failed, and rank 0's result.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class RankFiles:
    """Name the files of one launch."""

    folder: Path

    @property
    def order(self) -> Path:
        """Return where the run is handed over."""
        return self.folder / "order.json"

    @property
    def result(self) -> Path:
        """Return what rank 0 writes once every rank is done."""
        return self.folder / "result.json"

    @property
    def agent_log(self) -> Path:
        """Return the log of the process that starts and watches the ranks."""
        return self.folder / "agent.log"

    @property
    def agent_report(self) -> Path:
        """Return the agent's list of ranks that failed."""
        return self.folder / "failures.json"

    def log(self, rank: int) -> Path:
        """Return the log of a rank: its whole output, over all attempts."""
        return self.folder / f"rank{rank}.log"

    def alive(self, rank: int) -> Path:
        """Return what a rank touches as its sign of life."""
        return self.folder / f"rank{rank}.alive"

    def error(self, rank: int) -> Path:
        """Return the report of a rank that raised."""
        return self.folder / f"rank{rank}.error.json"

    def clear(self) -> None:
        """Remove what an earlier attempt reported; its logs stay."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for path in (self.result, self.agent_report, *self.folder.glob("rank*.error.json")):
            path.unlink(missing_ok=True)
