"""How fast this machine does each kind of work of a run.

The real functions run on random images with the real network, batches and precision, without the
compiler, which would take a minute.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable

import torch

from trajmatch.evaluation.train import TrainingSettings, train_network
from trajmatch.experts.train import gradient_step
from trajmatch.methods.base import augmentation_of
from trajmatch.methods.coresets import embeddings
from trajmatch.networks import NetworkSpec
from trajmatch.networks.base import Network
from trajmatch.networks.functional import parameter_vector
from trajmatch.pipeline.cost.iteration import Clock, Iteration, measure_iteration, timed
from trajmatch.pipeline.cost.shape import Shape
from trajmatch.pipeline.recipe import Recipe
from trajmatch.runtime.memory import peak_bytes
from trajmatch.runtime.micro_batches import micro_batch_size, micro_batch_sizes
from trajmatch.runtime.resources import Resources
from trajmatch.runtime.threads import limited_threads
from trajmatch.types import Float, Int, Tensor

BATCH_IMAGES = 128
"""Images of a batch that are timed, at most: time is in proportion, as a batch goes through the
network in micro-batches."""
EVALUATION_IMAGES = 200
"""Images that an evaluation goes through to be timed, in 5 epochs at least."""


@dataclasses.dataclass(frozen=True)
class Speeds:
    """Seconds of each kind of work, on one worker of one thread, and one iteration."""

    image: float
    """Of one real image in an expert's SGD step."""
    evaluation: float
    """Of one SGD step of a fresh network on the distilled set."""
    iteration: Iteration
    embedding: int = 0
    """Bytes that herding needs for each image it embeds at a time."""


Measure = Callable[[Recipe, NetworkSpec, Shape, Resources, bool], Speeds]


def measure(
    recipe: Recipe,
    spec: NetworkSpec,
    shape: Shape,
    resources: Resources,
    distills: bool = True,
    clock: Clock = time.perf_counter,
) -> Speeds:
    """Do a little of each kind of work. Takes some seconds, more for large networks.

    distills: without it only the work of experts, which takes less.
    """
    device, config = resources.torch_device, recipe.evaluate
    module, augment = spec.build(seed=0).to(device), augmentation_of(config.augment)
    with limited_threads(1):
        images, labels = _batch(module, recipe.experts.batch)
        step = _expert_step(module, recipe, images, labels)
        image = timed(step, device, clock) / len(images)
        if not distills:
            return Speeds(image, evaluation=0.0, iteration=Iteration(0.0, 0, False, ""))
        size = min(config.batch, recipe.distill.ipc * spec.classes)
        few, labels = _batch(module, size)
        epochs = max(5, EVALUATION_IMAGES // len(few))
        settings = TrainingSettings(
            lr=1e-3, epochs=epochs, augment=augment, precision=config.precision
        )

        def train(number: int) -> None:
            train_network(module, few, labels, settings)

        evaluation = timed(train, device, clock) / epochs * size / len(few)
    here, vector = images[:8].cpu(), parameter_vector(module).cpu()
    embedding = peak_bytes(lambda: embeddings(spec, vector, here), here.device) // len(here)
    iteration = measure_iteration(recipe, spec, shape, resources, clock)
    return Speeds(image, evaluation, iteration, embedding)


def _expert_step(
    module: Network, recipe: Recipe, images: Tensor, labels: Tensor
) -> Callable[[int], object]:
    vector, step = parameter_vector(module), gradient_step(module, recipe.experts.precision)
    augment, draws = augmentation_of(recipe.experts.augment), torch.Generator().manual_seed(0)

    def train(number: int) -> object:
        x = images
        if augment is not None:
            x = augment.apply(x, augment.draw(draws, len(x), x.shape[2], x.shape[3]))
        return step(vector, x, labels)

    return train


def _batch(
    module: Network, size: int
) -> tuple[Float[Tensor, "few channels height width"], Int[Tensor, "few"]]:
    """Random images and labels: of a batch of `size` the micro-batches that stand for it."""
    device = next(module.parameters()).device
    micro_batch = micro_batch_size(module, module.image_shape, device)
    count = min(sum(micro_batch_sizes(size, micro_batch)[:2]), BATCH_IMAGES)
    draw = torch.Generator().manual_seed(0)
    images = torch.randn(count, *module.image_shape, generator=draw)
    labels = torch.arange(count) % module.classifier.out_features
    return images.to(device), labels.to(device)
