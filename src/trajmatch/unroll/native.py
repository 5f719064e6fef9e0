"""The functions of `ConvNetGradient` by C++ operators (`cpp/`), for CPUs.

Convolutions are products in tiles of registers, and what lies between two of them is done while it
is in the cache. They are built once on a machine and for all shapes. Where a processor has matrix
instructions that these operators do not use (AMX), or torch's own convolution of some shape was
measured to be faster, that one is called (`convolutions.json`, written by `python -m
benchmarks.tiles`).
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

from trajmatch.runtime.compiling import compiled
from trajmatch.runtime.operators import available
from trajmatch.runtime.processor import multiplies_tiles, processor_kind
from trajmatch.types import Float, Shaped, Tensor
from trajmatch.unroll.convnet import ConvNetGradient, SavedTensors

SOURCE = Path(__file__).parent / "cpp" / "convnet.cpp"
TABLE = "convolutions.json"

FUNCTIONS = ("convolve", "at images", "at filters")
"""A convolution, its gradient at the images, and that at the filters."""

SUMMING = 0.05
"""What the operators save in an unroll beside the time of one convolution: they sum two without
another pass over the result."""

CHANNELS = {"AVX512": 32, "AVX2": 16}
"""A network's width must be a multiple of this, by the processor's capability."""


@runtime_checkable
class ConvNetFunctions(Protocol):
    """As the methods of `ConvNetGradient`."""

    @property
    def logits(self) -> Callable[..., Any]: ...
    @property
    def grad(self) -> Callable[..., Any]: ...
    @property
    def grad_vjp(self) -> Callable[..., Any]: ...


@dataclass(frozen=True)
class NativeConvNet:
    """`ConvNetGradient` by C++ operators."""

    depth: int
    width: int
    bf16: bool

    @staticmethod
    def of(derived: ConvNetGradient, like: Tensor) -> NativeConvNet | None:
        """The operators for vectors like `like`; None where they do not compute in its type or on
        its device, or cannot be built."""
        width, bf16 = derived.shapes[0][0], derived.rounded is not None
        capability = torch.backends.cpu.get_cpu_capability()
        channels = CHANNELS.get(capability)
        computes = like.device.type == "cpu" and like.dtype == torch.float32
        if bf16:
            computes = computes and capability == "AVX512" and "bf16" in processor_kind()
        if not computes or channels is None or width % channels or not available(SOURCE):
            return None
        return NativeConvNet(derived.depth, width, bf16)

    def logits(
        self,
        vector: Float[Tensor, "params"],
        images: Float[Tensor, "batch channels height width"],
    ) -> Float[Tensor, "batch classes"]:
        """As `ConvNetGradient.logits`."""
        found: Tensor = torch.ops.trajmatch.convnet_logits(vector, images, *self._options(images))
        return found

    def grad(
        self,
        vector: Float[Tensor, "params"],
        images: Float[Tensor, "batch channels height width"],
        labels: Shaped[Tensor, "batch ..."],
    ) -> tuple[Float[Tensor, "params"], SavedTensors]:
        """As `ConvNetGradient.grad`."""
        gradient, *saved = torch.ops.trajmatch.convnet_grad(
            vector, images, labels, *self._options(images)
        )
        return gradient, saved

    def grad_vjp(
        self,
        vector: Float[Tensor, "params"],
        labels: Shaped[Tensor, "batch ..."],
        saved: SavedTensors,
        v: Float[Tensor, "params"],
    ) -> tuple[
        Float[Tensor, "params"],
        Float[Tensor, "batch channels height width"],
        Float[Tensor, "batch classes"] | None,
    ]:
        """As `ConvNetGradient.grad_vjp`."""
        hessian_v, images, soft = torch.ops.trajmatch.convnet_grad_vjp(
            vector, labels, saved, v, *self._options(saved[0])
        )
        return hessian_v, images, soft if labels.is_floating_point() else None

    def library(self, shape: tuple[int, ...]) -> list[int]:
        """3 * block + function (by `FUNCTIONS`) of what torch's own convolutions are to compute,
        for images of a shape."""
        return _library(self, *shape) if shape[0] else []

    def _options(self, images: Shaped[Tensor, "_ _ _ _"]) -> tuple[int, int, bool, list[int]]:
        return self.depth, self.width, self.bf16, self.library(tuple(images.shape))


@dataclass(frozen=True)
class Compiled:
    """The functions of a `ConvNetGradient` through a compiler."""

    logits: Callable[..., Any]
    grad: Callable[..., Any]
    grad_vjp: Callable[..., Any]

    @staticmethod
    def of(derived: ConvNetGradient, compiler: Callable[[Any], Any] = compiled) -> Compiled:
        """Each function through `compiler`."""
        functions = derived.logits, derived.grad, derived.grad_vjp
        return Compiled(*(compiler(function) for function in functions))


def fastest(derived: ConvNetGradient, module: nn.Module) -> NativeConvNet | Compiled:
    """The functions of `derived` as C++ operators, or where these cannot be had, compiled."""
    return NativeConvNet.of(derived, next(module.parameters())) or Compiled.of(derived)


# -- which convolutions are torch's own ----------------------------------------------------------


@dataclass(frozen=True)
class Shape:
    """Of a convolution: square images of `size` pixels a side stand for others of as many."""

    channels: int
    out: int
    size: float
    batch: int

    def distance(self, other: Shape) -> float:
        """How much larger one is than the other, in octaves over all sides."""
        both = zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)
        return sum(abs(math.log2(a / b)) for a, b in both)


@functools.lru_cache(maxsize=256)
def _library(net: NativeConvNet, batch: int, channels: int, height: int, breadth: int) -> list[int]:
    chosen = []
    for block in range(net.depth):
        shape = Shape(channels, net.width, math.sqrt(height * breadth), batch)
        for number, function in enumerate(FUNCTIONS):
            if library_is_faster(function, shape, "bf16" if net.bf16 else "float32"):
                chosen.append(3 * block + number)
        channels, height, breadth = net.width, height // 2, breadth // 2
    return chosen


def library_is_faster(function: str, shape: Shape, precision: str) -> bool:
    """What was measured for the nearest shape on this kind of processor.

    Where nothing was: True for a processor that multiplies bfloat16 in tiles of its own (AMX),
    unless there are few channels, whose gradient torch computes slowly.
    """
    rows = [
        row
        for row in measured()
        if (row["processor"], row["precision"], row["function"])
        == (processor_kind(), precision, function)
    ]
    if not rows:
        return precision == "bf16" and multiplies_tiles() and shape.channels >= 16
    nearest = min(rows, key=lambda row: shape.distance(Shape(**row["shape"])))
    return bool(nearest["ratio"] > 1 + SUMMING)


@functools.cache
def measured() -> list[dict[str, Any]]:
    """Rows of the table: processor, precision, function, shape, and `ratio`: the time of the
    operators over that of torch's own convolution."""
    text = resources.files("trajmatch.unroll").joinpath(TABLE).read_text(encoding="utf-8")
    rows: list[dict[str, Any]] = json.loads(text)["rows"]
    return rows
