"""Outer optimizers and learning-rate schedules, as values.

An outer optimizer updates what is learned (images, label logits, log step size), each at a rate of
its own. It is a pure function of values, so that an update can be tried and rolled back, and its
state is plain tensors, which a checkpoint holds:

    state = optimizer.start(parameters)
    parameters, state = optimizer.step(parameters, gradients, rates, state)
"""

from __future__ import annotations

import dataclasses
import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, TypeVar

from trajmatch.config.named import NamedValue
from trajmatch.config.ranges import require_range
from trajmatch.errors import SettingError

# torch is imported when an optimizer is used: settings are read before a command line is accepted.
Tensor = Any
"""torch.Tensor."""
Tensors = dict[str, Tensor]
"""Tensors by the name of the parameter they belong to; a state's as `slot.parameter`."""

Outer = TypeVar("Outer", bound="OuterOptimizer")


@dataclasses.dataclass(frozen=True)
class OuterOptimizer(NamedValue):
    """How gradients become updates."""

    @classmethod
    def of(cls: type[Outer], name: str, options: dict[str, Any]) -> Outer:
        """Beside the members any class of torch.optim, by its name."""
        if name in cls.members:
            return super().of(name, options)
        found: Any = TorchOptimizer(name, tuple(sorted(options.items())))
        found.check()
        result: Outer = found
        return result

    def start(self, parameters: Mapping[str, Tensor]) -> Tensors:
        """The state before the first step."""
        return {}

    @abstractmethod
    def step(
        self,
        parameters: Mapping[str, Tensor],
        gradients: Mapping[str, Tensor],
        rates: Mapping[str, float],
        state: Tensors,
    ) -> tuple[Tensors, Tensors]:
        """Parameters and state after one step; a parameter without gradient stays as it is.

        The arguments are not changed.
        """


@dataclasses.dataclass(frozen=True)
class SGD(OuterOptimizer, name="sgd"):
    """m <- momentum m + g; p <- p - rate m, as torch.optim.SGD. Momentum 0.5 is the published one
    (Cazenavette et al. 2022)."""

    momentum: float = 0.5

    def start(self, parameters: Mapping[str, Tensor]) -> Tensors:
        import torch

        return {f"momentum.{name}": torch.zeros_like(part) for name, part in parameters.items()}

    def step(
        self,
        parameters: Mapping[str, Tensor],
        gradients: Mapping[str, Tensor],
        rates: Mapping[str, float],
        state: Tensors,
    ) -> tuple[Tensors, Tensors]:
        after, moved = dict(parameters), dict(state)
        for name, gradient in gradients.items():
            slot = f"momentum.{name}"
            moved[slot] = self.momentum * state[slot] + gradient
            after[name] = parameters[name] - rates[name] * moved[slot]
        return after, moved


@dataclasses.dataclass(frozen=True)
class TorchOptimizer(OuterOptimizer):
    """Any class of torch.optim that keeps its state in tensors, by its name: `AdamW`, `RMSprop`.

    options: the class's keywords as sorted pairs, except the rate.
    """

    kind: str = "Adam"
    options: tuple[tuple[str, Any], ...] = ()

    def __str__(self) -> str:
        values = ", ".join(f"{name}={value!r}" for name, value in self.options)
        return f"{self.kind}({values})" if values else self.kind

    def step(
        self,
        parameters: Mapping[str, Tensor],
        gradients: Mapping[str, Tensor],
        rates: Mapping[str, float],
        state: Tensors,
    ) -> tuple[Tensors, Tensors]:
        import torch

        names = list(gradients)
        leaves = [parameters[name].clone() for name in names]
        optimizer = self._build(leaves, [rates[name] for name in names])
        for name, leaf in zip(names, leaves, strict=True):
            leaf.grad = gradients[name].clone()
            own = {
                slot.removesuffix(f".{name}"): tensor.clone()
                for slot, tensor in state.items()
                if slot.endswith(f".{name}")
            }
            if own:
                optimizer.state[leaf] = own
        optimizer.step()
        after = {**parameters, **dict(zip(names, leaves, strict=True))}
        moved = {
            f"{slot}.{name}": torch.as_tensor(value)
            for name, leaf in zip(names, leaves, strict=True)
            for slot, value in optimizer.state[leaf].items()
        }
        return {name: part.detach() for name, part in after.items()}, {**state, **moved}

    def check(self) -> None:
        """Two steps on zeros shaped as images and as a step size.

        Raises SettingError where torch has no such optimizer, or it refuses the options or such
        parameters (LBFGS evaluates the loss itself, SparseAdam wants sparse gradients).
        """
        import torch

        parts = {"images": torch.zeros(2, 3, 4, 4), "log_step_size": torch.zeros(())}
        kind = getattr(torch.optim, self.kind, None)
        if not (isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer)):
            raise SettingError(
                f"'{self.kind}' is unknown; use sgd, adam, or a class of torch.optim such as AdamW"
            )
        if "lr" in dict(self.options):
            raise SettingError(
                f"{self.kind} is given an lr; leave it out: the rates are the method's lr_img, "
                "lr_lr and lr_label"
            )
        for name, value in self.options:
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                require_range(name, value, integer=False)
        try:
            _, state = self.step(parts, parts, dict.fromkeys(parts, 1e-3), {})
            self.step(parts, parts, dict.fromkeys(parts, 1e-3), state)
        except Exception as error:  # each class of torch refuses in its own way
            raise SettingError(
                f"torch.optim.{self.kind} cannot be the outer optimizer with these options: "
                f"{str(error).strip() or type(error).__name__:.200}".replace("\n", " ")
            ) from error

    def _build(self, leaves: list[Tensor], rates: list[float]) -> Any:
        import torch

        kind = getattr(torch.optim, self.kind)
        groups = [{"params": [leaf], "lr": lr} for leaf, lr in zip(leaves, rates, strict=True)]
        return kind(groups, **dict(self.options))


@dataclasses.dataclass(frozen=True)
class Adam(OuterOptimizer, name="adam"):
    """torch.optim.Adam (Kingma & Ba 2015)."""

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8

    def __post_init__(self) -> None:
        object.__setattr__(self, "betas", tuple(self.betas))
        if len(self.betas) != 2:
            raise SettingError(f"betas is {self.betas}; it must be two numbers")
        super().__post_init__()

    @property
    def _torch(self) -> TorchOptimizer:
        return TorchOptimizer("Adam", (("betas", self.betas), ("eps", self.eps)))

    def step(
        self,
        parameters: Mapping[str, Tensor],
        gradients: Mapping[str, Tensor],
        rates: Mapping[str, float],
        state: Tensors,
    ) -> tuple[Tensors, Tensors]:
        return self._torch.step(parameters, gradients, rates, state)


@dataclasses.dataclass(frozen=True)
class Schedule(NamedValue):
    """A factor on all outer learning rates, by iteration."""

    @abstractmethod
    def factor(self, iteration: int, iterations: int) -> float:
        """The factor of iteration 0, 1, ... of so many."""


@dataclasses.dataclass(frozen=True)
class Constant(Schedule, name="constant"):
    """1 throughout, as published."""

    def factor(self, iteration: int, iterations: int) -> float:
        return 1.0


@dataclasses.dataclass(frozen=True)
class Cosine(Schedule, name="cosine"):
    """From 1 to `end` along half a cosine (Loshchilov & Hutter 2017)."""

    end: float = 0.0

    def factor(self, iteration: int, iterations: int) -> float:
        return self.end + (1 - self.end) * (1 + math.cos(math.pi * iteration / iterations)) / 2


@dataclasses.dataclass(frozen=True)
class Decay(Schedule, name="decay"):
    """1 until the share `at` of the iterations, `to` from then on."""

    to: float = 0.1
    at: float = 0.5

    def factor(self, iteration: int, iterations: int) -> float:
        return self.to if iteration >= self.at * iterations else 1.0
