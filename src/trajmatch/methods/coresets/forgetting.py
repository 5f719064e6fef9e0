"""Forgetting: images that a network in training classifies correctly and later wrongly again.

Mariya Toneva, Alessandro Sordoni, Remi Tachet des Combes, Adam Trischler, Yoshua Bengio, Geoffrey
Gordon, An empirical study of example forgetting during deep neural network learning, ICLR 2019.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch

from trajmatch import rng
from trajmatch.config import ExpertConfig
from trajmatch.experts.train import expert_epochs
from trajmatch.methods.coresets.base import Coreset, Requirement, class_members
from trajmatch.networks import NetworkSpec
from trajmatch.runtime.progress import SILENT, Progress
from trajmatch.types import Bool, Float, Int, Tensor


@dataclasses.dataclass(frozen=True)
class Forgetting(Coreset):
    """The most forgotten images of each class; equally forgotten ones in random order.

    Examples:
        >>> counts, labels = torch.tensor([0.0, 3.0, torch.inf]), torch.tensor([0, 0, 0])
        >>> Forgetting().choose(counts, labels, 2, torch.Generator())
        tensor([2, 1])
    """

    name: ClassVar[str] = "forgetting"
    requires: ClassVar[Requirement] = "forgetting"

    def choose(
        self,
        statistics: Float[Tensor, "n"],
        labels: Int[Tensor, "n"],
        ipc: int,
        generator: torch.Generator,
    ) -> Int[Tensor, "chosen"]:
        """Indices of `ipc` images of each class, the most forgotten first.

        statistics: forgetting events (`forgetting_counts`); infinite for images that were never
            classified correctly.
        """
        chosen = []
        for members in class_members(labels):
            members = members[torch.randperm(len(members), generator=generator)]
            order = statistics[members].argsort(descending=True, stable=True)
            chosen.append(members[order[:ipc]])
        return torch.cat(chosen)


def forgetting_counts(
    spec: NetworkSpec,
    images: Float[Tensor, "n channels height width"],
    labels: Int[Tensor, "n"],
    config: ExpertConfig,
    *,
    seed: int,
    progress: Progress = SILENT,
) -> Float[Tensor, "n"]:
    """How often each image is forgotten while a network is trained on all of them, on the CPU.

    Every image is classified once an epoch, augmented, in the forward pass of the step it belongs
    to, which costs nothing beyond the training. The network is trained as an expert is
    (`experts.train.expert_epochs`), on the device of `images`.

    progress: `event("epoch", epoch=, train_loss=, train_accuracy=, seconds=)` after each epoch.

    Cost: that of an expert of `config.epochs` epochs, and a byte per image and epoch. Raises
    TrajmatchError when the training diverges.
    """
    correct = torch.zeros(config.epochs, len(images), dtype=torch.bool, device=images.device)

    def add_batch(epoch: int, indices: Tensor, hits: Tensor) -> None:
        correct[epoch, indices] = hits

    for state in expert_epochs(
        spec,
        images,
        labels,
        config,
        seed=rng.derive(seed, "coreset", "forgetting"),
        index=0,
        on_batch=add_batch,
    ):
        progress.event("epoch", **state.metrics[-1])
    return count_forgetting(correct).cpu()


def count_forgetting(correct: Bool[Tensor, "epochs n"]) -> Float[Tensor, "n"]:
    """Per image, how often it was correct in one epoch and wrong in the next; infinite for images
    that were never correct.

    Examples:
        >>> count_forgetting(torch.tensor([[True, False], [False, False]]))
        tensor([1., inf])
    """
    events = (correct[:-1] & ~correct[1:]).sum(0).float()
    return events.masked_fill(~correct.any(0), torch.inf)
