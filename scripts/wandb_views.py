"""Build the W&B workspace and report as code: `python scripts/wandb_views.py [--push]`.

Without --push both are validated offline and written.
"""

from sgdpo.console import Parser, run_command
from sgdpo.store import write_json


def main(arguments: list[str]) -> None:
    parser = Parser(__doc__)
    parser.add_argument("--project", default="sgdpo", help="W&B project")
    parser.add_argument("--entity", default="", help="your W&B name or team (default: the key's)")
    parser.add_argument("--push", action="store_true", help="send them to W&B (needs a key and a network)")
    parser.add_outputs()
    options = parser.parse_args(arguments)
    from lab.report.wandb_views import push, validated, views

    if options.push:
        print("\n".join(push(options.entity, options.project)))
        return
    folder = options.outputs / "wandb_views"
    folder.mkdir(parents=True, exist_ok=True)
    for name, view in zip(("workspace", "report"), validated(options.entity, options.project), strict=True):
        write_json(folder / f"{name}.json", view)
    print("\n".join(f"{theme['title']}: {len(theme['panels'])} panels" for theme in views()["themes"]))
    print(f"valid; written to {folder}; --push sends them to W&B")


if __name__ == "__main__":
    run_command(main)
