"""SVHN: house number digits in street views, 73,257 to train and 26,032 to test, 32x32.

Read from the two MATLAB files of format 2; the extra training images are left out. Y. Netzer et
al., "Reading Digits in Natural Images with Unsupervised Feature Learning", 2011.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from trajmatch.data.dataset import ImageDataset, Split
from trajmatch.data.sources.arrays import labeled, one_line
from trajmatch.data.sources.source import Request
from trajmatch.data.sources.tree import require_regular
from trajmatch.errors import DataError

_TRAIN, _TEST = "train_32x32.mat", "test_32x32.mat"
_GET = f"download {_TRAIN} and {_TEST} from http://ufldl.stanford.edu/housenumbers/"


def load_svhn(request: Request) -> ImageDataset:
    """SVHN. Raises DataError, with the file, for what is absent or not as published."""
    train = request.find("svhn", (_TRAIN,), _GET, ("", "svhn", "SVHN"))
    classes = tuple(str(digit) for digit in range(10))
    return ImageDataset("svhn", _read(train), _read(train.with_name(_TEST)), None, classes)


def _read(path: Path) -> Split:
    # A dependency of scikit-learn, without types.
    from scipy.io import loadmat  # type: ignore[import-untyped]

    require_regular(path)
    try:
        found = loadmat(path, variable_names=("X", "y"))
        images, labels = found["X"], found["y"]
        if images.dtype != np.uint8 or images.shape[:3] != (32, 32, 3) or images.ndim != 4:
            raise ValueError(f"X is {images.dtype} of shape {images.shape}")
        if labels.ndim != 2 or labels.shape[1] != 1 or labels.dtype.kind not in "iu":
            raise ValueError(f"y is {labels.dtype} of shape {labels.shape}")
    except Exception as error:  # on foreign bytes the reader raises many kinds
        raise DataError(
            f"cannot read {path} ({one_line(error)}); it should hold X, uint8 of shape "
            "(32, 32, 3, n), and y of shape (n, 1): download it again"
        ) from error
    digits = labels[:, 0].astype(np.int64)
    digits[digits == 10] = 0  # the file has 1, ..., 9, 10
    return labeled(images.transpose(3, 2, 0, 1), digits, 10, str(path))
