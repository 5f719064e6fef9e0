"""DM: the mean embedding of each class in random networks is matched to the real images'."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import ClassVar

import torch

from trajmatch.config import DSA_STRATEGY
from trajmatch.methods.base import Conditions, Method
from trajmatch.methods.dsa import augment_both
from trajmatch.methods.parameters import Estimate, SyntheticParameters
from trajmatch.methods.problem import Problem, classes_of
from trajmatch.networks.functional import require_stateless
from trajmatch.networks.precision import arithmetic, rounding
from trajmatch.runtime.micro_batches import micro_batch_sizes
from trajmatch.types import Float, Tensor

Embed = Callable[[Tensor], Tensor]
"""images -> what the last layer of a network is fed."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DM(Method):
    """Distribution matching: the squared distance of class means in the embedding of a network
    drawn anew in every iteration (equation 5).

    No network is trained, so an iteration costs one forward pass of `batch_real` images per class
    and a forward and backward pass of the synthetic ones: the cheapest of the methods. The graph of
    one class is held at a time. Soft labels are not learned: classes are compared.
    """

    name: ClassVar[str] = "dm"
    title: ClassVar[str] = "distribution matching (DM)"
    objective: ClassVar[str] = "squared distance of mean embeddings, all classes"
    reference: ClassVar[str] = (
        "Zhao, Bilen: Dataset Condensation with Distribution Matching, WACV 2023"
    )

    lr_img: float = 1.0
    """Learning rate of the pixels, in whitened units; published."""
    batch_real: int = 256
    """Real images of each class per iteration; published."""
    augment: str | None = DSA_STRATEGY
    """DSA strategy, the same change for real and synthetic images of a class; or none. Without flip
    for letters, digits and signs."""

    def check(self, conditions: Conditions) -> None:
        super().check(conditions)
        require_stateless(conditions.spec.build(seed=0))

    def estimate(
        self, problem: Problem, parameters: SyntheticParameters, iteration: int
    ) -> Estimate:
        """Loss and gradient of one iteration, summed over the classes."""
        network = problem.fresh("distill", "dm", iteration).requires_grad_(False)
        precision = problem.precision

        def embed(images: Tensor) -> Tensor:
            with rounding(precision, images.device.type):
                return network.embed(images).to(images.dtype)

        gradient = torch.zeros_like(parameters.images)
        losses = []
        for label, places in enumerate(classes_of(parameters.classes, problem.spec.classes)):
            draw = problem.stream("dm", iteration, label)
            real = problem.of_class(label, self.batch_real, draw)
            leaf = parameters.images[places].detach().requires_grad_()
            with torch.enable_grad(), arithmetic(precision):
                both = augment_both(self.augmentation, draw, real, leaf)
                loss = mean_distance(embed, *both, problem.micro_batch)
                (gradient[places],) = torch.autograd.grad(loss, leaf)
            losses.append(loss.detach())
        return Estimate(torch.stack(losses).sum(), gradient)


def mean_distance(
    embed: Embed,
    real: Float[Tensor, "many channels height width"],
    synthetic: Float[Tensor, "few channels height width"],
    micro_batch: int = 0,
) -> Float[Tensor, ""]:
    """||mean embed(real) - mean embed(synthetic)||^2, differentiable in `synthetic` (equation 5).

    micro_batch: how many real images are embedded at a time; 0: all.
    """
    with torch.no_grad():
        parts = torch.split(real, micro_batch_sizes(len(real), micro_batch))
        target = torch.cat([embed(part) for part in parts]).mean(0)
    return (target - embed(synthetic).mean(0)).square().sum()
