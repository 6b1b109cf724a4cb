"""Where the checkout lies: the one module that counts folders upwards."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CONF = ROOT / "conf"
