"""One fresh network trained on a small set, by the protocol that the field reports numbers with.

Zhao & Bilen, Dataset condensation with differentiable siamese augmentation, ICML 2021;
Cazenavette et al., Dataset distillation by matching training trajectories, CVPR 2022.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import torch
from torch import nn
from torch.nn import functional as F

from trajmatch import rng
from trajmatch.config import EvaluateConfig, Precision
from trajmatch.data.augment import Augmentation
from trajmatch.networks.functional import parameter_vector
from trajmatch.networks.precision import arithmetic, rounding
from trajmatch.runtime.micro_batches import micro_batch_size
from trajmatch.runtime.progress import SILENT, Progress
from trajmatch.types import Bool, Float, Int, Tensor
from trajmatch.unroll.convnet import ConvNetGradient
from trajmatch.unroll.native import fastest


@dataclasses.dataclass(frozen=True)
class TrainingSettings:
    """How one network is trained: SGD with momentum and a single drop of the learning rate."""

    lr: float
    """Learning rate of the first epochs // 2 + 1 epochs; a tenth of it afterwards."""
    epochs: int
    momentum: float = 0.9
    weight_decay: float = 5e-4
    batch: int = 256
    """Images per step; a set with fewer is one batch."""
    augment: Augmentation | None = None
    precision: Precision = "float32"
    """Of the products in training; networks are tested in float32."""

    @classmethod
    def of(cls, config: EvaluateConfig, lr: float) -> TrainingSettings:
        """The settings of an evaluation at learning rate `lr`.

        Raises SettingError for an unknown augmentation.

        Examples:
            >>> TrainingSettings.of(EvaluateConfig(epochs=300, augment="none"), 0.02)
            TrainingSettings(lr=0.02, epochs=300, momentum=0.9, weight_decay=0.0005, batch=256, \
augment=None, precision='float32')
        """
        return cls(
            lr=lr,
            epochs=config.epochs,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
            batch=config.batch,
            augment=augmentation_of(config),
            precision=config.precision,
        )


def augmentation_of(config: EvaluateConfig) -> Augmentation | None:
    """The augmentation that a config names. Raises SettingError for an unknown one."""
    return None if config.augment in (None, "none") else Augmentation(str(config.augment))


def train_network(
    module: nn.Module,
    images: Float[Tensor, "n channels height width"],
    labels: Int[Tensor, "n"] | Float[Tensor, "n classes"],
    settings: TrainingSettings,
    *,
    seed: int = 0,
    compile: bool = False,
    progress: Progress = SILENT,
) -> None:
    """Train `module` in place, on the device of its parameters.

    When the learning rate drops, the momentum restarts from zero, as in the released code. A set of
    more than one batch is shuffled every epoch. Soft labels are probabilities. A learning rate that
    is too large leaves the parameters non-finite (`is_finite`); nothing is raised.

    compile: in the fastest form (`unroll.native`) where `ConvNetGradient` covers the network;
        others stay eager.
    progress: `update("training", epoch, epochs)` after every epoch.

    Cost: epochs * ceil(n / batch) forward and backward passes. With tiny sets, launching takes most
    of it: parameters are one flat vector, an update is three operations, and the host never
    waits for the device.

    Examples:
        >>> from trajmatch.networks import build_network
        >>> module = build_network("mlp", channels=1, classes=2, size=4, seed=0)
        >>> images = torch.stack([torch.zeros(1, 4, 4), torch.ones(1, 4, 4)])
        >>> labels = torch.tensor([0, 1])
        >>> train_network(module, images, labels, TrainingSettings(lr=0.05, epochs=20))
        >>> accuracy(module, images, labels)
        100.0
    """
    parameters = [p for p in module.parameters() if p.requires_grad]
    vector = _flattened(parameters)
    images, labels = images.to(vector.device), labels.to(vector.device)
    was_training = module.training
    module.train()
    with arithmetic(settings.precision):
        gradient_of = _gradient_function(module, parameters, vector, settings.precision, compile)
        _run_epochs(vector, gradient_of, images, labels, settings, seed, progress)
    module.train(was_training)
    # Parameters that share one storage cannot be saved separately or moved one by one.
    for parameter in parameters:
        parameter.data = parameter.data.clone()


def _run_epochs(
    vector: Tensor,
    gradient_of: Callable[[Tensor, Tensor], Tensor],
    images: Tensor,
    labels: Tensor,
    settings: TrainingSettings,
    seed: int,
    progress: Progress,
) -> None:
    """All epochs of SGD, in place on `vector`."""
    velocity = torch.zeros_like(vector)
    draws = rng.stream(seed, "augment")
    height, width = images.shape[-2:]
    lr, augment, drop = settings.lr, settings.augment, settings.epochs // 2 + 1
    for epoch in range(settings.epochs):
        if epoch == drop:
            lr = lr / 10
            velocity.zero_()
        for x, y in _batches(images, labels, settings.batch, seed, epoch):
            if augment is not None:
                x = augment.apply(x, augment.draw(draws, len(x), height, width))
            gradient = gradient_of(x, y)
            with torch.no_grad():
                gradient.add_(vector, alpha=settings.weight_decay)
                velocity.mul_(settings.momentum).add_(gradient)
                vector.add_(velocity, alpha=-lr)
        progress.update("training", epoch + 1, settings.epochs)


def _flattened(parameters: list[nn.Parameter]) -> Tensor:
    """One vector of all parameters, which become views of it."""
    vector = torch.cat([p.detach().reshape(-1) for p in parameters])
    sizes = [p.numel() for p in parameters]
    for parameter, part in zip(parameters, torch.split(vector, sizes), strict=True):
        parameter.data = part.view(parameter.shape)
    return vector


def _gradient_function(
    module: nn.Module,
    parameters: list[nn.Parameter],
    vector: Tensor,
    precision: Precision,
    compile: bool,
) -> Callable[[Tensor, Tensor], Tensor]:
    """(images, labels) -> the gradient of the mean cross-entropy, as one vector."""
    rounded = torch.bfloat16 if precision == "bf16" else None
    convnet = ConvNetGradient.of(module, rounded) if compile else None
    if convnet is not None:
        grad = fastest(convnet, module).grad

        def derived_by_hand(x: Tensor, y: Tensor) -> Tensor:
            with torch.no_grad():
                gradient: Tensor = grad(vector, x, y)[0]
            return gradient

        return derived_by_hand

    def by_autograd(x: Tensor, y: Tensor) -> Tensor:
        with rounding(precision, x.device.type):
            logits = module(x)
        loss = F.cross_entropy(logits.float() if precision == "bf16" else logits, y)
        parts = torch.autograd.grad(loss, parameters, materialize_grads=True)
        return torch.cat([part.reshape(-1) for part in parts])

    return by_autograd


def accuracy(
    module: nn.Module,
    images: Float[Tensor, "n channels height width"],
    labels: Int[Tensor, "n"],
    batch: int = 512,
    *,
    compile: bool = False,
) -> float:
    """Percentage of `images` that `module` classifies as `labels` say; as `is_correct`.

    Examples:
        >>> module = nn.Sequential(nn.Flatten(), nn.Identity(), nn.Linear(4, 2))
        >>> _ = nn.init.zeros_(module[2].weight), nn.init.zeros_(module[2].bias)
        >>> accuracy(module, torch.ones(4, 1, 2, 2), torch.tensor([0, 1, 1, 1]))  # always class 0
        25.0
    """
    return 100 * int(is_correct(module, images, labels, batch, compile=compile).sum()) / len(labels)


def is_correct(
    module: nn.Module,
    images: Float[Tensor, "n channels height width"],
    labels: Int[Tensor, "n"],
    batch: int = 512,
    *,
    compile: bool = False,
) -> Bool[Tensor, "n"]:
    """Whether `module` classifies each of `images` as `labels` say, `batch` at a time.

    Runs in eval mode (batch norm with its running statistics) and restores the mode afterwards.
    The result is on the module's device. `compile` as in `train_network`.

    Examples:
        >>> module = nn.Sequential(nn.Flatten(), nn.Identity(), nn.Linear(4, 2))
        >>> _ = nn.init.zeros_(module[2].weight), nn.init.zeros_(module[2].bias)
        >>> is_correct(module, torch.ones(2, 1, 2, 2), torch.tensor([0, 1])).tolist()
        [True, False]
    """
    logits_of = _logits_function(module, compile)
    device = next(module.parameters()).device
    was_training = module.training
    module.eval()
    parts = []
    with torch.no_grad(), arithmetic("float32"):
        length = min(batch, micro_batch_size(module, tuple(images.shape[1:]), device) or batch)
        for x, y in zip(torch.split(images, length), torch.split(labels, length), strict=True):
            # Where it is compiled, a shorter last batch is not worth a second compilation.
            forward = logits_of if len(x) == length else module
            parts.append(forward(x.to(device)).argmax(1) == y.to(device))
    module.train(was_training)
    return torch.cat(parts)


def _logits_function(module: nn.Module, compile: bool) -> Callable[[Tensor], Tensor]:
    """images -> logits."""
    convnet = ConvNetGradient.of(module) if compile else None
    if convnet is None:
        return module
    vector, logits = parameter_vector(module), fastest(convnet, module).logits
    return lambda images: logits(vector, images)


def is_finite(module: nn.Module) -> bool:
    """Whether every parameter of `module` is a finite number: False after a diverged training.

    Examples:
        >>> is_finite(nn.Linear(2, 2))
        True
    """
    return all(bool(parameter.isfinite().all()) for parameter in module.parameters())


def _batches(
    images: Tensor, labels: Tensor, batch: int, seed: int, epoch: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Every image once, in an order that depends on (seed, epoch)."""
    if len(images) <= batch:
        yield images, labels
        return
    order = torch.randperm(len(images), generator=rng.stream(seed, "shuffle", epoch))
    for indices in torch.split(order.to(images.device), batch):
        yield images[indices], labels[indices]
