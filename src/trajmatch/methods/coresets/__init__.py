"""Sets that are chosen, not made: a few real images of each class.

A method is a function (evidence, labels, ipc, generator) -> indices and a line in CORESETS, which
says what its evidence is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch

from trajmatch import rng
from trajmatch.data.dataset import ImageDataset
from trajmatch.data.whiten import Whitening, to_float
from trajmatch.errors import SettingError, suggest
from trajmatch.methods.coresets.forgetting import choose_forgetting, forgetting_counts
from trajmatch.methods.coresets.herding import choose_herding
from trajmatch.methods.coresets.kcenter import choose_k_center
from trajmatch.methods.coresets.kmeans import choose_k_means
from trajmatch.methods.coresets.random import choose_random
from trajmatch.networks import NetworkSpec
from trajmatch.networks.functional import load_parameter_vector
from trajmatch.synthetic import SyntheticSet
from trajmatch.types import Float, Tensor

__all__ = [
    "BASELINES",
    "CORESETS",
    "Coreset",
    "choose_forgetting",
    "choose_herding",
    "choose_k_center",
    "choose_k_means",
    "choose_random",
    "coreset_of",
    "embeddings",
    "forgetting_counts",
    "require_enough",
    "select_coreset",
]


@dataclass(frozen=True)
class Coreset:
    """One way to choose, and what it looks at."""

    choose: Callable[[Any, Tensor, int, torch.Generator], Tensor]
    """(evidence, labels [n], ipc, generator) -> the indices of ipc images of each class, class by
    class."""
    looks_at: Literal["nothing", "features", "forgetting"] = "nothing"
    """Of each training image. "features": its embedding by a trained network (`embeddings`).
    "forgetting": how often a network in training forgot it (`forgetting_counts`)."""


CORESETS: dict[str, Coreset] = {
    "random": Coreset(choose_random),
    "herding": Coreset(choose_herding, "features"),
    "k-center": Coreset(choose_k_center, "features"),
    "k-means": Coreset(choose_k_means, "features"),
    "forgetting": Coreset(choose_forgetting, "forgetting"),
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
    origin: Mapping[str, Any] | None = None,
) -> SyntheticSet:
    """`ipc` training images of each class, chosen by `method` and whitened; without a step size.

    evidence: what `method` looks at, a row per training image; None where that is nothing.
    origin: where the evidence comes from, as JSON has it; kept in the set's info.

    Raises SettingError for an unknown method, evidence that is missing or does not fit, or more
    images per class than the smallest class has.
    """
    choose = coreset_of(method).choose
    require_enough(dataset, ipc)
    labels = dataset.train.labels
    evidence = _fitting(method, evidence, len(labels))
    indices = choose(evidence, labels, ipc, rng.stream(seed, "coreset", method))
    return SyntheticSet(
        images=whitening.apply(to_float(dataset.train.images[indices])),
        labels=labels[indices],
        classes=dataset.classes,
        whitening=whitening,
        step_size=None,
        info={"method": method, "ipc": ipc, "seed": seed, "data": dataset.summary()}
        | dict(origin or {}),
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


def _fitting(method: str, evidence: Tensor | None, images: int) -> Tensor | None:
    """The evidence on the CPU, refused where it cannot be what `method` looks at."""
    kind = CORESETS[method].looks_at
    if kind == "nothing":
        return None
    what, axes, source = {
        "features": ("rows of features", 2, "embeddings of a trained network"),
        "forgetting": ("counts of forgetting", 1, "forgetting_counts of a training run"),
    }[kind]
    if evidence is None:
        raise SettingError(f"{method} needs {what}; give the {source} as evidence=")
    sound = not bool(evidence.isnan().any() if axes == 1 else (~evidence.isfinite()).any())
    if len(evidence) != images or evidence.ndim != axes or not sound:
        raise SettingError(
            f"{method} got {len(evidence)} {what} of shape {tuple(evidence.shape)} for {images} "
            f"training images, or some that are no numbers; give the {source}"
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
