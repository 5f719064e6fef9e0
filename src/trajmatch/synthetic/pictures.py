"""Images as PNG files, in a folder per class."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from trajmatch.types import Tensor, UInt8


def save_pictures(
    pixels: UInt8[Tensor, "n channels height width"],
    labels: list[int],
    classes: tuple[str, ...],
    folder: Path,
) -> None:
    """One PNG per image, numbered within its class: RGB for 3 channels, else the mean as gray."""
    names, counts = folder_names(classes), [0] * len(classes)
    folder.mkdir()
    for image, label in zip(pixels, labels, strict=True):
        place = folder / names[label]
        place.mkdir(exist_ok=True)
        _picture(image).save(place / f"{counts[label]:05d}.png")
        counts[label] += 1


def save_textures(
    tiles: UInt8[Tensor, "canvases channels tall wide"],
    labels: list[int],
    classes: tuple[str, ...],
    folder: Path,
) -> None:
    """Two PNGs per canvas in its class's folder: the canvas, and three by three of it."""
    names, counts = folder_names(classes), [0] * len(classes)
    folder.mkdir()
    for tile, label in zip(tiles, labels, strict=True):
        place, number = folder / names[label], f"-{counts[label]}" if counts[label] else ""
        place.mkdir(exist_ok=True)
        _picture(tile).save(place / f"tile{number}.png")
        _picture(tile.repeat(1, 3, 3)).save(place / f"tiling{number}.png")
        counts[label] += 1


def folder_names(classes: tuple[str, ...]) -> tuple[str, ...]:
    """Class names as folder names that are valid on every file system and all different.

    Examples:
        >>> folder_names(("cat", "Cat", "a/c", "con"))
        ('cat', 'Cat-1', 'a_c', 'con-3')
    """
    names: list[str] = []
    for index, name in enumerate(classes):
        safe = re.sub(r"[^\w .+-]", "_", name)[:60].strip(" .")
        reserved = re.fullmatch(r"(?i)con|prn|aux|nul|com\d|lpt\d", safe.split(".")[0])
        if not safe or reserved or safe.casefold() in {n.casefold() for n in names}:
            safe = f"{safe}-{index}" if safe else str(index)
        while safe.casefold() in {n.casefold() for n in names}:
            safe += "_"
        names.append(safe)
    return tuple(names)


def _picture(pixels: UInt8[Tensor, "channels height width"]) -> Any:
    from PIL import Image

    if len(pixels) == 3:
        return Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
    return Image.fromarray(pixels.float().mean(0).round().to(torch.uint8).numpy())
