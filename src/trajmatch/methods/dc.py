"""DC and DSA: a class's synthetic images get the gradients of its real ones."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch
from torch import nn

from trajmatch.config import DSA_STRATEGY
from trajmatch.errors import SettingError
from trajmatch.methods.alternating import BATCH, AlternatingMethod
from trajmatch.methods.base import Conditions
from trajmatch.methods.dsa import augment_both
from trajmatch.methods.parameters import Estimate, SyntheticParameters
from trajmatch.methods.problem import Problem, classes_of
from trajmatch.networks.functional import split_vector
from trajmatch.networks.precision import arithmetic
from trajmatch.types import Float, Tensor
from trajmatch.unroll.schedule import Schedule

LOOPS = {1: (1, 1), 10: (10, 50), 20: (20, 25), 30: (30, 20), 40: (40, 15), 50: (50, 10)}
"""Published for so many images per class: updates of the images for one network, and its passes
over the images between two of them."""
TINY = 1e-6
"""Published: added to the product of two rows' norms, so that a row without gradient has cosine 0.
It shrinks the cosine of all rows whose norms are small, too."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DC(AlternatingMethod):
    """Dataset condensation: 1 - cosine of real and synthetic gradients, summed over the rows of all
    layers and over the classes, along a network's training (equations 9 and 10).

    Images are matched without augmentation. Cost of an iteration: a gradient of `batch_real` images
    per class, a gradient of the synthetic ones and its derivative, and the network's steps. The
    graph of one class is held at a time. Soft labels are not learned: classes are compared.
    """

    name: ClassVar[str] = "dc"
    title: ClassVar[str] = "gradient matching (DC)"
    objective: ClassVar[str] = "distance of the gradients, all classes"
    reference: ClassVar[str] = (
        "Zhao, Mopuri, Bilen: Dataset Condensation with Gradient Matching, ICLR 2021"
    )
    stream_name: ClassVar[str] = "gradient"

    def loops(self, ipc: int, images: int) -> tuple[int, int]:
        """Updates of so many images for one network, and its steps between two of them.

        The published passes over the images are as many steps where one batch holds them all, and
        more where it does not. Raises SettingError where neither settings nor paper have them.
        """
        outer, inner = self.outer_loop, self.inner_loop
        if outer is None or inner is None:
            if ipc not in LOOPS:
                raise SettingError(
                    f"ipc is {ipc} and {self.name} has published loops for "
                    f"{', '.join(map(str, LOOPS))}; give --outer-loop and --inner-loop, for "
                    "example 10 and 50 as for 10 images per class"
                )
            updates, epochs = LOOPS[ipc]
            outer = outer or updates
            inner = inner or epochs * -(-images // BATCH)
        return outer, inner

    def estimate(
        self, problem: Problem, parameters: SyntheticParameters, iteration: int
    ) -> Estimate:
        """Loss and gradient of one iteration, summed over the classes."""
        with arithmetic(problem.precision):
            vector = problem.state["network"] = self._network(problem, parameters, iteration)
            gradient = torch.zeros_like(parameters.images)
            losses = []
            places = classes_of(parameters.classes, problem.spec.classes)
            for label, chosen in enumerate(places):
                loss, gradient[chosen] = self._of_class(
                    problem, vector, parameters.images[chosen], label, iteration
                )
                losses.append(loss)
        return Estimate(torch.stack(losses).sum(), gradient)

    def _of_class(
        self, problem: Problem, vector: Tensor, images: Tensor, label: int, iteration: int
    ) -> tuple[Tensor, Tensor]:
        """The distance of a class's gradients, and its gradient at the class's images."""
        draw = problem.stream(self.stream_name, iteration, label)
        real = problem.of_class(label, self.batch_real, draw)
        leaf = images.detach().requires_grad_()
        with torch.enable_grad():
            real, synthetic = augment_both(self.augmentation, draw, real, leaf)
        once = Schedule(steps=1)
        target = self._student(problem, real, label, once).step(0, vector)
        residuals = self._student(problem, synthetic, label, once).residuals(0, vector, keep=True)
        at = residuals.gradient().detach().requires_grad_()
        with torch.enable_grad():
            loss = layer_distance(problem.module, target, at)
            (v,) = torch.autograd.grad(loss, at)
        # d loss / d images = d <g(images), v> / d images, with v = d loss / d g held fixed.
        at_images = residuals.vjp(v).images
        if synthetic is not leaf:
            (at_images,) = torch.autograd.grad(synthetic, leaf, at_images)
        return loss.detach(), at_images


@dataclasses.dataclass(frozen=True, kw_only=True)
class DSA(DC):
    """Differentiable siamese augmentation: DC with one change of real and synthetic images alike,
    drawn per class and iteration.

    In the network's own steps every image is augmented by parameters of its own.
    """

    name: ClassVar[str] = "dsa"
    title: ClassVar[str] = "gradient matching, augmented (DSA)"
    reference: ClassVar[str] = (
        "Zhao, Bilen: Dataset Condensation with Differentiable Siamese Augmentation, ICML 2021"
    )

    augment: str | None = DSA_STRATEGY
    """DSA strategy; without one the method is dc. Without flip for letters, digits and signs."""

    def check(self, conditions: Conditions) -> None:
        super().check(conditions)
        if self.augmentation is None:
            raise SettingError("augment is none, and dsa without it is dc; use --method=dc")


def layer_distance(
    module: nn.Module, real: Float[Tensor, "params"], synthetic: Float[Tensor, "params"]
) -> Float[Tensor, ""]:
    """The distance of two gradients of `module`: 1 - cosine of each row, summed over all rows of
    all layers (DC, equations 9 and 10).

    A row belongs to one output: weights of shape [out, ...] have `out` rows. Parameters of one
    dimension (biases, scales and shifts of norms) do not count, as in the authors' code.
    """
    parts = zip(
        split_vector(module, real).values(), split_vector(module, synthetic).values(), strict=True
    )
    return torch.stack([_row_distance(one, other) for one, other in parts if one.ndim > 1]).sum()


def _row_distance(real: Tensor, synthetic: Tensor) -> Tensor:
    real, synthetic = real.flatten(1), synthetic.flatten(1)
    scale = real.norm(dim=1) * synthetic.norm(dim=1) + TINY
    distance: Tensor = (1 - (real * synthetic).sum(1) / scale).sum()
    return distance
