"""Read, render, tokenise and cut the rows of one split, and count what happens to them.

Order of the policies: a row that cannot be trained on (refused), an empty answer, then two identical answers,
then a tie; a dropped row is counted under the first that drops it, while `ties`, `identical` and `empty` count
what the set holds. Two answers are identical if their tokens are, trained or not, after truncation.

Truncation, the same for both sides: the prompt from the left to max_prompt_length (a beginning-of-text token
stays), then each completion from the right to what max_length leaves beside the prompt.
"""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from typing import Any

import numpy as np
from tqdm import tqdm

from sgdpo.config.schema import DataConfig
from sgdpo.data.conversation import Rendered, cut_prompt, join, render_conversation, render_pair, tokenise
from sgdpo.data.example import Example
from sgdpo.data.rows import RefusedError, Rows, pair_row, row_weight, sft_row
from sgdpo.data.sources import check_columns
from sgdpo.store import hash_number

_BATCH = 256
SIDES = ("prompt", "chosen", "rejected")
DROPPED = ("refused", "empty", "identical", "ties")


@dataclass
class _Draft:
    """Hold a row between reading and tokenising: the rendered sides, what it weighs, and its scores."""

    number: int
    sides: list[Rendered]
    weight: float | None
    scores: tuple[float, float] | None = None


@dataclass
class Tokeniser:
    """Tokenise one split: `examples` once, then `counts`."""

    data: DataConfig
    phase: str
    tokenizer: Any
    source: Rows
    limit: int | None
    tally: Counter[str] = field(default_factory=Counter)
    lengths: list[tuple[int, int, int]] = field(default_factory=list)
    refusal: str = ""
    seen: Counter[int] = field(default_factory=Counter)
    weighted: bool | None = None  # whether rows say what they weigh; the first one decides

    def examples(self) -> Iterator[Example]:
        """Yield the examples that remain, in the source's order. Raises ValueError if none does."""
        rows = enumerate(islice(self.source.read(), self.limit))
        count = self.source.count()
        total = min(count, self.limit or count)
        with tqdm(total=total, desc=f"tokenising {self.source.name}", unit="row", disable=None) as bar:
            while batch := list(islice(rows, _BATCH)):
                drafts = [draft for number, row in batch if (draft := self._draft(number, row))]
                yield from self._tokenise(drafts)
                bar.update(len(batch))
        if not self.lengths:
            dropped = {reason: self.tally[f"drop/{reason}"] for reason in DROPPED}
            dropped["of weight 0"] = self.tally["weightless"]
            reasons = ", ".join(f"{count} {reason}" for reason, count in dropped.items() if count)
            first = f"; the first refused: {self.refusal}" if self.refusal else ""
            raise ValueError(
                f"{self.source.name}: none of {self.tally['read']} rows is left after filtering ({reasons}); "
                f"look at data.ties, data.identical, data.empty and data.refused{first}"
            )

    def counts(self) -> dict[str, Any]:
        """Return what happened, as the record keeps it."""
        lengths = np.array(self.lengths)
        sides = SIDES if self.phase == "preference" else SIDES[:2]
        return {
            "source": self.source.name,
            "read": self.tally["read"],
            "kept": len(self.lengths),
            "cut": {side: self.tally[f"cut/{side}"] for side in sides},
            "dropped": {reason: self.tally[f"drop/{reason}"] for reason in DROPPED},
            **{
                key: self.tally[key]
                for key in ("ties", "identical", "empty", "typed", "unscored", "unknown", "weightless")
            },
            "weighted": bool(self.weighted),
            "refusal": self.refusal,
            "lengths": {side: _statistics(lengths[:, column]) for column, side in enumerate(sides)},
        }

    def _draft(self, number: int, row: dict[str, Any]) -> _Draft | None:
        """Read and render a row; None if it is refused or has an empty answer, which the policies drop."""
        check_columns(self.source.name, row, self.phase)
        self.tally["read"] += 1
        try:
            if (weight := self._weight(row)) == 0:
                self.tally["weightless"] += 1
                return None
            if self.phase == "sft":
                return self._sft_draft(number, row, weight)
            pair = pair_row(row)
            self.tally["ties"] += pair.tie
            self.tally["unscored"] += pair.unscored
            if self._empty(pair.chosen, pair.rejected):
                # An empty pair may be an identical one too; the counts say what the set holds.
                self.tally["identical"] += pair.chosen.strip() == pair.rejected.strip()
                return None
            sides = render_pair(self.tokenizer, pair.prompt, *pair.answers)
            return _Draft(number, sides, weight, pair.scores)
        except RefusedError as error:
            refusal = f"{self.source.name}, row {number}: {error}"
            if self.data.refused == "error":
                raise ValueError(f"{refusal}; leave such rows out with data.refused=drop") from None
            self.refusal = self.refusal or refusal
            self.tally["drop/refused"] += 1
            return None
        except ValueError as error:
            raise ValueError(f"{self.source.name}, row {number}: {error}") from None

    def _weight(self, row: dict[str, Any]) -> float | None:
        weight = row_weight(row, self.data.weights)
        self.weighted = weight is not None if self.weighted is None else self.weighted
        if self.weighted != (weight is not None):
            has, had = ("no weight", "have one") if self.weighted else ("a weight", "have none")
            raise ValueError(
                f"it has {has}, the rows before it {had}; give every row one, or data.weights=ignore"
            )
        return weight

    def _sft_draft(self, number: int, row: dict[str, Any], weight: float | None) -> _Draft | None:
        messages = sft_row(row)
        if self._empty(*(m["content"] for m in messages[1:] if m["role"] == "assistant")):
            return None
        return _Draft(number, [render_conversation(self.tokenizer, messages)], weight)

    def _empty(self, *answers: str) -> bool:
        if all(answer.strip() for answer in answers):
            return False
        if self.data.empty == "error":
            raise ValueError("an answer is empty; correct the row, or drop such rows with data.empty=drop")
        self.tally["empty"] += 1
        self.tally["drop/empty"] += 1
        return True

    def _tokenise(self, drafts: Sequence[_Draft]) -> Iterator[Example]:
        pieces = iter(tokenise(self.tokenizer, [side for draft in drafts for side in draft.sides]))
        for draft in drafts:
            sides = [next(pieces) for _ in draft.sides]
            self.tally["typed"] += any(side.typed for side in draft.sides)
            self.tally["unknown"] += any(self._unknown in piece for side in sides for piece in side)
            example = self._example(draft, sides)
            if not self._dropped(draft, example):
                self.lengths.append(
                    tuple(map(len, (example.prompt_ids, example.chosen_ids, example.rejected_ids)))
                )
                yield example

    @cached_property
    def _unknown(self) -> int | None:
        """Return the id of what the vocabulary lacks; None if it lacks nothing or the id ends texts as well."""
        unknown = self.tokenizer.unk_token_id
        return None if unknown in (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id) else unknown

    def _example(self, draft: _Draft, sides: list[list[list[int]]]) -> Example:
        """Cut a row to the maximum lengths. A conversation without a rejected side gets an empty one."""
        assert all(side[0] == sides[0][0] for side in sides), "both sides begin with the same prompt ids"
        prompt = cut_prompt(sides[0][0], self.data.max_prompt_length, self.tokenizer.bos_token_id)
        room = self.data.max_length - len(prompt)
        assert room > 0, "data_errors wants max_prompt_length < max_length"
        whole = [join(side, rendered) for side, rendered in zip(sides, draft.sides, strict=True)]
        ids = [np.array(tokens[:room], np.int32) for tokens, _ in whole]
        for name, before, after in zip(
            SIDES, (sides[0][0], *(t for t, _ in whole)), (prompt, *ids), strict=False
        ):
            self.tally[f"cut/{name}"] += len(after) < len(before)
        score_chosen, score_rejected = draft.scores or (math.nan, math.nan)
        return Example(
            example_id=self._example_id(draft.sides),
            prompt_ids=np.array(prompt, np.int32),
            chosen_ids=ids[0],
            rejected_ids=ids[1] if len(ids) > 1 else np.empty(0, np.int32),
            chosen_mask=np.array(whole[0][1][:room], bool),
            rejected_mask=np.array(whole[1][1][:room], bool) if len(ids) > 1 else None,
            score_chosen=score_chosen,
            score_rejected=score_rejected,
            weight=draft.weight,
            row=draft.number,
        )

    def _example_id(self, sides: Sequence[Rendered]) -> int:
        """Hash the rendered texts, what of them is trained, and how often they came before: a row twice is two."""
        texts = (sides[0].pieces[0][0], *(side.text for side in sides))
        row = "".join(f"{len(text)}:{text}" for text in texts)
        if not all(trained for side in sides for _, trained in side.pieces[1:]):
            # The reference's log-probs of the trained tokens are found by the id.
            row += str([[(len(text), trained) for text, trained in side.pieces[1:]] for side in sides])
        base = hash_number(row)
        self.seen[base] += 1
        return hash_number(f"{row}#{self.seen[base] - 1}") >> 1

    def _dropped(self, draft: _Draft, example: Example) -> bool:
        if not example.chosen_mask.any() or not (
            example.rejected_mask is None or example.rejected_mask.any()
        ):
            self.tally["drop/empty"] += 1  # all that is trained of a side lies beyond the maximum length
            return True
        identical = self.phase == "preference" and np.array_equal(example.chosen_ids, example.rejected_ids)
        self.tally["identical"] += identical
        tie = draft.scores is not None and draft.scores[0] == draft.scores[1]
        for reason, holds in (("identical", identical), ("ties", tie)):
            if holds and getattr(self.data, reason) == "drop":
                self.tally[f"drop/{reason}"] += 1
                return True
        return False


def _statistics(lengths: np.ndarray) -> dict[str, float]:
    return {
        "mean": round(float(lengths.mean()), 2),
        "median": float(np.median(lengths)),
        "p95": float(np.percentile(lengths, 95)),
        "max": int(lengths.max()),
    }
