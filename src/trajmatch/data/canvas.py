"""Canvases: synthetic images larger than a network's input, which it sees through a window.

A canvas is a torus: what leaves it on one side comes in on the other. At every step the window lies
somewhere else, all places equally likely, so that no pixel is nearer to an edge than another. What
is learned is a texture: copies of it laid side by side show no seam.

As in `augment`, drawing and applying are two acts, so that a walk can be traced backwards:

    Window(32, 32).draw(generator, batch=10, tall=64, wide=64).apply(canvases)

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
    """Where each of some canvases is cropped, decided: applying it twice gives the same images.

    Crop s of canvas i begins in row `rows[s, i]` and column `columns[s, i]`, counted on around the
    canvas, and is image s * canvases + i.
    """

    rows: Int[Tensor, "samples canvases"]
    columns: Int[Tensor, "samples canvases"]
    height: int
    """Of a crop, in pixels."""
    width: int

    def to(self, device: torch.device | str) -> Crops:
        """The same crops with their places on `device`."""
        return Crops(self.rows.to(device), self.columns.to(device), self.height, self.width)

    def apply(
        self, canvases: Float[Tensor, "canvases channels tall wide"]
    ) -> Float[Tensor, "crops channels height width"]:
        """The crops, wrapped around the canvases' edges, as a new tensor.

        Linear, every pixel being one of a canvas; so differentiable to any order, the derivative
        adding up each pixel of a canvas over the crops that show it.
        """
        samples, count = self.rows.shape
        channels, tall, wide = canvases.shape[1:]
        y = (self.rows[:, :, None] + torch.arange(self.height, device=self.rows.device)) % tall
        x = (self.columns[:, :, None] + torch.arange(self.width, device=self.rows.device)) % wide
        places = (y[:, :, :, None] * wide + x[:, :, None, :]).to(canvases.device)
        places = places.view(samples, count, 1, -1).expand(-1, -1, channels, -1)
        found = canvases.flatten(2).expand(samples, -1, -1, -1).gather(3, places)
        return found.reshape(samples * count, channels, self.height, self.width)

    def repeat(self, labels: Shaped[Tensor, "canvases ..."]) -> Shaped[Tensor, "crops ..."]:
        """The canvases' labels, one for each crop."""
        return labels.repeat(len(self.rows), *[1] * (labels.ndim - 1))


@dataclass(frozen=True)
class CropSampler:
    """What a network sees of a canvas: `samples` crops of its input's size at a time."""

    height: int
    width: int
    samples: int = 1

    def draw(self, generator: torch.Generator, batch: int, tall: int, wide: int) -> Crops:
        """Crops of `batch` canvases of `tall` x `wide` pixels, anywhere on them.

        Drawn on the generator's device (rng.stream's is the CPU, for the same numbers everywhere).
        """
        shape, device = (self.samples, batch), generator.device
        rows = torch.randint(tall, shape, generator=generator, device=device)
        columns = torch.randint(wide, shape, generator=generator, device=device)
        return Crops(rows, columns, self.height, self.width)

    def grid(self, tall: int, wide: int) -> tuple[int, int]:
        """How many rows and columns of windows cover a canvas of that height and width."""
        return -(-tall // self.height), -(-wide // self.width)

    def cover(self, generator: torch.Generator, batch: int, tall: int, wide: int) -> Crops:
        """The fewest crops, evenly spaced, that together show every pixel of `batch` canvases.

        Where the first lies is drawn for each canvas, so that they are as random ones are: not at
        the seams of what a canvas was laid with, nor between them.
        """
        down, across = self.grid(tall, wide)
        first = replace(self, samples=1).draw(generator, batch, tall, wide)
        rows, columns = torch.arange(down) * tall // down, torch.arange(across) * wide // across
        spaced = torch.cartesian_prod(rows, columns).to(generator.device)
        return Crops(
            first.rows + spaced[:, :1], first.columns + spaced[:, 1:], self.height, self.width
        )

    def lay(
        self, images: Float[Tensor, "n channels height width"], tall: int, wide: int
    ) -> Float[Tensor, "canvases channels tall wide"]:
        """Canvases of that height and width, each laid with as many images as cover it; those at
        the lower and right edge are cut off."""
        down, across = self.grid(tall, wide)
        channels = images.shape[1]
        tiles = images.view(-1, down, across, channels, self.height, self.width)
        whole = tiles.permute(0, 3, 1, 4, 2, 5).reshape(
            len(tiles), channels, down * self.height, across * self.width
        )
        return whole[:, :, :tall, :wide].contiguous()
