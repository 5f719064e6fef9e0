"""Sets that are chosen, not made: a few real images of each class.

A method is a function (evidence, labels, ipc, generator) -> indices and a line in CORESETS, which
says what its evidence is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch

from trajmatch import rng
from trajmatch.coresets.herding import choose_herding
from trajmatch.coresets.kcenter import choose_k_center
from trajmatch.coresets.kmeans import choose_k_means
from trajmatch.coresets.random import choose_random
from trajmatch.data.dataset import ImageDataset
from trajmatch.data.whiten import Whitening, to_float
from trajmatch.errors import SettingError, suggest
from trajmatch.networks import NetworkSpec
from trajmatch.networks.functional import load_parameter_vector
from trajmatch.synthetic import SyntheticSet
from trajmatch.types import Float, Tensor

__all__ = [
    "BASELINES",
    "CORESETS",
    "Coreset",
    "choose_herding",
    "choose_k_center",
    "choose_k_means",
    "choose_random",
    "coreset_of",
    "embeddings",
    "require_enough",
    "select_coreset",
]


@dataclass(frozen=True)
class Coreset:
    """One way to choose, and what it looks at."""

    choose: Callable[[Any, Tensor, int, torch.Generator], Tensor]
    """(evidence, labels [n], ipc, generator) -> the indices of ipc images of each class, class by
    class."""
    looks_at: Literal["nothing", "features"] = "nothing"
    """Of each training image. "features": its embedding by a trained network (`embeddings`)."""


CORESETS: dict[str, Coreset] = {
    "random": Coreset(choose_random),
    "herding": Coreset(choose_herding, "features"),
    "k-center": Coreset(choose_k_center, "features"),
    "k-means": Coreset(choose_k_means, "features"),
}

BASELINES = ("random", "herding")
"""The coresets that every made set is compared with when it is done."""


def select_coreset(
    method: str,
    dataset: ImageDataset,
    ipc: int,
    *,
    seed: int = 0,
    whitening: Whitening,
    evidence: Float[Tensor, "n *each"] | None = None,
) -> SyntheticSet:
    """`ipc` training images of each class, chosen by `method` and whitened; without a step size.

    evidence: what `method` looks at, a row per training image; None where that is nothing.

    Raises SettingError for an unknown method, evidence that is missing or does not fit, or more
    images per class than the smallest class has.
    """
    coreset = coreset_of(method)
    require_enough(dataset, ipc)
    labels = dataset.train.labels
    if coreset.looks_at != "nothing":
        evidence = _fitting(method, coreset.looks_at, evidence, len(labels))
    indices = coreset.choose(evidence, labels, ipc, rng.stream(seed, "coreset", method))
    return SyntheticSet(
        images=whitening.apply(to_float(dataset.train.images[indices])),
        labels=labels[indices],
        classes=dataset.classes,
        whitening=whitening,
        step_size=None,
        info={"method": method, "ipc": ipc, "seed": seed, "data": dataset.summary()},
    )


def coreset_of(method: str) -> Coreset:
    """The entry of CORESETS; SettingError with the nearest name where there is none."""
    if method not in CORESETS:
        raise SettingError(f"unknown coreset method '{method}'; {suggest(method, CORESETS)}")
    return CORESETS[method]


def require_enough(dataset: ImageDataset, ipc: int) -> None:
    """Refuse more images per class than the smallest class has."""
    counts = torch.bincount(dataset.train.labels, minlength=dataset.num_classes)
    fewest = int(counts.argmin())
    if not 1 <= ipc <= counts[fewest]:
        raise SettingError(
            f"ipc is {ipc} and class '{dataset.classes[fewest]}' has {counts[fewest]} training "
            f"images; choose ipc from 1 to {counts[fewest]}"
        )


def _fitting(method: str, looks_at: str, evidence: Tensor | None, images: int) -> Tensor:
    """The evidence on the CPU, refused where it cannot be that of these images."""
    if evidence is None:
        raise SettingError(f"{method} needs {looks_at}; give those of a trained expert")
    if len(evidence) != images or not bool(evidence.isfinite().all()):
        raise SettingError(
            f"{method} got {len(evidence)} rows of {looks_at} for {images} training images, "
            "or non-finite ones; give one finite row per image of dataset.train"
        )
    return evidence.cpu()


def embeddings(
    spec: NetworkSpec,
    vector: Float[Tensor, "params"],
    images: Float[Tensor, "n channels height width"],
    batch: int = 512,
) -> Float[Tensor, "n features"]:
    """What the network with parameters `vector` makes of whitened images before its last layer.

    Computed `batch` at a time on the device of `vector`, in eval mode; returned on the CPU.
    """
    module = spec.build(seed=0).to(vector.device)
    load_parameter_vector(module, vector)
    module.eval()
    with torch.no_grad():
        parts = [module.embed(part.to(vector.device)).cpu() for part in torch.split(images, batch)]
    return torch.cat(parts)
