"""What a method that makes images stands on: real images, a network, perhaps experts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from trajmatch.data import ImageDataset
from trajmatch.data.whiten import Whitening
from trajmatch.errors import SettingError
from trajmatch.experts import ExpertLibrary
from trajmatch.networks import NetworkSpec
from trajmatch.networks.base import Network
from trajmatch.networks.functional import FunctionalNetwork
from trajmatch.rng import derive
from trajmatch.types import Float, Int, Tensor

TEACHERS = 5
"""Experts asked for the labels that images begin with."""


@dataclass(frozen=True, eq=False)
class Problem:
    """Real images of one data set as the networks see them, and the network that images are made
    for. Nothing is whitened or moved before it is asked for."""

    data: ImageDataset
    spec: NetworkSpec
    whitening: Whitening
    device: torch.device
    library: ExpertLibrary | None = None

    @classmethod
    def of(cls, data: ImageDataset, library: ExpertLibrary, device: torch.device) -> Problem:
        """The experts' own network and whitening."""
        return cls(data, library.spec, library.whitening, device, library)

    @property
    def experts(self) -> ExpertLibrary:
        """Raises SettingError where there are none."""
        if self.library is None:
            raise SettingError("this method matches experts; give --experts a library")
        return self.library

    @cached_property
    def images(self) -> Float[Tensor, "train channels height width"]:
        """The training images, whitened, on the device: 12 bytes a pixel of RGB."""
        return self.whitening.apply_split(self.data.train, self.device)

    @cached_property
    def labels(self) -> Int[Tensor, "train"]:
        return self.data.train.labels.to(self.device)

    @cached_property
    def members(self) -> list[Int[Tensor, "of_class"]]:
        """The training images of each class, by index."""
        labels = self.data.train.labels
        return [(labels == label).nonzero().flatten() for label in range(self.data.num_classes)]

    def of_class(
        self, label: int, count: int, draw: torch.Generator
    ) -> Float[Tensor, "few channels height width"]:
        """`count` different training images of a class (all of them where it has fewer), drawn."""
        members = self.members[label]
        chosen = members[torch.randperm(len(members), generator=draw)[:count]]
        return self.images[chosen.to(self.device)]

    def batch(
        self, count: int, draw: torch.Generator
    ) -> tuple[Float[Tensor, "batch channels height width"], Int[Tensor, "batch"]]:
        """`count` training images of any class, drawn one by one, and their labels."""
        chosen = torch.randint(len(self.data.train), (count,), generator=draw).to(self.device)
        return self.images[chosen], self.labels[chosen]

    def teacher_logits(
        self, images: Float[Tensor, "n channels height width"]
    ) -> Float[Tensor, "n classes"]:
        """The mean logits of the first few trained experts on whitened images."""
        library = self.experts
        network = FunctionalNetwork(self.spec.build(seed=0))
        logits = []
        with torch.no_grad():
            for expert in library.experts[:TEACHERS]:
                vector = library.trajectory(expert).row(library.epochs).to(images)
                logits.append(torch.cat([network(vector, few) for few in torch.split(images, 256)]))
        return torch.stack(logits).mean(0)

    def fresh(self, seed: int, *names: str | int) -> Network:
        """The network with an initialization of its own for a seed and a name."""
        return self.spec.build(seed=derive(seed, *names)).to(self.device)


def classes_of(labels: Int[Tensor, "n"], count: int) -> Sequence[Int[Tensor, "of_class"]]:
    """The places of each class in `labels`, for sets that are few enough to look through."""
    return [(labels == label).nonzero().flatten() for label in range(count)]
