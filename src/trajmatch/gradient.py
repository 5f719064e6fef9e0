"""The gradient of the training loss as a function that can be differentiated once more.

Everything the engine does is built from one function, g(vector, images, labels) = d CE / d vector,
and its own derivatives. It exists in two forms with one meaning: eager, and compiled. A compiled
function cannot be differentiated twice, but one that *contains* the gradient can be differentiated
once, which is all that is needed.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.nn import functional as F

from trajmatch.errors import SettingError, suggest
from trajmatch.networks.functional import FunctionalNetwork
from trajmatch.types import Tensor

LossGradient = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(vector, images, labels) -> d loss / d vector. Differentiable once more when grad mode is on."""

PRECISIONS = ("float32", "bf16", "tf32")

_CACHE: WeakKeyDictionary[nn.Module, dict[tuple[str, bool], LossGradient]] = WeakKeyDictionary()


def loss_gradient(
    module: nn.Module, *, precision: str = "float32", compile: bool = False
) -> LossGradient:
    """The gradient function of `module`; the same object for the same arguments.

    precision: "float32" computes in the type of its inputs (float64 stays float64). "bf16" rounds
    the inputs of convolutions and matrix products to bfloat16 and keeps parameters, norms, loss and
    reductions in float32. "tf32" lets CUDA round products to 10 bits of mantissa.

    compile: through torch.compile; the first calls then take about a minute.
    """
    if precision not in PRECISIONS:
        raise SettingError(f"unknown precision '{precision}'; {suggest(precision, PRECISIONS)}")
    known = _CACHE.setdefault(module, {})
    key = (precision, compile)
    if key not in known:
        loss = training_loss(FunctionalNetwork(module), precision)
        known[key] = _compiled(loss) if compile else _eager(loss)
    return known[key]


def training_loss(
    network: FunctionalNetwork, precision: str
) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """(vector, images, labels) -> mean cross-entropy, labels being indices or probabilities."""

    def loss(vector: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        with _rounding(precision, vector.device.type):
            logits = network(vector, images)
        if precision == "bf16":
            logits = logits.float()
        return F.cross_entropy(logits, labels)

    return loss


def _rounding(precision: str, device: str) -> AbstractContextManager[object]:
    # The cache of rounded parameters is off: it would hold on to graphs across the walk.
    if precision == "bf16":
        return torch.autocast(device, dtype=torch.bfloat16, cache_enabled=False)
    return nullcontext()


def _eager(loss: Callable[[Tensor, Tensor, Tensor], Tensor]) -> LossGradient:
    def gradient(vector: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        again = torch.is_grad_enabled()
        with torch.enable_grad():
            leaf = vector if again and vector.requires_grad else vector.detach().requires_grad_()
            value = loss(leaf, images, labels)
            (g,) = torch.autograd.grad(value, leaf, create_graph=again)
        return g

    return gradient


def _compiled(loss: Callable[[Tensor, Tensor, Tensor], Tensor]) -> LossGradient:
    function: LossGradient = torch.compile(torch.func.grad(loss), dynamic=False)
    return function
