"""Build the W&B workspace and report as code: `python scripts/wandb_views.py [--push]`."""

import argparse
import json
from pathlib import Path

from lab.report.wandb_views import push, themes, validated


def main() -> None:
    """Read the command line; validate both offline and write them, or send them with --push."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--project", default="sgdpo")
    parser.add_argument("--entity", default="", help="your W&B name or team (default: the key's)")
    parser.add_argument("--outputs", type=Path, default=Path("outputs"))
    parser.add_argument("--push", action="store_true", help="send them to W&B (needs a key and a network)")
    args = parser.parse_args()
    try:
        if args.push:
            print("\n".join(push(args.entity, args.project)))
            return
        folder = args.outputs / "wandb_views"
        folder.mkdir(parents=True, exist_ok=True)
        for name, view in zip(("workspace", "report"), validated(args.entity, args.project), strict=True):
            (folder / f"{name}.json").write_text(json.dumps(view, indent=1, default=str), encoding="utf-8")
        print("\n".join(f"{theme.title}: {len(theme.panels)} panels" for theme in themes()))
        print(f"valid; written to {folder}; --push sends them to W&B")
    except ValueError as error:
        parser.exit(1, f"error: {error}\n")


if __name__ == "__main__":
    main()
