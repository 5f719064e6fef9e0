"""A student's steps on the synthetic images, and the graph of one step for the way back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch

from trajmatch.data.augment import DSA
from trajmatch.gradient import LossGradient
from trajmatch.pieces import piece_sizes
from trajmatch.schedule import Schedule
from trajmatch.types import Tensor


class Student:
    """One student's view of the synthetic set: the batch of step n and the way back from it.

    A batch goes through the network `piece` images at a time (0: all at once), so that on a CPU it
    stays in the cache, and the graph of a step that is built again is never larger than a piece's.
    """

    def __init__(
        self,
        gradient: LossGradient,
        images: Tensor,
        labels: Tensor,
        augment: DSA | None,
        schedule: Schedule,
        piece: int = 0,
    ) -> None:
        self.gradient = gradient
        self.images = images.detach()
        self.labels = labels.detach()
        self.augment = augment
        self.schedule = schedule
        self.piece = piece

    def batch(self, n: int) -> tuple[Tensor, Tensor]:
        """Images and labels that step n chooses, before augmentation."""
        if self.schedule.indices is None:
            return self.images, self.labels
        chosen = self.schedule.indices[n]
        return self.images[chosen], self.labels[chosen]

    def seen(self, n: int, images: Tensor) -> Tensor:
        """The images of step n after augmentation."""
        if self.augment is None or self.schedule.draws is None:
            return images
        return self.augment.apply(images, self.schedule.draws[n])

    def step(self, n: int, vector: Tensor) -> Tensor:
        """g_n, without a graph."""
        images, labels = self.batch(n)
        with torch.no_grad():
            images = self.seen(n, images)
            parts = self._split(images, labels)
            return _weighted([(self.gradient(vector, x, y), len(x)) for x, y in parts])

    def recorded(self, n: int, vector: Tensor, *, keep: bool) -> RecordedStep:
        """The way back from step n. `keep`: with the graphs of all its pieces, built now; else they
        are built one after another when they are walked."""
        images, labels = self.batch(n)
        images = images.detach().requires_grad_()
        seen = self.seen(n, images)
        vector = vector.detach().requires_grad_()

        def pieces() -> Iterator[Piece]:
            for x, y in self._split(seen.detach(), labels):
                leaf = x.detach().requires_grad_()
                soft = y.detach().requires_grad_() if y.is_floating_point() else y
                yield Piece(leaf, soft, self.gradient(vector, leaf, soft), len(x) / len(seen))

        return RecordedStep(vector, images, seen, list(pieces()) if keep else pieces())

    def _split(self, images: Tensor, labels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        sizes = piece_sizes(len(images), self.piece)
        return zip(torch.split(images, sizes), torch.split(labels, sizes), strict=True)


def _weighted(parts: list[tuple[Tensor, int]]) -> Tensor:
    """The mean over images of the gradients of pieces, each a mean over its own images."""
    if len(parts) == 1:
        return parts[0][0]
    count = sum(size for _, size in parts)
    total = parts[0][0] * (parts[0][1] / count)
    for gradient, size in parts[1:]:
        total.add_(gradient, alpha=size / count)
    return total


@dataclass
class Piece:
    """The graph of the gradient of some images of a batch."""

    images: Tensor
    labels: Tensor
    gradient: Tensor
    weight: float
    """The piece's share of the batch."""


@dataclass
class RecordedStep:
    """The graph of one step: what of it depends on the parameters, the images and the labels."""

    vector: Tensor
    images: Tensor
    seen: Tensor
    pieces: Iterable[Piece]

    def gradient(self) -> Tensor:
        """g_n. Only of a step whose pieces are kept."""
        total = torch.zeros_like(self.vector)
        for piece in self.pieces:
            total.add_(piece.gradient.detach(), alpha=piece.weight)
        return total

    def pull(self, v: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """<g_n, v>, and its derivatives with respect to parameters, images and soft labels.

        Uses the graphs up.
        """
        inner = torch.zeros_like(v[0])
        hessian_v = torch.zeros_like(v)
        images: list[Tensor] = []
        labels: list[Tensor] = []
        for piece in self.pieces:
            inner += torch.dot(piece.gradient.detach(), v) * piece.weight
            wanted = [self.vector, piece.images]
            if piece.labels.is_floating_point():
                wanted.append(piece.labels)
            share = v if piece.weight == 1 else v * piece.weight
            parts = torch.autograd.grad(piece.gradient, wanted, share)
            del piece
            hessian_v += parts[0]
            images.append(parts[1])
            labels.extend(parts[2:])
        pulled = images[0] if len(images) == 1 else torch.cat(images)
        if self.seen is not self.images:
            (pulled,) = torch.autograd.grad(self.seen, self.images, pulled)
        return inner, hessian_v, pulled, torch.cat(labels) if labels else None
