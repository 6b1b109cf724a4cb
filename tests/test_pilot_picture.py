"""The picture that explains a pilot: its two weights by hand, what it shows, and a clear error without pairs."""

from __future__ import annotations

import json
from math import exp
from pathlib import Path

import pytest

from lab.report.exhibit import find_exhibit, make
from lab.report.pilot_picture import weights

# R_w = 0.3, P_w = 0.1; R_l = -0.5, P_l = -0.2.
CHOSEN = [{"token": "a", "reward": 0.1, "pilot": True}, {"token": "\n", "reward": 0.2, "pilot": False}]
REJECTED = [
    {"token": "b", "reward": -0.2, "pilot": True},
    {"token": "<|end|>", "reward": -0.3, "pilot": False},
]
PAIR = {"prompt": "<|user|>List: a, $x_{ or $y<|end|><|assistant|>", "chosen": CHOSEN, "rejected": REJECTED}


def sigma(x: float) -> float:
    return 1 / (1 + exp(-x))


def test_the_weights_by_hand() -> None:
    ours, dpo = weights(PAIR, whole=False), weights(PAIR, whole=True)
    assert (ours.up, ours.down) == pytest.approx((sigma(-0.2 - 0.3), sigma(-0.5 - 0.1)))
    assert (dpo.up, dpo.down) == pytest.approx((sigma(-0.8), sigma(-0.8)))


def test_the_picture_shows_every_token_and_needs_a_run_with_pairs(tmp_path: Path) -> None:
    run = tmp_path / "e" / "run"
    run.mkdir(parents=True)
    with pytest.raises(ValueError, match=r"run has no pairs\.json with pilots; train one"):
        make(find_exhibit("pilot", [f"run={run}"]), tmp_path)
    none = {side: [token | {"pilot": False} for token in PAIR[side]] for side in ("chosen", "rejected")}
    (run / "pairs.json").write_text(json.dumps({"pairs": [PAIR | none]}))  # DPO's
    with pytest.raises(ValueError, match=r"run has no pairs\.json with pilots; train one"):
        make(find_exhibit("pilot", [f"run={run}", "pair=0"]), tmp_path)
    (run / "pairs.json").write_text(json.dumps({"pairs": [PAIR]}))
    with pytest.raises(ValueError, match="shows 1 pairs; pair must be one of 0 to 0"):
        make(find_exhibit("pilot", [f"run={run}", "pair=3"]), tmp_path)
    paths, _ = make(find_exhibit("pilot", [f"run={run}", "pair=0"]), tmp_path)
    svg = next(path for path in paths if path.suffix == ".svg").read_text()
    for shown in ("Asked: List: a, $x_{ or $y", "⏎", "■", "0.378", "SGDPO", "0.310", "DPO"):
        assert shown in svg
