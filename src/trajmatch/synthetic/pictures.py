"""Images as PNG: files in a folder per class, and in HTML."""

from __future__ import annotations

import base64
import html
import io
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


def data_url(content: bytes, kind: str = "image/png") -> str:
    """The address of an image that a page holds in itself."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def pictures_html(
    pixels: UInt8[Tensor, "n channels height width"],
    labels: list[int],
    classes: tuple[str, ...],
    *,
    most_classes: int = 20,
    each: int = 10,
) -> str:
    """A table with a row of pictures for each class: the first `each` of the first `most_classes`,
    and in words how many more there are."""
    rows = []
    present = sorted(set(labels))
    for label in present[:most_classes]:
        places = [place for place, own in enumerate(labels) if own == label]
        cells = "".join(_image_element(pixels[place]) for place in places[:each])
        more = f" and {len(places) - each} more" if len(places) > each else ""
        rows.append(f"<tr><th>{html.escape(classes[label])}</th><td>{cells}{more}</td></tr>")
    if len(present) > most_classes:
        more = f"and {len(present) - most_classes} more classes"
        rows.append(f"<tr><th></th><td>{more}</td></tr>")
    return f"<table>{''.join(rows)}</table>"


def _image_element(pixels: UInt8[Tensor, "channels height width"]) -> str:
    file = io.BytesIO()
    _picture(pixels).save(file, "PNG")
    height = pixels.shape[1] * max(1, round(48 / pixels.shape[1]))  # every pixel equally large
    style = "image-rendering: pixelated; margin: 1px"
    return f'<img src="{data_url(file.getvalue())}" height="{height}" style="{style}">'


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
