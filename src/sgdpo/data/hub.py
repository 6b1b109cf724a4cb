"""Read data sets from the Hugging Face hub."""

from functools import cache
from typing import Any

from sgdpo.data.files import split_location
from sgdpo.data.rows import Rows
from sgdpo.hub import from_hub, hub_commit
from sgdpo.store import hash_json


def read(
    phase: str,
    split: str,
    *,
    train: str | None = None,
    test: str | None = None,
    sft: str | None = None,
    sft_test: str | None = None,
    train_split: str = "train",
    test_split: str = "test",
    sft_split: str = "train",
    sft_test_split: str = "test",
    subset: str | None = None,
    revision: str | None = None,
) -> Rows | None:
    """Return the rows of a split; nothing is asked of the hub before they are read.

    subset: the configuration of the sets, where they have several. revision: branch, tag or commit; null: the newest.
    """
    name, part = split_location(
        phase, split, (train, train_split), (test, test_split), (sft, sft_split), (sft_test, sft_test_split)
    )
    if name is None:
        if split == "test":
            return None
        raise ValueError("data.train is not set; name a data set on the hub, e.g. data=ultrafeedback")

    @cache
    def loaded() -> Any:
        from datasets import load_dataset

        return from_hub(
            lambda: load_dataset(name, subset, split=part, revision=revision),
            f"the data set {name!r} (split {part!r})",
        )

    return Rows(
        name=f"{name} ({part})",
        read=lambda: iter(loaded()),
        count=lambda: len(loaded()),
        key=lambda memory=None: hash_json([name, subset, part, hub_commit(name, revision, "dataset")]),
        remote=True,
    )
