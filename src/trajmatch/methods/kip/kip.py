"""KIP: images that kernel ridge regression with an infinitely wide network learns most from.

Source: Nguyen, Chen and Lee, Dataset Meta-Learning from Kernel Ridge-Regression, ICLR 2021;
Nguyen, Novak, Xiao and Lee, Dataset Distillation with Infinitely Wide Convolutional Networks,
NeurIPS 2021.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from trajmatch.config import DistillConfig
from trajmatch.methods.base import Method
from trajmatch.methods.kip.ntk import Convolutional, Dense, Kernel, Regression, centered
from trajmatch.methods.parameters import Estimate, SyntheticParameters
from trajmatch.methods.problem import Problem
from trajmatch.networks import NetworkSpec
from trajmatch.networks.base import height_width
from trajmatch.rng import stream
from trajmatch.types import Float, Tensor

PUBLISHED_DEPTH = 3
"""Hidden layers of the published fully connected kernel."""
SMALL_NUMBERS = 2**22
"""Numbers that a convolutional kernel of the images with each other may hold in a layer: 32 MB a
tensor, of which some thirty are kept for the gradient."""
PIECE_NUMBERS = 2**20
"""Real images go through the kernel in pieces of this many numbers a layer: 8 MB each tensor."""


class KIP(Method):
    """1/2 mean |y_t - K_ts (K_ss + lambda I)^-1 y_s|^2 over a batch of real images t, exactly.

    No network is trained: the set s is fitted in one step, by the tangent kernel of the infinitely
    wide network that `kernel_for` gives. Targets y are one-hot, or the probabilities of soft
    labels, minus 1 / classes. All in float64; the gradients come back in the images' dtype.

    Raises SettingError when the images have left all bounds.
    """

    name = "kip"
    title = "kernel inducing points (KIP)"
    objective = "squared error of the kernel’s regression"

    def __init__(self, ground: Problem, config: DistillConfig, *, seed: int) -> None:
        super().__init__(ground, config, seed=seed)
        self.kernel = kernel_for(ground.spec, config.ipc * ground.data.num_classes)
        self.decisions["kernel"] = self.kernel.describe()

    def estimate(self, learned: SyntheticParameters, iteration: int) -> Estimate:
        """Through the weights of the regression in two halves, so that only a piece of the real
        batch is in memory: first d loss / d weights, then from the weights to what is learned."""
        images = learned.images.detach().double().requires_grad_()
        labels = learned.labels.detach()
        wanted = [images]
        if labels.is_floating_point():
            labels = labels.double().requires_grad_()
            wanted.append(labels)
        classes = self.ground.data.num_classes
        fitted = Regression.fit(self.kernel, images, centered(labels, classes))
        weights = fitted.weights.detach().requires_grad_()
        cut = replace(fitted, weights=weights)

        real, targets = self._batch(iteration)
        loss = torch.zeros((), dtype=torch.float64, device=self.device)
        to_images, to_weights = torch.zeros_like(images), torch.zeros_like(weights)
        length = self._piece(learned)
        for first in range(0, len(real), length):
            piece = slice(first, first + length)
            part = (targets[piece] - cut.predict(real[piece])).square().sum() / (2 * len(real))
            ahead = torch.autograd.grad(part, [images, weights])
            loss = loss + part.detach()
            to_images, to_weights = to_images + ahead[0], to_weights + ahead[1]
        gradients = torch.autograd.grad(fitted.weights, wanted, to_weights)
        dtype = learned.images.dtype
        return Estimate(
            loss.to(dtype),
            (to_images + gradients[0]).to(dtype),
            gradients[1].to(dtype) if len(gradients) > 1 else None,
        )

    @classmethod
    def work(cls, spec: NetworkSpec, config: DistillConfig) -> int:
        """Numbers of the kernel, of the set with itself and with the real batch."""
        each = _kernel_numbers(spec, config)
        return each * (config.ipc * spec.classes + config.batch_real)

    @classmethod
    def held(cls, spec: NetworkSpec, config: DistillConfig) -> int:
        """Those of the set with itself; the real batch comes in pieces."""
        return _kernel_numbers(spec, config) * config.ipc * spec.classes + PIECE_NUMBERS

    def _batch(
        self, iteration: int
    ) -> tuple[Float[Tensor, "batch channels height width"], Float[Tensor, "batch classes"]]:
        """Real images, augmented if asked for, and their targets."""
        draw = stream(self.seed, "distill", "real", iteration)
        real, labels = self.ground.batch(self.config.batch_real, draw)
        if self.augment is not None:
            real = self.augment.apply(real, self.augment.draw(draw, len(real), *real.shape[2:]))
        return real, centered(labels, self.ground.data.num_classes)

    def _piece(self, learned: SyntheticParameters) -> int:
        """How many real images at a time."""
        each = len(learned.images) * self.kernel.cost(learned.images[0, 0].numel())
        return max(1, PIECE_NUMBERS // each)


def _kernel_numbers(spec: NetworkSpec, config: DistillConfig) -> int:
    """Numbers that one image has with all of the set, a layer."""
    height, width = height_width(spec.size)
    count = config.ipc * spec.classes
    return count * kernel_for(spec, count).cost(height * width)


def kernel_for(spec: NetworkSpec, count: int) -> Kernel:
    """The kernel that stands for a network, of `count` images: of a ConvNet as many convolutions as
    it has, of an MLP its two hidden layers, of any other the published fully connected one, which
    also takes the place of convolutions where these are too many numbers."""
    height, width = height_width(spec.size)
    if spec.name == "convnet" and count**2 * height * width <= SMALL_NUMBERS:
        return Convolutional(int(spec.build(seed=0).options["depth"]))
    return Dense(2 if spec.name == "mlp" else PUBLISHED_DEPTH)
