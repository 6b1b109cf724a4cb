"""How speed and memory scale: with sequence length, with the completion's share of it, with the vocabulary."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from lab.bench import rounds
from lab.bench.rounds import Variant, fixed_lengths
from sgdpo.drawing.style import ACCURACY, CHOSEN, MARGIN, QUIET, REJECTED, label_end, save, styled
from sgdpo.store import write_json

LENGTHS = (128, 256, 512, 1024, 2048)
SHARES = (0.1, 0.25, 0.5, 0.75, 0.9)
VOCABULARIES = (32_000, 64_000, 128_000, 152_000)
LAYOUTS = (("shared_prefix", "chunked"), ("separate", "chunked"), ("padded", "dense"))
# A body small enough that the vocabulary is what costs; the same for every size of it.
VOCABULARY_MODEL = {
    "model_type": "llama",
    "hidden_size": 512,
    "intermediate_size": 1024,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "tie_word_embeddings": True,
}

COLOURS = (CHOSEN, REJECTED, MARGIN, ACCURACY)
# A range wider than this takes logarithmic axes.
WIDE = 10

Say = Callable[[str], None]


def by_length(base: Variant, vocabulary: int, lengths: tuple[int, ...], say: Say) -> list[dict[str, Any]]:
    """Measure against sequence length: prompt and completion half each."""
    return [
        _point(replace(base, layout=layout, head=head), length, (length // 2, length // 2), vocabulary, say)
        for length in lengths
        for layout, head in LAYOUTS
    ]


def by_share(base: Variant, vocabulary: int, length: int, say: Say) -> list[dict[str, Any]]:
    """Measure against the completion's share of a sequence of `length` tokens."""
    found = []
    for share in SHARES:
        completion = max(1, round(share * length))
        for layout, head in LAYOUTS:
            variant = replace(base, layout=layout, head=head)
            found.append(_point(variant, share, (length - completion, completion), vocabulary, say))
    return found


def by_vocabulary(
    base: Variant, length: int, vocabularies: tuple[int, ...], say: Say
) -> list[dict[str, Any]]:
    """Measure against the vocabulary at a fixed size of the rest, random weights."""
    found = []
    for size in vocabularies:
        for layout, head in (LAYOUTS[0], ("shared_prefix", "dense"), LAYOUTS[2]):
            model = {**VOCABULARY_MODEL, "vocab_size": size, "max_position_embeddings": 2 * length}
            variant = replace(base, model=model, layout=layout, head=head)
            found.append(_point(variant, size, (length // 2, length // 2), size, say))
    return found


def _point(variant: Variant, x: float, lengths: tuple[int, int], vocabulary: int, say: Say) -> dict[str, Any]:
    examples = fixed_lengths(2 * variant.batch, *lengths, vocabulary, seed=0)
    ((measurement,),) = rounds.run_rounds([variant], examples, 1, lambda line: say(f"{x:,}  {line}"))
    return {
        "x": x,
        "series": f"{variant.layout.replace('_', ' ')}, {variant.head} head",
        "pairs_per_second": measurement.pairs_per_second,
        "memory_mb": measurement.memory_mb,
    }


def draw(points: list[dict[str, Any]], y: str, labels: tuple[str, str], path: Path, note: str) -> None:
    """Draw one labelled line for each series, a note below, and write the numbers beside the picture, as JSON."""
    with styled():
        figure = Figure(figsize=(7, 4), layout="constrained")
        axes, ends = figure.subplots(), []
        for series, colour in zip(dict.fromkeys(p["series"] for p in points), COLOURS, strict=False):
            mine = [point for point in points if point["series"] == series]
            axes.plot([p["x"] for p in mine], [p[y] for p in mine], marker="o", linewidth=2, color=colour)
            ends.append((mine[-1][y], series, colour))
        axes.set_xlabel(labels[0])
        axes.set_ylabel(labels[1])
        if max(p[y] for p in points) > WIDE * min(p[y] for p in points):
            axes.loglog()
            axes.minorticks_off()
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter("{x:g}")
        else:
            axes.set_ylim(bottom=0)
        xs = sorted({p["x"] for p in points})
        axes.set_xticks(xs, [f"{x:,}" for x in xs])
        label_end(axes, ends)
        figure.supxlabel(note, fontsize=7.5, color=QUIET, x=0.01, ha="left")
        save(figure, path)
    write_json(path.with_suffix(".json"), points)
