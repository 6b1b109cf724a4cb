"""Put a finished run's model on the Hugging Face hub: its weights, tokenizer and a card of today, in one commit."""

from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi, get_token

from sgdpo.runs.card import model_card
from sgdpo.runs.records import MODEL, view_run
from sgdpo.store import MANIFEST, what_is_wrong

CARD = "README.md"


@dataclass(frozen=True)
class Upload:
    """Hold what goes to the hub: a repository's name, the files, and the card as it is made now."""

    repo: str
    private: bool
    files: list[Path]
    card: str

    def __str__(self) -> str:
        size = sum(file.stat().st_size for file in self.files) / 2**20
        names = ", ".join([*(file.name for file in self.files), CARD])
        return f"{self.repo} ({'private' if self.private else 'public'}): {names}; {size:.1f} MiB"


def plan_upload(folder: Path, repo: str, *, private: bool, licence: str | None) -> Upload:
    """Return what a push would send. Raise ValueError if the run is not finished or its weights are not whole."""
    run = view_run(folder)
    if run.status != "finished":
        raise ValueError(
            f"{folder} is no finished run ({run.error or run.status}); train it to its end first"
        )
    if (wrong := what_is_wrong(folder / MODEL)) is not None:
        raise ValueError(f"{folder / MODEL} is not whole ({wrong}); train the run again with force=true")
    files = [path for path in sorted((folder / MODEL).iterdir()) if path.name not in (CARD, MANIFEST)]
    return Upload(repo, private, files, model_card(run, licence))


def require_token() -> None:
    """Raise ValueError if the user has no token for the hub."""
    if not get_token():
        raise ValueError(
            "there is no token for the hub: `hf auth login` keeps one, or set HF_TOKEN (write access)"
        )


def push(upload: Upload) -> str:
    """Send it in one commit, making the repository if it is new; return its address."""
    api = HfApi()
    operations = [CommitOperationAdd(file.name, str(file)) for file in upload.files]
    operations.append(CommitOperationAdd(CARD, upload.card.encode()))
    try:
        repo = api.create_repo(upload.repo, private=upload.private, exist_ok=True)
        return str(
            api.create_commit(repo.repo_id, operations, commit_message=f"Add {upload.repo}").commit_url
        )
    except Exception as error:  # whatever the hub or the way to it raises
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"{upload.repo} was not pushed: {reason}; nothing is there by halves, try again"
        ) from error
