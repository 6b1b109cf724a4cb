"""Pairs small enough to work out by hand, random ones, and the methods as their YAML files bind them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor

from sgdpo import keyed
from sgdpo.method import Method, bind_method
from sgdpo.mixtures import needs_of, with_parts
from sgdpo.pairs import DrawKey, Pair, Side
from sgdpo.pilot import POLICY, Place
from sgdpo.selects import uniform

CONF = Path(__file__).resolve().parents[1] / "conf"
METHODS = tuple(sorted(path.stem for path in (CONF / "method").glob("*.yaml")))


def method_yaml(name: str) -> dict[str, Any]:
    """Read conf/method/NAME.yaml as the binder sees it."""
    config = OmegaConf.to_container(OmegaConf.load(CONF / "method" / f"{name}.yaml"))
    config.pop("defaults", None)
    return with_parts(config)


def pilot_yaml(name: str, **changes: Any) -> dict[str, Any]:
    """Read conf/pilot/NAME.yaml over the defaults that it names, with changed keys (`size` is merged)."""
    config: dict[str, Any] = {}
    for file in dict.fromkeys(("uniform", name)):
        given = OmegaConf.to_container(OmegaConf.load(CONF / "pilot" / f"{file}.yaml"))
        config |= given | {"size": {**config.get("size", {}), **given.get("size", {})}}
    config.pop("defaults", None)
    return config | changes | {"size": {**config["size"], **changes.get("size", {})}}


def bind(name: str, ratio: tuple[float, float] = (0.6, 0.9), **changes: Any) -> Method:
    """Bind a method of `conf/method`, with changed hyper-parameters and, if it takes them, ratios."""
    config = with_parts(method_yaml(name) | changes)
    needs = needs_of(config)
    given = dict(zip(("chosen", "rejected"), ratio, strict=True)) if needs["ratios"] else {}
    return bind_method(config, given, pilot=PILOT if needs.get("pilot") else None)


def takes(name: str, need: str) -> bool:
    """Tell whether a method's YAML says that it needs something."""
    return bool(needs_of(method_yaml(name)).get(need))


PREFERENCE = tuple(name for name in METHODS if method_yaml(name)["phase"] == "preference")
REFERENCED = tuple(name for name in PREFERENCE if takes(name, "reference"))
DRAWN = tuple(name for name in PREFERENCE if takes(name, "draws"))


PILOT = pilot_yaml("uniform")


def side(logp: list[list[float]], reference: list[list[float]] | None) -> Side:
    """Make a side from ragged lists of log-probs, float64, padded on the right with 0.

    Its log sum p^2 is 0.9 times the log-prob and its entropy half of its negative, and it shares the tokens below -1
    nat, so that methods that ask find some.
    """
    width = max(map(len, logp))
    mask = torch.tensor([[t < len(row) for t in range(width)] for row in logp])
    padded = [_padded(rows, width) if rows else None for rows in (logp, reference)]
    return Side(padded[0].clone().requires_grad_(), padded[1], mask, _features(padded[0]))


def toy_pair(example_id: int = 7) -> Pair:
    """Return the pair that the hand-derived values are about.

    chosen, 3 tokens: d = (0.4, 0.3, -0.1), R_w = 0.6. rejected, 2 tokens: d = (-0.5, 0.3), R_l = -0.2.
    So n_w = 3, n_l = 2, m = 2 and h = 0.8.
    """
    chosen = side([[-1.0, -0.5, -0.7]], [[-1.4, -0.8, -0.6]])
    rejected = side([[-2.0, -1.0]], [[-1.5, -1.3]])
    return _scored(chosen, rejected, torch.tensor([example_id]))


def random_pair(lengths: list[tuple[int, int]], seed: int = 0, spread: float = 2.0) -> Pair:
    """Return pairs of the given (chosen, rejected) lengths with random log-probs and references, float64."""
    generator = torch.Generator().manual_seed(seed)

    def draw(counts: list[int]) -> list[list[float]]:
        return [(-spread * torch.rand(n, generator=generator, dtype=torch.float64)).tolist() for n in counts]

    counts = [list(column) for column in zip(*lengths, strict=True)]
    chosen, rejected = (side(draw(column), draw(column)) for column in counts)
    return _scored(chosen, rejected, torch.randint(-(2**62), 2**62, (len(lengths),), generator=generator))


def at_step_0(pair: Pair) -> Pair:
    """Return the pair with the policy equal to the reference."""

    def equal(part: Side) -> Side:
        logp_BT = part.reference_BT.clone()
        return replace(part, logp_BT=logp_BT.requires_grad_(), features=_features(logp_BT.detach()))

    return replace(pair, chosen=equal(pair.chosen), rejected=equal(pair.rejected))


def gradients(loss_B: Tensor, pair: Pair) -> tuple[Tensor, Tensor]:
    """Return d(sum of losses) / d logp of both sides, shapes BT; zeros where nothing flows."""
    inputs = (pair.chosen.logp_BT, pair.rejected.logp_BT)
    return torch.autograd.grad(loss_B.sum(), inputs, allow_unused=True, materialize_grads=True)


def _features(logp_BT: Tensor) -> dict[str, Tensor]:
    shared = (logp_BT < -1).double()
    return {"log_p2": 0.9 * logp_BT, "entropy": -0.5 * logp_BT, "shared": shared}


def _scored(chosen: Side, rejected: Side, example_id_B: Tensor) -> Pair:
    """Score the chosen answers 8 and the rejected ones 6."""
    score_w_B = torch.full(example_id_B.shape, 8.0, dtype=torch.float64)
    return Pair(chosen, rejected, example_id_B, score_w_B, score_w_B - 2)


def _padded(rows: list[list[float]], width: int) -> Tensor:
    return torch.tensor([row + [0.0] * (width - len(row)) for row in rows], dtype=torch.float64)


def draw_subset(
    mask_BT: Tensor, size_B: Tensor, example_id_B: Tensor, side: int, draws: DrawKey, stream: int = POLICY
) -> Tensor:
    """Draw `size_B` tokens of each example by the paper's pilot, bool BT; the sizes are given, not a ratio's."""
    key_B = keyed.mix64_(example_id_B + keyed.signed(keyed.fold(draws.seed, draws.epoch, side, stream)))
    return uniform(Place(Side(mask_BT, None, mask_BT), mask_BT, size_B, side, key_B))
