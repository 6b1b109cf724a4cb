"""The constraints benchmark: a program decides what share of each held-out instruction's constraints an answer meets.

It knows nothing of the run's data: the instructions are a function of its own settings, their topics never those that
training draws from. Loops, empty talk and answers that do not end are counted beside.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any

from lab.answers.prompts import Prompt, Sample
from lab.benchmarks.benchmark import Sampled
from lab.judging.judges import JudgeRequest
from sgdpo.values import Range

Few = Annotated[int, Range("[1, 10]")]


@dataclass(kw_only=True)
class Constraints(Sampled):
    """Check the answers to instructions of conf/constraint's kinds."""

    decides = "checker"

    instructions: Annotated[int, Range("[1, 1000000]")] = 400
    held_out: bool = True
    drawn_with: Annotated[int, Range("[0, 4294967296)")] = 0
    least: Few = 2
    most: Few = 3
    kinds: list[str] | None = None

    def errors(self) -> list[str]:
        if self.least > self.most:
            return ["benchmark.least must not exceed benchmark.most"]
        try:
            self.known  # noqa: B018 what is wrong with a kind is found before anything is answered
        except ValueError as error:
            return str(error).split("\n")
        return []

    @cached_property
    def known(self) -> dict[str, Any]:
        from sgdpo.constraints.kinds import load_kinds

        return load_kinds(self.kinds)

    @cached_property
    def asked(self) -> list[Any]:
        from sgdpo.constraints.instructions import draw_instructions

        how = {"combined": (self.least, self.most), "seed": self.drawn_with, "held_out": self.held_out}
        return list(draw_instructions(self.known, self.instructions, **how))[: self.limit]

    def prompts(self) -> list[Prompt]:
        return [Prompt.user(asked.instruction_id, asked.prompt) for asked in self.asked]

    def questions(self, samples: Sequence[Sample], repeat: int = 0) -> list[JudgeRequest]:
        """Return every answer with the checker's score and what it is made of."""
        from sgdpo.constraints.checker import check

        requests = []
        for asked, sample in zip(self.asked, samples, strict=True):
            found = check(asked, sample.text, self.known)
            facts = {
                "met": found.met, "kept": dict(zip([c.kind for c in asked.constraints], found.kept, strict=True)),
                "loops": found.loops, "empty": found.empty, "repetition": found.repetition,
                "ended": not sample.truncated,
            }  # fmt: skip
            requests.append(JudgeRequest(prompt_id=sample.prompt_id, decided=found.total, facts=facts))
        return requests

    def summarise(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Return the numbers; shares in per cent, each with its standard error and the ends of its 95 % interval."""
        from lab.benchmarks.statistics import share

        shares = {
            "constraint_rate": [row["met"] for row in rows],
            "all_met": [row["met"] == 1 for row in rows],
            "looping": [row["loops"] > 0 for row in rows],
            "empty": [row["empty"] > 0 for row in rows],
            "ended": [row["ended"] for row in rows],
            "repetition": [row["repetition"] for row in rows],
        }
        found = super().summarise(rows)
        for name, values in shares.items():
            found |= share(values).fields(name)
        return {**found, "by_kind": self._by_kind(rows)}

    def _by_kind(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """Return the share of answers that keep it, per cent, for each kind that was asked for."""
        kept: dict[str, list[bool]] = {}
        for row in rows:
            for kind, value in row["kept"].items():
                kept.setdefault(kind, []).append(value)
        return {kind: 100 * sum(values) / len(values) for kind, values in sorted(kept.items())}

    def inputs(self) -> dict[str, Any]:
        from sgdpo.data.instructions import sources
        from sgdpo.store import hash_json

        return {"code": hash_json([*sources(), *[kind.source for kind in self.known.values()]])}
