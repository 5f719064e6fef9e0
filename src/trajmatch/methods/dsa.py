"""Siamese augmentation: real and synthetic images of a class are changed alike before a comparison.

Bo Zhao and Hakan Bilen, Dataset condensation with differentiable siamese augmentation, ICML 2021.
"""

from __future__ import annotations

import torch

from trajmatch.data.augment import Augmentation
from trajmatch.types import Float, Tensor


def alike(
    augment: Augmentation | None,
    draw: torch.Generator,
    real: Float[Tensor, "many channels height width"],
    synthetic: Float[Tensor, "few channels height width"],
) -> tuple[Float[Tensor, "many channels height width"], Float[Tensor, "few channels height width"]]:
    """Both sides after one change with one set of parameters, which every image of both is given.

    The two sides differ in size, so parameters of each image's own, as a student's walk draws
    them, would leave most real images without a counterpart. One set for all is what the authors'
    code does where it is given a seed; the comparison is then of the same change on both sides.
    None: both as they are.
    """
    if augment is None:
        return real, synthetic
    height, width = real.shape[2:]
    one = augment.draw(draw, 1, height, width)
    return (
        augment.apply(real, one.repeat(len(real))),
        augment.apply(synthetic, one.repeat(len(synthetic))),
    )
