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


def test_data_that_no_checker_knows_are_refused_before_anything_is_trained(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "Say a.", "chosen": "a", "rejected": "b"}\n' * 8)
    words = ["data=local", *(f"data.{key}='{rows}'" for key in ("train", "test", "sft"))]
    with pytest.raises(ValueError, match="needs the world of data=verifiable; the run's data is 'local'"):
        demonstrate([f"outputs={tmp_path / 'o'}", *words])
    assert not (tmp_path / "o").exists()
