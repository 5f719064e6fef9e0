"""What settings need of memory at the least, compared with what is free before any is allocated.

The needs are lower bounds from shapes alone, in microseconds: a run that passes may still need
more, which `cost.estimate` measures.
"""

from __future__ import annotations

import math

import torch

from trajmatch.config import DistillConfig, EvaluateConfig, ExpertConfig
from trajmatch.methods import Method
from trajmatch.networks import NetworkSpec
from trajmatch.networks.base import height_width
from trajmatch.pipeline.cost.shape import Shape
from trajmatch.pipeline.recipe import Recipe
from trajmatch.runtime.memory import Need, require_memory
from trajmatch.runtime.micro_batches import largest_activation
from trajmatch.runtime.resources import Resources
from trajmatch.runtime.threads import cores

WORKER_BYTES = 150 * 10**6
"""Of a worker process, at least: Python with torch imported, without what it shares."""
FLOAT = 4


def require_recipe_memory(recipe: Recipe, shape: Shape, resources: Resources = Resources()) -> None:
    """Refuse a recipe of which a stage cannot fit. Raises SettingError as `require_memory`."""
    spec = shape.network(recipe.network)
    count = recipe.distill.ipc * shape.classes
    zca = recipe.data.whitening == "zca"
    for needs in (
        expert_needs(spec, shape.train, recipe.experts, resources, zca=zca),
        distill_needs(spec, shape.val, recipe.method, recipe.distill),
        evaluation_needs(spec, shape.test, count, recipe.evaluate, resources),
    ):
        require_memory(needs, resources.torch_device)


def expert_needs(
    spec: NetworkSpec,
    images: int,
    config: ExpertConfig,
    resources: Resources,
    *,
    zca: bool = False,
) -> list[Need]:
    """Of training experts on so many images."""
    workers, pixels = resources.worker_count(config.experts), _pixels(spec)
    rows = (config.epochs + 1) * spec.parameters() * (2 if config.storage == "bf16" else FLOAT)
    vectors = workers * rows
    fitting = [Need(f"ZCA of {pixels} pixels", 3 * 8 * pixels**2, "size")] if zca else []
    return [
        Need(f"{images} whitened images of {_shape(spec)}", FLOAT * images * pixels, "size"),
        Need(f"{config.epochs} epochs of {workers} experts", vectors, "epochs, workers or width"),
        _network(spec, 3, workers),
        *_processes(workers, resources),
        *fitting,
    ]


def distill_needs(
    spec: NetworkSpec, validation: int, method: Method, config: DistillConfig
) -> list[Need]:
    """Of a distillation that is validated on so many images."""
    height, width = height_width(spec.size)
    canvas = method.canvas_for(height, width)
    tall, wide = (height, width) if canvas is None else (canvas.height, canvas.width)
    count = config.ipc * spec.classes
    # The images, their gradient, the state of the optimizer, and the average where there is one.
    copies = 4 if config.ema else 3
    numbers = count * spec.channels * tall * wide
    if method.learns_labels:
        numbers += count * spec.classes
    images = f"{count} synthetic images of {spec.channels}x{tall}x{wide}"
    needs = [
        Need(images, copies * FLOAT * numbers, "ipc" if canvas is None else "ipc or canvas"),
        Need("whitened validation images", FLOAT * validation * _pixels(spec), "size"),
        _network(spec, 3),
    ]
    return [*needs, *method.memory_needs(spec, count)]


def evaluation_needs(
    spec: NetworkSpec, tests: int, count: int, config: EvaluateConfig, resources: Resources
) -> list[Need]:
    """Of fresh networks on a set of `count` images, tested on so many."""
    workers = config.workers or resources.workers or (cores() if resources.on_cpu else 1)
    workers = min(workers, config.n)
    return [
        Need("whitened test images", FLOAT * tests * _pixels(spec), "size"),
        Need(f"{count} images of {_shape(spec)}", FLOAT * count * _pixels(spec), "ipc"),
        _network(spec, 4),
        *(_processes(workers, resources) if config.workers or resources.workers else []),
    ]


def _network(spec: NetworkSpec, vectors: int, workers: int = 1) -> Need:
    """So many vectors of its parameters, and its largest activation of an image, with gradient."""
    with torch.device("meta"):
        module = spec.build()
    try:
        activation = largest_activation(module, module.image_shape)
    except (NotImplementedError, RuntimeError):  # a network of another package without meta tensors
        activation = 0
    each = FLOAT * vectors * spec.parameters() + 2 * activation
    return Need(spec.describe(), workers * each, "width or size")


def _processes(workers: int, resources: Resources) -> list[Need]:
    """Worker processes, which are in the memory of the CPU; one worker is this process."""
    if workers == 1 or not resources.on_cpu:
        return []
    return [Need(f"{workers} processes", workers * WORKER_BYTES, "workers")]


def _pixels(spec: NetworkSpec) -> int:
    return spec.channels * math.prod(height_width(spec.size))


def _shape(spec: NetworkSpec) -> str:
    return "x".join(map(str, (spec.channels, *height_width(spec.size))))
