"""Forgetting: images that a network in training gets right and later wrong again, most often first.

Mariya Toneva, Alessandro Sordoni, Remi Tachet des Combes, Adam Trischler, Yoshua Bengio, Geoffrey
Gordon, An empirical study of example forgetting during deep neural network learning, ICLR 2019.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from trajmatch import rng
from trajmatch.config import ExpertConfig
from trajmatch.data.augment import Augmentation
from trajmatch.experts.train import train_expert
from trajmatch.experts.trajectory import TrainingState
from trajmatch.networks import NetworkSpec
from trajmatch.types import Bool, Float, Int, Tensor


def choose_forgetting(
    counts: Float[Tensor, "n"],
    labels: Int[Tensor, "n"],
    ipc: int,
    generator: torch.Generator,
) -> Int[Tensor, "chosen"]:
    """`ipc` indices of each class, class by class, the most forgotten first; equals are shuffled.

    counts: of forgetting events (`forgetting_counts`); infinite for images that never were right.
    """
    chosen = []
    for label in range(int(labels.max()) + 1):
        members = (labels == label).nonzero().flatten()
        members = members[torch.randperm(len(members), generator=generator)]
        order = counts[members].argsort(descending=True, stable=True)
        chosen.append(members[order[:ipc]])
    return torch.cat(chosen)


def forgetting_counts(
    spec: NetworkSpec,
    images: Float[Tensor, "n channels height width"],
    labels: Int[Tensor, "n"],
    config: ExpertConfig,
    *,
    seed: int,
    on_epoch: Callable[[Mapping[str, Any]], None] | None = None,
) -> Float[Tensor, "n"]:
    """How often each image is forgotten while a network is trained on all of them, on the CPU.

    An image is presented once an epoch, augmented, and judged by the network as it is before the
    step it is in: that costs nothing beside the training. The network is trained as an expert is
    (`experts.train_expert`), on the device of `images`.

    on_epoch: hears {epoch, train_loss, train_accuracy, seconds} after each epoch.

    Cost: that of an expert of `config.epochs` epochs, and a byte an image and epoch. Raises
    TrajmatchError when the training diverges.
    """
    right = torch.zeros(config.epochs, len(images), dtype=torch.bool, device=images.device)

    def note(epoch: int, chosen: Tensor, hits: Tensor) -> None:
        right[epoch, chosen] = hits

    def tell(recording: TrainingState) -> None:
        if on_epoch is not None:
            on_epoch(recording.metrics[-1])

    train_expert(
        spec,
        images,
        labels,
        config,
        seed=rng.derive(seed, "coreset", "forgetting"),
        index=0,
        augment=None if config.augment in (None, "none") else Augmentation(str(config.augment)),
        on_batch=note,
        on_epoch=tell,
    )
    return count_forgetting(right).cpu()


def count_forgetting(right: Bool[Tensor, "presentations n"]) -> Float[Tensor, "n"]:
    """Per image, how often it was right and at its next presentation wrong; infinite for one that
    was never right."""
    events = (right[:-1] & ~right[1:]).sum(0).float()
    return events.masked_fill(~right.any(0), torch.inf)
