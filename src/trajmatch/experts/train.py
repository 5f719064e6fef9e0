"""One expert: plain SGD on real images, its parameters recorded after every epoch.

A pure function of images, settings, seed and the expert's number: every random draw comes from a
stream named by these and the epoch, so an expert that is resumed after any epoch ends in the same
bits (on the CPU).

    Cazenavette et al., Dataset distillation by matching training trajectories, CVPR 2022, sec. 3.2.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

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
from trajmatch.networks.precision import Classifier, arithmetic, classifier
from trajmatch.runtime.compiling import Work, compiled, forward_flop, wanted
from trajmatch.runtime.executor import emit
from trajmatch.runtime.micro_batches import micro_batch_size, micro_batch_sizes
from trajmatch.types import Float, Int, Tensor
from trajmatch.unroll.convnet import LOGITS, ConvNetGradient
from trajmatch.unroll.native import NativeConvNet

Step = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
"""(vector, images, labels) -> (gradient of the mean loss, that loss, correct [n])."""

OnBatch = Callable[[int, Tensor, Tensor], None]
"""(epoch from 0, indices of the batch's images, which were classified correctly); both tensors on
the images' device."""


def train_expert(
    spec: NetworkSpec,
    images: Float[Tensor, "n channels height width"],
    labels: Int[Tensor, "n"],
    config: ExpertConfig,
    *,
    seed: int,
    index: int,
    resume: TrainingState | None = None,
    on_batch: OnBatch | None = None,
) -> TrainingState:
    """Train expert number `index` of the library with `seed` for `config.epochs` epochs.

    Arguments, cost and errors are those of `expert_epochs`, whose last state this returns.

    Examples:
        >>> spec = NetworkSpec("mlp", channels=1, classes=2, size=4, options={"width": 4})
        >>> images, labels = torch.randn(8, 1, 4, 4), torch.arange(8) % 2
        >>> state = train_expert(spec, images, labels, ExpertConfig(epochs=2), seed=0, index=0)
        >>> state.parameters.shape == (3, spec.parameters())
        True
    """
    epochs = expert_epochs(
        spec, images, labels, config, seed=seed, index=index, resume=resume, on_batch=on_batch
    )
    last = deque(epochs, maxlen=1)
    state = last[0] if last else resume
    assert state is not None  # a config has at least one epoch
    return state


def expert_epochs(
    spec: NetworkSpec,
    images: Float[Tensor, "n channels height width"],
    labels: Int[Tensor, "n"],
    config: ExpertConfig,
    *,
    seed: int,
    index: int,
    resume: TrainingState | None = None,
    on_batch: OnBatch | None = None,
) -> Iterator[TrainingState]:
    """Train an expert as `train_expert` does, and yield its state after each epoch.

    images: whitened, resident on the device to train on; labels beside them. `config.augment` is
        applied batch by batch.
    resume: a state from an earlier call; training continues with the next epoch. It is not changed.
    on_batch: called after each step with the images that the network classified correctly before
        it.

    A yielded state is not changed by later epochs. Cost: epochs * n forward and backward
    evaluations of the network, and (epochs + 1) * P numbers on the CPU. Raises TrajmatchError when
    the training diverges, SettingError for a network that is not a function of its parameters
    alone and for a state of other epochs or another network.
    """
    module = spec.build(seed=rng.derive(seed, "expert", index, "init")).to(images.device)
    work = expert_work(module, config, len(images), images.device)
    training = _Training(
        step=gradient_step(module, config.precision, compile=wanted(config.compile, work)),
        images=images,
        labels=labels.long(),
        config=config,
        augment=augmentation_of(config),
        seed=seed,
        index=index,
        on_batch=on_batch,
    )
    state = resume or _initial_state(module)
    parameters, vector, velocity = _working_copy(state, module, config, images.device)
    metrics = state.metrics
    for epoch in range(state.epochs, config.epochs):
        metrics = [*metrics, training.epoch(epoch, vector, velocity)]
        parameters[epoch + 1] = vector
        yield TrainingState(
            parameters[: epoch + 2],
            vector.clone().cpu(),
            None if velocity is None else velocity.clone().cpu(),
            metrics,
        )


def augmentation_of(config: ExpertConfig) -> Augmentation | None:
    """The augmentation of an expert's batches; None for `augment` None or "none".

    Raises SettingError for an unknown strategy.
    """
    return None if config.augment in (None, "none") else Augmentation(str(config.augment))


def expert_work(module: Network, config: ExpertConfig, images: int, device: torch.device) -> Work:
    """Network calls and operations of training one expert on `images` images."""
    shape, samples = module.image_shape, config.epochs * config.images_per_epoch(images)
    calls = samples // min(config.batch, micro_batch_size(module, shape, device) or config.batch)
    return Work(calls, 3 * samples * forward_flop(module, shape))


def _initial_state(module: Network) -> TrainingState:
    start = parameter_vector(module)
    return TrainingState(start[None], start, None, [])


def _working_copy(
    state: TrainingState, module: Network, config: ExpertConfig, device: torch.device
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Rows for all epochs on the CPU, and the vector and velocity to train, on `device`."""
    length = len(parameter_vector(module))
    if state.epochs > config.epochs or len(state.vector) != length:
        raise SettingError(
            f"the state to resume has {state.epochs} epochs of {len(state.vector):,} parameters "
            f"and this expert {config.epochs} of {length:,}; start afresh"
        )
    dtype = torch.bfloat16 if config.storage == "bf16" else torch.float32
    parameters = torch.empty(config.epochs + 1, length, dtype=dtype)
    parameters[: state.epochs + 1] = state.parameters
    vector, velocity = state.vector.clone().to(device), state.velocity
    if velocity is not None:
        velocity = velocity.clone().to(device)
    elif config.momentum:
        velocity = torch.zeros_like(vector)
    return parameters, vector, velocity


@dataclass(frozen=True, eq=False)
class _Training:
    """What stays the same over the epochs of one expert."""

    step: Step
    images: Tensor
    labels: Tensor
    config: ExpertConfig
    augment: Augmentation | None
    seed: int
    index: int
    on_batch: OnBatch | None

    def epoch(self, epoch: int, vector: Tensor, velocity: Tensor | None) -> dict[str, int | float]:
        """One epoch over the images, in place on `vector` and `velocity`; returns its metrics."""
        began = time.perf_counter()
        draws = rng.stream(self.seed, "expert", self.index, "augment", epoch)
        images, config = self.images, self.config
        # Sums stay on the device and are read once an epoch: reading waits for all queued work.
        total = torch.zeros((), device=images.device)
        correct = torch.zeros((), dtype=torch.int64, device=images.device)
        count = 0
        for chosen in self._batches(epoch):
            count += len(chosen)
            x, y = images[chosen], self.labels[chosen]
            if self.augment is not None:
                x = self.augment.apply(x, self.augment.draw(draws, len(x), x.shape[2], x.shape[3]))
            gradient, loss, batch_correct = self.step(vector, x, y)
            sgd_update(
                vector,
                gradient,
                velocity,
                lr=config.lr,
                momentum=config.momentum,
                weight_decay=config.weight_decay,
            )
            total += loss * len(x)
            correct += batch_correct.sum()
            if self.on_batch is not None:
                self.on_batch(epoch, chosen, batch_correct)
        mean_loss = total.item() / count
        if not (math.isfinite(mean_loss) and bool(vector.isfinite().all())):
            raise TrajmatchError(
                f"expert {self.index} diverged in epoch {epoch + 1} (mean loss {mean_loss:.3g}) at "
                f"lr={config.lr:g}, momentum={config.momentum:g}; use a smaller --lr, such as "
                f"{config.lr / 10:g}"
            )
        return {
            "epoch": epoch + 1,
            "train_loss": mean_loss,
            "train_accuracy": 100 * correct.item() / count,
            "seconds": time.perf_counter() - began,
        }

    def _batches(self, epoch: int) -> Iterator[Tensor]:
        """Indices of the images of each step of an epoch: the next `steps_per_epoch` batches of
        passes over the images, each pass in an order of its own."""
        count = len(self.images)
        per_pass = -(-count // self.config.batch)
        steps = self.config.steps_per_epoch or per_pass
        order, number = None, -1
        for step in range(epoch * steps, (epoch + 1) * steps):
            if step // per_pass != number:
                number = step // per_pass
                shuffle = rng.stream(self.seed, "expert", self.index, "shuffle", number)
                order = torch.randperm(count, generator=shuffle).to(self.images.device)
            first = step % per_pass * self.config.batch
            assert order is not None
            yield order[first : first + self.config.batch]


def gradient_step(
    module: nn.Module,
    precision: Precision = "float32",
    *,
    compile: bool = False,
    micro_batch: int | None = None,
) -> Step:
    """The gradient of cross-entropy in one parameter vector, for the network `module`.

    bf16: convolutions run in bfloat16, and matrix products by autograd (torch.autocast); the rest,
    the vector and its gradient in float32. A batch is computed in micro-batches of at most
    `micro_batch` images; None: as many as fit the processor's cache.
    """
    of_micro_batch = _summed_gradient(module, precision, compile)

    def step(vector: Tensor, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        nonlocal micro_batch
        if micro_batch is None:
            micro_batch = micro_batch_size(module, tuple(images.shape[1:]), images.device)
        sizes = micro_batch_sizes(len(images), micro_batch)
        parts = zip(torch.split(images, sizes), torch.split(labels, sizes), strict=True)
        with arithmetic(precision):
            gradient, loss, *correct = of_micro_batch(vector, *next(parts))
            for x, y in parts:
                more_gradient, more_loss, more_correct = of_micro_batch(vector, x, y)
                gradient += more_gradient
                loss += more_loss
                correct.append(more_correct)
        return gradient.div_(len(images)), loss.div_(len(images)), torch.cat(correct)

    return step


def _summed_gradient(module: nn.Module, precision: Precision, compile: bool) -> Step:
    """As `Step`, with the sum of the images' losses in place of their mean."""
    derived = ConvNetGradient.of(module, torch.bfloat16 if precision == "bf16" else None)
    native = derived and compile and NativeConvNet.of(derived, next(module.parameters()))
    if native:
        return _by_operators(native)
    by_autograd = _by_autograd(classifier(module, precision, compile=compile))
    return compiled(by_autograd, note=lambda text: emit({"note": text})) if compile else by_autograd


def _by_operators(native: NativeConvNet) -> Step:
    def step(vector: Tensor, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        gradient, saved = native.grad(vector, images, labels)
        logits = saved[LOGITS]
        loss = F.cross_entropy(logits, labels, reduction="sum")
        return gradient.mul_(len(images)), loss, logits.argmax(1) == labels

    return step


def _by_autograd(classify: Classifier) -> Step:
    def loss(vector: Tensor, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        logits = classify(vector, images)
        correct = logits.detach().argmax(1) == labels
        return F.cross_entropy(logits, labels, reduction="sum"), correct

    def step(vector: Tensor, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        both = torch.func.grad_and_value(loss, has_aux=True)
        gradient, (value, correct) = both(vector, images, labels)
        return gradient, value, correct

    return step


def sgd_update(
    vector: Float[Tensor, "params"],
    gradient: Float[Tensor, "params"],
    velocity: Float[Tensor, "params"] | None,
    *,
    lr: float,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
) -> None:
    """One step of torch.optim.SGD, in place on `vector` and `velocity`; overwrites `gradient`.

    `velocity` starts as zeros and may be None without momentum.

    Examples:
        >>> vector = torch.tensor([1.0, 2.0])
        >>> sgd_update(vector, torch.tensor([0.5, -0.5]), None, lr=1.0)
        >>> vector
        tensor([0.5000, 2.5000])
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
    """Percent of (whitened) images that the network with parameters `vector` classifies correctly.

    On the images' device, in micro-batches that fit the cache, or `batch` images at a time.
    """
    module = spec.build(seed=0).to(images.device)
    network = FunctionalNetwork(module)
    length = micro_batch_size(module, tuple(images.shape[1:]), images.device) or batch
    vector = vector.to(images.device)
    correct = torch.zeros((), dtype=torch.int64, device=images.device)
    with torch.no_grad():
        for x, y in zip(torch.split(images, length), torch.split(labels, length), strict=True):
            correct += (network(vector, x).argmax(1) == y).sum()
    return 100 * correct.item() / len(images)
