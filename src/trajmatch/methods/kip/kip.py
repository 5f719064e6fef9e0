"""KIP: the images that kernel ridge regression with an infinitely wide network learns most from."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch

from trajmatch.config import DSA_STRATEGY
from trajmatch.methods.base import Conditions, Method
from trajmatch.methods.kip.ntk import Convolutional, Dense, Kernel, Regression, centered
from trajmatch.methods.parameters import Estimate, SyntheticParameters
from trajmatch.methods.problem import Problem, real_batch
from trajmatch.methods.unrolled import SoftLabels
from trajmatch.networks import NetworkSpec
from trajmatch.networks.base import height_width
from trajmatch.runtime.memory import Need
from trajmatch.types import Float, Tensor

PUBLISHED_DEPTH = 3
"""Hidden layers of the published fully connected kernel."""
CONVOLUTIONAL_LIMIT = 2**22
"""Numbers that a convolutional kernel of the images with each other may hold in a layer: 32 MB a
tensor, of which some thirty are kept for the gradient."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class KIP(SoftLabels, Method):
    """1/2 mean |y_t - K_ts (K_ss + lambda I)^-1 y_s|^2 over a batch of real images t, exactly.

    No network is trained: the set s is fitted in one step, by the tangent kernel of the infinitely
    wide network that `kernel_for` gives. Targets y are one-hot, or the probabilities of soft
    labels, minus 1 / classes. All in float64; the gradients come back in the images' dtype.

    Raises SettingError when the images have left all bounds.
    """

    name: ClassVar[str] = "kip"
    title: ClassVar[str] = "kernel inducing points (KIP)"
    objective: ClassVar[str] = "squared error of the kernel’s regression"
    reference: ClassVar[str] = (
        "Nguyen, Chen, Lee: Dataset Meta-Learning from Kernel Ridge-Regression, ICLR 2021; "
        "Nguyen, Novak, Xiao, Lee: Dataset Distillation with Infinitely Wide Convolutional "
        "Networks, NeurIPS 2021"
    )

    lr_img: float = 10.0
    """Learning rate of the pixels, in whitened units; ours, for SGD."""
    batch_real: int = 256
    """Real images per iteration, of all classes together."""
    augment: str | None = DSA_STRATEGY
    """DSA strategy of the real images, or none. Without flip for letters, digits and signs."""
    numbers_at_a_time: int = 2**20
    """Real images go through the kernel so many numbers a layer at a time: 8 MB each tensor."""

    def check(self, conditions: Conditions) -> None:
        super().check(conditions)
        kernel_for(conditions.spec, conditions.images)

    def memory_needs(self, spec: NetworkSpec, images: int) -> list[Need]:
        """The kernel of the images with each other, its derivative and their solution, in float64;
        and the real images."""
        kernel = Need(f"kernels of {images} images with each other", 3 * 8 * images**2, "ipc")
        return [*super().memory_needs(spec, images), kernel, real_batch(spec, self.batch_real)]

    def estimate(
        self, problem: Problem, parameters: SyntheticParameters, iteration: int
    ) -> Estimate:
        """In two halves through the weights of the regression, so that only a part of the real
        batch is in memory: first d loss / d weights, then from the weights to the parameters."""
        images = parameters.images.detach().double().requires_grad_()
        labels = parameters.labels.detach()
        leaves = [images]
        if labels.is_floating_point():
            labels = labels.double().requires_grad_()
            leaves.append(labels)
        classes = problem.data.num_classes
        kernel = self._kernel(problem, len(images))
        fitted = Regression.fit(kernel, images, centered(labels, classes))
        weights = fitted.weights.detach().requires_grad_()
        cut = dataclasses.replace(fitted, weights=weights)

        real, targets = self._batch(problem, iteration)
        loss = torch.zeros((), dtype=torch.float64, device=problem.device)
        at_images, at_weights = torch.zeros_like(images), torch.zeros_like(weights)
        each = len(images) * kernel.cost(images[0, 0].numel())
        length = max(1, self.numbers_at_a_time // each)
        for first in range(0, len(real), length):
            part = slice(first, first + length)
            share = (targets[part] - cut.predict(real[part])).square().sum() / (2 * len(real))
            direct = torch.autograd.grad(share, [images, weights])
            loss = loss + share.detach()
            at_images, at_weights = at_images + direct[0], at_weights + direct[1]
        gradients = torch.autograd.grad(fitted.weights, leaves, at_weights)
        dtype = parameters.images.dtype
        return Estimate(
            loss.to(dtype),
            (at_images + gradients[0]).to(dtype),
            gradients[1].to(dtype) if len(gradients) > 1 else None,
        )

    def _kernel(self, problem: Problem, images: int) -> Kernel:
        kernel = problem.cached(("kernel", images), lambda: kernel_for(problem.spec, images))
        problem.resolved["kernel"] = kernel.describe()
        return kernel

    def _batch(
        self, problem: Problem, iteration: int
    ) -> tuple[Float[Tensor, "batch channels height width"], Float[Tensor, "batch classes"]]:
        """Real images, augmented if that is set, and their targets."""
        draw = problem.stream("real", iteration)
        real, labels = problem.batch(self.batch_real, draw)
        augment = self.augmentation
        if augment is not None:
            real = augment.apply(real, augment.draw(draw, len(real), *real.shape[2:]))
        return real, centered(labels, problem.data.num_classes)


def kernel_for(spec: NetworkSpec, count: int) -> Kernel:
    """The kernel that stands for a network, of `count` images: of a ConvNet as many convolutions as
    it has, of an MLP its two hidden layers, of any other the published fully connected one, which
    also takes the place of convolutions where these are too many numbers."""
    height, width = height_width(spec.size)
    if spec.name == "convnet" and count**2 * height * width <= CONVOLUTIONAL_LIMIT:
        return Convolutional(int(spec.build(seed=0).options["depth"]))
    return Dense(2 if spec.name == "mlp" else PUBLISHED_DEPTH)
