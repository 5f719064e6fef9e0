"""One expert: plain SGD on real images, its parameters recorded after every epoch.

A pure function of images, settings, seed and the expert's number: every draw comes from a stream
named by these and the epoch, so an expert resumed at the end of any epoch ends in the same bits.

    Cazenavette et al., Dataset distillation by matching training trajectories, CVPR 2022, sec. 3.2.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

from trajmatch import rng
from trajmatch.config import ExpertConfig, Precision
from trajmatch.data.augment import Augmentation
from trajmatch.errors import SettingError, TrajmatchError
from trajmatch.experts.trajectory import TrainingState
from trajmatch.networks import NetworkSpec
from trajmatch.networks.base import Network
from trajmatch.networks.functional import FunctionalNetwork, parameter_vector
from trajmatch.runtime.compiling import Work, compiled, forward_flop, wanted
from trajmatch.runtime.executor import emit
from trajmatch.runtime.micro_batches import micro_batch_size, micro_batch_sizes
from trajmatch.types import Float, Int, Tensor
from trajmatch.unroll.gradient import Classifier, classifier

Step = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
"""(vector, images, labels) -> (gradient of the mean loss, that loss, which were right)."""

OnBatch = Callable[[int, Tensor, Tensor], None]
"""(epoch from 0, indices of the batch's images, whether each was right), on the images' device."""


def train_expert(
    spec: NetworkSpec,
    images: Float[Tensor, "n channels height width"],
    labels: Int[Tensor, "n"],
    config: ExpertConfig,
    *,
    seed: int,
    index: int,
    augment: Augmentation | None,
    resume: TrainingState | None = None,
    on_epoch: Callable[[TrainingState], None] | None = None,
    on_batch: OnBatch | None = None,
) -> TrainingState:
    """Train expert number `index` of the library with `seed` for `config.epochs` epochs.

    images: whitened, resident on the device to train on; labels beside them.
    resume: the recording an earlier call gave to `on_epoch`, to go on from there.
    on_epoch: called after each epoch with the recording so far, which later epochs do not change.
    on_batch: called after each step with what the network got right before it.

    Cost: epochs * n passes forward and back, and (epochs + 1) * P numbers on the CPU. Raises
    TrajmatchError when the training diverges, SettingError for a network that is not a function of
    its parameters alone.
    """
    module = spec.build(seed=rng.derive(seed, "expert", index, "init")).to(images.device)
    work = expert_work(module, config, len(images), images.device)
    step = gradient_step(module, config.precision, compile=wanted(config.compile, work))
    start = parameter_vector(module)
    residuals = torch.empty(
        config.epochs + 1,
        len(start),
        dtype=torch.bfloat16 if config.storage == "bf16" else torch.float32,
    )
    if resume is None:
        residuals[0] = start  # an assignment into memory of its own: a copy, on the CPU as well
        vector, velocity, metrics = start, None, list[dict[str, int | float]]()
    else:
        if resume.epochs > config.epochs or resume.vector.shape != start.shape:
            raise SettingError(
                f"the recording to resume has {resume.epochs} epochs of {len(resume.vector):,} "
                f"parameters and this expert {config.epochs} of {len(start):,}; start afresh"
            )
        residuals[: resume.epochs + 1] = resume.parameters
        vector, velocity, metrics = start.copy_(resume.vector), resume.velocity, resume.metrics
    if config.momentum and velocity is None:
        velocity = torch.zeros_like(vector)
    velocity = None if velocity is None else velocity.clone().to(images.device)
    labels = labels.long()

    def recording() -> TrainingState:
        return TrainingState(
            residuals[: len(metrics) + 1],
            vector.clone().cpu(),
            None if velocity is None else velocity.clone().cpu(),
            metrics,
        )

    for epoch in range(len(metrics), config.epochs):
        entry = _train_epoch(
            step, vector, velocity, images, labels, config, augment, (seed, index, epoch), on_batch
        )
        residuals[epoch + 1] = vector
        metrics = [*metrics, entry]
        if on_epoch:
            on_epoch(recording())
    return recording()


def expert_work(module: Network, config: ExpertConfig, images: int, device: torch.device) -> Work:
    """What it takes to train one expert on so many images."""
    shape, seen = module.image_shape, config.epochs * images
    calls = seen // min(config.batch, micro_batch_size(module, shape, device) or config.batch)
    return Work(calls, 3 * seen * forward_flop(module, shape))


def _train_epoch(
    step: Step,
    vector: Tensor,
    velocity: Tensor | None,
    images: Tensor,
    labels: Tensor,
    config: ExpertConfig,
    augment: Augmentation | None,
    name: tuple[int, int, int],
    on_batch: OnBatch | None,
) -> dict[str, int | float]:
    """One pass over the images, in place on `vector` and `velocity`; `name`: seed, index, epoch."""
    began = time.perf_counter()
    seed, index, epoch = name
    shuffle = rng.stream(seed, "expert", index, "shuffle", epoch)
    draws = rng.stream(seed, "expert", index, "augment", epoch)
    order = torch.randperm(len(images), generator=shuffle).to(images.device)
    # Kept on the device and read once an epoch: reading waits for all work given to it.
    total = torch.zeros((), device=images.device)
    right = torch.zeros((), dtype=torch.int64, device=images.device)
    for chosen in torch.split(order, config.batch):
        x, y = images[chosen], labels[chosen]
        if augment is not None:
            x = augment.apply(x, augment.draw(draws, len(x), x.shape[2], x.shape[3]))
        gradient, loss, hits = step(vector, x, y)
        sgd_update(
            vector,
            gradient,
            velocity,
            lr=config.lr,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
        )
        total += loss * len(x)
        right += hits.sum()
        if on_batch is not None:
            on_batch(epoch, chosen, hits)
    loss_mean = total.item() / len(images)
    if not (math.isfinite(loss_mean) and bool(vector.isfinite().all())):
        raise TrajmatchError(
            f"expert {index} diverged in epoch {epoch + 1} (mean loss {loss_mean:.3g}) at "
            f"lr={config.lr:g}, momentum={config.momentum:g}; use a smaller --lr, such as "
            f"{config.lr / 10:g}"
        )
    return {
        "epoch": epoch + 1,
        "train_loss": loss_mean,
        "train_accuracy": 100 * right.item() / len(images),
        "seconds": time.perf_counter() - began,
    }


def gradient_step(
    module: nn.Module, precision: Precision = "float32", *, compile: bool = False
) -> Step:
    """The gradient of cross-entropy in one parameter vector, for the network `module`.

    bf16: matrix products and convolutions run in bfloat16 (torch.autocast), the rest, the vector
    and its gradient in float32. A batch goes through in pieces that fit the cache.
    """
    piece = _piece(classifier(module, precision, compile=compile))
    if compile:
        piece = compiled(piece, note=lambda text: emit({"note": text}))
    length: int | None = None

    def step(vector: Tensor, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        nonlocal length
        if length is None:
            length = micro_batch_size(module, tuple(images.shape[1:]), images.device)
        sizes = micro_batch_sizes(len(images), length)
        parts = zip(torch.split(images, sizes), torch.split(labels, sizes), strict=True)
        gradient, loss, *right = piece(vector, *next(parts))
        for x, y in parts:
            g, more, hits = piece(vector, x, y)
            gradient += g
            loss += more
            right.append(hits)
        return gradient.div_(len(images)), loss.div_(len(images)), torch.cat(right)

    return step


def _piece(classify: Classifier) -> Step:
    """The same for some images of a batch, as sums."""

    def loss(vector: Tensor, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        logits = classify(vector, images)
        right = logits.detach().argmax(1) == labels
        return F.cross_entropy(logits, labels, reduction="sum"), right

    def piece(vector: Tensor, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        both = torch.func.grad_and_value(loss, has_aux=True)
        gradient, (value, right) = both(vector, images, labels)
        return gradient, value, right

    return piece


def sgd_update(
    vector: Float[Tensor, "params"],
    gradient: Float[Tensor, "params"],
    velocity: Float[Tensor, "params"] | None,
    *,
    lr: float,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
) -> None:
    """One step of torch.optim.SGD on `vector` and `velocity`, in place; spends `gradient`.

    `velocity` starts as zeros and may be None without momentum.
    """
    if weight_decay:
        gradient.add_(vector, alpha=weight_decay)
    if velocity is not None:
        gradient = velocity.mul_(momentum).add_(gradient)
    vector.add_(gradient, alpha=-lr)


def expert_accuracy(
    spec: NetworkSpec,
    vector: Float[Tensor, "params"],
    images: Float[Tensor, "n channels height width"],
    labels: Int[Tensor, "n"],
    batch: int = 512,
) -> float:
    """Percent of (whitened) images that the network with parameters `vector` classifies rightly."""
    module = spec.build(seed=0).to(images.device)
    network = FunctionalNetwork(module)
    length = micro_batch_size(module, tuple(images.shape[1:]), images.device) or batch
    vector = vector.to(images.device)
    right = torch.zeros((), dtype=torch.int64, device=images.device)
    with torch.no_grad():
        for x, y in zip(torch.split(images, length), torch.split(labels, length), strict=True):
            right += (network(vector, x).argmax(1) == y).sum()
    return 100 * right.item() / len(images)
