"""The shape vocabulary: `Float[Tensor, "steps params"]` in every public signature.

Under pytest these are jaxtyping's types and every call is checked against them (tests/conftest.py
sets TRAJMATCH_CHECK_SHAPES and installs the hook). In production they are plain `Tensor`, and
jaxtyping need not be installed.

Names of dimensions used throughout:
    n, batch        images             classes          label classes
    channels height width              params           P, the length of a parameter vector
    steps           N, student steps   epochs           recorded epochs, the initialization included
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING or os.environ.get("TRAJMATCH_CHECK_SHAPES"):
    from jaxtyping import Bool, Float, Int, Shaped, UInt8
else:

    class _Unchecked:
        def __class_getitem__(cls, item: tuple[Any, str]) -> Any:
            return item[0]

    Bool = Float = Int = Shaped = UInt8 = _Unchecked

__all__ = ["Bool", "Float", "Int", "Shaped", "Size", "Tensor", "UInt8"]

Size = int | tuple[int, int]
"""Side of square images in pixels, or (height, width)."""
