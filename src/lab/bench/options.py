"""What the command line of `make bench` may say; light, so that --help and mistakes are answered at once."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from sgdpo.console import Parser, number

COUNT = number(int, "[1, 1000000]")


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser("Measure the fast path, variant by variant.")
    parser.add_argument("--model", default="outputs/cache/models/smollm2-135m-instruct",
                        help="a folder, or llama-1b or llama-3b with random weights")  # fmt: skip
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument(
        "--data", help="a parquet, json or jsonl file of preference rows instead of generated ids"
    )
    parser.add_argument("--precisions", nargs="+", default=["float32", "bf16"], choices=["float32", "bf16"])
    parser.add_argument("--references", nargs="+", default=["cached", "live"], choices=["cached", "live"],
                        help="of TRL, in the comparison with it")  # fmt: skip
    parser.add_argument("--batch", type=COUNT, default=4, help="pairs of a step")
    parser.add_argument("--steps", type=COUNT, default=3, help="timed steps of a measurement")
    parser.add_argument(
        "--rounds", type=COUNT, default=3, help="times that every variant is measured, in turn"
    )
    parser.add_argument(
        "--max-length", type=COUNT, default=2048, help="longest prompt plus completion, tokens"
    )
    parser.add_argument("--max-tokens", type=COUNT, default=8192, help="longest packed row, tokens")
    parser.add_argument(
        "--seed", type=number(int, "[0, 4294967296)"), default=0, help="of the generated lengths and ids"
    )
    parser.add_argument("--checkpointing", action="store_true", help="recompute activations")
    parser.add_argument("--scaling", action="store_true", help="the scaling plots instead of the table")
    parser.add_argument(
        "--profile", action="store_true", help="where a step's time goes instead of the table"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("outputs/bench"), help="tables, plots and their numbers"
    )
    options = parser.parse_args(arguments)
    options.words = list(sys.argv[1:] if arguments is None else arguments)
    return options
