"""The pairs a benchmark runs on: generated ids with UltraFeedback-like lengths, fixed lengths, or real rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from sgdpo.data.example import Example

# Medians and spreads (of the logarithm) of prompt and completion lengths, tokens, fitted to UltraFeedback's
# training preferences under SmolLM2's tokenizer; chosen and rejected lengths are correlated, as they are
# there.
PROMPT_MEDIAN, PROMPT_SPREAD = 105.0, 0.95
COMPLETION_MEDIAN, COMPLETION_SPREAD = 240.0, 0.85
CORRELATION = 0.6


def ultrafeedback_like(count: int, vocabulary: int, max_length: int, seed: int) -> list[Example]:
    """Return pairs of random ids with UltraFeedback-like lengths; the longest is cut to `max_length` tokens."""
    draw = np.random.default_rng(seed)
    prompt = _lognormal(draw.standard_normal(count), PROMPT_MEDIAN, PROMPT_SPREAD)
    shared, own = draw.standard_normal(count), draw.standard_normal((2, count))
    sides = np.sqrt(CORRELATION) * shared + np.sqrt(1 - CORRELATION) * own
    prompt = np.clip(prompt, 8, max_length // 2)
    completions = np.clip(_lognormal(sides, COMPLETION_MEDIAN, COMPLETION_SPREAD), 2, max_length - prompt)
    return [
        _random_pair(draw, index, lengths, vocabulary)
        for index, lengths in enumerate(zip(prompt, *completions, strict=True))
    ]


def fixed_lengths(count: int, prompt: int, completion: int, vocabulary: int, seed: int) -> list[Example]:
    """Return pairs of random ids that all have the same lengths: for the scaling plots."""
    draw = np.random.default_rng(seed)
    return [_random_pair(draw, index, (prompt, completion, completion), vocabulary) for index in range(count)]


def _lognormal(normal: np.ndarray, median: float, spread: float) -> np.ndarray:
    return np.exp(np.log(median) + spread * normal).astype(np.int64)


def _random_pair(
    draw: np.random.Generator, index: int, lengths: tuple[int, int, int], vocabulary: int
) -> Example:
    low = min(10, vocabulary // 2)
    ids = [draw.integers(low, vocabulary, int(length), dtype=np.int32) for length in lengths]
    return Example(index, *ids, np.ones(len(ids[1]), bool))


def save(path: Path, examples: list[Example]) -> None:
    """Write pairs to one npz file, flat ids and lengths, for a process that measures."""
    sides = [(e.prompt_ids, e.chosen_ids, e.rejected_ids) for e in examples]
    lengths = np.array([[len(ids) for ids in side] for side in sides])
    flat = np.concatenate([ids for side in sides for ids in side])
    np.savez(path, lengths=lengths, flat=flat, ids=np.array([e.example_id for e in examples]))


def load(path: Path) -> list[Example]:
    """Read what `save` wrote."""
    with np.load(path) as file:
        lengths, flat, ids = file["lengths"], file["flat"], file["ids"]
    pieces = np.split(flat, np.cumsum(lengths.flatten())[:-1])
    return [
        Example(int(ids[row]), *pieces[3 * row : 3 * row + 3], np.ones(int(lengths[row, 1]), bool))
        for row in range(len(ids))
    ]
