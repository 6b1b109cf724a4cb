"""Put a finished run's model on the Hugging Face hub: python scripts/push.py outputs/<experiment>/<run> YOU/NAME.

With your own token (`hf auth login` or HF_TOKEN). It says what it would send and asks; --yes answers for you, --dry-run
only says.
"""

import sys
from pathlib import Path

from sgdpo.console import Parser, expected_failures, fail, run_command, set_up_process


def main(arguments: list[str]) -> None:
    parser = Parser(__doc__)
    parser.add_argument("run", type=Path, help="folder of a finished run")
    parser.add_argument("repo", help="NAME/REPOSITORY on the hub; made if it is new")
    parser.add_argument(
        "--public", action="store_true", help="a new repository is public; it is private without"
    )
    parser.add_argument(
        "--licence", help="of the model, as the hub names it (apache-2.0); it is left open without"
    )
    parser.add_argument(
        "--card", type=Path, help="a card of yours (model/README.md, edited); one is made without"
    )
    parser.add_argument("--yes", action="store_true", help="do not ask")
    parser.add_argument("--dry-run", action="store_true", help="say what would be sent, and the card")
    options = parser.parse_args(arguments)
    set_up_process()
    from lab.push import plan_upload, push, require_token

    if options.card and options.licence:
        parser.error("--licence is for the card that is made here; a card of yours names its own")
    private, licence = not options.public, options.licence
    upload = plan_upload(options.run, options.repo, private=private, licence=licence, card=options.card)
    if options.dry_run:
        print(f"{upload.card}\n{upload}\nnothing was sent")
        return
    require_token()
    print(upload, flush=True)
    if not options.yes:
        if not sys.stdin.isatty():
            fail(["nobody can be asked here; say --yes to send this"])
        if input("Send it? [y/N] ").strip().lower() != "y":
            print("nothing was sent")
            return
    with expected_failures(code=1):
        print(push(upload))


if __name__ == "__main__":
    run_command(main)
