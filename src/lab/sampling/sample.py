"""Sample K answers to every prompt of a data set, score them, and keep the best against the worst as pairs.

The folder holds train.jsonl and test.jsonl (pairs with scores, as data=sampled reads them), answers-*.jsonl (every
answer with its score) and, last, pairs.json with the counts, the cost and all that the pairs depend on. What was
answered, scored or paid for is kept in the cache: the same command continues a killed one.
"""

import logging
import re
import shlex
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from lab.answers.generate import Generator, generate, open_generator
from lab.answers.prompts import Prompt, Sample
from lab.sampling.pairs import REASONS, Candidate, make_pair
from lab.sampling.scorers import SCORER, Answered, Scorer, open_scorer, score
from lab.sampling.settings import SampleConfig, model_of, sample_errors
from lab.serving.endpoint import MOST_UNUSABLE
from sgdpo.config.compose import quoted
from sgdpo.config.schema import ModelConfig
from sgdpo.contract import build
from sgdpo.data.instructions import PAIRS
from sgdpo.data.rows import RefusedError, prompt_row
from sgdpo.data.sources import load_rows
from sgdpo.drawing.table import Table, number
from sgdpo.runs.records import differences
from sgdpo.store import hash_json, held, read_json, write_json, write_jsonl

log = logging.getLogger("sgdpo")


@dataclass(frozen=True)
class Asked:
    """Hold a prompt that is answered: the row it came from, and the conversation."""

    row: Mapping[str, Any]
    messages: tuple[Mapping[str, str], ...]

    @property
    def prompt_id(self) -> str:
        return hash_json([dict(turn) for turn in self.messages], 16)


def sample(config: SampleConfig, model: ModelConfig | None = None) -> Path:
    """Return the folder of the pairs, made now unless they are there. Raise ValueError with all that is wrong.

    model: whose answers, where more than a name is to be said; None: `config.policy`.
    """
    if errors := sample_errors(config, policy=model is None):
        raise ValueError("\n".join(errors))
    cache = Path(config.cache)
    with ExitStack() as stack:
        generator = stack.enter_context(open_generator(config.generator, cache, config.extra))
        scorer = stack.enter_context(
            open_scorer(config.scorer, config.judge, cache, config.device, config.extra)
        )
        if generator.of_run:
            policy = model or model_of(config.policy, config.cache, config.trust_remote_code)
            generator = generator.of(policy, config.device)
        asked = find_prompts(config, scorer, generator)
        identity = _identity(config, generator, scorer, asked)
        folder = _folder(config, generator, identity)
        with held(cache / "locks" / f"pairs-{hash_json(str(folder.resolve()))}", "these pairs"):
            if not _is_done(folder, identity):
                _make(config, generator, scorer, asked, identity, folder)
    return folder


def find_prompts(
    config: SampleConfig, scorer: Scorer, generator: Generator | None = None
) -> dict[str, list[Asked]]:
    """Return the prompts of each split. Raise ValueError for none, and for one whose answers cannot be scored.

    What a template refuses, the scorer's or the generator's, follows `data.refused`, as in training.
    """

    def fits(asked: Asked) -> None:
        if generator is not None:
            generator.fits(Prompt(asked.prompt_id, asked.messages))
        scorer.fits(Answered(asked.row, asked.messages, ""))

    return {split: found for split in ("train", "test") if (found := _prompts(config, split, fits))}


def prompt_errors(config: SampleConfig, parts: int = 1) -> list[str]:
    """List what is wrong with the prompts of a sampling that is sound otherwise; reads all of them.

    parts: into how many they are to be divided.
    """
    try:
        asked = find_prompts(config, build(SCORER, config.scorer, config.extra))
    except ValueError as error:
        return str(error).split("\n")
    return [
        f"{len(found)} {split} prompts cannot be divided into {parts} parts, one a round"
        for split, found in asked.items()
        if len(found) < parts
    ]


def _prompts(config: SampleConfig, split: str, fits: Callable[[Asked], None]) -> list[Asked]:
    """Return the different prompts of a split that are asked, in the source's order."""
    if split == "test" and config.splits == "train":
        return []
    rows = load_rows(config.data, "prompts", split, config.extra)
    if rows is None:
        return []
    limit = config.data.limit if split == "train" else config.data.test_limit
    found: dict[str, Asked] = {}
    refused: list[str] = []
    read = 0
    for read, row in enumerate(islice(rows.read(), limit), 1):
        try:
            asked = Asked(row, tuple(prompt_row(row)))
            fits(asked)
        except ValueError as error:
            wrong = f"row {read - 1}: {error}"
            if not isinstance(error, RefusedError):
                raise ValueError(f"{rows.name}, {wrong}") from None
            if config.data.refused == "error":
                raise ValueError(
                    f"{rows.name}, {wrong}; leave such rows out with data.refused=drop"
                ) from None
            refused.append(wrong)
            continue
        found.setdefault(asked.prompt_id, asked)
    if twice := read - len(refused) - len(found):
        log.info("%s: %d prompts that come again are asked once", rows.name, twice)
    if refused:
        log.warning("%s: %d rows are left out; the first: %s", rows.name, len(refused), refused[0])
    chosen = list(found.values())[config.part :: config.parts]
    if not chosen:
        first = f" ({refused[0]})" if refused else ""
        raise ValueError(
            f"{rows.name} leaves no prompt: {read} rows read, {len(refused)} refused{first}, part {config.part} of "
            f"{config.parts}"
        )
    return chosen


def _identity(
    config: SampleConfig, generator: Generator, scorer: Scorer, asked: Mapping[str, Sequence[Asked]]
) -> dict[str, Any]:
    """Return all that the pairs depend on."""
    return {
        "data": config.data.name,
        # The whole rows: a scorer may hold an answer against any column.
        "prompts": {
            split: hash_json([repr(sorted(a.row.items())) for a in found], 24)
            for split, found in asked.items()
        },
        "generator": generator.identity(),
        "answers": config.answers,
        "sampling": vars(config.sampling()),
        "scorer": scorer.identity(),
        "margin": config.margin,
    }


def _folder(config: SampleConfig, generator: Generator, identity: Mapping[str, Any]) -> Path:
    if config.into is not None:
        return Path(config.into).expanduser()
    who = Path(config.policy).name if generator.of_run else config.generator["name"]
    return Path(config.outputs) / "sampled" / f"{config.data.name}-{who}-{hash_json(identity, 8)}"


def _is_done(folder: Path, identity: Mapping[str, Any]) -> bool:
    there = read_json(folder / PAIRS, default=None)
    if there is None:
        # A sampling that was killed has left the answers beside its pairs.
        for split in ("train", "test"):
            if (folder / f"{split}.jsonl").exists() and not (folder / f"answers-{split}.jsonl").exists():
                raise ValueError(
                    f"{folder}/{split}.jsonl is no sampling's and would be lost; give another into=..."
                )
        return False
    if there["identity"] != identity:
        raise ValueError(
            f"{folder} holds pairs of another sampling ({differences(there['identity'], identity)}); "
            "give another into=..., or remove it"
        )
    log.info("%s is there already and is not sampled again", folder)
    return True


def _make(
    config: SampleConfig, generator: Generator, scorer: Scorer, asked: Mapping[str, Sequence[Asked]],
    identity: Mapping[str, Any], folder: Path,
) -> None:  # fmt: skip
    began, splits = time.monotonic(), {}
    for split, prompts in asked.items():
        log.info("%s: %d answers to each of %d prompts", split, config.answers, len(prompts))
        samples = _answers(generator, prompts, config)
        flat = [
            Answered(asked.row, asked.messages, each.text)
            for asked, several in zip(prompts, samples, strict=True)
            for each in several
        ]
        scores = score(scorer, flat, Path(config.cache))
        splits[split] = _write(config, folder, split, prompts, samples, scores)
    write_json(folder / PAIRS, {
        "identity": identity, "policy": config.policy if generator.of_run else None, "splits": splits,
        "seconds": round(time.monotonic() - began, 1), "generation_cost": generator.cost(),
        "scoring_cost": scorer.cost(),
    })  # fmt: skip


def _answers(generator: Generator, prompts: Sequence[Asked], config: SampleConfig) -> list[list[Sample]]:
    """Return K answers to each prompt; each has noise of its own, whatever else is asked."""
    count = config.answers
    asked = [Prompt(f"{p.prompt_id}/{k}", p.messages) for p in prompts for k in range(count)]
    samples = generate(generator, asked, config.sampling(), Path(config.cache))
    return [samples[start : start + count] for start in range(0, len(samples), count)]


def _write(
    config: SampleConfig, folder: Path, split: str, prompts: Sequence[Asked], samples: Sequence[Sequence[Sample]],
    scores: Sequence[float | None],
) -> dict[str, Any]:  # fmt: skip
    """Write a split's answers and pairs; return its counts. Raise ValueError if no pair is left."""
    counts: Counter[str] = Counter(prompts=len(prompts), answers=len(scores))
    left, pairs, answers = iter(scores), [], []
    for asked, several in zip(prompts, samples, strict=True):
        candidates = [Candidate(each.text, next(left), each.problem) for each in several]
        prompt = asked.messages[0]["content"] if len(asked.messages) == 1 else list(map(dict, asked.messages))
        own = {"prompt": prompt, **{k: v for k, v in asked.row.items() if k in ("topic", "constraints")}}
        answers += [
            {**own, **asdict(each), "score": c.score} for each, c in zip(several, candidates, strict=True)
        ]
        if pair := make_pair(candidates, config.margin, counts):
            sides = dict(zip(("chosen", "rejected"), pair, strict=True))
            pairs.append({**own, **{side: c.text for side, c in sides.items()},
                          **{f"score_{side}": c.score for side, c in sides.items()}})  # fmt: skip
    write_jsonl(folder / f"answers-{split}.jsonl", answers)
    _refuse_few(split, counts, folder)
    write_jsonl(folder / f"{split}.jsonl", pairs)
    cut = sum(several[0].prompt_cut for several in samples)
    return {**counts, "prompts_cut": cut, **_means(answers, pairs)}


def _refuse_few(split: str, counts: Counter[str], folder: Path) -> None:
    """Raise ValueError if no pair is left, or more than 5 % of the answers have no score: the rest would mislead."""
    reasons = ", ".join(f"{counts[key]} {words}" for key, words in REASONS.items() if counts[key])
    of = f"{counts['pairs']} of {counts['prompts']} {split} prompts"
    if counts["unscored"] > MOST_UNUSABLE * counts["answers"]:
        raise ValueError(
            f"{counts['unscored']} of {counts['answers']} {split} answers have no score, or none that is a "
            f"number, over {MOST_UNUSABLE:.0%}; {of} are left ({reasons or 'none left out'}). All answers are kept in "
            f"{folder}; look at them, or take another scorer"
        )
    if not counts["pairs"]:
        raise ValueError(
            f"{of} are left: {reasons}. All answers are kept in {folder}; raise temperature or answers, lower margin, "
            "or take a scorer that tells them apart"
        )
    if reasons:
        log.info("%s are left; left out: %s", of, reasons)


def _means(answers: Sequence[Mapping[str, Any]], pairs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    tokens = [row["tokens"] for row in answers if row["tokens"] is not None]
    means = {
        "score": _mean([row["score"] for row in answers if row["score"] is not None]),
        "chosen": _mean([row["score_chosen"] for row in pairs]),
        "rejected": _mean([row["score_rejected"] for row in pairs]),
        "tokens": _mean(tokens),
        "ended": 1 - _mean([row["truncated"] for row in answers]),
    }
    return {"means": means, "tokens": sum(tokens)}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def folder_word(folder: Path) -> str:
    """Return the setting of a run that trains on a folder of pairs, as one types it into a shell."""
    plain = re.fullmatch(r"[\w./+-]+", str(folder))
    return shlex.quote(f"data.folder={folder if plain else quoted(str(folder))}")


def show(folder: Path) -> Table:
    """Return what a folder of pairs holds as a table, a split a line, with what it cost below."""
    found = read_json(folder / PAIRS)
    header = ["split", "prompts", "answers", "pairs", "duplicates", "one score", "below margin", "no score",
              "mean score", "chosen", "rejected", "tokens", "ended, %"]  # fmt: skip
    rows = []
    for split, counts in found["splits"].items():
        keys = ("prompts", "answers", "pairs", "duplicates", "same_score", "below_margin", "unscored")
        means = counts["means"]
        shown = [number(means[key], 3) for key in ("score", "chosen", "rejected")]
        shown += [number(means["tokens"], 1), number(100 * means["ended"], 1)]
        rows.append([split, *[str(counts.get(key, 0)) for key in keys], *shown])
    facts = [f"sampled and scored in {found['seconds']:.0f} s, what the cache held not counted"]
    for key, what in (("generation_cost", "answers"), ("scoring_cost", "judgments")):
        if cost := found[key]:
            tokens = cost["prompt_tokens"] + cost["completion_tokens"]
            facts.append(
                f"{cost['requests']} {what} paid for, {tokens} tokens, {cost['dollars']:.4f} dollars"
            )
    return Table("sampled", "", header, rows, 1, facts)
