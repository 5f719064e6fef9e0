"""DC and DSA: images whose gradients in a network are those of the real images of their class.

@inproceedings{zhao2021dc,
  title     = {Dataset Condensation with Gradient Matching},
  author    = {Zhao, Bo and Mopuri, Konda Reddy and Bilen, Hakan},
  booktitle = {ICLR},
  year      = {2021}}
@inproceedings{zhao2021dsa,
  title     = {Dataset Condensation with Differentiable Siamese Augmentation},
  author    = {Zhao, Bo and Bilen, Hakan},
  booktitle = {ICML},
  year      = {2021}}
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import nn

from trajmatch.config import DistillConfig
from trajmatch.errors import SettingError
from trajmatch.methods.alternating import BATCH, AlternatingMethod
from trajmatch.methods.dsa import alike
from trajmatch.methods.parameters import Estimate, SyntheticParameters
from trajmatch.methods.problem import Problem, classes_of
from trajmatch.networks.functional import split_vector
from trajmatch.rng import stream
from trajmatch.types import Float, Tensor
from trajmatch.unroll.gradient import arithmetic
from trajmatch.unroll.schedule import Schedule

LOOPS = {1: (1, 1), 10: (10, 50), 20: (20, 25), 30: (30, 20), 40: (40, 15), 50: (50, 10)}
"""Published for so many images per class: updates of the images for one network, and its passes
over the images between two of them."""
TINY = 1e-6
"""Published: added to the product of two rows' norms, so that a row without gradient has cosine 0.
It shrinks the cosine of all rows whose norms are small, too."""


class DC(AlternatingMethod):
    """DC: estimates the distance between real and synthetic gradients along a network's training.

    The images are matched as they are, whatever `augment` says. An iteration costs a gradient of
    `batch_real` images per class, a gradient of the synthetic ones and the way back through it, and
    the network's steps. Raises SettingError for ipc without published loops where none are given,
    and for what no `AlternatingMethod` takes.
    """

    name = "dc"
    title = "gradient matching (DC)"
    objective = "distance of the gradients, all classes"
    draws = "gradient"
    siamese: ClassVar[bool] = False
    """Whether images are augmented."""

    def __init__(self, ground: Problem, config: DistillConfig, *, seed: int) -> None:
        super().__init__(ground, config, seed=seed)
        if not self.siamese:
            self.augment = None
        elif self.augment is None:
            raise SettingError("augment is none, and dsa without it is dc; use --method dc")
        self.outer, self.inner = loops(config, config.ipc * ground.spec.classes)

    def estimate(self, learned: SyntheticParameters, iteration: int) -> Estimate:
        """Loss and gradient of one iteration, summed over the classes."""
        with arithmetic(self.config.precision):
            vector = self.carried["network"] = self._network(learned, iteration)
            gradient = torch.zeros_like(learned.images)
            losses = []
            places = classes_of(learned.classes, self.ground.spec.classes)
            for label, chosen in enumerate(places):
                loss, gradient[chosen] = self._of_class(
                    vector, learned.images[chosen], label, iteration
                )
                losses.append(loss)
        return Estimate(torch.stack(losses).sum(), gradient)

    def _of_class(
        self, vector: Tensor, images: Tensor, label: int, iteration: int
    ) -> tuple[Tensor, Tensor]:
        """The distance of a class's gradients and what it is to its synthetic images."""
        draw = stream(self.seed, "distill", "gradient", iteration, label)
        real = self.ground.of_class(label, self.config.batch_real, draw)
        leaf = images.detach().requires_grad_()
        with torch.enable_grad():
            real, mine = alike(self.augment, draw, real, leaf)
        whole = Schedule(steps=1)
        target = self._student(real, label, whole).step(0, vector)
        record = self._student(mine, label, whole).residuals(0, vector, keep=True)
        at = record.gradient().detach().requires_grad_()
        with torch.enable_grad():
            loss = layer_distance(self.module, target, at)
            (v,) = torch.autograd.grad(loss, at)
        # d loss / d images = d <g(images), v> / d images, with v = d loss / d g held fixed.
        back = record.vjp(v).images
        if mine is not leaf:
            (back,) = torch.autograd.grad(mine, leaf, back)
        return loss.detach(), back


class DSA(DC):
    """DSA: DC with one change of real and synthetic images alike, drawn per class and iteration.

    The network's own steps see the images changed each by parameters of its own. Raises
    SettingError without an augmentation, for that is DC.
    """

    name = "dsa"
    title = "gradient matching, augmented (DSA)"
    objective = "distance of the gradients, all classes"
    siamese = True


def loops(config: DistillConfig, images: int) -> tuple[int, int]:
    """Updates of so many images for one network, and its steps between two of them.

    The published passes over the images are as many steps where one batch holds them all, and more
    where it does not. Raises SettingError where neither the config nor the paper has them.
    """
    outer, inner = config.outer_loop, config.inner_loop
    if outer is None or inner is None:
        if config.ipc not in LOOPS:
            raise SettingError(
                f"ipc is {config.ipc} and {config.method} has published loops for "
                f"{', '.join(map(str, LOOPS))}; give --outer-loop and --inner-loop, for example "
                "10 and 50 as for 10 images per class"
            )
        updates, passes_between = LOOPS[config.ipc]
        outer = outer or updates
        inner = inner or passes_between * -(-images // BATCH)
    return outer, inner


def layer_distance(
    module: nn.Module, real: Float[Tensor, "params"], synthetic: Float[Tensor, "params"]
) -> Float[Tensor, ""]:
    """How far two gradients of `module` are apart: 1 - cosine of each row, summed over all rows of
    all layers (DC, equations 9 and 10).

    A row is what leads to one output: weights of shape [out, ...] have `out` rows. Parameters of
    one dimension (biases, scales and shifts of norms) do not count, as in the authors' code.
    """
    parts = zip(
        split_vector(module, real).values(), split_vector(module, synthetic).values(), strict=True
    )
    return torch.stack([_rows_apart(one, other) for one, other in parts if one.ndim > 1]).sum()


def _rows_apart(real: Tensor, synthetic: Tensor) -> Tensor:
    real, synthetic = real.flatten(1), synthetic.flatten(1)
    scale = real.norm(dim=1) * synthetic.norm(dim=1) + TINY
    distance: Tensor = (1 - (real * synthetic).sum(1) / scale).sum()
    return distance
