"""Put `src` on the path, so that every script runs from a checkout without an install."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))
