"""A network as a pure function of ONE parameter vector.

Matching trajectories treats the parameters as a point in space: distances, steps and gradients are
those of a single vector. These functions convert between that vector and an `nn.Module`.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from trajmatch.errors import SettingError
from trajmatch.types import Float, Tensor


def parameter_vector(module: nn.Module) -> Float[Tensor, "params"]:
    """A copy of all parameters of `module`, flattened and joined in `named_parameters` order.

    Examples:
        >>> parameter_vector(nn.Linear(3, 2)).shape
        torch.Size([8])
    """
    return torch.cat([p.detach().reshape(-1) for p in module.parameters()])


def load_parameter_vector(module: nn.Module, vector: Float[Tensor, "params"]) -> None:
    """Copy `vector` into the parameters of `module`, in `named_parameters` order.

    Raises SettingError for a vector of another length.
    """
    with torch.no_grad():
        for parameter, part in zip(
            module.parameters(), split_vector(module, vector).values(), strict=True
        ):
            parameter.copy_(part)


def split_vector(module: nn.Module, vector: Float[Tensor, "params"]) -> dict[str, Tensor]:
    """Views into `vector`, one per parameter of `module`, in its shape.

    Raises SettingError for a vector of another length.

    Examples:
        >>> parts = split_vector(nn.Linear(3, 2), torch.zeros(8))
        >>> {name: tuple(part.shape) for name, part in parts.items()}
        {'weight': (2, 3), 'bias': (2,)}
    """
    names, parameters = zip(*module.named_parameters(), strict=True)
    sizes = [p.numel() for p in parameters]
    if vector.numel() != sum(sizes):
        raise SettingError(
            f"the vector has {vector.numel():,} numbers and the network {sum(sizes):,} parameters; "
            "build the network with the settings the vector was made with"
        )
    parts = torch.split(vector, sizes)
    return {n: v.view(p.shape) for n, v, p in zip(names, parts, parameters, strict=True)}


def require_stateless(module: nn.Module) -> None:
    """Refuse a network whose forward pass changes anything but its output.

    Raises SettingError for batch norm with running statistics and for active dropout: the next step
    of such a network is not a function of its parameters, so its trajectory cannot be matched.
    """
    for name, part in module.named_modules():
        if isinstance(part, _BatchNorm) and part.track_running_stats:
            raise SettingError(
                f"layer '{name}' is a batch norm that keeps running statistics, so the network is "
                "not a function of its parameters alone and cannot be an expert or a student; "
                "use --norm=instance, group, layer or none (batch norm works in evaluate)"
            )
        if isinstance(part, nn.Dropout) and part.p > 0 and part.training:
            raise SettingError(
                f"layer '{name}' is dropout with p={part.p}, which is random at every call; "
                "set p=0 for experts and students (their augmentation is DSA)"
            )


class FunctionalNetwork:
    """`f(vector, images) -> logits` for a stateless `module`, differentiable in both to any order.

    The module is used for its structure only: its own parameters are never read or written.

    Raises SettingError for a module that keeps state.

    Examples:
        >>> f = FunctionalNetwork(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)))
        >>> f(torch.zeros(10), torch.ones(3, 1, 2, 2)).shape
        torch.Size([3, 2])
    """

    def __init__(self, module: nn.Module) -> None:
        require_stateless(module)
        self.module = module
        self.size = sum(p.numel() for p in module.parameters())

    def __call__(
        self,
        vector: Float[Tensor, "params"],
        images: Float[Tensor, "batch channels height width"],
        *,
        channels_last: bool = False,
    ) -> Float[Tensor, "batch classes"]:
        """channels_last: copy the filters into that layout; the images should be in it too."""
        parts = split_vector(self.module, vector)
        if channels_last:
            parts = {name: _channels_last(part) for name, part in parts.items()}
        logits: Tensor = functional_call(self.module, parts, (images,))
        return logits


def _channels_last(part: Tensor) -> Tensor:
    return part.contiguous(memory_format=torch.channels_last) if part.ndim == 4 else part
