"""Measure speed and memory of the fast path: `python scripts/bench.py --help`; --peers: against TRL's DPOTrainer."""

import argparse
from pathlib import Path

from sgdpo.console import Parser, number, run_command

COUNT = number(int, "[1, 1000000]")
# A 1B Llama in bf16, in under ten minutes with the peers.
ON_A_GPU = {
    "device": "cuda", "model": "llama-1b", "precisions": ["bf16"], "batch": 8, "steps": 6, "rounds": 1,
    "out": Path("outputs/bench-gpu"),
}  # fmt: skip


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = Parser("Measure the fast path, variant by variant.")
    add = parser.add_argument
    add("--model", default="outputs/cache/models/smollm2-135m-instruct",
        help="a folder, or llama-1b or llama-3b with random weights")  # fmt: skip
    add("--device", default="cpu", choices=["cpu", "cuda"])
    add("--data", help="a parquet, json or jsonl file of preference rows instead of generated ids")
    add("--precisions", nargs="+", default=["float32", "bf16"], choices=["float32", "bf16"])
    add("--peers", action="store_true", help="against TRL's DPOTrainer, in an environment of its own")
    add("--gpu", action="store_true",
        help="on a GPU, both: a 1B Llama in bf16, ours and TRL's; skipped, and said so, without one")  # fmt: skip
    add("--references", nargs="+", default=["cached", "live"], choices=["cached", "live"],
        help="of TRL, in the comparison with it")  # fmt: skip
    add("--batch", type=COUNT, default=4, help="pairs of a step")
    add("--steps", type=COUNT, default=3, help="timed steps of a measurement")
    add("--rounds", type=COUNT, default=3, help="times that every variant is measured, in turn")
    add(
        "--max-length",
        type=number(int, "[16, 1000000]"),
        default=2048,
        help="longest prompt plus completion, tokens",
    )
    add("--max-tokens", type=COUNT, default=8192, help="longest packed row, tokens")
    add("--seed", type=number(int, "[0, 4294967296)"), default=0, help="of the generated lengths and ids")
    add("--checkpointing", action="store_true", help="recompute activations")
    add("--scaling", action="store_true", help="the scaling plots instead of the table")
    add("--profile", action="store_true", help="where a step's time goes instead of the table")
    add("--out", type=Path, default=Path("outputs/bench"), help="tables, plots and their numbers")
    options = parser.parse_args(arguments)
    if options.gpu:
        parser.set_defaults(**ON_A_GPU)
        options = parser.parse_args(arguments)
    ways = [f"--{way}" for way in ("peers", "scaling", "profile") if getattr(options, way)]
    if len(ways) > 1:
        parser.error(f"{' and '.join(ways)}: each is a measurement of its own, give one of them")
    if options.scaling and options.data is not None:
        parser.error("--scaling makes pairs of the lengths that it plots; leave --data out")
    options.words = [word for word in arguments if word not in ("--peers", "--gpu")]
    options.target = "bench-gpu" if options.gpu else "bench-peers" if options.peers else "bench"
    return options


def main(arguments: list[str]) -> None:
    options = parse(arguments)
    from lab.bench.cli import measure

    measure(options)


if __name__ == "__main__":
    run_command(main)
