"""Whitening: the invertible map from pixels to the inputs of networks.

`Normalize` brings each channel to mean 0 and standard deviation 1. `ZCA` also removes the
correlations between pixels; most published CIFAR numbers use it, and of all transforms that do so
it changes images least. Both are fitted on training images scaled to [0, 1]. `CompactZCA`
approximates a fitted ZCA in a small file.

Fitting involves no random draw and does not depend on the order of the images: sums over uint8
pixels are whole numbers and computed exactly, so the same images give the same statistics with any
number of threads.
"""

from __future__ import annotations

from pathlib import Path

from trajmatch.data.dataset import Split
from trajmatch.data.pixels import to_float
from trajmatch.data.whiten.base import KIND, VERSION, WHITENINGS, Whitening
from trajmatch.data.whiten.compact import CompactZCA
from trajmatch.data.whiten.normalize import Normalize
from trajmatch.data.whiten.zca import ZCA
from trajmatch.errors import DataError, FileFormatError, SettingError
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

WHITENINGS.register("normalize", Normalize)
WHITENINGS.register("zca", ZCA)
WHITENINGS.register("zca-compact", CompactZCA)


def fit_whitening(whitening: str | type[Whitening] | Whitening, split: Split) -> Whitening:
    """Fit a whitening on training images.

    whitening: a name in WHITENINGS, `package.module:Name`, or the class. An instance is fitted
        already and returned unchanged.

    ZCA of CIFAR-10 takes about 30 s on one core and 0.5 GB; time grows with the side of the images
    to the sixth power, memory to the fourth. Raises SettingError for an unknown name or images too
    large for ZCA, DataError for fewer than two images.

    Examples:
        >>> from trajmatch.data import fit_whitening, load_data, to_float
        >>> train = load_data("digits").train
        >>> whitening = fit_whitening("normalize", train)
        >>> inputs = whitening.apply(to_float(train.images))
        >>> round(float(inputs.std()), 3)
        1.0
    """
    if isinstance(whitening, Whitening):
        return whitening
    name = whitening if isinstance(whitening, str) else WHITENINGS.name_of(whitening)
    kind = WHITENINGS.find(name)
    if len(split) < 2:
        raise DataError(f"whitening is fitted on at least 2 images, not {len(split)}; add images")
    fitted = kind.fit(split)
    fitted.registered_as = name
    return fitted


def load_whitening(path: Path) -> Whitening:
    """Read a file that `Whitening.save` wrote.

    Raises FileFormatError when it is anything else, was altered, or names a whitening that is
    neither registered nor installed: a name in a file is never imported by a path.
    """
    file = open_tensors(path, kind=KIND, version=VERSION)
    try:
        name = str(file.metadata["name"])
        kind = WHITENINGS.known(name)
    except KeyError as error:
        raise FileFormatError(f"{path} is not a whitening of trajmatch: {error}") from error
    except SettingError as error:
        raise FileFormatError(f"{path} cannot be read: {error}") from error
    try:
        loaded = kind.read(file)
    except (KeyError, ValueError) as error:
        raise FileFormatError(f"{path} is not a whitening of trajmatch: {error}") from error
    loaded.registered_as = name
    return loaded
