"""The ranges of the methods' hyper-parameters, each named once; `contract.py` holds a YAML's values against them."""

from typing import Annotated

from sgdpo.values import Range

Above0 = Annotated[float, Range("(0, 1e6]")]
AtLeast0 = Annotated[float, Range("[0, 1e6]")]
Share = Annotated[float, Range("[0, 1]")]
HalfOpenShare = Annotated[float, Range("(0, 1]")]
BelowHalf = Annotated[float, Range("[0, 0.5)")]
OpenHalf = Annotated[float, Range("(0, 0.5)")]
