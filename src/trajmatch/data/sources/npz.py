"""An .npz of images and labels by split, as MedMNIST's and Keras's.

    train_images train_labels   val_images val_labels   test_images test_labels
    x_train y_train             x_val y_val             x_test y_test

Other names of the splits (`tree.SPLITS`) do, and of the arrays `x`, `data`, `images` and `y`,
`targets`, `labels`, before the split or after it. `images` and `labels` alone are those of train.
"""

from __future__ import annotations

import re
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from trajmatch.data.dataset import ImageDataset
from trajmatch.data.pixels import require_space
from trajmatch.data.sources.arrays import one_line
from trajmatch.data.sources.objects import load_objects
from trajmatch.data.sources.source import Request
from trajmatch.data.sources.tree import split_role
from trajmatch.errors import DataError

_IMAGES = ("images", "image", "x", "data", "imgs")
_LABELS = ("labels", "label", "y", "targets", "target")
KEYS = (
    "train_images and train_labels, or x_train and y_train (and val_..., test_... where there are)"
)


def load_npz(path: Path, request: Request) -> ImageDataset:
    """The data set in the file at `path`; splits that are missing are cut as for arrays.

    Raises DataError for a file that cannot be read, and for one without such arrays.
    """
    try:
        with zipfile.ZipFile(path) as archive, np.load(path, allow_pickle=False) as file:
            keys = _keys(path, file.files)
            wanted = {key for pair in keys.values() for key in pair}
            sizes = [archive.getinfo(f"{key}.npy").file_size for key in wanted]
            require_space(2 * sum(sizes), f"the arrays in {path}", "give fewer images")
            splits = {role: (file[pair[0]], file[pair[1]]) for role, pair in keys.items()}
    except DataError:
        raise
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(
            f"cannot read {path} as an .npz of arrays ({one_line(error)}); it needs {KEYS}"
        ) from error
    return load_objects(splits, None, request, name=path.stem)


def _keys(path: Path, found: list[str]) -> dict[str, tuple[str, str]]:
    """The keys of images and labels of each split."""
    images: dict[str, str] = {}
    labels: dict[str, str] = {}
    for key in found:
        words = [word for word in re.split(r"[\W_]+", key.lower()) if word]
        kinds = [word for word in words if word in _IMAGES + _LABELS]
        roles = [role for role in map(split_role, words) if role]
        if len(kinds) != 1 or len(roles) > 1 or len(kinds) + len(roles) != len(words):
            continue
        parts: dict[str, Any] = images if kinds[0] in _IMAGES else labels
        parts.setdefault(roles[0] if roles else "train", key)
    if "train" not in images or "train" not in labels:
        raise DataError(
            f"{path} holds {', '.join(found[:8]) or 'nothing'}{', ...' if len(found) > 8 else ''}; "
            f"it needs {KEYS}"
        )
    lone = next((role for role in images if role not in labels), None)
    if lone is not None:
        raise DataError(f"{path} has {images[lone]} and no labels for them; add them")
    return {role: (images[role], labels[role]) for role in images}
