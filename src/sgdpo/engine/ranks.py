"""What the launcher and the ranks share: the files of a launch.

A launch keeps its files in <run>/ranks/ (over several machines <run>/ranks/node<k>/): the composed run, one
log for each rank, one report for each rank that failed, and rank 0's result.
"""

from pathlib import Path


class RankFiles:
    """Name the files of one launch.

    order: the run, handed over. result: what rank 0 writes once every rank is done. agent_log, agent_report: of the
    process that starts and watches the ranks; the report lists those that failed.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.order, self.result = folder / "order.json", folder / "result.json"
        self.agent_log, self.agent_report = folder / "agent.log", folder / "failures.json"

    def log(self, rank: int) -> Path:
        """Name a rank's whole output, over all attempts."""
        return self.folder / f"rank{rank}.log"

    def alive(self, rank: int) -> Path:
        """Name what a rank touches as its sign of life."""
        return self.folder / f"rank{rank}.alive"

    def error(self, rank: int) -> Path:
        """Name the report of a rank that raised."""
        return self.folder / f"rank{rank}.error.json"

    def clear(self) -> None:
        """Remove what an earlier attempt reported; its logs stay."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for path in (self.result, self.agent_report, *self.folder.glob("rank*.error.json")):
            path.unlink(missing_ok=True)
