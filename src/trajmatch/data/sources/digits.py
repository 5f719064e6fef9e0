"""scikit-learn's handwritten digits: 1,797 scans of 8x8 pixels, part of its wheel.

E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning
Repository, 1998.
"""

from __future__ import annotations

import numpy as np
import torch

from trajmatch.data.dataset import ImageDataset, Split
from trajmatch.data.sources.source import Request
from trajmatch.data.stratified import stratified
from trajmatch.rng import stream


def load_digits(request: Request) -> ImageDataset:
    """The digits with a fixed test split of 20 % of each class and no validation split.

    Gray levels 0..16 become 0..255.
    """
    from sklearn.datasets import load_digits as load  # its import takes a second

    data = load()
    images = torch.from_numpy(np.round(data.images * (255 / 16)).astype(np.uint8))[:, None]
    everything = Split(images, torch.from_numpy(data.target.astype(np.int64)))
    classes = tuple(str(digit) for digit in range(10))
    train, test = stratified(everything.labels, classes, 0.2, stream(0, "digits", "test"))
    return ImageDataset("digits", everything.take(train), everything.take(test), None, classes)
