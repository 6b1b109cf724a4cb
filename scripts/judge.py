"""Serve the local judge by hand, until Ctrl-C: python scripts/judge.py [FILE.gguf] [--port 8080]"""

from lab.serving.local_server import main
from sgdpo.console import run_command

if __name__ == "__main__":
    run_command(main)
