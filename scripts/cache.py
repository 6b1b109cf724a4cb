"""List and prune the shared cache: `python scripts/cache.py list`, `python scripts/cache.py prune --help`."""

from pathlib import Path

from sgdpo.console import Parser, number, run_command
from sgdpo.store.caches import KINDS, PAID, entries, listing, prune


def main(arguments: list[str]) -> None:
    parser = Parser(__doc__)
    parser.add_argument("--cache", type=Path, default=Path("outputs/cache"), help="the runs' cache folder")
    commands = parser.add_subparsers(dest="command", required=True)
    shown = commands.add_parser("list", help="what is there, the largest first")
    shown.add_argument("--check", action="store_true", help="read the files and compare their hashes")
    pruned = commands.add_parser("prune", help="what would go; --yes deletes it. What a run writes now stays")
    pruned.add_argument("--kind", choices=KINDS, help=f"only this kind; {', '.join(PAID)} goes only if named")
    pruned.add_argument(
        "--older-than", type=number(float, "[0, 100000]"), metavar="DAYS", help="only what was written before"
    )
    pruned.add_argument("--broken", action="store_true", help="only half-written or damaged entries")
    pruned.add_argument("--yes", action="store_true", help="delete")
    options = parser.parse_args(arguments)
    if options.command == "list":
        print(listing(entries(options.cache, check=options.check)))
        return
    gone = prune(
        entries(options.cache, check=options.broken),
        kind=options.kind,
        older_than=options.older_than,
        broken=options.broken,
        delete=options.yes,
    )
    print(listing(gone))
    print("deleted" if options.yes else "nothing is deleted; add --yes to delete these")


if __name__ == "__main__":
    run_command(main)
