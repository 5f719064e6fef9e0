"""A student's steps on the synthetic images, and the graph of one step for the way back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from trajmatch.data.augment import Augmentation
from trajmatch.runtime.micro_batches import micro_batch_sizes
from trajmatch.types import Tensor
from trajmatch.unroll.gradient import GradientFn, GradientVJP, Residuals
from trajmatch.unroll.schedule import Schedule


class Student:
    """One student's view of the synthetic set: the batch of step n and the way back from it.

    A batch goes through the network `micro_batch` images at a time (0: all at once), so that on a
    CPU it stays in the cache and the graph of a recomputed step is that of one micro-batch.
    """

    def __init__(
        self,
        gradient_fn: GradientFn,
        images: Tensor,
        labels: Tensor,
        augment: Augmentation | None,
        schedule: Schedule,
        micro_batch: int = 0,
    ) -> None:
        self.gradient_fn = gradient_fn
        self.images = images.detach()
        self.labels = labels.detach()
        self.augment = augment
        self.schedule = schedule
        self.micro_batch = micro_batch

    def batch(self, n: int) -> tuple[Tensor, Tensor]:
        """Images and labels that step n chooses, before they are cropped and augmented."""
        if self.schedule.indices is None:
            return self.images, self.labels
        chosen = self.schedule.indices[n]
        return self.images[chosen], self.labels[chosen]

    def augmented(self, n: int, images: Tensor) -> Tensor:
        """The images of step n as the network sees them: of canvases their crops; augmented."""
        if self.schedule.crops is not None:
            images = self.schedule.crops[n].apply(images)
        if self.augment is None or self.schedule.draws is None:
            return images
        return self.augment.apply(images, self.schedule.draws[n])

    def labels_at(self, n: int, labels: Tensor) -> Tensor:
        """The label of each image that is seen at step n."""
        return labels if self.schedule.crops is None else self.schedule.crops[n].repeat(labels)

    def step(self, n: int, vector: Tensor) -> Tensor:
        """g_n, without a graph."""
        images, labels = self.batch(n)
        labels = self.labels_at(n, labels)
        with torch.no_grad():
            images = self.augmented(n, images)
        parts = self._split(images, labels)
        return _weighted(
            [(self.gradient_fn.gradient(vector, x, y), len(x) / len(images)) for x, y in parts]
        )

    def residuals(self, n: int, vector: Tensor, *, keep: bool) -> StepResiduals:
        """The way back from step n. `keep`: with the records of all its pieces, made now; else they
        are made one after another when they are walked."""
        images, labels = self.batch(n)
        labels = self.labels_at(n, labels)
        with torch.enable_grad():
            images = images.detach().requires_grad_()
            augmented = self.augmented(n, images)

        def micro_batches() -> Iterator[MicroBatch]:
            for x, y in self._split(augmented.detach(), labels):
                yield MicroBatch(self.gradient_fn.record(vector, x, y), len(x) / len(augmented))

        return StepResiduals(images, augmented, list(micro_batches()) if keep else micro_batches())

    def _split(self, images: Tensor, labels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        sizes = micro_batch_sizes(len(images), self.micro_batch)
        if len(sizes) == 1:
            return iter([(images, labels)])
        return zip(torch.split(images, sizes), torch.split(labels, sizes), strict=True)


class MicroBatch(NamedTuple):
    """The record of some images of a batch, and their share of the batch."""

    record: Residuals
    weight: float


@dataclass
class StepResiduals:
    """The way back from one step: what of it depends on parameters, images and labels."""

    images: Tensor
    augmented: Tensor
    micro_batches: Iterable[MicroBatch]

    def gradient(self) -> Tensor:
        """g_n. Only of a step whose pieces are kept."""
        return _weighted([(record.gradient(), weight) for record, weight in self.micro_batches])

    def saved_tensors(self) -> Iterator[Tensor]:
        """The tensors that its records keep, besides those in autograd graphs."""
        for record, _ in self.micro_batches:
            yield from record.saved_tensors()

    def vjp(self, v: Tensor) -> GradientVJP:
        """<g_n, v> and its derivatives. Uses the records up."""
        inner: Tensor | None = None
        for record, weight in self.micro_batches:
            part = record.vjp(v if weight == 1 else v * weight)
            del record
            if inner is None:
                inner, hessian_v, at_images, at_labels = part[0], part[1], [part[2]], [part[3]]
                continue
            inner, hessian_v = inner + part.inner, hessian_v.add_(part.vector)
            at_images.append(part.images)
            at_labels.append(part.labels)
        assert inner is not None
        images = _joined(at_images)
        if self.augmented is not self.images:
            (images,) = torch.autograd.grad(self.augmented, self.images, images)
        labels = None if at_labels[0] is None else _joined(at_labels)
        if labels is not None and len(labels) > len(images):  # each crop was given its canvas's
            labels = labels.view(-1, len(images), labels.shape[1]).sum(0)
        return GradientVJP(inner, hessian_v, images, labels)


def _joined(parts: list[Any]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _weighted(parts: list[tuple[Tensor, float]]) -> Tensor:
    """The mean over images of the gradients of pieces, each a mean over its own images."""
    if len(parts) == 1:
        return parts[0][0]
    total = parts[0][0] * parts[0][1]
    for gradient, weight in parts[1:]:
        total.add_(gradient, alpha=weight)
    return total
