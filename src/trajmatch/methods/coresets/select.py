"""The choice of a coreset from a data set, as a whitened set of images."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch

from trajmatch import rng
from trajmatch.data.dataset import ImageDataset
from trajmatch.data.whiten import Whitening
from trajmatch.errors import SettingError
from trajmatch.methods.coresets.base import Coreset, class_members
from trajmatch.methods.coresets.registry import coreset_of
from trajmatch.synthetic import SyntheticSet
from trajmatch.types import Float, Int, Tensor


@dataclasses.dataclass(frozen=True)
class Share:
    """A share of each class's images, in place of a number for all classes: rounded, and at least
    one image. Raises SettingError for a share that is not above 0 and at most 1."""

    fraction: float

    def __post_init__(self) -> None:
        if not 0 < self.fraction <= 1:
            raise SettingError(f"fraction is {self.fraction}; it must be above 0 and at most 1")

    def of(self, count: int) -> int:
        """How many of `count` images.

        Examples:
            >>> [Share(0.1).of(count) for count in (3, 40, 99)]
            [1, 4, 10]
        """
        return max(1, round(self.fraction * count))


def select_coreset(
    method: str | Coreset,
    dataset: ImageDataset,
    ipc: int | Share,
    *,
    seed: int = 0,
    whitening: Whitening,
    statistics: Float[Tensor, "n *each"] | None = None,
    origin: Mapping[str, Any] | None = None,
) -> SyntheticSet:
    """`ipc` training images of each class, chosen by `method` and whitened; without a step size.

    ipc: the same number of each class, or a `Share` of each.
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
    generator = rng.stream(seed, "coreset", name)
    if isinstance(ipc, Share):
        indices = _choose_share(coreset, statistics, labels, ipc, generator)
        amount: dict[str, Any] = {"ipc": len(indices) // dataset.num_classes}
        amount["fraction"] = ipc.fraction
    else:
        indices = coreset.choose(statistics, labels, ipc, generator)
        amount = {"ipc": ipc}
    return SyntheticSet(
        images=whitening.apply(dataset.train.images[indices]),
        labels=labels[indices],
        classes=dataset.classes,
        whitening=whitening,
        step_size=None,
        info={"method": name, **amount, "seed": seed, "data": dataset.summary()}
        | dict(origin or {}),
    )


def _choose_share(
    coreset: Coreset,
    statistics: Tensor | None,
    labels: Int[Tensor, "n"],
    share: Share,
    generator: torch.Generator,
) -> Int[Tensor, "chosen"]:
    """The share of each class, which the coreset is shown as the only one."""
    chosen = []
    for members in class_members(labels):
        own = None if statistics is None else statistics[members]
        places = coreset.choose(own, torch.zeros_like(members), share.of(len(members)), generator)
        chosen.append(members[places])
    return torch.cat(chosen)


def require_enough(dataset: ImageDataset, ipc: int | Share) -> None:
    """Refuse more images per class than the smallest class has."""
    ipc = 1 if isinstance(ipc, Share) else ipc
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
