"""The gradient of the training loss, and its vector-Jacobian product.

The engine is built on one function, g(vector, images, labels) = d CE / d vector, and on the
derivatives of <g, v> with respect to parameters, images and labels for a given v. Three classes
compute the same:

- `EagerGradient`, by autograd: any network, any type. Residuals are the graph of g.
- `CompiledGradient`, any network: g by torch.func.grad. Compiled code cannot be differentiated
  twice, so the derivatives of <g, v> are computed as the derivative of the gradient along v
  (forward over reverse mode; Pearlmutter 1994). Residuals are the inputs.
- `DerivedGradient`, the field's ConvNet: both functions derived by hand (`convnet`), as C++
  operators (`native`) or compiled. Residuals are activations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, Protocol, runtime_checkable
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.nn import functional as F

from trajmatch.errors import SettingError, suggest
from trajmatch.networks.precision import PRECISIONS, Classifier, classifier
from trajmatch.runtime.compiling import compiled, is_compiled
from trajmatch.types import Float, Shaped, Tensor
from trajmatch.unroll.convnet import ConvNetGradient, SavedTensors
from trajmatch.unroll.native import ConvNetFunctions, NativeConvNet, fastest

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(vector, images, labels) -> mean cross-entropy, labels being indices or probabilities."""

Compiler = Callable[[Any], Any]
"""function -> an equal, faster function."""


class GradientVJP(NamedTuple):
    """<g, v> and its derivatives."""

    inner: Float[Tensor, ""]
    """<g, v>."""
    vector: Float[Tensor, "params"]
    """With respect to parameters: the Hessian-vector product."""
    images: Float[Tensor, "batch channels height width"]
    labels: Float[Tensor, "batch classes"] | None
    """None for class indices."""


@runtime_checkable
class Residuals(Protocol):
    """What one evaluation of g leaves for its vector-Jacobian product."""

    def gradient(self) -> Float[Tensor, "params"]:
        """g."""

    def vjp(self, v: Float[Tensor, "params"]) -> GradientVJP:
        """<g, v> and its derivatives. Can be called once."""

    def saved_tensors(self) -> Iterable[Shaped[Tensor, "..."]]:
        """The tensors it holds, besides those saved in an autograd graph."""


@runtime_checkable
class GradientFn(Protocol):
    """g of one network, computed in one of the three ways."""

    precision: str

    @property
    def compiled(self) -> bool:
        """Whether it is in its fastest form: False once the compiler has failed."""

    def gradient(
        self,
        vector: Float[Tensor, "params"],
        images: Float[Tensor, "batch channels height width"],
        labels: Shaped[Tensor, "batch ..."],
    ) -> Float[Tensor, "params"]:
        """g; saves nothing."""

    def residuals(
        self,
        vector: Float[Tensor, "params"],
        images: Float[Tensor, "batch channels height width"],
        labels: Shaped[Tensor, "batch ..."],
    ) -> Residuals:
        """g with what its vector-Jacobian product needs."""


_CACHE: WeakKeyDictionary[nn.Module, dict[tuple[str, bool], GradientFn]] = WeakKeyDictionary()


def gradient_fn(
    module: nn.Module, *, precision: str = "float32", compile: bool = False
) -> GradientFn:
    """The gradient of `module`'s mean cross-entropy; equal arguments give the same object.

    precision: one of `networks.precision.PRECISIONS`. The least cosine to float64 that an unroll's
    gradient was measured to have in bf16 is 0.9994 (docs/results.md).

    compile: by C++ operators for the ConvNet on a CPU (`native`), else through torch.compile,
    whose first calls take about a minute. Where neither works, the same functions run uncompiled.

    Raises SettingError for an unknown precision and for a network that keeps state.

    Examples:
        >>> from trajmatch.networks import build_network, parameter_vector
        >>> network = build_network("mlp", channels=1, classes=2, size=4, seed=0)
        >>> vector, images = parameter_vector(network), torch.ones(2, 1, 4, 4)
        >>> residuals = gradient_fn(network).residuals(vector, images, torch.tensor([0, 1]))
        >>> g = residuals.gradient()
        >>> bool(torch.isclose(residuals.vjp(g).inner, g.square().sum()))
        True
    """
    if precision not in PRECISIONS:
        raise SettingError(f"unknown precision '{precision}'; {suggest(precision, PRECISIONS)}")
    known = _CACHE.setdefault(module, {})
    key = (precision, compile)
    if key not in known:
        derived = ConvNetGradient.of(module, torch.bfloat16 if precision == "bf16" else None)
        if not compile:
            known[key] = EagerGradient(training_loss(classifier(module, precision)), precision)
        elif derived is not None:
            known[key] = DerivedGradient(fastest(derived, module), precision)
        else:
            # Not channels last: torch's forward derivative of a group norm refuses that layout.
            loss = training_loss(classifier(module, precision))
            known[key] = CompiledGradient(loss, precision)
    return known[key]


def training_loss(classify: Classifier) -> Loss:
    """The mean cross-entropy of `classify`, as a function of (vector, images, labels)."""

    def loss(
        vector: Float[Tensor, "params"],
        images: Float[Tensor, "batch channels height width"],
        labels: Shaped[Tensor, "batch ..."],
    ) -> Float[Tensor, ""]:
        return F.cross_entropy(classify(vector, images), labels)

    return loss


class EagerGradient:
    """By autograd; residuals are the graph of g."""

    compiled = False

    def __init__(self, loss: Loss, precision: str) -> None:
        self.loss = loss
        self.precision = precision

    def gradient(
        self,
        vector: Float[Tensor, "params"],
        images: Float[Tensor, "batch channels height width"],
        labels: Shaped[Tensor, "batch ..."],
    ) -> Float[Tensor, "params"]:
        """g without a graph."""
        return self._gradient(vector.detach().requires_grad_(), images, labels, graph=False)

    def residuals(
        self,
        vector: Float[Tensor, "params"],
        images: Float[Tensor, "batch channels height width"],
        labels: Shaped[Tensor, "batch ..."],
    ) -> Residuals:
        """g with its graph."""
        soft = labels.is_floating_point()
        leaves = [vector.detach().requires_grad_(), images.detach().requires_grad_()]
        if soft:
            labels = labels.detach().requires_grad_()
            leaves.append(labels)
        g = self._gradient(leaves[0], leaves[1], labels, graph=True)
        return _GraphResiduals(g, leaves)

    def _gradient(
        self,
        leaf: Float[Tensor, "params"],
        images: Float[Tensor, "batch channels height width"],
        labels: Shaped[Tensor, "batch ..."],
        *,
        graph: bool,
    ) -> Float[Tensor, "params"]:
        with torch.enable_grad():
            (g,) = torch.autograd.grad(self.loss(leaf, images, labels), leaf, create_graph=graph)
        return g


class _GraphResiduals:
    def __init__(self, g: Float[Tensor, "params"], leaves: list[Shaped[Tensor, "..."]]) -> None:
        self.g = g
        self.leaves = leaves

    def gradient(self) -> Float[Tensor, "params"]:
        return self.g.detach()

    def vjp(self, v: Float[Tensor, "params"]) -> GradientVJP:
        inner = torch.dot(self.g.detach(), v)
        vector, images, *labels = torch.autograd.grad(self.g, self.leaves, v)
        return GradientVJP(inner, vector, images, labels[0] if labels else None)

    def saved_tensors(self) -> Iterable[Shaped[Tensor, "..."]]:
        return ()


class CompiledGradient:
    """By torch.func; residuals are the inputs, and `vjp` computes everything again.

    compiler: applied to g and to its vector-Jacobian product.
    """

    def __init__(self, loss: Loss, precision: str, compiler: Compiler = compiled) -> None:
        self.precision = precision
        self.grad = compiler(torch.func.grad(loss))
        self.grad_vjp = compiler(_grad_vjp(loss))

    @property
    def compiled(self) -> bool:
        """Whether the compiler has not failed on either function."""
        return is_compiled(self.grad) and is_compiled(self.grad_vjp)

    def gradient(
        self,
        vector: Float[Tensor, "params"],
        images: Float[Tensor, "batch channels height width"],
        labels: Shaped[Tensor, "batch ..."],
    ) -> Float[Tensor, "params"]:
        """g."""
        with torch.no_grad():
            g: Tensor = self.grad(vector, images, labels)
        return g

    def residuals(
        self,
        vector: Float[Tensor, "params"],
        images: Float[Tensor, "batch channels height width"],
        labels: Shaped[Tensor, "batch ..."],
    ) -> Residuals:
        """The inputs."""
        return _RecomputedResiduals(self, vector, images, labels)


def _grad_vjp(loss: Loss) -> Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, ...]]:
    """(vector, images, labels, v) -> <g, v> and its derivatives.

    With the loss L and all its inputs x, d<g, v>/dx = d/dt dL/dx at (vector + t v).
    """

    def product(
        vector: Float[Tensor, "params"],
        images: Float[Tensor, "batch channels height width"],
        labels: Shaped[Tensor, "batch ..."],
        v: Float[Tensor, "params"],
    ) -> tuple[Float[Tensor, "..."], ...]:
        inputs: tuple[int, ...] = (0, 1, 2) if labels.is_floating_point() else (0, 1)

        def gradients(at: Tensor) -> tuple[Tensor, ...]:
            found: tuple[Tensor, ...] = torch.func.grad(loss, argnums=inputs)(at, images, labels)
            return found

        both: Any = torch.func.jvp(gradients, (vector,), (v,))
        values, tangents = both
        return (torch.dot(values[0], v), *tangents)

    return product


class _RecomputedResiduals:
    def __init__(
        self,
        parent: CompiledGradient,
        vector: Float[Tensor, "params"],
        images: Float[Tensor, "batch channels height width"],
        labels: Shaped[Tensor, "batch ..."],
    ) -> None:
        self.parent = parent
        self.inputs = vector, images, labels

    def gradient(self) -> Float[Tensor, "params"]:
        return self.parent.gradient(*self.inputs)

    def vjp(self, v: Float[Tensor, "params"]) -> GradientVJP:
        with torch.no_grad():
            inner, hessian_v, images, *labels = self.parent.grad_vjp(*self.inputs, v)
        return GradientVJP(inner, hessian_v, images, labels[0] if labels else None)

    def saved_tensors(self) -> Iterable[Shaped[Tensor, "..."]]:
        return ()


class DerivedGradient:
    """By the functions of a `ConvNetGradient`; residuals are the activations that they save."""

    def __init__(self, functions: ConvNetFunctions, precision: str) -> None:
        self.precision = precision
        self.grad, self.grad_vjp = functions.grad, functions.grad_vjp
        self._native = isinstance(functions, NativeConvNet)

    @property
    def compiled(self) -> bool:
        """Whether its functions are C++ operators, or the compiler has not failed on either."""
        return self._native or (is_compiled(self.grad) and is_compiled(self.grad_vjp))

    def gradient(
        self,
        vector: Float[Tensor, "params"],
        images: Float[Tensor, "batch channels height width"],
        labels: Shaped[Tensor, "batch ..."],
    ) -> Float[Tensor, "params"]:
        """g."""
        with torch.no_grad():
            g: Tensor = self.grad(vector, images, labels)[0]
        return g

    def residuals(
        self,
        vector: Float[Tensor, "params"],
        images: Float[Tensor, "batch channels height width"],
        labels: Shaped[Tensor, "batch ..."],
    ) -> Residuals:
        """g and the activations."""
        with torch.no_grad():
            g, saved = self.grad(vector, images, labels)
        return _DerivedResiduals(self, vector, labels, g, saved)


class _DerivedResiduals:
    def __init__(
        self,
        parent: DerivedGradient,
        vector: Float[Tensor, "params"],
        labels: Shaped[Tensor, "batch ..."],
        g: Float[Tensor, "params"],
        saved: SavedTensors,
    ) -> None:
        self.parent = parent
        self.vector = vector
        self.labels = labels
        self.g = g
        self.saved = saved

    def gradient(self) -> Float[Tensor, "params"]:
        return self.g

    def vjp(self, v: Float[Tensor, "params"]) -> GradientVJP:
        with torch.no_grad():
            hessian_v, images, labels = self.parent.grad_vjp(
                self.vector, self.labels, self.saved, v
            )
        return GradientVJP(torch.dot(self.g, v), hessian_v, images, labels)

    def saved_tensors(self) -> Iterable[Shaped[Tensor, "..."]]:
        return self.saved
