"""Sets that are chosen, not made: a few real images of each class.

A method is a function (features, labels, ipc, generator) -> indices and a line in CORESETS.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from trajmatch import rng
from trajmatch.coresets.herding import choose_herding
from trajmatch.coresets.random import choose_random
from trajmatch.data.dataset import ImageDataset
from trajmatch.data.whiten import Whitening, to_float
from trajmatch.errors import SettingError, suggest
from trajmatch.networks import NetworkSpec
from trajmatch.networks.functional import load_parameter_vector
from trajmatch.synthetic import SyntheticSet
from trajmatch.types import Float, Tensor

__all__ = ["CORESETS", "NEEDS_FEATURES", "choose_herding", "choose_random", "embeddings"]
__all__ += ["select_coreset"]

CORESETS: dict[str, Callable[[Any, Tensor, int, torch.Generator], Tensor]] = {
    "random": choose_random,
    "herding": choose_herding,
}
"""Name -> function of the features [n, d] (or None), labels [n], ipc and a generator, which gives
the indices of ipc images of each class, class by class."""

NEEDS_FEATURES = frozenset({"herding"})
"""The methods that look at features of the images, such as a trained expert's embedding."""


def select_coreset(
    method: str,
    dataset: ImageDataset,
    ipc: int,
    *,
    seed: int = 0,
    whitening: Whitening,
    features: Float[Tensor, "n features"] | None = None,
) -> SyntheticSet:
    """`ipc` training images of each class, chosen by `method` and whitened; without a step size.

    features: one row per training image (see `embeddings`), for the methods in NEEDS_FEATURES.

    Raises SettingError for an unknown method, missing features, or more images per class than the
    smallest class has.
    """
    if method not in CORESETS:
        raise SettingError(f"unknown coreset method '{method}'; {suggest(method, CORESETS)}")
    labels = dataset.train.labels
    counts = torch.bincount(labels, minlength=dataset.num_classes)
    fewest = int(counts.argmin())
    if not 1 <= ipc <= counts[fewest]:
        raise SettingError(
            f"ipc is {ipc} and class '{dataset.classes[fewest]}' has {counts[fewest]} training "
            f"images; choose ipc from 1 to {counts[fewest]}"
        )
    if method in NEEDS_FEATURES:
        if features is None:
            raise SettingError(f"{method} needs features; give those of a trained expert")
        if len(features) != len(labels) or not bool(features.isfinite().all()):
            raise SettingError(
                f"{method} got {len(features)} rows of features for {len(labels)} training images, "
                "or non-finite ones; give one finite row per image of dataset.train"
            )
    generator = rng.stream(seed, "coreset", method)
    indices = CORESETS[method](None if features is None else features.cpu(), labels, ipc, generator)
    return SyntheticSet(
        images=whitening.apply(to_float(dataset.train.images[indices])),
        labels=labels[indices],
        classes=dataset.classes,
        whitening=whitening,
        step_size=None,
        info={"method": method, "ipc": ipc, "seed": seed, "data": dataset.summary()},
    )


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
