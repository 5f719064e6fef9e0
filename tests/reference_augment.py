"""The augmentation as the released code does it, but one image at a time: slow and plain."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from trajmatch.data.augment import Augmentation, Draw


def augment(dsa: Augmentation, images: Tensor, draw: Draw) -> Tensor:
    """The slow twin of `Augmentation.apply`."""
    changed = []
    for i, image in enumerate(images):
        values = {name: value[i].item() for name, value in draw.values.items()}
        changed.append(CHANGES[draw.name](dsa, image, **values))
    return torch.stack(changed)


def color(
    dsa: Augmentation, image: Tensor, brightness: float, saturation: float, contrast: float
) -> Tensor:
    image = image + brightness
    gray = sum(image[c] for c in range(len(image))) / len(image)
    image = torch.stack([(channel - gray) * saturation + gray for channel in image])
    mean = image.sum() / image.numel()
    return (image - mean) * contrast + mean


def crop(dsa: Augmentation, image: Tensor, rows: int, columns: int) -> Tensor:
    _, height, width = image.shape
    moved = torch.zeros_like(image)
    for y in range(height):
        for x in range(width):
            if 0 <= y + rows < height and 0 <= x + columns < width:
                moved[:, y, x] = image[:, y + rows, x + columns]
    return moved


def cutout(dsa: Augmentation, image: Tensor, top: int, left: int) -> Tensor:
    # Indices are clamped to the image, as the released code does, not compared with a range.
    _, height, width = image.shape
    image = image.clone()
    for y in range(top, top + int(height * dsa.cutout + 0.5)):
        for x in range(left, left + int(width * dsa.cutout + 0.5)):
            image[:, min(max(y, 0), height - 1), min(max(x, 0), width - 1)] = 0
    return image


def flip(dsa: Augmentation, image: Tensor, flipped: bool) -> Tensor:
    return image.flip(2) if flipped else image


def scale(dsa: Augmentation, image: Tensor, horizontal: float, vertical: float) -> Tensor:
    return sample(image, [[horizontal, 0, 0], [0, vertical, 0]])


def rotate(dsa: Augmentation, image: Tensor, angle: float) -> Tensor:
    cos, sin = math.cos(angle), math.sin(angle)
    return sample(image, [[cos, -sin, 0], [sin, cos, 0]])


def sample(image: Tensor, affine: list[list[float]]) -> Tensor:
    theta = torch.tensor([affine], dtype=image.dtype)
    grid = F.affine_grid(theta, [1, *image.shape], align_corners=True)
    return F.grid_sample(image[None], grid, align_corners=True, padding_mode="zeros")[0]


CHANGES = {
    "color": color,
    "crop": crop,
    "cutout": cutout,
    "flip": flip,
    "scale": scale,
    "rotate": rotate,
}
