"""Floating-point precision of a network's convolutions and matrix products.

"float32" computes in the type of its inputs (float64 stays float64). "bf16" rounds the inputs of
convolutions and matrix products to bfloat16, by autocast, and keeps parameters, norms, loss and
reductions in float32. "tf32" lets CUDA round the inputs of products to 10 bits of mantissa; on
other devices it is float32.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import nn

from trajmatch.networks.functional import FunctionalNetwork
from trajmatch.types import Float, Tensor

PRECISIONS = ("float32", "bf16", "tf32")

Classifier = Callable[[Tensor, Tensor], Tensor]
"""(parameter vector [params], images [batch, channels, height, width]) -> logits."""


def classifier(module: nn.Module, precision: str, *, compile: bool = False) -> Classifier:
    """`module` as a function of parameter vector and images, its products in `precision`.

    Logits are float32 or wider. compile: lay images and filters out channels last, the layout for
    which torch.compile generates the fastest code.

    Raises SettingError for a network that keeps state (`functional.require_stateless`).

    Examples:
        >>> from trajmatch.networks import build_network, parameter_vector
        >>> network = build_network("mlp", channels=1, classes=2, size=4, seed=0)
        >>> logits = classifier(network, "bf16")
        >>> scores = logits(parameter_vector(network), torch.zeros(3, 1, 4, 4))
        >>> scores.shape, scores.dtype
        (torch.Size([3, 2]), torch.float32)
    """
    network = FunctionalNetwork(module)

    def logits(
        vector: Float[Tensor, "params"], images: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch classes"]:
        if compile:
            images = images.contiguous(memory_format=torch.channels_last)
        with rounding(precision, vector.device.type):
            scores = network(vector, images, channels_last=compile)
        return scores.float() if precision == "bf16" else scores

    return logits


def rounding(precision: str, device: str) -> contextlib.AbstractContextManager[object]:
    """A context that for "bf16" rounds the inputs of products on `device` ("cpu", "cuda")."""
    # Without autocast's cache of rounded parameters, which would keep graphs alive between steps.
    if precision == "bf16":
        return torch.autocast(device, torch.bfloat16, cache_enabled=False)
    return contextlib.nullcontext()


@contextlib.contextmanager
def arithmetic(precision: str) -> Iterator[None]:
    """A context in which CUDA rounds float32 products for "tf32" and for nothing else.

    Outside of it torch's own settings hold, by which cuDNN rounds convolutions.
    """
    cudnn, products = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, products.allow_tf32
    cudnn.allow_tf32 = products.allow_tf32 = precision == "tf32"
    try:
        yield
    finally:
        cudnn.allow_tf32, products.allow_tf32 = before
