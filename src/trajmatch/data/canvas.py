"""Canvases: synthetic images larger than a network's input, of which it gets random crops.

A canvas wraps around: a crop that leaves it on one side continues on the opposite one. Every step
draws new crops, uniformly over all positions, so that no pixel is nearer to an edge than another.
The result is a texture: copies of it side by side show no seam.

As in `augment`, drawing is separate from applying, so that the reverse of an unrolled student can
replay the same crops:

    CropSampler(32, 32).draw(generator, batch=10, tall=64, wide=64).apply(canvases)

George Cazenavette, Tongzhou Wang, Antonio Torralba, Alexei A. Efros, Jun-Yan Zhu, "Wearable
ImageNet: Synthesizing Tileable Textures via Dataset Distillation", CVPR Workshops 2022. The order
of crops is that of the released code.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from trajmatch.types import Float, Int, Shaped, Tensor


@dataclass(frozen=True, eq=False)
class Crops:
    """Drawn positions of crops on a batch of canvases: applying them twice gives the same images.

    Crop s of canvas i begins in row `rows[s, i]` and column `columns[s, i]`, modulo the canvas, and
    becomes image s * canvases + i.
    """

    rows: Int[Tensor, "samples canvases"]
    columns: Int[Tensor, "samples canvases"]
    height: int
    """Of each crop, in pixels."""
    width: int
    """Of each crop, in pixels."""

    def to(self, device: torch.device | str) -> Crops:
        """The same crops with their positions on `device`."""
        return Crops(self.rows.to(device), self.columns.to(device), self.height, self.width)

    def apply(
        self, canvases: Float[Tensor, "canvases channels tall wide"]
    ) -> Float[Tensor, "crops channels height width"]:
        """The crops, wrapped around the edges of the canvases, as a new tensor.

        Linear (each pixel is copied from a canvas), hence differentiable to any order; the gradient
        of a canvas pixel is the sum over the crops that contain it.
        """
        samples, count = self.rows.shape
        channels, tall, wide = canvases.shape[1:]
        y = (self.rows[:, :, None] + torch.arange(self.height, device=self.rows.device)) % tall
        x = (self.columns[:, :, None] + torch.arange(self.width, device=self.rows.device)) % wide
        index = (y[:, :, :, None] * wide + x[:, :, None, :]).to(canvases.device)
        index = index.view(samples, count, 1, -1).expand(-1, -1, channels, -1)
        pixels = canvases.flatten(2).expand(samples, -1, -1, -1).gather(3, index)
        return pixels.reshape(samples * count, channels, self.height, self.width)

    def repeat(self, labels: Shaped[Tensor, "canvases ..."]) -> Shaped[Tensor, "crops ..."]:
        """The label of each crop, in the order of `apply`."""
        return labels.repeat(len(self.rows), *[1] * (labels.ndim - 1))


@dataclass(frozen=True)
class CropSampler:
    """Draws `samples` crops per canvas, of the size of a network's input.

    Examples:
        >>> import torch
        >>> from trajmatch.data.canvas import CropSampler
        >>> from trajmatch.rng import stream
        >>> sampler = CropSampler(height=8, width=8, samples=2)
        >>> crops = sampler.draw(stream(0, "example"), batch=10, tall=16, wide=16)
        >>> crops.apply(torch.zeros(10, 3, 16, 16)).shape
        torch.Size([20, 3, 8, 8])
    """

    height: int
    """Of a crop, in pixels."""
    width: int
    """Of a crop, in pixels."""
    samples: int = 1
    """Crops per canvas."""

    def draw(self, generator: torch.Generator, batch: int, tall: int, wide: int) -> Crops:
        """Crops at uniform positions of `batch` canvases of `tall` x `wide` pixels.

        Drawn on the generator's device (rng.stream's is the CPU, for the same numbers everywhere).
        """
        shape, device = (self.samples, batch), generator.device
        rows = torch.randint(tall, shape, generator=generator, device=device)
        columns = torch.randint(wide, shape, generator=generator, device=device)
        return Crops(rows, columns, self.height, self.width)

    def grid(self, tall: int, wide: int) -> tuple[int, int]:
        """Rows and columns of crops that cover a canvas of that height and width."""
        return -(-tall // self.height), -(-wide // self.width)

    def cover(self, generator: torch.Generator, batch: int, tall: int, wide: int) -> Crops:
        """The fewest evenly spaced crops that contain every pixel of `batch` canvases.

        The position of the first one is drawn per canvas, so that the crops have no fixed place
        relative to the images that a canvas was assembled from.
        """
        down, across = self.grid(tall, wide)
        first = replace(self, samples=1).draw(generator, batch, tall, wide)
        rows, columns = torch.arange(down) * tall // down, torch.arange(across) * wide // across
        spaced = torch.cartesian_prod(rows, columns).to(generator.device)
        return Crops(
            first.rows + spaced[:, :1], first.columns + spaced[:, 1:], self.height, self.width
        )

    def tile(
        self, images: Float[Tensor, "n channels height width"], tall: int, wide: int
    ) -> Float[Tensor, "canvases channels tall wide"]:
        """Canvases of that height and width, each assembled from as many images as cover it; those
        at the lower and right edge are cut off."""
        down, across = self.grid(tall, wide)
        channels = images.shape[1]
        tiles = images.view(-1, down, across, channels, self.height, self.width)
        assembled = tiles.permute(0, 3, 1, 4, 2, 5).reshape(
            len(tiles), channels, down * self.height, across * self.width
        )
        return assembled[:, :, :tall, :wide].contiguous()
