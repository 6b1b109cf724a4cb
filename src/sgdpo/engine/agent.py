"""Start and watch the ranks: torch.distributed.run, tied to the launcher's life, its failures kept as data.

python -m sgdpo.engine.agent FOLDER <arguments of torch.distributed.run> PARENT_PID
"""

import os
import sys
from pathlib import Path

from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import parse_args, run

from sgdpo.engine.ranks import RankFiles
from sgdpo.processes import die_with_parent
from sgdpo.store import write_json

AGENT_PID = "SGDPO_AGENT_PID"


def main() -> int:
    """Run the ranks; on failure write which ranks failed, when and how, and return 1."""
    files = RankFiles(Path(sys.argv[1]))
    die_with_parent(int(sys.argv[-1]))
    os.environ[AGENT_PID] = str(os.getpid())
    try:
        run(parse_args(sys.argv[2:-1]))
    except ChildFailedError as error:
        failures = [
            {"rank": rank, "exitcode": f.exitcode, "signal": f.signal_name(), "time": f.timestamp}
            for rank, f in error.failures.items()
        ]
        write_json(files.agent_report, failures)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
