"""DM: images whose mean embedding in random networks is that of the real images of their class.

@inproceedings{zhao2023dm,
  title     = {Dataset Condensation with Distribution Matching},
  author    = {Zhao, Bo and Bilen, Hakan},
  booktitle = {WACV},
  year      = {2023}}
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from trajmatch.config import DistillConfig
from trajmatch.methods.base import Method, require_hard_labels
from trajmatch.methods.dsa import alike
from trajmatch.methods.parameters import Estimate, SyntheticParameters
from trajmatch.methods.problem import Problem, classes_of
from trajmatch.networks.functional import require_stateless
from trajmatch.rng import stream
from trajmatch.runtime.micro_batches import micro_batch_size, micro_batch_sizes
from trajmatch.types import Float, Tensor
from trajmatch.unroll.gradient import arithmetic, rounding

Embed = Callable[[Tensor], Tensor]
"""images -> what the last layer of a network would see of each."""


class DM(Method):
    """Estimates the squared distance of class means in the embedding of a network drawn anew.

    Nothing is trained, so an iteration costs one forward pass of `batch_real` images per class and
    a forward and backward pass of the synthetic ones: the cheapest of the methods. The graph of one
    class is held at a time. Raises SettingError for soft labels, which it does not look at, and for
    a network with running statistics.
    """

    name = "dm"
    title = "distribution matching (DM)"
    objective = "squared distance of mean embeddings, all classes"

    def __init__(self, ground: Problem, config: DistillConfig, *, seed: int) -> None:
        super().__init__(ground, config, seed=seed)
        require_hard_labels(config)
        sketch = ground.fresh(seed)
        require_stateless(sketch)
        self.piece = micro_batch_size(sketch, sketch.image_shape, self.device)

    def estimate(self, learned: SyntheticParameters, iteration: int) -> Estimate:
        """Loss and gradient of one iteration, summed over the classes."""
        names = ("distill", "dm", iteration)
        network = self.ground.fresh(self.seed, *names).requires_grad_(False)
        precision = self.config.precision

        def embed(images: Tensor) -> Tensor:
            with rounding(precision, images.device.type):
                return network.embed(images).to(images.dtype)

        gradient = torch.zeros_like(learned.images)
        losses = []
        for label, places in enumerate(classes_of(learned.classes, self.ground.spec.classes)):
            draw = stream(self.seed, *names, label)
            real = self.ground.of_class(label, self.config.batch_real, draw)
            mine = learned.images[places].detach().requires_grad_()
            with torch.enable_grad(), arithmetic(precision):
                loss = mean_distance(embed, *alike(self.augment, draw, real, mine), self.piece)
                (gradient[places],) = torch.autograd.grad(loss, mine)
            losses.append(loss.detach())
        return Estimate(torch.stack(losses).sum(), gradient)


def mean_distance(
    embed: Embed,
    real: Float[Tensor, "many channels height width"],
    synthetic: Float[Tensor, "few channels height width"],
    piece: int = 0,
) -> Float[Tensor, ""]:
    """||mean embed(real) - mean embed(synthetic)||^2, differentiable in `synthetic` (equation 5).

    piece: how many real images are embedded at a time; 0: all.
    """
    with torch.no_grad():
        parts = torch.split(real, micro_batch_sizes(len(real), piece))
        target = torch.cat([embed(part) for part in parts]).mean(0)
    return (target - embed(synthetic).mean(0)).square().sum()
