"""Images and labels: where they come from, their whitening and their augmentation."""

from trajmatch.data.augment import Augmentation, Draw
from trajmatch.data.dataset import ImageDataset, Split
from trajmatch.data.sources import load_data
from trajmatch.data.whiten import (
    ZCA,
    CompactZCA,
    Normalize,
    Whitening,
    fit_whitening,
    load_whitening,
    to_float,
)

__all__ = [
    "ZCA",
    "Augmentation",
    "CompactZCA",
    "Draw",
    "ImageDataset",
    "Normalize",
    "Split",
    "Whitening",
    "fit_whitening",
    "load_data",
    "load_whitening",
    "to_float",
]
