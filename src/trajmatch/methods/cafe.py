"""CAFE: images whose features are those of the real images of their class in every layer.

@inproceedings{wang2022cafe,
  title     = {{CAFE}: Learning to Condense Dataset by Aligning Features},
  author    = {Wang, Kai and Zhao, Bo and Peng, Xiangyu and Zhu, Zheng and Yang, Shuo and Wang, Shuo
               and Huang, Guan and Bilen, Hakan and Wang, Xinchao and You, Yang},
  booktitle = {CVPR},
  year      = {2022}}
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch.nn import functional as F

from trajmatch.config import DistillConfig
from trajmatch.errors import SettingError
from trajmatch.methods.alternating import BATCH, AlternatingMethod
from trajmatch.methods.dsa import alike
from trajmatch.methods.parameters import Estimate, SyntheticParameters
from trajmatch.methods.problem import Problem, classes_of
from trajmatch.networks.functional import load_parameter_vector
from trajmatch.rng import stream
from trajmatch.runtime.micro_batches import micro_batch_sizes
from trajmatch.types import Float, Int, Tensor
from trajmatch.unroll.gradient import arithmetic, rounding

BETA = 0.01
"""Weight of the discrimination loss, which is a sum over all real images; released."""
EARLY, LAST, EMBEDDED = 0.1, 1.0, 2.0
"""Weights of the layers: of each block before the last, of that, of the embedding; released, where
the embedding is counted once as a layer and once more on its own."""
WATCHED = 10
"""Accuracies in a row that the schedule looks at; released."""
SETTLED = 0.04
"""A network whose last accuracies lie closer together than this is done with; released."""
MOVED = 0.03
"""A network is trained until its last accuracies lie farther apart than this; released."""
LONGEST = 20
"""Passes over the images after which it is looked through all the same; ours: the released code
goes on, which on few images may be for ever."""
QUERY = 128
"""Real images of each class that an accuracy is taken on; released."""


class CAFE(AlternatingMethod):
    """Estimates how far apart class means are in every layer of a network, and how badly the
    synthetic ones tell real images apart, along the network's training.

    With neither `outer_loop` nor `inner_loop` the schedule is the paper's, by the accuracy on real
    training images: a network is trained until it has moved and replaced when it has settled;
    `carried` holds the last accuracies. With both, the loops are as fixed as those of dc.

    An iteration costs a forward pass of `batch_real` images per class, two of the synthetic ones
    and one back, and the network's steps. In the paper's schedule these are at least ten passes
    over the images, each followed by a forward pass of 128 real images per class. The graph of one
    class is held at a time. Raises SettingError for one loop without the other, and for what no
    `AlternatingMethod` takes.
    """

    name = "cafe"
    title = "feature alignment (CAFE)"
    objective = "distance of mean features and cross-entropy, all classes"
    draws = "alignment"

    def __init__(self, ground: Problem, config: DistillConfig, *, seed: int) -> None:
        super().__init__(ground, config, seed=seed)
        self.module.requires_grad_(False)
        outer, inner = config.outer_loop, config.inner_loop
        if (outer is None) != (inner is None):
            raise SettingError(
                f"outer_loop is {outer} and inner_loop is {inner}; cafe takes both, or neither for "
                "the paper's schedule"
            )
        self.fixed = outer is not None
        self.outer, self.inner = outer or 1, inner or 1

    def estimate(self, learned: SyntheticParameters, iteration: int) -> Estimate:
        """Loss and gradient of one iteration, summed over the classes."""
        places = classes_of(learned.classes, self.ground.spec.classes)
        gradient = torch.zeros_like(learned.images)
        with arithmetic(self.config.precision):
            vector = self.carried["network"] = self._network(learned, iteration)
            load_parameter_vector(self.module, vector)
            sides = [
                self._sides(learned.images[chosen], label, iteration)
                for label, chosen in enumerate(places)
            ]
            loss, pulls = self._told_apart(sides)
            for side, chosen, pull in zip(sides, places, pulls, strict=True):
                with torch.enable_grad():
                    layers = self._layers(side.synthetic)
                    apart = alignment(side.means, layers)
                    # The centers are moved, too, to where they tell real images apart better.
                    whole = apart + (pull * layers[-1].mean(0)).sum()
                    (gradient[chosen],) = torch.autograd.grad(whole, side.leaf)
                loss = loss + apart.detach()
        return Estimate(loss, gradient)

    def _sides(self, images: Tensor, label: int, iteration: int) -> _Sides:
        """The real images of a class, as the network sees them, and the synthetic ones."""
        draw = stream(self.seed, "distill", self.draws, iteration, label)
        real = self.ground.of_class(label, self.config.batch_real, draw)
        leaf = images.detach().requires_grad_()
        with torch.enable_grad():
            real, synthetic = alike(self.augment, draw, real, leaf)
        sums: list[Tensor] = []
        embedded = []
        with torch.no_grad():
            for part in torch.split(real, micro_batch_sizes(len(real), self.micro_batch)):
                layers = self._layers(part)
                embedded.append(layers[-1])
                parts = [layer.sum(0) for layer in layers]
                sums = [s + p for s, p in zip(sums, parts, strict=True)] if sums else parts
        return _Sides([s / len(real) for s in sums], torch.cat(embedded), leaf, synthetic)

    def _told_apart(self, sides: Sequence[_Sides]) -> tuple[Tensor, Tensor]:
        """The weighted discrimination loss, and what it is to the center of each class."""
        with torch.no_grad():
            centers = torch.stack([self._layers(side.synthetic)[-1].mean(0) for side in sides])
        sizes = torch.tensor([len(side.embedded) for side in sides], device=centers.device)
        labels = torch.arange(len(sides), device=centers.device).repeat_interleave(sizes)
        embedded = torch.cat([side.embedded for side in sides])
        with torch.enable_grad():
            loss = BETA * discrimination(embedded, labels, centers.requires_grad_())
            (pulls,) = torch.autograd.grad(loss, centers)
        return loss.detach(), pulls

    def _layers(self, images: Tensor) -> list[Tensor]:
        with rounding(self.config.precision, images.device.type):
            return [layer.to(images.dtype) for layer in self.module.layers(images)]

    # -- the schedule ----------------------------------------------------------------------------

    def _network(self, learned: SyntheticParameters, iteration: int) -> Tensor:
        if self.fixed:
            return super()._network(learned, iteration)
        seen = self.carried.get("accuracies")
        if seen is None or (len(seen) == WATCHED and spread(seen) < SETTLED):
            vector, seen = self._begun(iteration), None
        else:
            vector = self._moved(learned, iteration)
        now = self._accuracy(vector, iteration)
        self.carried["accuracies"] = now if seen is None else torch.cat([seen, now])[-WATCHED:]
        return vector

    def _moved(self, learned: SyntheticParameters, iteration: int) -> Tensor:
        """The network after as many passes over the images as its accuracy takes to move."""
        vector = self.carried["network"]
        steps = -(-len(learned.images) // BATCH)
        seen: list[Tensor] = []
        for number in range(LONGEST):
            vector = self._walked(vector, learned, steps, iteration, number)
            seen = [*seen, self._accuracy(vector, iteration, number)][-WATCHED:]
            if len(seen) == WATCHED and spread(torch.cat(seen)) > MOVED:
                break
        return vector

    def _accuracy(self, vector: Tensor, *names: int) -> Float[Tensor, "1"]:
        """The share of a few real training images of each class that the network has right, drawn
        anew at every look; the mean over the classes."""
        load_parameter_vector(self.module, vector)
        draw = stream(self.seed, "distill", self.draws, "query", *names)
        shares = []
        for label in range(self.ground.spec.classes):
            images = self.ground.of_class(label, QUERY, draw)
            with torch.no_grad(), rounding(self.config.precision, images.device.type):
                logits = [
                    self.module(part)
                    for part in torch.split(
                        images, micro_batch_sizes(len(images), self.micro_batch)
                    )
                ]
            shares.append((torch.cat(logits).argmax(1) == label).double().mean())
        return torch.stack(shares).mean(0, keepdim=True)


class _Sides(NamedTuple):
    """One class, both sides changed alike."""

    means: list[Tensor]
    """Of the real images in every layer."""
    embedded: Tensor
    """Each real image in the last of them."""
    leaf: Tensor
    """The synthetic images as they are learned."""
    synthetic: Tensor
    """The same as they are seen."""


def alignment(
    means: Sequence[Float[Tensor, "..."]], layers: Sequence[Float[Tensor, "few ..."]]
) -> Float[Tensor, ""]:
    """|| mean of the real - mean of the synthetic features ||^2, in a weighted sum over the layers.

    means: of the real images in each layer. layers: each synthetic image in the same.
    """
    weights = [*[EARLY] * (len(layers) - 2), LAST, EMBEDDED][-len(layers) :]
    apart = [
        weight * (mean - layer.mean(0)).square().sum()
        for weight, mean, layer in zip(weights, means, layers, strict=True)
    ]
    return torch.stack(apart).sum()


def discrimination(
    embedded: Float[Tensor, "many features"],
    labels: Int[Tensor, "many"],
    centers: Float[Tensor, "classes features"],
) -> Float[Tensor, ""]:
    """The cross-entropy of real images, summed over them, whose logits are their inner products
    with the centers of the classes."""
    return F.cross_entropy(embedded @ centers.mT, labels, reduction="sum")


def spread(accuracies: Float[Tensor, "few"]) -> float:
    """How far the best lies above the worst."""
    return float(accuracies.max() - accuracies.min())
