"""Encoded pictures -> one uint8 tensor, by Pillow, in threads."""

from __future__ import annotations

import functools
import io
import itertools
import os
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from trajmatch.data.pixels import require_space
from trajmatch.errors import DataError
from trajmatch.types import Tensor, UInt8

_COMMON = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM", "AVIF")
"""Formats that are recognized by a file's first bytes, whatever its name; others by their ending
alone, because the first bytes of some of them say little."""

_FEWER = "choose fewer classes (--classes) or a smaller --size"

_NO_PICTURES = frozenset(
    # Videos, documents (EPS runs Ghostscript), and scientific files that Pillow only recognizes.
    ("MPEG", "FLI", "EPS", "WMF", "PDF", "BUFR", "GRIB", "HDF5", "FITS", "IPTC")
)


@functools.cache
def picture_formats() -> dict[str, str]:
    """Endings of picture files, and Pillow's name of the format: what this Pillow can open."""
    Image.init()
    return {
        ending: kind
        for ending, kind in Image.registered_extensions().items()
        if kind in Image.OPEN and kind not in _NO_PICTURES
    }


# Pillow's own limit, at which it warns; a larger picture is taken for a decompression bomb.
_LARGEST = Image.MAX_IMAGE_PIXELS or 89_478_485


@dataclass(frozen=True)
class Decoded:
    """Pictures in their order, without those that were passed over."""

    images: UInt8[Tensor, "n channels height width"]
    broken: list[int]
    """Places, among all names, of pictures that could not be decoded, in order."""


def decode_images(
    names: Sequence[str],
    read: Callable[[str], bytes],
    size: int | None,
    progress: Callable[[int, int], None] | None,
    *,
    skip: bool = False,
) -> Decoded:
    """The pictures called `names`, in that order.

    read: returns the bytes of a picture by its name; called from several threads.
    size: the shorter side becomes this many pixels (bicubic, antialiased) and the middle square is
        cut out; None requires all to have one size.
    progress: called with the number of pictures decoded so far, and of all.
    skip: pass over pictures that cannot be read or decoded.

    One channel when every picture is gray, else three. Raises DataError with the file that cannot
    be decoded, with the sizes when they differ, and with the memory needed where it is not there.
    """
    if size is not None:
        _require_room(len(names), size, size)
    job = _Job(names, read, size, skip)
    done = 0
    pool = ThreadPoolExecutor(_cpus())
    try:
        # Up to 256 tiny pictures per task, or scheduling would cost as much as decoding.
        step = max(1, min(256, len(names) // (4 * _cpus())))
        starts = range(0, len(names), step)
        for count in pool.map(lambda start: job.run(start, start + step), starts):
            done += count
            if progress is not None:
                progress(done, len(names))
    finally:
        pool.shutdown(cancel_futures=True)  # an error or Ctrl-C skips the remaining tasks
    return job.result()


class _Job:
    """The array of all pictures, of which every thread writes its own rows."""

    def __init__(
        self, names: Sequence[str], read: Callable[[str], bytes], size: int | None, skip: bool
    ) -> None:
        self.names, self.read, self.size, self.skip = names, read, size, skip
        self.broken = np.zeros(len(names), dtype=bool)
        self.mixed = False
        first = self._first()
        self.sides = first.size
        self.pixels = _space(len(names), first.height, first.width)
        self.gray = np.zeros(len(names), dtype=bool)
        self.sizes: list[tuple[int, int]] = [first.size] * len(names)

    def _first(self) -> Image.Image:
        """The first picture that can be decoded."""
        for i in range(len(self.names)):
            picture = self._picture(i)
            if picture is not None:
                return picture
        raise DataError(
            f"none of {len(self.names):,} pictures can be decoded, such as {self.names[0]}; "
            "replace them"
        )

    def _picture(self, i: int) -> Image.Image | None:
        """Picture i in its final size, of a set of mixed sizes its header; None if it is broken
        and may be passed over."""
        name = self.names[i]
        try:
            return _picture(name, self.read(name), self.size, header_only=self.mixed)
        except DataError:
            if not self.skip:
                raise
            self.broken[i] = True
            return None

    def run(self, start: int, stop: int) -> int:
        stop = min(stop, len(self.names))
        for i in range(start, stop):
            picture = self._picture(i)
            if picture is None:
                continue
            self.sizes[i] = picture.size
            if picture.size != self.sides:
                self.mixed = True  # to be refused: from here on only sizes are read
            if not self.mixed:
                self.gray[i] = picture.mode == "L"
                self.pixels[i] = np.atleast_3d(np.asarray(picture)).transpose(2, 0, 1)
        return stop - start

    def result(self) -> Decoded:
        good = ~self.broken
        if self.mixed:
            sizes = Counter(itertools.compress(self.sizes, good)).most_common()
            common = ", ".join(f"{w}x{h} ({count:,})" for (w, h), count in sizes[:4])
            raise DataError(
                f"pictures are of {len(sizes)} sizes, width x height: {common}"
                f"{', ...' if len(sizes) > 4 else ''}; bring them to one with --size 64 (or "
                "another side in pixels)"
            )
        pixels = torch.from_numpy(self.pixels if good.all() else self.pixels[good])
        images = pixels[:, :1].clone() if self.gray[good].all() else pixels
        return Decoded(images, self.broken.nonzero()[0].tolist())


def _words(count: int, height: int, width: int) -> str:
    return f"{count:,} pictures of {width:,}x{height:,}"


def _space(count: int, height: int, width: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    _require_room(count, height, width)
    try:
        return np.empty((count, 3, height, width), dtype=np.uint8)
    except (MemoryError, ValueError) as error:  # ValueError: larger than any memory
        need = f"about {6 * count * height * width / 1e9:,.1f} GB of memory"
        raise DataError(f"{_words(count, height, width)} need {need}; {_FEWER}") from error


def _require_room(count: int, height: int, width: int) -> None:
    """Refuse images that do not fit into memory, before the first of them is decoded."""
    # Twice: cutting the validation split copies the training images.
    needed = 2 * count * 3 * height * width
    require_space(needed, _words(count, height, width), _FEWER)


def _picture(name: str, data: bytes, size: int | None, header_only: bool = False) -> Image.Image:
    """One picture of mode L or RGB, in its final size."""
    try:
        with Image.open(io.BytesIO(data), formats=_formats(name)) as image:
            if image.width * image.height > _LARGEST:
                raise Image.DecompressionBombError("too many pixels")
            if size is not None:
                # JPEGs can be decoded at a half, fourth or eighth; twice the size is left to
                # the resampling filter.
                image.draft(None, (2 * size, 2 * size))
            ImageOps.exif_transpose(image, in_place=True)
            if header_only:
                return image
            image.load()
            result = plain(image)
            return result if size is None else fitted(result, size)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(
            f"{name} has more than {_LARGEST / 1e6:.0f} million pixels and is taken for a "
            "decompression bomb; remove it, or shrink it first"
        ) from error
    except UnidentifiedImageError as error:
        kinds = _formats(name)
        raise DataError(
            f"cannot decode {name} (it is no {', '.join(kinds[:-1])} or {kinds[-1]}); replace or "
            "remove it"
        ) from error
    except (DataError, MemoryError):
        raise
    except Exception as error:  # on broken files Pillow's readers raise many kinds
        raise DataError(f"cannot decode {name} ({error}); replace or remove it") from error


def _formats(name: str) -> tuple[str, ...]:
    """The formats that the file `name` may have."""
    known = picture_formats()
    own = known.get(os.path.splitext(name)[1].lower())
    common = tuple(kind for kind in _COMMON if kind in Image.OPEN)
    return common if own is None or own in common else (*common, own)


def fitted(image: Image.Image, size: int) -> Image.Image:
    """The middle square of an image of mode L or RGB, at `size` pixels a side."""
    side = min(image.size)
    left, top = (image.width - side) / 2, (image.height - side) / 2
    box = (left, top, left + side, top + side)
    return image.resize((size, size), Image.Resampling.BICUBIC, box=box)


def plain(image: Image.Image) -> Image.Image:
    """Any mode to L, or to RGB when there may be color.

    16-bit gray is brought to 8; transparent parts are laid on white; a palette of grays is gray.
    """
    if image.mode in ("L", "RGB") and "transparency" not in image.info:
        return image
    if image.mode == "1":
        return image.convert("L")
    if image.mode.startswith("I"):
        levels = np.asarray(image).astype(np.int64)
        if levels.min() < 0 or levels.max() > 65535:
            raise ValueError("its values exceed 16 bits")
        return Image.fromarray(((levels + 128) // 257).astype(np.uint8))
    if image.mode == "F":
        raise ValueError("it holds floating-point values: save it with 8 bits")
    gray = image.mode in ("L", "LA", "La")
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        color = Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    else:
        color = image.convert("RGB")
    if image.mode in ("P", "PA"):
        channels = np.asarray(color)
        gray = bool((channels == channels[:, :, :1]).all())
    return color.convert("L") if gray else color


def _cpus() -> int:
    if hasattr(os, "sched_getaffinity"):  # respects taskset and containers; absent on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
