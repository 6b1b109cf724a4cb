"""Keyed sampling noise: a prompt's sample depends on (seed, prompt, step) and on nothing else.

The Gumbel-max trick: argmax(logits / temperature + g) with independent standard Gumbel g is an exact draw
from softmax(logits / temperature). Here g is a hash of (key of the prompt, step, token), so that greedy
decoding with this noise samples, and the draw does not depend on the batch, its order, or the device's random
state.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor
from transformers import LogitsProcessor

_GOLDEN = 0x9E3779B97F4A7C15
_FIRST, _SECOND = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def prompt_key(seed: int, prompt_id: str) -> int:
    """Return a signed 64-bit key of (seed, prompt id), the same on every machine."""
    digest = hashlib.blake2b(f"{seed}/{prompt_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def gumbel_noise(key_B: Tensor, step: int, size: int) -> Tensor:
    """Return standard Gumbel noise, float64, shape (B, size), a pure function of its arguments.

    key_B: int64, one key a row. step: 0-based count of new tokens. size: the vocabulary.
    """
    token_V = torch.arange(size, dtype=torch.int64, device=key_B.device)
    row_B1 = _mix(key_B + _signed((step + 1) * _GOLDEN))[:, None]
    bits_BV = _mix(row_B1 + (token_V + 1) * _signed(_GOLDEN))
    # 53 random bits, centred: never 0 and never 1, so both logarithms are finite.
    uniform_BV = (_shift(bits_BV, 11).double() + 0.5) * 2.0**-53
    return -torch.log(-torch.log(uniform_BV))


class GumbelProcessor(LogitsProcessor):
    """Turn greedy decoding into keyed sampling: scores + Gumbel noise of (key, step, token)."""

    def __init__(self, key_B: Tensor, prompt_length: int):
        self.key_B, self.prompt_length = key_B, prompt_length

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return the noisy scores, float64, shape (B, V); columns that were ruled out (-inf) stay so."""
        step = input_ids.shape[1] - self.prompt_length
        return scores.double() + gumbel_noise(self.key_B, step, scores.shape[1])


def _mix(x: Tensor) -> Tensor:
    """Scramble 64 bits (the finaliser of splitmix64); int64 wraps around as the unsigned form does."""
    x = (x ^ _shift(x, 30)) * _signed(_FIRST)
    x = (x ^ _shift(x, 27)) * _signed(_SECOND)
    return x ^ _shift(x, 31)


def _shift(x: Tensor, bits: int) -> Tensor:
    # torch shifts int64 arithmetically; the mask makes it the logical shift.
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _signed(x: int) -> int:
    x &= (1 << 64) - 1
    return x - (1 << 64) if x >> 63 else x
