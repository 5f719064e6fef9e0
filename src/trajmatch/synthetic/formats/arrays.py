"""A set as one NumPy file, for programs without torch.

images      float32 [n, channels, height, width], as trained: whitened and not clipped
labels      int64 [n], or float32 [n, classes]: a probability for each class
step_size   the learned learning rate, per step of plain SGD; absent in a set that has none
canvases    float32 [k, channels, tall, wide] of a texture, whitened; images are crops of them
classes     names, in the order of the labels
info        how the set was made, as JSON
whitening   "normalize", with mean and std per channel: images = (x - mean) / std, x in [0, 1]
            "zca", with mean [d], matrix [d, d], shape and eps: images = (x - mean) @ matrix
            (a compact ZCA is written in this form and read as a plain ZCA)
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trajmatch.data.sources.arrays import one_line
from trajmatch.data.whiten import ZCA, Normalize, Whitening
from trajmatch.errors import FileFormatError
from trajmatch.storage.files import atomic_write, parse_json
from trajmatch.storage.jsonl import jsonable
from trajmatch.synthetic.formats.archive import verify_archive
from trajmatch.synthetic.formats.portable import portable
from trajmatch.synthetic.formats.publish import require_absent
from trajmatch.synthetic.set import SyntheticSet

FILE = "distilled.npz"


def write_npz(distilled: SyntheticSet, out: Path) -> dict[str, Any]:
    """Write distilled.npz into `out`. Raises DataError when it exists."""
    require_absent(out, [FILE])
    whitening = distilled.whitening.full()
    arrays: dict[str, Any] = {
        "images": distilled.images.detach().cpu().numpy(),
        "labels": distilled.labels.detach().cpu().numpy(),
        "classes": np.array(distilled.classes, dtype=np.str_),
        "info": np.array(json.dumps(jsonable(portable(distilled).info))),
        "whitening": np.array(whitening.name),
    }
    for name, tensor in whitening.tensors.items():
        arrays[name] = tensor.cpu().numpy()
    if isinstance(whitening, ZCA):
        arrays |= {"shape": np.array(whitening.shape), "eps": np.array(whitening.eps)}
    if distilled.step_size is not None:
        arrays["step_size"] = np.array(distilled.step_size)
    if distilled.canvases is not None:
        arrays["canvases"] = distilled.canvases.detach().cpu().numpy()
    with atomic_write(out / FILE) as partial, partial.open("wb") as file:
        np.savez(file, **arrays)
    return {"files": [FILE]}


def read_npz(path: Path) -> SyntheticSet:
    """The set that `write_npz` wrote, equal in every number. Raises FileFormatError for another
    file, and one that was altered."""
    try:
        verify_archive(path)
        with path.open("rb") as file, np.load(file, allow_pickle=False) as npz:
            arrays = {name: npz[name] for name in npz.files}
        distilled = SyntheticSet(
            images=torch.from_numpy(arrays["images"]),
            labels=torch.from_numpy(arrays["labels"]),
            classes=tuple(arrays["classes"].tolist()),
            whitening=_whitening(arrays),
            step_size=float(arrays["step_size"]) if "step_size" in arrays else None,
            info=dict(parse_json(str(arrays["info"])).items()),
            canvases=torch.from_numpy(arrays["canvases"]) if "canvases" in arrays else None,
        )
        distilled.plain()  # refuses a whitening that cannot be undone, before anything is written
        return distilled
    except Exception as error:  # the type depends on where zipfile, NumPy or a check fails
        raise FileFormatError(
            f"{path} is not a whole set of `trajmatch export --to npz` ({one_line(error)}); export "
            "it again"
        ) from error


def _whitening(arrays: dict[str, Any]) -> Whitening:
    mean = torch.from_numpy(arrays["mean"])
    if str(arrays["whitening"]) == "normalize":
        return Normalize(mean, torch.from_numpy(arrays["std"]))
    channels, height, width = arrays["shape"].tolist()
    matrix = torch.from_numpy(arrays["matrix"])
    return ZCA(mean, matrix, shape=(channels, height, width), eps=float(arrays["eps"]))
