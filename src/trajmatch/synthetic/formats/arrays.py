"""A set as one NumPy file, for programs that know neither torch nor trajmatch.

images      float32 [n, channels, height, width], as trained: whitened and not clipped
labels      int64 [n], or float32 [n, classes]: a probability for each class
step_size   the learned learning rate, per step of plain SGD; absent in a set that has none
canvases    float32 [k, channels, tall, wide] of a texture, whitened: the images are crops of them
classes     names, in the order of the labels
info        how the set was made, as JSON
whitening   "normalize", with mean and std per channel: images = (x - mean) / std, x in [0, 1]
            "zca", with mean [d], matrix [d, d], shape and eps: images = (x - mean) @ matrix
            (a compact one is written out so, and comes back as a plain ZCA)
"""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trajmatch.data.whiten import ZCA, Normalize, Whitening
from trajmatch.errors import FileFormatError
from trajmatch.storage.files import atomic_write
from trajmatch.storage.jsonl import jsonable
from trajmatch.synthetic.formats.released import require_absent
from trajmatch.synthetic.set import SyntheticSet

FILE = "distilled.npz"

_BROKEN = (
    OSError, EOFError, ValueError, LookupError, TypeError, AttributeError, zipfile.BadZipFile,
)  # fmt: skip
"""What NumPy raises on bytes that are not its own, and we on arrays that are not ours."""


def write_npz(made: SyntheticSet, out: Path) -> dict[str, Any]:
    """distilled.npz in `out`; DataError when there is one already."""
    require_absent(out, [FILE])
    whitening = made.whitening.full()
    arrays: dict[str, Any] = {
        "images": made.images.detach().cpu().numpy(),
        "labels": made.labels.detach().cpu().numpy(),
        "classes": np.array(made.classes, dtype=np.str_),
        "info": np.array(json.dumps(jsonable(made.info))),
        "whitening": np.array(whitening.name),
    }
    for name, tensor in whitening.tensors.items():
        arrays[name] = tensor.cpu().numpy()
    if isinstance(whitening, ZCA):
        arrays |= {"shape": np.array(whitening.shape), "eps": np.array(whitening.eps)}
    if made.step_size is not None:
        arrays["step_size"] = np.array(made.step_size)
    if made.canvases is not None:
        arrays["canvases"] = made.canvases.detach().cpu().numpy()
    with atomic_write(out / FILE) as partial, partial.open("wb") as file:
        np.savez(file, **arrays)
    return {"files": [FILE]}


def read_npz(path: Path) -> SyntheticSet:
    """The set that `write_npz` wrote, equal in every number. FileFormatError for another file."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            found = {name: arrays[name] for name in arrays.files}
        return SyntheticSet(
            images=torch.from_numpy(found["images"]),
            labels=torch.from_numpy(found["labels"]),
            classes=tuple(found["classes"].tolist()),
            whitening=_whitening(found),
            step_size=float(found["step_size"]) if "step_size" in found else None,
            info=json.loads(str(found["info"])),
            canvases=torch.from_numpy(found["canvases"]) if "canvases" in found else None,
        )
    except _BROKEN as error:
        raise FileFormatError(
            f"{path} is not a whole set of `trajmatch export --to npz` ({error}); export it again"
        ) from error


def _whitening(found: dict[str, Any]) -> Whitening:
    mean = torch.from_numpy(found["mean"])
    if str(found["whitening"]) == "normalize":
        return Normalize(mean, torch.from_numpy(found["std"]))
    channels, height, width = found["shape"].tolist()
    matrix = torch.from_numpy(found["matrix"])
    return ZCA(mean, matrix, shape=(channels, height, width), eps=float(found["eps"]))
