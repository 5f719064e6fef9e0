"""A distillation problem of random images, on which an iteration costs what a real one costs."""

from __future__ import annotations

from functools import cached_property

import torch

from trajmatch.config import Precision
from trajmatch.data import ImageDataset
from trajmatch.data.dataset import Split
from trajmatch.data.whiten import fit_whitening
from trajmatch.experts import ExpertLibrary
from trajmatch.methods import Method, Problem, SyntheticParameters
from trajmatch.networks import NetworkSpec
from trajmatch.networks.base import height_width
from trajmatch.networks.functional import parameter_vector
from trajmatch.types import Float, Int, Tensor

IMAGES = 1024
"""Random images, at most: more than methods draw of one class for an iteration."""


class NoiseProblem(Problem):
    """A problem whose few random images belong to every class, so that they take little memory."""

    @classmethod
    def like(
        cls, spec: NetworkSpec, of_class: int, device: torch.device, precision: Precision
    ) -> NoiseProblem:
        """For a network's images and classes, `of_class` training images in each. Not compiled."""
        count = max(min(of_class, IMAGES), spec.classes, 2)
        draw = torch.Generator().manual_seed(0)
        shape = (count, spec.channels, *height_width(spec.size))
        pixels = torch.randint(256, shape, generator=draw, dtype=torch.uint8)
        split = Split(pixels, torch.arange(count) % spec.classes)
        data = ImageDataset("noise", split, split, split, tuple(map(str, range(spec.classes))))
        fitted, library = fit_whitening("normalize", split), NoiseLibrary(spec)
        problem = cls(data, spec, fitted, device, library, precision=precision, compile="no")
        assert problem.whitened is not None  # made now, before memory is measured
        return problem

    @cached_property
    def whitened(self) -> Float[Tensor, "few channels height width"]:
        return self.whitening.apply_split(self.data.train, self.device)

    @cached_property
    def images(self) -> Float[Tensor, "few channels height width"]:
        return self.whitened

    @property
    def reads_images(self) -> bool:
        """Whether the training images were used, which a run then holds in memory."""
        return "images" in vars(self)

    @cached_property
    def members(self) -> list[Int[Tensor, "of_class"]]:
        """All images, for every class."""
        return [torch.arange(len(self.data.train))] * self.spec.classes

    def parameters(self, method: Method, ipc: int) -> SyntheticParameters:
        """Random synthetic images, as many and as large as a run of `method` learns."""
        height, width = height_width(self.spec.size)
        if (canvas := method.canvas_for(height, width)) is not None:
            height, width = canvas.height, canvas.width
        classes = torch.arange(self.spec.classes).repeat_interleave(ipc)
        shape = (len(classes), self.spec.channels, height, width)
        images = torch.randn(shape, generator=torch.Generator().manual_seed(1))
        soft = self.spec.classes if method.learns_labels else None
        step_size = method.first_step_size
        begun = SyntheticParameters.begin(images, classes, step_size=step_size, soft=soft)
        return begun.to(self.device)


class NoiseLibrary(ExpertLibrary):
    """A library in memory: every segment leads from one random network to a point nearby."""

    def __init__(self, spec: NetworkSpec) -> None:
        self.spec, self.experts = spec, [0]

    @cached_property
    def _ends(self) -> tuple[Float[Tensor, "params"], Float[Tensor, "params"]]:
        start = parameter_vector(self.spec.build(seed=0))
        step = torch.randn(len(start), generator=torch.Generator().manual_seed(2))
        return start, start + 1e-3 * step

    def segment(
        self, expert: int, start: int, length: int, out: Float[Tensor, "2 params"] | None = None
    ) -> tuple[Float[Tensor, "params"], Float[Tensor, "params"]]:
        return self._ends
