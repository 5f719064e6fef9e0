"""One fresh network trained on a small set, by the protocol the field publishes its numbers with.

Zhao & Bilen, Dataset condensation with differentiable siamese augmentation, ICML 2021;
Cazenavette et al., Dataset distillation by matching training trajectories, CVPR 2022.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import nn
from torch.nn import functional as F

from trajmatch import rng
from trajmatch.data.augment import Augmentation
from trajmatch.networks.functional import parameter_vector
from trajmatch.runtime.compiling import compiled
from trajmatch.runtime.micro_batches import micro_batch_size
from trajmatch.types import Float, Int, Tensor
from trajmatch.unroll.convnet import ConvNetGradient


def train_network(
    module: nn.Module,
    images: Float[Tensor, "n channels height width"],
    labels: Int[Tensor, "n"] | Float[Tensor, "n classes"],
    *,
    lr: float,
    epochs: int,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    batch: int = 256,
    augment: Augmentation | None = None,
    seed: int = 0,
    compile: bool = False,
    on_epoch: Callable[[], None] | None = None,
) -> None:
    """Train `module` in place by SGD with momentum, on the device its parameters are on.

    The first epochs // 2 + 1 epochs run at `lr`, the rest at a tenth of it with the momentum
    started afresh, as in the released code. A set of more than `batch` images is shuffled anew
    every epoch; a smaller one is a single batch. Soft labels are probabilities.

    A step size too large for the set sends the parameters to infinity: nothing is raised, the
    network is left non-finite (`is_finite`), and its accuracy is that of always saying class 0.

    compile: through torch.compile where the network is one that `chain` knows; others stay eager.
    on_epoch: called after every epoch.

    Cost: epochs * ceil(n / batch) passes forward and back. For a tiny set the time goes into
    starting operations, not into arithmetic; hence one flat parameter vector, three operations per
    update, and nothing that makes the host wait for the device.
    """
    parameters = [p for p in module.parameters() if p.requires_grad]
    sizes = [p.numel() for p in parameters]
    vector = torch.cat([p.detach().reshape(-1) for p in parameters])
    for parameter, part in zip(parameters, torch.split(vector, sizes), strict=True):
        parameter.data = part.view(parameter.shape)
    velocity = torch.zeros_like(vector)
    gradient_of = _gradient(module, parameters, vector, compile)
    images, labels = images.to(vector.device), labels.to(vector.device)
    draws = rng.stream(seed, "augment")
    height, width = images.shape[-2:]
    drop = epochs // 2 + 1

    was_training = module.training
    module.train()
    for epoch in range(epochs):
        if epoch == drop:
            lr = lr / 10
            velocity.zero_()
        for x, y in _batches(images, labels, batch, seed, epoch):
            if augment is not None:
                draw = augment.draw(draws, len(x), height, width)
                x = augment.apply(x, draw)
            gradient = gradient_of(x, y)
            with torch.no_grad():
                gradient.add_(vector, alpha=weight_decay)
                velocity.mul_(momentum).add_(gradient)
                vector.add_(velocity, alpha=-lr)
        if on_epoch is not None:
            on_epoch()
    module.train(was_training)
    # Parameters that share one storage cannot be saved apart, nor moved without each other.
    for parameter in parameters:
        parameter.data = parameter.data.clone()


def _gradient(
    module: nn.Module, parameters: list[nn.Parameter], vector: Tensor, compile: bool
) -> Callable[[Tensor, Tensor], Tensor]:
    """(images, labels) -> the gradient of the mean cross-entropy, as one vector."""
    chain = ConvNetGradient.of(module) if compile else None
    if chain is not None:
        out = compiled(chain.grad)

        def written_out(x: Tensor, y: Tensor) -> Tensor:
            with torch.no_grad():
                return out(vector, x, y)[0]

        return written_out

    def by_autograd(x: Tensor, y: Tensor) -> Tensor:
        loss = F.cross_entropy(module(x), y)
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
    """Share of `images` that `module` gives the class in `labels`, in percent, `batch` at a time.

    Runs in eval mode (batch norm by its running statistics); the mode is put back afterwards.
    `compile` as in `train_network`.
    """
    scores = _scores(module, compile)
    device = next(module.parameters()).device
    was_training = module.training
    module.eval()
    correct = torch.zeros((), dtype=torch.int64, device=device)
    with torch.no_grad():
        length = min(batch, micro_batch_size(module, tuple(images.shape[1:]), device) or batch)
        for x, y in zip(torch.split(images, length), torch.split(labels, length), strict=True):
            # One shape is compiled; what is left over at the end is not worth another.
            see = scores if len(x) == length else module
            correct += (see(x.to(device)).argmax(1) == y.to(device)).sum()
    module.train(was_training)
    return 100 * int(correct) / len(labels)


def _scores(module: nn.Module, compile: bool) -> Callable[[Tensor], Tensor]:
    """images -> logits."""
    chain = ConvNetGradient.of(module) if compile else None
    if chain is None:
        return module
    vector, logits = parameter_vector(module), compiled(chain.logits)
    return lambda images: logits(vector, images)


def is_finite(module: nn.Module) -> bool:
    """Whether every parameter of `module` is a finite number: False after a diverged training."""
    return all(bool(parameter.isfinite().all()) for parameter in module.parameters())


def _batches(
    images: Tensor, labels: Tensor, batch: int, seed: int, epoch: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """One pass over the set: every image once, in an order of this epoch's own."""
    if len(images) <= batch:
        yield images, labels
        return
    order = torch.randperm(len(images), generator=rng.stream(seed, "shuffle", epoch))
    for indices in torch.split(order.to(images.device), batch):
        yield images[indices], labels[indices]
