"""What is decided before anything long begins: network, experts, evaluation, and for how long.

A plan is a recipe and a reason for each decision. It is a function of the shape of the data, of the
pilot's measurements and of the budget; what a person has set stays as it is.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection
from typing import Any

from trajmatch.config import DSA_STRATEGY, NetworkConfig
from trajmatch.data import ImageDataset
from trajmatch.networks.base import height_width
from trajmatch.pipeline.auto.pilot import BF16_WIDTH, WIDTHS, WITHOUT_FLIP, Pilot
from trajmatch.pipeline.cost.shape import Shape
from trajmatch.pipeline.recipe import Recipe
from trajmatch.runtime.compiling import forward_flop
from trajmatch.units import number, rough_duration

EXPERTS, DISTILLATION, EVALUATION = 0.3, 0.45, 0.2
"""Shares of the budget; the rest is for loading, the pilot and the page."""
PILOT, PILOT_SECONDS = 0.05, 60.0
"""Of the budget, and at most so many seconds."""
BATCHES = (32, 256)
"""Real images per step of an expert, the least and the most."""
SEGMENT = 60
"""Steps between two recorded points of an expert's path."""
ENOUGH = 0.97
"""Experts end where the pilot reached so much of its best accuracy, above chance."""
EXPERT_EPOCHS = (10, 20)
FEWEST_EXPERTS, MOST_EXPERTS = 3, 20
FEWEST_ITERATIONS, LEAST_ITERATIONS = 150, 30
"""A wider network is taken only where so many fit; with the narrowest, so many are begun with."""
GRADIENTS = 4
"""A student step and its reverse, in training steps of the same images."""
ASSUMED_STEPS = 20
EPOCHS = (1000, 500, 300)
"""Passes over the synthetic images of a fresh network, the most that fit."""
VALIDATIONS = 6
MOST_PER_STEP = 100
"""Synthetic images per student step."""
ZCA_SIDE, ZCA_IMAGES = 32, 1000
"""ZCA for color images of at most so many pixels a side, and at least so many."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """All settings of a run, and why they are what they are."""

    recipe: Recipe
    reasons: tuple[str, ...] = ()
    """A line for each decision."""

    def deciding(self, recipe: Recipe, reason: str) -> Plan:
        """With a further decision."""
        return Plan(recipe, (*self.reasons, reason))


def batch_size(images: int) -> int:
    """Real images per step of an expert: a power of two from 32 to 256, about 40 to the data.

    Examples:
        >>> [batch_size(images) for images in (500, 1500, 5000, 50_000)]
        [32, 32, 128, 256]
    """
    least, most = (round(math.log2(batch)) for batch in BATCHES)
    return 1 << min(most, max(least, round(math.log2(max(1, images / 40)))))


def make_plan(
    start: Recipe,
    data: ImageDataset,
    pilot: Pilot,
    budget: float,
    *,
    cores: int,
    fixed: Collection[str] = (),
) -> Plan:
    """The plan for `budget` seconds on so many cores.

    start: settings a person gave; those named in `fixed`, as `experts.batch` or `distill.ipc` (the
        method's too), stay as they are. `start.method` is MTT.

    Examples:
        >>> plan = make_plan(Recipe(), data, pilot, 1200.0, cores=2)  # doctest: +SKIP
        >>> plan.reasons[0]  # doctest: +SKIP
        'whitening normalize: ZCA is for small color images, and at least 1,000 of them'
    """
    shape = Shape.of(data)
    plan = _whitened(Plan(start), shape, fixed)
    plan = _augmented(plan, pilot, fixed)
    plan = _network(plan, shape, pilot, budget, cores, fixed)
    plan = _precision(plan, pilot, fixed)
    plan = _experts(plan, shape, pilot, budget, cores, fixed)
    return _evaluated(plan, shape, pilot, budget, cores, fixed)


def _set(recipe: Recipe, part: str, fixed: Collection[str], **values: Any) -> Recipe:
    """With other values of a part, but those that are fixed."""
    table = "distill" if part == "method" else part
    free = {name: value for name, value in values.items() if f"{table}.{name}" not in fixed}
    return dataclasses.replace(recipe, **{part: dataclasses.replace(getattr(recipe, part), **free)})


def _whitened(plan: Plan, shape: Shape, fixed: Collection[str]) -> Plan:
    if "data.whitening" in fixed:
        return plan
    few_pixels = max(height_width(shape.size)) <= ZCA_SIDE
    name, why = "normalize", f"ZCA is for small color images, and at least {ZCA_IMAGES:,} of them"
    if shape.channels == 3 and few_pixels and shape.train >= ZCA_IMAGES:
        name, why = "zca", f"color images of at most {ZCA_SIDE} pixels, {shape.train:,} of them"
    return plan.deciding(
        _set(plan.recipe, "data", fixed, whitening=name), f"whitening {name}: {why}"
    )


def _augmented(plan: Plan, pilot: Pilot, fixed: Collection[str]) -> Plan:
    strategy = DSA_STRATEGY if pilot.flip else WITHOUT_FLIP
    recipe = plan.recipe
    for part in ("experts", "method", "evaluate"):
        recipe = _set(recipe, part, fixed, augment=strategy)
    reason = (
        f"a network that saw no mirrored images classifies {pilot.mirrored:.0f} % of mirrored "
        f"validation images correctly, and {pilot.accuracies[-1]:.0f} % of the others"
    )
    if {"experts.augment", "distill.augment", "evaluate.augment"} & {*fixed}:
        return Plan(recipe, plan.reasons)
    return plan.deciding(recipe, f"augmentation with{'' if pilot.flip else 'out'} flip: {reason}")


def _network(
    plan: Plan, shape: Shape, pilot: Pilot, budget: float, cores: int, fixed: Collection[str]
) -> Plan:
    """The widest ConvNet whose experts, iterations and evaluation fit at the least."""
    if "network.width" in fixed or plan.recipe.network.network not in (None, "convnet"):
        return plan
    images = plan.recipe.distill.ipc * shape.classes
    for width in WIDTHS:
        flop = _flop(plan.recipe.network, shape, width)
        experts = FEWEST_EXPERTS * SEGMENT * EXPERT_EPOCHS[0]
        experts_time = experts * pilot.step_seconds(width, batch_size(shape.train) * flop) / cores
        iteration = _iteration_seconds(pilot, images, width, flop)
        network = _network_seconds(pilot, images, width, flop, EPOCHS[-1])
        evaluation = _networks(plan.recipe) * network / cores
        fits = (
            experts_time <= EXPERTS * budget
            and FEWEST_ITERATIONS * iteration <= DISTILLATION * budget
            and evaluation <= EVALUATION * budget
        )
        if fits or width == WIDTHS[-1]:
            break
    recipe = _set(plan.recipe, "network", fixed, network="convnet", width=width)
    reason = (
        f"ConvNet of width {width}: a step of an expert should take about "
        f"{_seconds(pilot.step_seconds(width, batch_size(shape.train) * flop))}, an iteration "
        f"{_seconds(iteration)}, a fresh network {_seconds(network)}"
    )
    return plan.deciding(recipe, reason)


def _precision(plan: Plan, pilot: Pilot, fixed: Collection[str]) -> Plan:
    """bfloat16 where it is fast and the network large enough for products to take the time."""
    precision = pilot.precision(_width(plan.recipe.network))
    recipe = _set(plan.recipe, "experts", fixed, precision=precision)
    recipe = _set(recipe, "distill", fixed, precision=precision)
    if precision == "float32" or {"experts.precision", "distill.precision"} & {*fixed}:
        return Plan(recipe, plan.reasons)
    recipe = _set(recipe, "evaluate", fixed, precision=precision)
    reason = (
        f"precision bf16: the processor computes it, and the network is {BF16_WIDTH} wide or wider"
    )
    return plan.deciding(recipe, reason)


def _experts(
    plan: Plan, shape: Shape, pilot: Pilot, budget: float, cores: int, fixed: Collection[str]
) -> Plan:
    """Their length, batch (halved until a few fit into their time) and number."""
    recipe = _set(plan.recipe, "experts", fixed, steps_per_epoch=SEGMENT)
    flop, width = _flop(recipe.network, shape), _width(recipe.network)
    batch = recipe.experts.batch if "experts.batch" in fixed else batch_size(shape.train)
    each = recipe.experts.steps_per_epoch or -(-shape.train // batch)
    wanted = math.ceil(pilot.enough(ENOUGH) / each)
    epochs = max(min(max(wanted, EXPERT_EPOCHS[0]), EXPERT_EPOCHS[1]), recipe.method.last_epoch)
    recipe = _set(recipe, "experts", fixed, epochs=epochs)
    steps, time = recipe.experts.epochs * each, EXPERTS * budget * cores
    few = FEWEST_EXPERTS * steps
    while batch > BATCHES[0] and few * pilot.step_seconds(width, batch * flop) > time:
        batch //= 2
    recipe = _set(recipe, "experts", fixed, batch=batch)
    settings = recipe.experts
    one = steps * pilot.step_seconds(width, settings.batch * flop)
    fits = int(time / one)
    count = min(max(fits, FEWEST_EXPERTS), MOST_EXPERTS)
    recipe = _set(recipe, "experts", fixed, experts=count)
    reason = (
        f"{recipe.experts.experts} experts of {recipe.experts.epochs} x {each} steps of "
        f"{settings.batch} images: a small network reached {max(pilot.accuracies):.0f} % of the "
        f"validation images by step {pilot.enough(ENOUGH)} of {pilot.steps}, and one takes about "
        f"{_seconds(one)}"
    )
    return plan.deciding(recipe, reason)


def _evaluated(
    plan: Plan, shape: Shape, pilot: Pilot, budget: float, cores: int, fixed: Collection[str]
) -> Plan:
    """How long fresh networks are trained, and about how many iterations there will be."""
    recipe, flop = plan.recipe, _flop(plan.recipe.network, shape)
    width = _width(recipe.network)
    images = recipe.distill.ipc * shape.classes
    seconds = EVALUATION * budget * cores / _networks(recipe)
    fitting = (e for e in EPOCHS if _network_seconds(pilot, images, width, flop, e) <= seconds)
    epochs = next(fitting, EPOCHS[-1])
    few = MOST_PER_STEP if images > MOST_PER_STEP else None
    recipe = _set(recipe, "evaluate", fixed, epochs=epochs)
    recipe = _set(recipe, "method", fixed, batch_syn=few)
    steps = getattr(recipe.method, "syn_steps", None) or ASSUMED_STEPS
    each = _iteration_seconds(pilot, images, width, flop, steps)
    iterations = max(LEAST_ITERATIONS, int(DISTILLATION * budget / each))
    recipe = _set(recipe, "distill", fixed, iterations=iterations)
    every = max(10, 10 * round(recipe.distill.iterations / VALIDATIONS / 10))
    recipe = _set(recipe, "distill", fixed, eval_every=every)
    reason = (
        f"fresh networks are trained for {recipe.evaluate.epochs} epochs; about {iterations:,} "
        f"iterations fit into {rough_duration(DISTILLATION * budget)}, validated every "
        f"{recipe.distill.eval_every}"
    )
    return plan.deciding(recipe, reason)


def _networks(recipe: Recipe) -> int:
    """Fresh networks that a run trains: for validation, and of three sets at the end."""
    return VALIDATIONS * recipe.distill.eval_networks + 3 * recipe.evaluate.n


def _iteration_seconds(
    pilot: Pilot, images: int, width: int, flop: int, steps: int = ASSUMED_STEPS
) -> float:
    return GRADIENTS * steps * pilot.step_seconds(width, min(images, MOST_PER_STEP) * flop)


def _network_seconds(pilot: Pilot, images: int, width: int, flop: int, epochs: int) -> float:
    """Of training a fresh network on the synthetic images."""
    batches = [256] * (images // 256) + ([images % 256] if images % 256 else [])
    return epochs * sum(pilot.step_seconds(width, batch * flop) for batch in batches)


def _width(network: NetworkConfig) -> int:
    """Of the ConvNet; of another network that of the widest, whose operations cost alike."""
    return network.width or WIDTHS[0]


def _flop(network: NetworkConfig, shape: Shape, width: int | None = None) -> int:
    """Of the forward pass of one image."""
    config = network if width is None else dataclasses.replace(network, width=width)
    module = shape.network(config).build(seed=0)
    return forward_flop(module, module.image_shape)


def _seconds(seconds: float) -> str:
    return f"{number(seconds, 2)} s"
