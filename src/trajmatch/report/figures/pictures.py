"""Pictures for a page that stands alone: the set by class, and a strip of snapshots over time.

Everything is a PNG inside a data: address, small and enlarged by the browser without smoothing.
"""

from __future__ import annotations

import io
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from trajmatch.errors import DataError, FileFormatError
from trajmatch.report.figures import theme
from trajmatch.report.figures.sampling import every
from trajmatch.storage.files import open_tensors
from trajmatch.synthetic import SyntheticSet
from trajmatch.synthetic.pictures import data_url
from trajmatch.types import Float, Int, Shaped, Tensor, UInt8
from trajmatch.units import NBSP

GALLERY_BYTES = 6_000_000
"""Raw pixels of the final set that a page carries at most; a third more as text."""
TIMELINE_BYTES = 450_000
TIMELINE_FRAMES = 40
_TIMELINE_PICTURES = 60
_TIMELINE_SIDE = 64
_NAME = 20
"""Letters of a class name below a picture with soft labels, at most."""


@dataclass(frozen=True)
class Picture:
    url: str
    alt: str
    caption: str
    """The likeliest classes of a soft label; else empty."""


@dataclass(frozen=True)
class Group:
    """The pictures of one class; `count` of the set, of which `pictures` are shown."""

    name: str
    count: int
    pictures: tuple[Picture, ...]


@dataclass(frozen=True)
class Gallery:
    """A set's pictures by class, and the size in CSS pixels they are shown at."""

    groups: tuple[Group, ...]
    width: int
    height: int
    note: str
    """What is left out or made smaller; empty when nothing is."""


@dataclass(frozen=True)
class Frame:
    iteration: int
    url: str


@dataclass(frozen=True)
class Timeline:
    """Sprites of the same pictures at several iterations: `columns` to a row, each side by side."""

    frames: tuple[Frame, ...]
    names: tuple[str, ...]
    columns: int
    side: tuple[int, int]
    """(width, height) of a picture in the sprite."""
    width: int
    height: int
    note: str
    unreadable: tuple[str, ...]


def png(picture: UInt8[Tensor, "channels height width"], colors: int | None = None) -> bytes:
    """A picture as PNG: gray for one channel, RGB for three, else the channels' mean in gray.

    `colors` reduces RGB to a palette of so many, a third of the bytes.
    """
    if picture.shape[0] == 3:
        image = Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy(), mode=None)
        if colors is not None:
            # An octree is as close as a median cut here, and a hundred times faster.
            octree, none = Image.Quantize.FASTOCTREE, Image.Dither.NONE
            image = image.quantize(colors, method=octree, dither=none)
    else:
        gray = picture[0] if picture.shape[0] == 1 else picture.float().mean(0).to(torch.uint8)
        image = Image.fromarray(gray.contiguous().numpy())
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return file.getvalue()


def pictures_of(
    distilled: SyntheticSet,
) -> tuple[UInt8[Tensor, "n channels height width"], Shaped[Tensor, "n ..."]]:
    """The pictures of a set and their labels; of a set of textures each canvas, repeated three by
    three."""
    tiles = distilled.tiles()
    if tiles is None:
        return distilled.pixels(), distilled.labels
    return tiles.repeat(1, 1, 3, 3), distilled.labels[: len(tiles)]


def clipped_share(distilled: SyntheticSet) -> float:
    """The share, from 0 to 1, of a set's pixel values that 8 bits cannot show: those that round to
    less than 0 or more than 255 with the whitening undone."""
    images = distilled.images if distilled.canvases is None else distilled.canvases
    values = (distilled.whitening.invert(images) * 255).round()
    return float(((values < 0) | (values > 255)).float().mean())


def gallery(
    pixels: UInt8[Tensor, "n channels height width"],
    labels: Shaped[Tensor, "n ..."],
    classes: tuple[str, ...],
    *,
    budget: int = GALLERY_BYTES,
) -> Gallery:
    """The pictures of each class, as many as fit `budget` bytes of raw pixels, at least one each.

    `labels` are class indices, or soft labels [n, classes], whose largest decides the class.
    """
    hard, soft = _split_labels(labels, len(classes))
    members = [(hard == index).nonzero().flatten().tolist() for index in range(len(classes))]
    most = max((len(found) for found in members), default=0)
    raw, present = pixels[0].numel() if len(pixels) else 1, sum(map(bool, members))
    each = max(1, min(most, budget // max(1, raw * present)))
    factor = max(1, math.ceil(math.sqrt(raw * present * each / budget)))
    shown = smaller(pixels, factor)
    groups = []
    for name, found in zip(classes, members, strict=True):
        pictures = []
        for place, index in enumerate(found[:each], 1):
            alt = name if len(found) == 1 else f"{name}, {place} of {len(found)}"
            caption = "" if soft is None else _say(soft[index], classes)
            pictures.append(Picture(data_url(png(shown[index])), alt, caption))
        groups.append(Group(name, len(found), tuple(pictures)))
    note = ""
    if each < most:
        note = f"The first {each} of up to {most} images per class are shown."
    if factor > 1:
        note += f" Shown at 1/{factor} of their resolution."
    target = 96 if len(pixels) <= 24 else 72 if len(pixels) <= 200 else 48
    width, height = enlarged(shown, target)
    return Gallery(tuple(groups), width, height, note.strip())


def timeline(
    folder: Path,
    classes: tuple[str, ...],
    *,
    limit: int = TIMELINE_FRAMES,
    budget: int = TIMELINE_BYTES,
) -> Timeline | None:
    """The snapshots in `folder` as sprites: at most `limit`, evenly chosen, within `budget` bytes.

    None when there is no snapshot. Reads only those it shows; one that cannot be read is named in
    `unreadable` and left out. Colors are reduced to 256 per sprite, large pictures to about 64
    pixels, and many pictures to one or a few per class; `note` says which of these happened.
    """
    paths = snapshot_paths(folder)
    unreadable: list[str] = []
    first = None
    for path in paths:
        first = _read(path, unreadable)
        if first is not None:
            break
    if first is None:
        return None if not paths else Timeline((), (), 1, (1, 1), 1, 1, "", tuple(unreadable))
    _, pixels, labels = first
    hard, _ = _split_labels(labels, len(classes))
    factor = max(1, math.ceil(max(pixels.shape[2:]) / _TIMELINE_SIDE))
    each = math.ceil(pixels[0, 0].numel() / factor**2)  # bytes of a picture, gray or palette
    wanted = min(limit, len(paths), 24)
    count = min(len(pixels), _TIMELINE_PICTURES, max(4, budget // (each * wanted)))
    picked = _pick(hard, count)
    limit = max(2, min(limit, budget // (each * len(picked))))
    columns = math.ceil(math.sqrt(len(picked)))
    unreadable.clear()
    frames = []
    for path in every(paths, limit):
        found = _read(path, unreadable)
        if found is not None and len(found[1]) == len(pixels):
            shrunk = smaller(found[1][picked], factor)
            frames.append(Frame(found[0], data_url(png(_sprite(shrunk, columns), colors=256))))
    notes = []
    if len(frames) < len(paths):
        notes.append(f"{len(frames):,} of {len(paths):,} snapshots")
    if len(picked) < len(pixels):
        notes.append(f"{len(picked):,} of {len(pixels):,} images")
    if pixels.shape[1] == 3:
        notes.append("colors reduced to 256")
    if factor > 1:
        notes.append(f"at 1/{factor} of their resolution")
    shrunk = smaller(pixels[:1], factor)
    width, height = enlarged(shrunk, 80 if len(picked) <= 24 else 56)
    return Timeline(
        tuple(frames),
        tuple(classes[hard[index]] for index in picked),
        columns,
        (shrunk.shape[3], shrunk.shape[2]),
        width,
        height,
        ", ".join(notes),
        tuple(unreadable),
    )


def snapshot_paths(folder: Path) -> list[Path]:
    """Snapshot files by iteration."""
    found = folder.glob("*.safetensors") if folder.is_dir() else iter(())
    named = [path for path in found if re.fullmatch(r"\d+", path.stem)]
    return sorted(named, key=lambda path: int(path.stem))


def _read(path: Path, unreadable: list[str]) -> tuple[int, Any, Any] | None:
    try:
        file = open_tensors(path, kind="snapshot", version=1)
        images, labels = file.read("images"), file.read("labels")
        if images.ndim != 4 or images.dtype != torch.uint8 or len(labels) != len(images):
            raise DataError(f"{path} holds no pictures with labels; distill again")
        return int(file.metadata.get("iteration", int(path.stem))), images, labels
    except (FileFormatError, DataError, ValueError) as error:
        unreadable.append(str(error))
        return None


def _split_labels(
    labels: Shaped[Tensor, "n ..."], classes: int
) -> tuple[Int[Tensor, " n"], Float[Tensor, "n classes"] | None]:
    """Class indices, and the soft labels they come from if they do."""
    if labels.ndim == 2:
        return labels.argmax(1), labels.float()
    return labels.long().clamp(0, max(0, classes - 1)), None


def _pick(hard: Int[Tensor, " n"], count: int) -> list[int]:
    """`count` images, by class: as many of each as fit, or one each of evenly chosen classes."""
    present = sorted(set(hard.tolist()))
    if count < len(present):
        chosen = every(present, count) if count > 1 else present[:1]
        return [int((hard == index).nonzero()[0]) for index in chosen]
    each = count // len(present)
    return [i for index in present for i in (hard == index).nonzero().flatten().tolist()[:each]]


def smaller(
    pixels: UInt8[Tensor, "n channels height width"], factor: int
) -> UInt8[Tensor, "n channels h w"]:
    """Means over squares of `factor` pixels."""
    if factor == 1:
        return pixels
    pooled = torch.nn.functional.avg_pool2d(pixels.float(), factor, ceil_mode=True)
    return pooled.round().to(torch.uint8)


def _sprite(
    pixels: UInt8[Tensor, "n channels height width"], columns: int
) -> UInt8[Tensor, "channels high wide"]:
    n, channels, height, width = pixels.shape
    rows = -(-n // columns)
    sheet = pixels.new_zeros(rows * columns, channels, height, width)
    sheet[:n] = pixels
    sheet = sheet.reshape(rows, columns, channels, height, width).permute(2, 0, 3, 1, 4)
    return sheet.reshape(channels, rows * height, columns * width).contiguous()


def enlarged(pixels: UInt8[Tensor, "n channels height width"], target: int) -> tuple[int, int]:
    """CSS (width, height) near `target`: whole multiples, so that every pixel is equally large."""
    height, width = pixels.shape[2:]
    times = max(1, round(target / max(height, width)))
    return width * times, height * times


def _say(soft: Float[Tensor, " classes"], classes: tuple[str, ...]) -> str:
    """The two largest of a learned label: `3: 71 %, 8: 12 %`."""
    top = soft.topk(min(2, len(classes)))
    pairs = zip(top.indices.tolist(), top.values.tolist(), strict=True)
    words = [(theme.shown(classes[index], _NAME), value) for index, value in pairs]
    return ", ".join(f"{name}: {100 * value:.0f}{NBSP}%" for name, value in words)
