"""CAFE: mean features of a class are matched to those of its real images in every layer."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import torch
from torch.nn import functional as F

from trajmatch.config import DSA_STRATEGY
from trajmatch.errors import SettingError
from trajmatch.methods.alternating import BATCH, AlternatingMethod
from trajmatch.methods.base import Conditions
from trajmatch.methods.dsa import augment_both
from trajmatch.methods.parameters import Estimate, SyntheticParameters
from trajmatch.methods.problem import Problem, classes_of
from trajmatch.networks.base import Network
from trajmatch.networks.functional import load_parameter_vector
from trajmatch.networks.precision import arithmetic, rounding
from trajmatch.runtime.micro_batches import micro_batch_sizes
from trajmatch.types import Float, Int, Tensor

BLOCK_WEIGHT, LAST_WEIGHT, EMBEDDING_WEIGHT = 0.1, 1.0, 2.0
"""Weights of the layers: of each block before the last, of the last, of the embedding; released,
where the embedding is counted once as a layer and once more on its own."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CAFE(AlternatingMethod):
    """Aligning features: the distance of class means in every layer of a network, and the
    cross-entropy of real images classified by the synthetic class centers, along the network's
    training.

    With neither `outer_loop` nor `inner_loop` the schedule is the paper's, by the accuracy on real
    training images: a network is trained until its accuracy has moved and replaced when it has
    settled; `problem.state` holds the last accuracies. With both, the loops are fixed as in dc.

    Cost of an iteration: a forward pass of `batch_real` images per class, two forward and one
    backward pass of the synthetic ones, and the network's steps. In the paper's schedule these are
    at least `accuracies` passes over the images, each followed by a forward pass of `batch_query`
    real images per class. The graph of one class is held at a time. Soft labels are not learned.
    """

    name: ClassVar[str] = "cafe"
    title: ClassVar[str] = "feature alignment (CAFE)"
    objective: ClassVar[str] = "distance of mean features and cross-entropy, all classes"
    reference: ClassVar[str] = (
        "Wang, Zhao, Peng, Zhu, Yang, Wang, Huang, Bilen, Wang, You: CAFE: Learning to Condense "
        "Dataset by Aligning Features, CVPR 2022"
    )
    stream_name: ClassVar[str] = "alignment"

    outer_loop: int | None = None
    """Updates of the images for one network. None: until its accuracy on real images settles."""
    inner_loop: int | None = None
    """The network's steps between two of them. None: until its accuracy has moved."""
    augment: str | None = DSA_STRATEGY
    """DSA strategy, the same change for real and synthetic images of a class; or none. Without flip
    for letters, digits and signs."""
    discrimination_weight: float = 0.01
    """Weight of the cross-entropy, which is a sum over all real images; released."""
    accuracies: int = 10
    """How many last accuracies the schedule compares; released."""
    settled: float = 0.04
    """A network whose last accuracies differ by less than this is replaced; released."""
    moved: float = 0.03
    """A network is trained until its last accuracies differ by more than this; released."""
    max_epochs: int = 20
    """Passes over the images after which it is used all the same; ours: the released code goes on,
    which on few images may be for ever."""
    batch_query: int = 128
    """Real images of each class that an accuracy is measured on; released."""

    def check(self, conditions: Conditions) -> None:
        super().check(conditions)
        outer, inner = self.outer_loop, self.inner_loop
        if (outer is None) != (inner is None):
            raise SettingError(
                f"outer_loop is {outer} and inner_loop is {inner}; cafe takes both, or neither for "
                "the paper's schedule"
            )

    def estimate(
        self, problem: Problem, parameters: SyntheticParameters, iteration: int
    ) -> Estimate:
        """Loss and gradient of one iteration, summed over the classes."""
        places = classes_of(parameters.classes, problem.spec.classes)
        gradient = torch.zeros_like(parameters.images)
        with arithmetic(problem.precision):
            vector = problem.state["network"] = self._network(problem, parameters, iteration)
            load_parameter_vector(_module(problem), vector)
            pairs = [
                self._pair(problem, parameters.images[chosen], label, iteration)
                for label, chosen in enumerate(places)
            ]
            loss, at_centers = self._discrimination(problem, pairs)
            for pair, chosen, at_center in zip(pairs, places, at_centers, strict=True):
                with torch.enable_grad():
                    layers = _layers(problem, pair.synthetic)
                    distance = alignment(pair.means, layers)
                    # The class center also moves to where it classifies real images better.
                    both = distance + (at_center * layers[-1].mean(0)).sum()
                    (gradient[chosen],) = torch.autograd.grad(both, pair.leaf)
                loss = loss + distance.detach()
        return Estimate(loss, gradient)

    def _pair(self, problem: Problem, images: Tensor, label: int, iteration: int) -> _Pair:
        """Features of a class's real images, and its synthetic images, augmented alike."""
        draw = problem.stream(self.stream_name, iteration, label)
        real = problem.of_class(label, self.batch_real, draw)
        leaf = images.detach().requires_grad_()
        with torch.enable_grad():
            real, synthetic = augment_both(self.augmentation, draw, real, leaf)
        sums: list[Tensor] = []
        embedded = []
        with torch.no_grad():
            for part in torch.split(real, micro_batch_sizes(len(real), problem.micro_batch)):
                layers = _layers(problem, part)
                embedded.append(layers[-1])
                parts = [layer.sum(0) for layer in layers]
                sums = [s + p for s, p in zip(sums, parts, strict=True)] if sums else parts
        return _Pair([s / len(real) for s in sums], torch.cat(embedded), leaf, synthetic)

    def _discrimination(
        self, problem: Problem, pairs: Sequence[_Pair]
    ) -> tuple[Float[Tensor, ""], Float[Tensor, "classes features"]]:
        """The weighted discrimination loss and its gradient at each class center."""
        with torch.no_grad():
            centers = torch.stack([_layers(problem, p.synthetic)[-1].mean(0) for p in pairs])
        sizes = torch.tensor([len(pair.embedded) for pair in pairs], device=centers.device)
        labels = torch.arange(len(pairs), device=centers.device).repeat_interleave(sizes)
        embedded = torch.cat([pair.embedded for pair in pairs])
        with torch.enable_grad():
            loss = self.discrimination_weight * discrimination(
                embedded, labels, centers.requires_grad_()
            )
            (at_centers,) = torch.autograd.grad(loss, centers)
        return loss.detach(), at_centers

    # -- the schedule ----------------------------------------------------------------------------

    def _network(
        self, problem: Problem, parameters: SyntheticParameters, iteration: int
    ) -> Float[Tensor, "params"]:
        if self.outer_loop is not None:
            return super()._network(problem, parameters, iteration)
        last = problem.state.get("accuracies")
        if last is None or (len(last) == self.accuracies and spread(last) < self.settled):
            vector, last = self._fresh(problem, iteration), None
        else:
            vector = self._trained_until_moved(problem, parameters, iteration)
        now = self._accuracy(problem, vector, (iteration,))
        now = now if last is None else torch.cat([last, now])[-self.accuracies :]
        problem.state["accuracies"] = now
        return vector

    def _trained_until_moved(
        self, problem: Problem, parameters: SyntheticParameters, iteration: int
    ) -> Float[Tensor, "params"]:
        """The network after as many passes over the images as its accuracy takes to move."""
        vector = problem.state["network"]
        steps = -(-len(parameters.images) // BATCH)
        last: list[Tensor] = []
        for number in range(self.max_epochs):
            names = (iteration, number)
            vector = self._trained(problem, vector, parameters, steps, names)
            last = [*last, self._accuracy(problem, vector, names)][-self.accuracies :]
            if len(last) == self.accuracies and spread(torch.cat(last)) > self.moved:
                break
        return vector

    def _accuracy(
        self, problem: Problem, vector: Tensor, names: tuple[int, ...]
    ) -> Float[Tensor, "1"]:
        """The share of `batch_query` real training images of each class, drawn anew every time,
        that the network classifies rightly; the mean over the classes."""
        module = _module(problem)
        load_parameter_vector(module, vector)
        draw = problem.stream(self.stream_name, "query", *names)
        shares = []
        for label in range(problem.spec.classes):
            images = problem.of_class(label, self.batch_query, draw)
            sizes = micro_batch_sizes(len(images), problem.micro_batch)
            with torch.no_grad(), rounding(problem.precision, images.device.type):
                logits = [module(part) for part in torch.split(images, sizes)]
            shares.append((torch.cat(logits).argmax(1) == label).double().mean())
        return torch.stack(shares).mean(0, keepdim=True)


def _module(problem: Problem) -> Network:
    """A network that parameters are loaded into, one a run."""
    return problem.cached("cafe", lambda: problem.fresh(0).requires_grad_(False))


def _layers(problem: Problem, images: Tensor) -> list[Tensor]:
    with rounding(problem.precision, images.device.type):
        return [layer.to(images.dtype) for layer in _module(problem).layers(images)]


class _Pair(NamedTuple):
    """One class, real and synthetic images augmented alike."""

    means: list[Tensor]
    """Mean features of the real images in every layer."""
    embedded: Tensor
    """Each real image in the last of them."""
    leaf: Tensor
    """The synthetic images as they are learned."""
    synthetic: Tensor
    """The same, augmented."""


def alignment(
    means: Sequence[Float[Tensor, "..."]], layers: Sequence[Float[Tensor, "few ..."]]
) -> Float[Tensor, ""]:
    """||mean of the real - mean of the synthetic features||^2, in a weighted sum over the layers.

    means: of the real images in each layer. layers: each synthetic image in the same.
    """
    weights = [*[BLOCK_WEIGHT] * (len(layers) - 2), LAST_WEIGHT, EMBEDDING_WEIGHT][-len(layers) :]
    distances = [
        weight * (mean - layer.mean(0)).square().sum()
        for weight, mean, layer in zip(weights, means, layers, strict=True)
    ]
    return torch.stack(distances).sum()


def discrimination(
    embedded: Float[Tensor, "many features"],
    labels: Int[Tensor, "many"],
    centers: Float[Tensor, "classes features"],
) -> Float[Tensor, ""]:
    """The cross-entropy of real images, summed over them, whose logits are their inner products
    with the class centers."""
    return F.cross_entropy(embedded @ centers.mT, labels, reduction="sum")


def spread(accuracies: Float[Tensor, "few"]) -> float:
    """The largest minus the smallest."""
    return float(accuracies.max() - accuracies.min())
