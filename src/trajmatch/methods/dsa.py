"""Differentiable siamese augmentation of two sets of images: the same change for both.

Bo Zhao and Hakan Bilen, Dataset condensation with differentiable siamese augmentation, ICML 2021.
"""

from __future__ import annotations

import torch

from trajmatch.data.augment import Augmentation
from trajmatch.types import Float, Tensor


def augment_both(
    augment: Augmentation | None,
    draw: torch.Generator,
    real: Float[Tensor, "many channels height width"],
    synthetic: Float[Tensor, "few channels height width"],
) -> tuple[Float[Tensor, "many channels height width"], Float[Tensor, "few channels height width"]]:
    """Both sets after one change with one set of parameters, applied to every image of both.

    The sets differ in size, so parameters of each image's own would leave most real images without
    a counterpart; one set of parameters for all is what the authors' code does where it is given a
    seed. None: both unchanged.
    """
    if augment is None:
        return real, synthetic
    height, width = real.shape[2:]
    one = augment.draw(draw, 1, height, width)
    return (
        augment.apply(real, one.repeat(len(real))),
        augment.apply(synthetic, one.repeat(len(synthetic))),
    )
