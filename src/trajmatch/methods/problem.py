"""What a method works on: real images, a network, perhaps experts; and what a run must remember."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

import torch

from trajmatch.config import Compile, Precision
from trajmatch.data import ImageDataset
from trajmatch.data.whiten import Whitening
from trajmatch.errors import SettingError
from trajmatch.experts import ExpertLibrary
from trajmatch.networks import NetworkSpec
from trajmatch.networks.base import Network, height_width
from trajmatch.networks.functional import FunctionalNetwork
from trajmatch.rng import derive, stream
from trajmatch.runtime import micro_batches
from trajmatch.runtime.memory import Need
from trajmatch.types import Float, Int, Tensor

TEACHERS = 5
"""Experts whose mean logits learned labels begin as."""

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Problem:
    """One distillation problem. Nothing is whitened or moved to the device before it is used."""

    data: ImageDataset
    spec: NetworkSpec
    whitening: Whitening
    device: torch.device
    library: ExpertLibrary | None = None
    seed: int = 0
    precision: Precision = "float32"
    compile: Compile = "auto"
    iterations: int = 1
    """Updates the run will make; decides only whether compiling pays."""
    micro_batch_size: int | None = None
    """Images that go through the network at a time (0: all). None: as many as suit the device."""
    state: dict[str, Tensor] = field(default_factory=dict)
    """Tensors that one iteration hands to the next; saved with every checkpoint."""
    resolved: dict[str, Any] = field(default_factory=dict)
    """What a method settled for this run (plain values); saved, and repeated when it is resumed.
    It determines the numbers."""
    notes: dict[str, str] = field(default_factory=dict)
    """What a method found at the moment (free memory, in words); logged, and not repeated."""
    _cache: dict[Hashable, Any] = field(default_factory=dict, init=False, repr=False)

    @classmethod
    def of(
        cls, data: ImageDataset, library: ExpertLibrary, device: torch.device, **settings: Any
    ) -> Problem:
        """With the experts' own network and whitening."""
        return cls(data, library.spec, library.whitening, device, library, **settings)

    @property
    def experts(self) -> ExpertLibrary:
        """The library. Raises SettingError where there is none."""
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
        """The indices of each class's training images."""
        labels = self.data.train.labels
        return [(labels == label).nonzero().flatten() for label in range(self.data.num_classes)]

    def stream(self, *names: str | int) -> torch.Generator:
        """A CPU generator of this run's seed for one named purpose, such as ("dm", iteration)."""
        return stream(self.seed, "distill", *names)

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
        """`count` training images of any class, drawn with replacement, and their labels."""
        chosen = torch.randint(len(self.data.train), (count,), generator=draw).to(self.device)
        return self.images[chosen], self.labels[chosen]

    def teacher_logits(
        self, images: Float[Tensor, "n channels height width"]
    ) -> Float[Tensor, "n classes"]:
        """The mean logits of the first `TEACHERS` trained experts on whitened images."""
        library = self.experts
        network = FunctionalNetwork(self.spec.build(seed=0))
        logits = []
        with torch.no_grad():
            for expert in library.experts[:TEACHERS]:
                vector = library.trajectory(expert).row(library.epochs).to(images)
                logits.append(torch.cat([network(vector, few) for few in torch.split(images, 256)]))
        return torch.stack(logits).mean(0)

    def fresh(self, *names: str | int) -> Network:
        """The network with the initialization of this run's seed and a name."""
        return self.spec.build(seed=derive(self.seed, *names)).to(self.device)

    @cached_property
    def module(self) -> Network:
        """The network's structure on the device; its parameters are never read."""
        return self.spec.build(seed=0).to(self.device)

    @cached_property
    def micro_batch(self) -> int:
        """Images that go through the network at a time (0: all)."""
        if self.micro_batch_size is not None:
            return self.micro_batch_size
        module = self.module
        return micro_batches.micro_batch_size(module, module.image_shape, self.device)

    def cached(self, key: Hashable, make: Callable[[], T]) -> T:
        """What `make` returned when it was first called for this key in this run.

        The key holds all that the result depends on beside the problem: the method, where it
        depends on the method's settings.
        """
        if key not in self._cache:
            self._cache[key] = make()
        found: T = self._cache[key]
        return found


def real_batch(spec: NetworkSpec, count: int) -> Need:
    """The memory of so many real images at a time, drawn with replacement."""
    pixels = spec.channels * math.prod(height_width(spec.size))
    return Need(f"{count} real images an iteration", 4 * count * pixels, "batch_real")


def classes_of(labels: Int[Tensor, "n"], count: int) -> Sequence[Int[Tensor, "of_class"]]:
    """The places of each class in `labels`."""
    return [(labels == label).nonzero().flatten() for label in range(count)]
