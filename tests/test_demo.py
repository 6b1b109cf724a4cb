"""The demonstration: what it cannot show is said before it trains anything (CI runs it whole)."""

from pathlib import Path

import pytest

from lab.demo import demonstrate


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("optimizer.lr=-1", "optimizer.lr must be a positive number, not -1.0"),
        ("init=pretrained", "no init=pretrained"),
        ("method=nca", "no other method"),
        ("dry_run=true", "no dry_run=true"),
        ("seed=-1", "seed"),
        ("optimizer.batch_size=0", "optimizer.batch_size"),
        ("model=local", "model"),
        ("init=scratch", "init"),
        ("+typo=1", "typo"),
    ],
)
def test_a_wrong_word_is_one_error_before_anything_is_trained(tmp_path: Path, word: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        demonstrate([f"outputs={tmp_path / 'o'}", word])
    assert not (tmp_path / "o").exists()
