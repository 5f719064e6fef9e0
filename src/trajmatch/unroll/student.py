"""A student on the synthetic set: the gradient of one step, and the residuals of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch

from trajmatch.data.augment import Augmentation
from trajmatch.runtime.micro_batches import micro_batch_sizes
from trajmatch.types import Float, Shaped, Tensor
from trajmatch.unroll.gradient import GradientFn, GradientVJP, Residuals
from trajmatch.unroll.schedule import Schedule


class Student:
    """The gradients g_n of one student, for a synthetic set and a schedule.

    images: [n, channels, height, width]; labels: class indices [n] or probabilities [n, classes].

    micro_batch: how many images go through the network at a time; 0: all of a batch. On a CPU they
    then stay in the cache, and a step whose residuals are computed again holds those of one
    micro-batch only. Gradients do not depend on it but for rounding.
    """

    def __init__(
        self,
        gradient_fn: GradientFn,
        images: Float[Tensor, "n channels height width"],
        labels: Shaped[Tensor, "n ..."],
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

    def batch(
        self, n: int
    ) -> tuple[Float[Tensor, "batch channels height width"], Shaped[Tensor, "batch ..."]]:
        """The images and labels of step n's mini-batch, before cropping and augmentation."""
        if self.schedule.indices is None:
            return self.images, self.labels
        indices = self.schedule.indices[n]
        return self.images[indices], self.labels[indices]

    def augmented(
        self, n: int, images: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "augmented channels _ _"]:
        """Step n's mini-batch as the network's input: cropped, where images are canvases, and
        augmented. With s crops of each canvas there are s * batch augmented images."""
        if self.schedule.crops is not None:
            images = self.schedule.crops[n].apply(images)
        if self.augment is None or self.schedule.draws is None:
            return images
        return self.augment.apply(images, self.schedule.draws[n])

    def labels_at(
        self, n: int, labels: Shaped[Tensor, "batch ..."]
    ) -> Shaped[Tensor, "augmented ..."]:
        """The labels of step n's augmented images."""
        return labels if self.schedule.crops is None else self.schedule.crops[n].repeat(labels)

    def step(self, n: int, vector: Float[Tensor, "params"]) -> Float[Tensor, "params"]:
        """g_n at `vector`, without residuals."""
        images, labels = self.batch(n)
        labels = self.labels_at(n, labels)
        with torch.no_grad():
            images = self.augmented(n, images)
        return _mean(
            [
                (self.gradient_fn.gradient(vector, x, y), len(x) / len(images))
                for x, y in self._micro_batches(images, labels)
            ]
        )

    def residuals(self, n: int, vector: Float[Tensor, "params"], *, keep: bool) -> StepResiduals:
        """The residuals of step n at `vector`.

        keep: compute those of all micro-batches now. Otherwise each is computed when `vjp` comes to
        it and freed after it.
        """
        images, labels = self.batch(n)
        labels = self.labels_at(n, labels)
        with torch.enable_grad():
            images = images.detach().requires_grad_()
            augmented = self.augmented(n, images)

        def micro_batches() -> Iterator[MicroBatch]:
            for x, y in self._micro_batches(augmented.detach(), labels):
                residuals = self.gradient_fn.residuals(vector, x, y)
                yield MicroBatch(residuals, len(x) / len(augmented))

        return StepResiduals(images, augmented, list(micro_batches()) if keep else micro_batches())

    def _micro_batches(
        self,
        images: Float[Tensor, "augmented channels height width"],
        labels: Shaped[Tensor, "augmented ..."],
    ) -> Iterator[tuple[Tensor, Tensor]]:
        sizes = micro_batch_sizes(len(images), self.micro_batch)
        if len(sizes) == 1:
            return iter([(images, labels)])
        return zip(torch.split(images, sizes), torch.split(labels, sizes), strict=True)


class MicroBatch(NamedTuple):
    """The residuals of some images of a batch, and their share of the batch."""

    residuals: Residuals
    weight: float


@dataclass
class StepResiduals:
    """The residuals of one step: of its augmentation, and of g_n for each micro-batch."""

    images: Float[Tensor, "batch channels _ _"]
    """The mini-batch, a leaf of the augmentation's graph."""
    augmented: Float[Tensor, "augmented channels _ _"]
    """The same tensor where nothing is cropped or augmented."""
    micro_batches: Iterable[MicroBatch]

    def gradient(self) -> Float[Tensor, "params"]:
        """g_n. Only for a step whose residuals are kept."""
        return _mean([(residuals.gradient(), weight) for residuals, weight in self.micro_batches])

    def saved_tensors(self) -> Iterator[Shaped[Tensor, "..."]]:
        """The tensors it holds, besides those saved in autograd graphs."""
        for residuals, _ in self.micro_batches:
            yield from residuals.saved_tensors()

    def vjp(self, v: Float[Tensor, "params"]) -> GradientVJP:
        """<g_n, v> and its derivatives, at images and labels of the mini-batch before cropping and
        augmentation. Can be called once."""
        inner: Tensor | None = None
        for residuals, weight in self.micro_batches:
            part = residuals.vjp(v if weight == 1 else v * weight)
            del residuals
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
        soft = [part for part in at_labels if part is not None]
        labels = _joined(soft) if soft else None
        if labels is not None and len(labels) > len(images):  # every crop has its canvas's label
            labels = labels.view(-1, len(images), labels.shape[1]).sum(0)
        return GradientVJP(inner, hessian_v, images, labels)


def _joined(parts: list[Float[Tensor, "_ ..."]]) -> Float[Tensor, "_ ..."]:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _mean(parts: list[tuple[Float[Tensor, "params"], float]]) -> Float[Tensor, "params"]:
    """The gradient of a batch from (gradient, share of the batch) of its micro-batches."""
    if len(parts) == 1:
        return parts[0][0]
    total = parts[0][0] * parts[0][1]
    for gradient, weight in parts[1:]:
        total.add_(gradient, alpha=weight)
    return total
