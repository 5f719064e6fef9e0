"""A student's steps on the synthetic images, and the graph of one step for the way back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from trajmatch.data.augment import DSA
from trajmatch.runtime.micro_batches import piece_sizes
from trajmatch.types import Tensor
from trajmatch.unroll.gradient import Passes, Pulled, Record
from trajmatch.unroll.schedule import Schedule


class Student:
    """One student's view of the synthetic set: the batch of step n and the way back from it.

    A batch goes through the network `piece` images at a time (0: all at once), so that on a CPU it
    stays in the cache, and the graph of a step that is built again is never larger than a piece's.
    """

    def __init__(
        self,
        passes: Passes,
        images: Tensor,
        labels: Tensor,
        augment: DSA | None,
        schedule: Schedule,
        piece: int = 0,
    ) -> None:
        self.passes = passes
        self.images = images.detach()
        self.labels = labels.detach()
        self.augment = augment
        self.schedule = schedule
        self.piece = piece

    def batch(self, n: int) -> tuple[Tensor, Tensor]:
        """Images and labels that step n chooses, before they are cropped and augmented."""
        if self.schedule.indices is None:
            return self.images, self.labels
        chosen = self.schedule.indices[n]
        return self.images[chosen], self.labels[chosen]

    def seen(self, n: int, images: Tensor) -> Tensor:
        """The images of step n as the network sees them: of canvases their crops; augmented."""
        if self.schedule.crops is not None:
            images = self.schedule.crops[n].apply(images)
        if self.augment is None or self.schedule.draws is None:
            return images
        return self.augment.apply(images, self.schedule.draws[n])

    def told(self, n: int, labels: Tensor) -> Tensor:
        """The label of each image that is seen at step n."""
        return labels if self.schedule.crops is None else self.schedule.crops[n].repeat(labels)

    def step(self, n: int, vector: Tensor) -> Tensor:
        """g_n, without a graph."""
        images, labels = self.batch(n)
        labels = self.told(n, labels)
        with torch.no_grad():
            images = self.seen(n, images)
        parts = self._split(images, labels)
        return _weighted(
            [(self.passes.gradient(vector, x, y), len(x) / len(images)) for x, y in parts]
        )

    def recorded(self, n: int, vector: Tensor, *, keep: bool) -> RecordedStep:
        """The way back from step n. `keep`: with the records of all its pieces, made now; else they
        are made one after another when they are walked."""
        images, labels = self.batch(n)
        labels = self.told(n, labels)
        with torch.enable_grad():
            images = images.detach().requires_grad_()
            seen = self.seen(n, images)

        def pieces() -> Iterator[Piece]:
            for x, y in self._split(seen.detach(), labels):
                yield Piece(self.passes.record(vector, x, y), len(x) / len(seen))

        return RecordedStep(images, seen, list(pieces()) if keep else pieces())

    def _split(self, images: Tensor, labels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        sizes = piece_sizes(len(images), self.piece)
        if len(sizes) == 1:
            return iter([(images, labels)])
        return zip(torch.split(images, sizes), torch.split(labels, sizes), strict=True)


class Piece(NamedTuple):
    """The record of some images of a batch, and their share of the batch."""

    record: Record
    weight: float


@dataclass
class RecordedStep:
    """The way back from one step: what of it depends on parameters, images and labels."""

    images: Tensor
    seen: Tensor
    pieces: Iterable[Piece]

    def gradient(self) -> Tensor:
        """g_n. Only of a step whose pieces are kept."""
        return _weighted([(record.gradient(), weight) for record, weight in self.pieces])

    def held(self) -> Iterator[Tensor]:
        """The tensors that its records keep, besides those in autograd graphs."""
        for record, _ in self.pieces:
            yield from record.held()

    def pull(self, v: Tensor) -> Pulled:
        """<g_n, v> and its derivatives. Uses the records up."""
        inner: Tensor | None = None
        for record, weight in self.pieces:
            part = record.pull(v if weight == 1 else v * weight)
            del record
            if inner is None:
                inner, hessian_v, at_images, at_labels = part[0], part[1], [part[2]], [part[3]]
                continue
            inner, hessian_v = inner + part.inner, hessian_v.add_(part.vector)
            at_images.append(part.images)
            at_labels.append(part.labels)
        assert inner is not None
        images = _joined(at_images)
        if self.seen is not self.images:
            (images,) = torch.autograd.grad(self.seen, self.images, images)
        labels = None if at_labels[0] is None else _joined(at_labels)
        if labels is not None and len(labels) > len(images):  # each crop was given its canvas's
            labels = labels.view(-1, len(images), labels.shape[1]).sum(0)
        return Pulled(inner, hessian_v, images, labels)


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
