"""Whitening: pixels as the networks see them, and the way back to pictures.

`Normalize` brings each channel to mean 0 and standard deviation 1. `ZCA` also removes the
correlations between pixels, and is what the published CIFAR numbers mostly use; of all transforms
that do so it changes pictures least. Both are fitted on training images scaled to [0, 1].
`CompactZCA` comes near a fitted ZCA in a small file.

Fitting needs no draw and no order: sums over uint8 pixels are whole numbers and are taken exactly,
so the same images give the same statistics however many threads add them up.
"""

from __future__ import annotations

from pathlib import Path

from trajmatch.data.dataset import Split
from trajmatch.data.whiten.base import KIND, VERSION, Whitening, to_float
from trajmatch.data.whiten.compact import CompactZCA
from trajmatch.data.whiten.normalize import Normalize
from trajmatch.data.whiten.zca import ZCA
from trajmatch.errors import DataError, FileFormatError, SettingError, suggest
from trajmatch.storage.files import open_tensors

__all__ = [
    "WHITENINGS",
    "ZCA",
    "CompactZCA",
    "Normalize",
    "Whitening",
    "fit_whitening",
    "load_whitening",
    "to_float",
]

WHITENINGS = ("normalize", "zca")
"""What can be fitted."""

_KINDS: dict[str, type[Whitening]] = {kind.name: kind for kind in (Normalize, ZCA, CompactZCA)}
"""What a file can hold."""


def fit_whitening(name: str, split: Split) -> Whitening:
    """Fit "normalize" or "zca" on training images.

    ZCA of CIFAR-10 takes about half a minute on one core and half a gigabyte; both grow with the
    image size to the sixth and fourth power. Raises SettingError for an unknown name or for images
    too large for ZCA, DataError for fewer than two images.
    """
    if name not in WHITENINGS:
        raise SettingError(f"unknown whitening '{name}'; {suggest(name, WHITENINGS)}")
    if len(split) < 2:
        raise DataError(f"whitening is fitted on at least 2 images, not {len(split)}; add images")
    return Normalize.fit(split) if name == "normalize" else ZCA.fit(split)


def load_whitening(path: Path) -> Whitening:
    """Read what `Whitening.save` wrote; FileFormatError when it is anything else, or altered."""
    file = open_tensors(path, kind=KIND, version=VERSION)
    try:
        name = file.metadata["name"]
        if name in _KINDS:
            return _KINDS[name].read(file)
    except (KeyError, ValueError) as error:
        raise FileFormatError(f"{path} is not a whitening of trajmatch: {error}") from error
    raise FileFormatError(f"{path} holds whitening '{name}'; {suggest(str(name), _KINDS)}")
