"""The choice of a coreset from a data set, as a whitened set of images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from trajmatch import rng
from trajmatch.data.dataset import ImageDataset
from trajmatch.data.whiten import Whitening
from trajmatch.errors import SettingError
from trajmatch.methods.coresets.base import Coreset
from trajmatch.methods.coresets.registry import coreset_of
from trajmatch.synthetic import SyntheticSet
from trajmatch.types import Float, Tensor


def select_coreset(
    method: str | Coreset,
    dataset: ImageDataset,
    ipc: int,
    *,
    seed: int = 0,
    whitening: Whitening,
    statistics: Float[Tensor, "n *each"] | None = None,
    origin: Mapping[str, Any] | None = None,
) -> SyntheticSet:
    """`ipc` training images of each class, chosen by `method` and whitened; without a step size.

    statistics: what the coreset requires, a row per training image; None where that is nothing.
    origin: how the statistics were computed, as plain values; kept in the set's info.

    Raises SettingError for an unknown method, statistics that are missing or do not fit, or more
    images per class than the smallest class has.

    Examples:
        >>> from trajmatch.data import load_data
        >>> from trajmatch.data.whiten import fit_whitening
        >>> data = load_data("digits")
        >>> select_coreset("random", data, 1, whitening=fit_whitening("normalize", data.train))
        SyntheticSet(10 images of 1x8x8, 10 classes, ipc 1, random)
    """
    coreset = coreset_of(method)
    name = method if isinstance(method, str) else coreset.name
    require_enough(dataset, ipc)
    labels = dataset.train.labels
    statistics = _checked(name, coreset, statistics, len(labels))
    indices = coreset.choose(statistics, labels, ipc, rng.stream(seed, "coreset", name))
    return SyntheticSet(
        images=whitening.apply(dataset.train.images[indices]),
        labels=labels[indices],
        classes=dataset.classes,
        whitening=whitening,
        step_size=None,
        info={"method": name, "ipc": ipc, "seed": seed, "data": dataset.summary()}
        | dict(origin or {}),
    )


def require_enough(dataset: ImageDataset, ipc: int) -> None:
    """Refuse more images per class than the smallest class has."""
    counts = torch.bincount(dataset.train.labels, minlength=dataset.num_classes)
    fewest = int(counts.argmin())
    if not 1 <= ipc <= counts[fewest]:
        raise SettingError(
            f"ipc is {ipc} and class '{dataset.classes[fewest]}' has {counts[fewest]} training "
            f"images; choose ipc from 1 to {counts[fewest]}"
        )


def _checked(name: str, coreset: Coreset, statistics: Tensor | None, images: int) -> Tensor | None:
    """The statistics on the CPU; refused where they are not of the kind the coreset requires."""
    if coreset.requires == "nothing":
        return None
    what, axes, source = {
        "features": ("rows of features", 2, "embeddings of a trained network"),
        "forgetting": ("counts of forgetting", 1, "forgetting_counts of a training run"),
    }[coreset.requires]
    if statistics is None:
        raise SettingError(f"{name} needs {what}; give the {source} as statistics=")
    invalid = statistics.isnan() if axes == 1 else ~statistics.isfinite()
    if len(statistics) != images or statistics.ndim != axes or bool(invalid.any()):
        raise SettingError(
            f"{name} got {len(statistics)} {what} of shape {tuple(statistics.shape)} for {images} "
            f"training images, or some that are no numbers; give the {source}"
        )
    return statistics.cpu()
