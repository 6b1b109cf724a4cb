"""What each precision means: how weights are held, who updates them, and what follows for memory and rounding."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Precision:
    """Hold the facts of a precision.

    bf16: matrix products run in bfloat16. lean: the weights themselves are bfloat16. moments: bytes of AdamW's state
    for a parameter. ratio_limit: mean |log-ratio| of a token at step 0 that rounding alone explains, nats.
    compensated: AdamW carries on what rounding took. optimizer, optimizer_args: transformers' names of another AdamW,
    and package: what that needs.
    """

    bf16: bool
    moments: int
    # In float32 only the order of sums differs; in bf16 a packed row rounds otherwise than the row that filled the
    # cache. Dropout or a wrong template gives ten times more.
    ratio_limit: float
    lean: bool = False
    compensated: bool = False
    optimizer: str | None = None
    optimizer_args: str | None = None
    package: str | None = None


PRECISIONS = {
    "float32": Precision(bf16=False, moments=8, ratio_limit=1e-3),
    "bf16": Precision(bf16=True, moments=8, ratio_limit=5e-2),
    "lean": Precision(bf16=True, lean=True, moments=6, ratio_limit=5e-2, compensated=True),
    "lean8": Precision(
        bf16=True, lean=True, moments=2, ratio_limit=5e-2, optimizer="adamw_torch_8bit",
        optimizer_args="bf16_stochastic_round=True", package="torchao",
    ),
}  # fmt: skip
