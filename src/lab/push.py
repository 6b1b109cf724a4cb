"""Take a finished run's model elsewhere: an adapter with its base as one model, or all to the Hugging Face hub."""

from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi, get_token

from lab.evaluation.settings import read_config
from sgdpo.config.schema import ModelConfig
from sgdpo.hub import HUB_ID, first_line
from sgdpo.models.folder import BASE, is_adapter
from sgdpo.runs.card import model_card
from sgdpo.runs.contents import why_not_trusted
from sgdpo.runs.records import MODEL, RunView, view_run
from sgdpo.store import MANIFEST, read_json, what_is_wrong

CARD = "README.md"


@dataclass(frozen=True)
class Upload:
    """Hold what goes to the hub: a repository's name, the files, the card's text and where it comes from."""

    repo: str
    private: bool
    files: list[Path]
    card: str
    card_from: str

    def __str__(self) -> str:
        size = sum(file.stat().st_size for file in self.files) / 2**20
        names = ", ".join([*(file.name for file in self.files), f"{CARD} ({self.card_from})"])
        return f"{self.repo} ({'private' if self.private else 'public'}): {names}; {size:.1f} MiB"


def plan_upload(
    folder: Path, repo: str, *, private: bool, licence: str | None, card: Path | None = None
) -> Upload:
    """Return what a push would send.

    card: the user's own; None makes one of the record. Raise ValueError if the run is not finished, its weights are not
    whole or of no use without this machine, or the card cannot be read.
    """
    if not HUB_ID.fullmatch(repo):
        raise ValueError(f"{repo!r} is no name of a repository on the hub; it looks like YOU/NAME")
    run, source = _finished(folder), folder / MODEL
    if is_adapter(source) and (base := read_json(source / BASE))["beside"] is not None:
        raise ValueError(
            f"{folder} holds an adapter, and its base is on this machine alone ({base['path']}): nobody could load it"
            " from the hub. Write both as one model, with scripts/merge.py RUN FOLDER, and upload that folder with"
            " `hf upload`; or train with adapter.merge=true"
        )
    # Not adapter/, which lies beside whole weights for whoever has their base.
    files = [p for p in sorted(source.iterdir()) if p.is_file() and p.name not in (CARD, MANIFEST)]
    if card is None:
        made = "made of the record now; --card FILE sends yours"
        return Upload(repo, private, files, model_card(run, licence), made)
    try:
        return Upload(repo, private, files, card.read_text("utf-8"), f"yours, {card}")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"--card {card} cannot be read: {error}") from error


def merge_adapter(folder: Path, target: Path, trusted: bool = False) -> None:
    """Write a finished run's adapter and its base as one model into a new folder; the run stays as it is.

    trusted: Python code that the model brings may run.
    """
    from sgdpo.models.load import load_model, load_tokenizer  # torch and all that

    run, source = _finished(folder), folder / MODEL
    if not is_adapter(source):
        raise ValueError(f"{source} holds a whole model already: there is nothing to merge")
    config = read_config(folder)
    if config.adapter.quantise:
        raise ValueError(
            f"{folder} was trained on weights of 4 bits, and its adapter cannot be merged into them: what was learned"
            " would be rounded away; evaluation, sampling and chat take the run as it is"
        )
    if wrong := why_not_trusted(config.model, trusted):
        raise ValueError(f"{folder} {wrong}".replace("trust_remote_code=true", "--trust-remote-code"))
    if target.exists():
        raise ValueError(f"{target} is there already; name a new folder")
    model = ModelConfig(name=run.name, path=str(source), trust_remote_code=trusted)
    unfinished = target.with_name(f"{target.name}.partial")
    for part in (load_model(model, seed=0), load_tokenizer(model)):
        part.save_pretrained(unfinished)
    unfinished.rename(target)


def _finished(folder: Path) -> RunView:
    """Return a run. Raise ValueError if it is not finished or its weights are not whole."""
    run = view_run(folder)
    if run.status == "broken":
        raise ValueError(run.error)
    if run.status != "finished":
        raise ValueError(
            f"{folder} is no finished run ({run.error or run.status}); train it to its end first"
        )
    if (wrong := what_is_wrong(folder / MODEL)) is not None:
        raise ValueError(f"{folder / MODEL} is not whole ({wrong}); train the run again with force=true")
    return run


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
        raise ValueError(
            f"{upload.repo} was not pushed: {first_line(error)}; nothing is there by halves, try again"
        ) from error
