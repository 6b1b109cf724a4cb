"""Serve the local judge by hand, until standard input closes: python scripts/judge.py [FILE.gguf] [--port 8080]"""

import _src  # noqa: F401
from sgdpo.evaluation.local_server import main

main()
