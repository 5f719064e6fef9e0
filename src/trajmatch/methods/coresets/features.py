"""Features of training images: their embeddings by a trained network."""

from __future__ import annotations

import torch

from trajmatch.networks import NetworkSpec
from trajmatch.networks.functional import load_parameter_vector
from trajmatch.types import Float, Tensor


def embeddings(
    spec: NetworkSpec,
    vector: Float[Tensor, "params"],
    images: Float[Tensor, "n channels height width"],
    batch: int = 512,
) -> Float[Tensor, "n features"]:
    """The input of the last layer for whitened images, in the network with parameters `vector`.

    Computed `batch` images at a time on the device of `vector`, in eval mode; returned on the CPU.

    Examples:
        >>> from trajmatch.networks import parameter_vector
        >>> spec = NetworkSpec("mlp", channels=1, classes=2, size=4, options={"width": 8})
        >>> embeddings(spec, parameter_vector(spec.build(seed=0)), torch.zeros(3, 1, 4, 4)).shape
        torch.Size([3, 8])
    """
    module = spec.build(seed=0).to(vector.device)
    load_parameter_vector(module, vector)
    module.eval()
    with torch.no_grad():
        parts = [module.embed(part.to(vector.device)).cpu() for part in torch.split(images, batch)]
    return torch.cat(parts)
