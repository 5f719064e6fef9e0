"""Differentiable siamese augmentation (DSA): the same kind of random change for real and synthetic
images.

Drawing is separate from applying. `draw` picks which of the six changes a batch gets, and the
parameters of every image; `apply` is then an ordinary function of the images, so that the reverse
of an unrolled student can replay the same draw.

Bo Zhao and Hakan Bilen, "Dataset Condensation with Differentiable Siamese Augmentation", ICML 2021
(arXiv 2102.08259). Details follow the code released with the trajectory-matching paper: mode 'S'
(one change per batch), parameters per image, corner-aligned sampling with zeros outside.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from trajmatch.errors import SettingError, suggest
from trajmatch.types import Float, Int, Tensor

CHANGES = ("color", "crop", "cutout", "flip", "scale", "rotate")


@dataclass(frozen=True, eq=False)
class Draw:
    """A drawn change with its parameters: applying it twice gives the same images.

    `values` hold one number per image under each name; floats are float64 for images of any dtype.
    """

    name: str
    values: dict[str, Tensor]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Draw):
            return NotImplemented
        return (
            self.name == other.name
            and self.values.keys() == other.values.keys()
            and all(torch.equal(value, other.values[key]) for key, value in self.values.items())
        )

    __hash__ = None  # type: ignore[assignment]  # holds tensors, which may be changed in place

    def to(self, device: torch.device | str) -> Draw:
        """The same draw with its numbers on `device`; pays where one draw is applied often."""
        return Draw(self.name, {key: value.to(device) for key, value in self.values.items()})

    def repeat(self, count: int) -> Draw:
        """The draw for `count` images that all have the parameters of this draw for one."""
        return Draw(self.name, {key: value.expand(count) for key, value in self.values.items()})


@dataclass(frozen=True)
class Augmentation:
    """The changes to draw from and their magnitudes; the defaults are the published ones.

    Raises SettingError for a strategy that names anything but the six changes, or one twice.

    Examples:
        >>> import torch
        >>> from trajmatch.data import Augmentation
        >>> from trajmatch.rng import stream
        >>> augmentation = Augmentation("crop_flip")
        >>> images = torch.rand(10, 3, 32, 32)
        >>> draw = augmentation.draw(stream(0, "example"), batch=10, height=32, width=32)
        >>> augmentation.apply(images, draw).shape
        torch.Size([10, 3, 32, 32])
    """

    strategy: str = "color_crop_cutout_flip_scale_rotate"
    """Names of changes joined by underscores; every batch gets one of them, drawn uniformly."""
    brightness: float = 1.0
    """Added to every pixel: uniform in [-brightness/2, brightness/2], in units of the images."""
    saturation: float = 2.0
    """Distance from gray, times uniform [0, saturation]."""
    contrast: float = 0.5
    """Distance from the image's mean, times uniform [contrast, 1 + contrast]."""
    crop: float = 0.125
    """Largest shift along each axis, as a share of that side; uncovered pixels become zero."""
    cutout: float = 0.5
    """Side of the square that is set to zero, as a share of the image's side."""
    flip: float = 0.5
    """Probability of a left-right flip."""
    scale: float = 1.2
    """Each axis is sampled at uniform [1/scale, scale] times its extent (above 1: zoomed out)."""
    rotate: float = 15.0
    """Largest angle in degrees, in both directions."""

    def __post_init__(self) -> None:
        names = self.names
        for name in names:
            if name not in CHANGES:
                raise SettingError(
                    f"unknown augmentation '{name}' in strategy '{self.strategy}'; "
                    f"{suggest(name, CHANGES)}; join several with '_', or pass None for no "
                    "augmentation"
                )
        if len(set(names)) < len(names):
            raise SettingError(
                f"strategy '{self.strategy}' names a change twice; all are equally likely, so name "
                "each once"
            )

    @property
    def names(self) -> tuple[str, ...]:
        """The changes that `draw` picks from."""
        return tuple(self.strategy.split("_"))

    def draw(self, generator: torch.Generator, batch: int, height: int, width: int) -> Draw:
        """Pick one change for `batch` images of `height` x `width` pixels, and its parameters.

        Drawn on the generator's device (rng.stream's is the CPU, for the same numbers everywhere).
        """
        names = self.names
        choice = torch.randint(len(names), (), generator=generator, device=generator.device)
        name = names[int(choice)]
        if name == "color":
            values = {
                "brightness": (_uniform(generator, batch) - 0.5) * self.brightness,
                "saturation": _uniform(generator, batch) * self.saturation,
                "contrast": _uniform(generator, batch) + self.contrast,
            }
        elif name == "crop":
            down, right = _share(height, self.crop), _share(width, self.crop)
            values = {
                "rows": _integers(generator, batch, -down, down),
                "columns": _integers(generator, batch, -right, right),
            }
        elif name == "cutout":
            # The center of the square is uniform over the image, so part of it may lie outside. An
            # even square has its center between pixels, which allows one more position.
            side_y, side_x = _share(height, self.cutout), _share(width, self.cutout)
            values = {
                "top": _integers(generator, batch, 0, height - side_y % 2) - side_y // 2,
                "left": _integers(generator, batch, 0, width - side_x % 2) - side_x // 2,
            }
        elif name == "flip":
            values = {"flipped": _uniform(generator, batch) < self.flip}
        elif name == "scale":
            low, high = 1 / self.scale, self.scale
            values = {
                "horizontal": _uniform(generator, batch) * (high - low) + low,
                "vertical": _uniform(generator, batch) * (high - low) + low,
            }
        else:
            values = {"angle": (_uniform(generator, batch) - 0.5) * 2 * math.radians(self.rotate)}
        return Draw(name, values)

    def apply(
        self, images: Float[Tensor, "batch channels height width"], draw: Draw
    ) -> Float[Tensor, "batch channels height width"]:
        """The images after one draw, on their device and in their dtype; a new tensor.

        Linear in the images for all changes, plus a constant for color, hence differentiable to any
        order. Costs a few sweeps over the batch, without a loop over images: little beside a
        network. Raises SettingError for a draw for another number of images.
        """
        drawn = len(next(iter(draw.values.values())))
        if drawn != len(images):
            raise SettingError(
                f"a draw for {drawn} images was applied to {len(images)}; draw with "
                f"batch={len(images)}"
            )
        v = {key: value.to(images.device) for key, value in draw.values.items()}
        if draw.name == "color":
            return _color(images, v["brightness"], v["saturation"], v["contrast"])
        if draw.name == "crop":
            return _shift(images, v["rows"], v["columns"])
        if draw.name == "cutout":
            return _cutout(images, v["top"], v["left"], self.cutout)
        if draw.name == "flip":
            return torch.where(v["flipped"].view(-1, 1, 1, 1), images.flip(3), images)
        if draw.name == "scale":
            return _scale(images, v["horizontal"], v["vertical"])
        return _rotate(images, v["angle"])


def _uniform(generator: torch.Generator, batch: int) -> Float[Tensor, "batch"]:
    """Uniform in [0, 1), in float64."""
    return torch.rand(batch, generator=generator, dtype=torch.float64, device=generator.device)


def _integers(generator: torch.Generator, batch: int, low: int, high: int) -> Int[Tensor, "batch"]:
    """Integers from `low` to `high`, both included."""
    return torch.randint(low, high + 1, (batch,), generator=generator, device=generator.device)


def _share(side: int, share: float) -> int:
    """A share of a side in pixels, rounded as in the released code."""
    return int(side * share + 0.5)


def _color(
    images: Tensor, brightness: Tensor, saturation: Tensor, contrast: Tensor
) -> Float[Tensor, "batch channels height width"]:
    brightness, saturation, contrast = (
        value.to(images.dtype).view(-1, 1, 1, 1) for value in (brightness, saturation, contrast)
    )
    images = images + brightness
    gray = images.mean(dim=1, keepdim=True)
    images = (images - gray) * saturation + gray
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    return (images - mean) * contrast + mean


def _shift(
    images: Tensor, rows: Tensor, columns: Tensor
) -> Float[Tensor, "batch channels height width"]:
    """Pixel (y, x) of the result is pixel (y + rows, x + columns), or zero outside."""
    batch, channels, height, width = images.shape
    y = torch.arange(height, device=images.device) + rows[:, None]
    x = torch.arange(width, device=images.device) + columns[:, None]
    inside = ((y >= 0) & (y < height))[:, :, None] & ((x >= 0) & (x < width))[:, None, :]
    index = y.clamp(0, height - 1)[:, :, None] * width + x.clamp(0, width - 1)[:, None, :]
    moved = images.flatten(2).gather(2, index.view(batch, 1, -1).expand(-1, channels, -1))
    # where, not a product: an infinite value outside must not turn into NaN.
    return torch.where(inside[:, None], moved.view_as(images), 0)


def _cutout(
    images: Tensor, top: Tensor, left: Tensor, share: float
) -> Float[Tensor, "batch channels height width"]:
    height, width = images.shape[2:]
    y = torch.arange(height, device=images.device) - top[:, None]
    x = torch.arange(width, device=images.device) - left[:, None]
    cut_y = (y >= 0) & (y < _share(height, share))
    cut_x = (x >= 0) & (x < _share(width, share))
    return images.masked_fill((cut_y[:, :, None] & cut_x[:, None, :])[:, None], 0)


def _scale(
    images: Tensor, horizontal: Tensor, vertical: Tensor
) -> Float[Tensor, "batch channels height width"]:
    """Axis-aligned bilinear sampling is separable: one small matrix per image and axis.

    Two batched matrix products are faster than sampling with a grid, and so are their derivatives.
    """
    rows = _interpolation(vertical, images.shape[2], images.dtype)
    columns = _interpolation(horizontal, images.shape[3], images.dtype)
    wide = images.flatten(1, 2) @ columns.mT
    return rows[:, None] @ wide.view_as(images)


def _interpolation(
    factor: Tensor, side: int, dtype: torch.dtype
) -> Float[Tensor, "batch side side"]:
    """Linear interpolation from `side` pixels to as many, sampled at `factor` times their extent.

    A sample beyond the border fades to zero over one pixel, as padding with zeros does.
    """
    position = _centered(side, factor) * factor[:, None] + (side - 1) / 2
    position = position.to(torch.promote_types(dtype, torch.float32))
    pixel = torch.arange(side, dtype=position.dtype, device=position.device)
    return (1 - (position[:, :, None] - pixel).abs()).clamp(min=0).to(dtype)


def _centered(side: int, like: Tensor) -> Tensor:
    """Pixel positions measured from the middle of the side."""
    return torch.arange(side, dtype=like.dtype, device=like.device) - (side - 1) / 2


def _rotate(images: Tensor, angle: Tensor) -> Float[Tensor, "batch channels height width"]:
    """Rotation about the middle, in coordinates where the image is [-1, 1] x [-1, 1]."""
    height, width = images.shape[2:]
    # Sampling positions need more than bfloat16's 8 bits, so everything here is at least float32.
    dtype = torch.promote_types(images.dtype, torch.float32)
    x = _centered(width, angle) * (2 / max(width - 1, 1))
    y = (_centered(height, angle) * (2 / max(height - 1, 1)))[:, None]
    cos, sin = angle.cos()[:, None, None], angle.sin()[:, None, None]
    grid = torch.stack((cos * x - sin * y, sin * x + cos * y), dim=3).to(dtype)
    rotated: Tensor = _Sample.apply(images.to(dtype), grid, False)  # type: ignore[no-untyped-call]
    return rotated.to(images.dtype)


class _Sample(torch.autograd.Function):
    """Bilinear sampling at a fixed grid, or its adjoint: each is the other's derivative.

    torch's own sampling can be differentiated once; with each map as the other's derivative it can
    be any number of times, under autograd and torch.func (torch.compile refuses the second
    derivative: compile the network, not this). Sampling and its derivative as gathers need no such
    class and take three times as long. Pixels align at corners; outside is zero.
    """

    @staticmethod
    def forward(images: Tensor, grid: Tensor, adjoint: bool) -> Tensor:
        if not adjoint:
            return functional.grid_sample(
                images, grid, mode="bilinear", padding_mode="zeros", align_corners=True
            )
        result: Tensor = torch.ops.aten.grid_sampler_2d_backward(
            images.contiguous(), images, grid, 0, 0, True, [True, False]
        )[0]  # 0, 0: bilinear, zeros. Its second argument is read for its shape alone here.
        return result

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, bool], output: Tensor) -> None:
        _, grid, ctx.adjoint = inputs
        ctx.save_for_backward(grid)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, None, None]:
        (grid,) = ctx.saved_tensors
        if not torch.is_grad_enabled():  # no further derivative follows, and apply is slow
            return _Sample.forward(gradients[0], grid, not ctx.adjoint), None, None
        images: Tensor = _Sample.apply(gradients[0], grid, not ctx.adjoint)  # type: ignore[no-untyped-call]
        return images, None, None
