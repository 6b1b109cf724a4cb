"""Draw the ratio grid as a heat map: python scripts/heatmap.py EXPERIMENT --metric eval/rewards/margins."""

from sgdpo.console import Parser, run_command


def main(arguments: list[str]) -> None:
    parser = Parser(__doc__)
    parser.add_argument("experiment", help="name of the experiment that holds the grid")
    parser.add_argument("--metric", default="eval/rewards/margins", help="as scripts/best.py takes it")
    parser.add_argument("--no-wandb", action="store_true", help="write the files, tell W&B nothing")
    parser.add_outputs()
    options = parser.parse_args(arguments)
    from lab.sweeps.results import draw_experiment, send_pictures

    pictures = draw_experiment(options.outputs, options.experiment, options.metric)
    print("\n".join(map(str, pictures)))
    if not options.no_wandb:
        print(f"W&B: {send_pictures(pictures, options.experiment, options.metric)}")


if __name__ == "__main__":
    run_command(main)
