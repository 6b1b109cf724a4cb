"""Talk to a trained model in the terminal: python scripts/chat.py outputs/<experiment>/<run>.

Also a model's folder or a hub id. The conversation is rendered by the model's own chat template; answers appear as they
are written. /reset forgets what was said, /system TEXT begins anew with a system turn, /quit or Ctrl-D ends. Lines may
come from a pipe.
"""

from sgdpo.console import Parser, fail, number, run_command, set_up_process


def main(arguments: list[str]) -> None:
    parser = Parser(__doc__)
    parser.add_argument("run", help="folder of a finished run, folder of a model, or hub id")
    parser.add_argument(
        "--temperature", type=number(float, "[0, 10]"), default=0.7, help="0: always the likeliest word"
    )
    parser.add_argument("--tokens", type=number(int, "[1, 100000]"), default=256, help="longest answer")
    parser.add_argument("--seed", type=number(int, "[0, 4294967296)"), default=0, help="of the draws")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_trust()
    options = parser.parse_args(arguments)
    set_up_process()
    from lab.sampling.settings import answering_errors, model_of

    model = model_of(options.run, "outputs/cache", options.trust_remote_code)
    if errors := answering_errors(model):
        fail(errors)
    from lab.chat import Chat, talk

    talk(Chat(model, options.device, options.temperature, options.tokens, options.seed))


if __name__ == "__main__":
    run_command(main)
