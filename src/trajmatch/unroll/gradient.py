"""The gradient of the training loss, and the way back through it.

Everything the engine does is built from one function, g(vector, images, labels) = d CE / d vector,
and its derivative: given v, the parts of d<g, v> with respect to parameters, images and labels. It
exists in three forms with one meaning:

- eager, by autograd: any network, any type; graphs can be kept from the way out.
- compiled, any network: g by torch.func.grad, its derivative as the derivative of the gradient
  along v (forward over reverse), because compiled code cannot be differentiated twice.
- compiled, the field's ConvNet: written out (`chain`), twice as fast as the compiler's own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, Protocol, runtime_checkable
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.nn import functional as F

from trajmatch.errors import SettingError, suggest
from trajmatch.networks.functional import FunctionalNetwork
from trajmatch.runtime.compiling import compiled
from trajmatch.types import Tensor
from trajmatch.unroll.convnet import ConvNetGradient, SavedTensors

PRECISIONS = ("float32", "bf16", "tf32")

Classifier = Callable[[Tensor, Tensor], Tensor]
"""(vector, images) -> logits."""
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(vector, images, labels) -> mean cross-entropy, labels being indices or probabilities."""


class GradientVJP(NamedTuple):
    """<g, v> and its derivatives."""

    inner: Tensor
    vector: Tensor
    """The Hessian-vector product."""
    images: Tensor
    labels: Tensor | None
    """Of soft labels only."""


@runtime_checkable
class Residuals(Protocol):
    """A gradient together with the way back through it."""

    def gradient(self) -> Tensor:
        """g."""

    def vjp(self, v: Tensor) -> GradientVJP:
        """<g, v> and its derivatives. Uses the record up."""

    def saved_tensors(self) -> Iterable[Tensor]:
        """The tensors it keeps, besides those in an autograd graph."""


@runtime_checkable
class GradientFn(Protocol):
    """g of one network, in one of its forms."""

    precision: str

    def gradient(self, vector: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        """g, and nothing kept."""

    def record(self, vector: Tensor, images: Tensor, labels: Tensor) -> Residuals:
        """g, and what the way back needs."""


_CACHE: WeakKeyDictionary[nn.Module, dict[tuple[str, bool], GradientFn]] = WeakKeyDictionary()


def gradient_fn(
    module: nn.Module, *, precision: str = "float32", compile: bool = False
) -> GradientFn:
    """The gradient of `module` and its derivative; the same object for the same arguments.

    precision: "float32" computes in the type of its inputs (float64 stays float64). "bf16" rounds
    the inputs of convolutions and matrix products to bfloat16 and keeps parameters, norms, loss and
    reductions in float32; the least cosine to float64 that a walk's gradient was found to have is
    0.9994 (docs/results.md). "tf32" lets CUDA round products to 10 bits of mantissa; elsewhere it
    is float32.

    compile: through torch.compile; the first calls then take about a minute. Where the compiler
    does not work the same is computed without it.
    """
    if precision not in PRECISIONS:
        raise SettingError(f"unknown precision '{precision}'; {suggest(precision, PRECISIONS)}")
    known = _CACHE.setdefault(module, {})
    key = (precision, compile)
    if key not in known:
        chain = ConvNetGradient.of(module, torch.bfloat16 if precision == "bf16" else None)
        if not compile:
            known[key] = EagerGradient(training_loss(classifier(module, precision)), precision)
        elif chain is not None:
            known[key] = DerivedGradient(chain, precision)
        else:
            # Not channels last: torch's forward derivative of a group norm refuses that layout.
            loss = training_loss(classifier(module, precision))
            known[key] = CompiledGradient(loss, precision)
    return known[key]


def classifier(module: nn.Module, precision: str, *, compile: bool = False) -> Classifier:
    """(vector, images) -> logits in float32 (or wider), convolutions in `precision`.

    compile: in the form the compiler does best, which is channels last.
    """
    network = FunctionalNetwork(module)

    def logits(vector: Tensor, images: Tensor) -> Tensor:
        if compile:
            images = images.contiguous(memory_format=torch.channels_last)
        with rounding(precision, vector.device.type):
            scores = network(vector, images, channels_last=compile)
        return scores.float() if precision == "bf16" else scores

    return logits


def rounding(precision: str, device: str) -> contextlib.AbstractContextManager[object]:
    """Round what goes into convolutions and matrix products on `device` for "bf16"."""
    # The cache of rounded parameters is off: it would hold on to graphs across the walk.
    if precision == "bf16":
        return torch.autocast(device, torch.bfloat16, cache_enabled=False)
    return contextlib.nullcontext()


def training_loss(classify: Classifier) -> Loss:
    """The mean cross-entropy of `classify`."""

    def loss(vector: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(classify(vector, images), labels)

    return loss


@contextlib.contextmanager
def arithmetic(precision: str) -> Iterator[None]:
    """Let CUDA round products of float32 for "tf32", and never else (cuDNN would by default)."""
    cudnn, products = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, products.allow_tf32
    cudnn.allow_tf32 = products.allow_tf32 = precision == "tf32"
    try:
        yield
    finally:
        cudnn.allow_tf32, products.allow_tf32 = before


# -- eager ---------------------------------------------------------------------------------------


class EagerGradient:
    """By autograd; the record is the gradient's own graph."""

    def __init__(self, loss: Loss, precision: str) -> None:
        self.loss = loss
        self.precision = precision

    def gradient(self, vector: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        """g without a graph."""
        return self._gradient(vector.detach().requires_grad_(), images, labels, again=False)

    def record(self, vector: Tensor, images: Tensor, labels: Tensor) -> Residuals:
        """g with its graph."""
        soft = labels.is_floating_point()
        leaves = [vector.detach().requires_grad_(), images.detach().requires_grad_()]
        if soft:
            labels = labels.detach().requires_grad_()
            leaves.append(labels)
        return _GraphResiduals(self._gradient(leaves[0], leaves[1], labels, again=True), leaves)

    def _gradient(self, leaf: Tensor, images: Tensor, labels: Tensor, *, again: bool) -> Tensor:
        with torch.enable_grad():
            (g,) = torch.autograd.grad(self.loss(leaf, images, labels), leaf, create_graph=again)
        return g


class _GraphResiduals:
    def __init__(self, g: Tensor, leaves: list[Tensor]) -> None:
        self.g = g
        self.leaves = leaves

    def gradient(self) -> Tensor:
        return self.g.detach()

    def vjp(self, v: Tensor) -> GradientVJP:
        inner = torch.dot(self.g.detach(), v)
        vector, images, *labels = torch.autograd.grad(self.g, self.leaves, v)
        return GradientVJP(inner, vector, images, labels[0] if labels else None)

    def saved_tensors(self) -> Iterable[Tensor]:
        return ()


# -- compiled, any network -----------------------------------------------------------------------


class CompiledGradient:
    """By torch.func; the record is the inputs, and the way back computes all of it again."""

    def __init__(self, loss: Loss, precision: str) -> None:
        self.precision = precision
        self.gradient_of = compiled(torch.func.grad(loss))
        self.product = compiled(_along(loss))

    def gradient(self, vector: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        """g."""
        with torch.no_grad():
            g: Tensor = self.gradient_of(vector, images, labels)
        return g

    def record(self, vector: Tensor, images: Tensor, labels: Tensor) -> Residuals:
        """The inputs."""
        return _RecomputedResiduals(self, vector, images, labels)


def _along(loss: Loss) -> Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, ...]]:
    """The derivative of the gradient along v, which is the gradient of <g, v>."""

    def product(vector: Tensor, images: Tensor, labels: Tensor, v: Tensor) -> tuple[Tensor, ...]:
        wanted: tuple[int, ...] = (0, 1, 2) if labels.is_floating_point() else (0, 1)

        def gradients(at: Tensor) -> tuple[Tensor, ...]:
            found: tuple[Tensor, ...] = torch.func.grad(loss, argnums=wanted)(at, images, labels)
            return found

        both: Any = torch.func.jvp(gradients, (vector,), (v,))
        values, tangents = both
        return (torch.dot(values[0], v), *tangents)

    return product


class _RecomputedResiduals:
    def __init__(
        self, own: CompiledGradient, vector: Tensor, images: Tensor, labels: Tensor
    ) -> None:
        self.own = own
        self.inputs = vector, images, labels

    def gradient(self) -> Tensor:
        return self.own.gradient(*self.inputs)

    def vjp(self, v: Tensor) -> GradientVJP:
        with torch.no_grad():
            inner, hessian_v, images, *labels = self.own.product(*self.inputs, v)
        return GradientVJP(inner, hessian_v, images, labels[0] if labels else None)

    def saved_tensors(self) -> Iterable[Tensor]:
        return ()


# -- compiled, the field's ConvNet ---------------------------------------------------------------


class DerivedGradient:
    """By the chain's written-out passes; the record is what its way back reads."""

    def __init__(self, chain: ConvNetGradient, precision: str) -> None:
        self.precision = precision
        self.grad = compiled(chain.grad)
        self.grad_vjp = compiled(chain.grad_vjp)

    def gradient(self, vector: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        """g."""
        with torch.no_grad():
            g, _ = self.grad(vector, images, labels)
        return g

    def record(self, vector: Tensor, images: Tensor, labels: Tensor) -> Residuals:
        """g and the activations."""
        with torch.no_grad():
            g, kept = self.grad(vector, images, labels)
        return _DerivedResiduals(self, vector, labels, g, kept)


class _DerivedResiduals:
    def __init__(
        self, own: DerivedGradient, vector: Tensor, labels: Tensor, g: Tensor, kept: SavedTensors
    ) -> None:
        self.own = own
        self.vector = vector
        self.labels = labels
        self.g = g
        self.kept = kept

    def gradient(self) -> Tensor:
        return self.g

    def vjp(self, v: Tensor) -> GradientVJP:
        with torch.no_grad():
            hessian_v, images, labels = self.own.grad_vjp(self.vector, self.labels, self.kept, v)
        return GradientVJP(torch.dot(self.g, v), hessian_v, images, labels)

    def saved_tensors(self) -> Iterable[Tensor]:
        return self.kept
