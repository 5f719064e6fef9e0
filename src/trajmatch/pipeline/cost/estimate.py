"""The estimate: how much of each kind of work a run does, times how long this machine takes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from trajmatch.errors import SettingError
from trajmatch.evaluation import TrainingSet, training_work
from trajmatch.experts.train import expert_work
from trajmatch.methods import UnrolledMethod
from trajmatch.methods.coresets import BASELINES
from trajmatch.networks import NetworkSpec
from trajmatch.pipeline.cost.done import Done, Room
from trajmatch.pipeline.cost.measure import Measure, Speeds, measure
from trajmatch.pipeline.cost.shape import Shape
from trajmatch.pipeline.memory_needs import require_recipe_memory
from trajmatch.pipeline.recipe import Recipe
from trajmatch.runtime.compiling import wanted
from trajmatch.runtime.resources import Resources
from trajmatch.runtime.threads import cores
from trajmatch.units import byte_size, duration
from trajmatch.unroll.convnet import ConvNetGradient

FORWARD_SHARE = 1 / 3
"""The forward pass's share of the time of a forward and a backward pass."""
COMPILER_SPEEDUP = 1.5
"""How many times as fast compiled work is taken to be: the low end of what was measured on one core
(Zen 5) with the paper's ConvNet, width 128, 32 pixels. By the C++ operators iterations were 1.7
times as fast in float32 and 2.7 times in bf16, experts 1.9 and 3.0, fresh networks 1.5 and 2.2;
through torch.compile iterations 1.5 and 1.8, fresh networks 1.4."""
PROCESS_BYTES = 480 * 10**6
"""Memory of a process that has imported torch and computed with it, and then what draws the page:
473 MB of a run on digits."""
RESIDENT = 1.5
"""Bytes that the process grows by for each byte of an iteration's tensors, at most: memory inside
operators and what the allocator keeps. 1.37 to 1.44 were measured (200 images of 64 pixels)."""
FIT_MATRICES = 7
"""Float64 matrices of d x d that fitting a ZCA of d pixels holds at once: covariance,
eigenvectors and the workspace of the decomposition."""
HERDING_BATCH = 512
"""Images that herding embeds at a time."""
COMPARED = 1 + len(BASELINES)
"""Sets that a run evaluates at its end: the distilled one and the coresets beside it."""
NOTHING = Done()
STAGES = ("experts", "distillation", "evaluation")


@dataclass(frozen=True)
class Stage:
    """A stage of a run: so many times the same work."""

    name: str
    count: int = 0
    """Experts, iterations, or fresh networks that are still to be done."""
    each: float = 0.0
    """Seconds of an epoch of an expert, an iteration, a network."""
    seconds: float = 0.0
    """Of the whole stage, by all workers together."""
    words: str = ""


@dataclass(frozen=True)
class Cost:
    """What a run, or what is left of it, will cost."""

    experts: Stage
    distillation: Stage
    evaluation: Stage
    disk: int
    """Bytes of all experts' files, without their headers."""
    memory: int
    """Bytes at the peak: of all processes together, or of the GPU."""
    heading: str
    """What is estimated, and on which device."""
    room: Room | None = None
    """Where the experts go; None: not checked."""
    only: Sequence[str] = STAGES
    """The stages that are estimated."""

    @property
    def stages(self) -> tuple[Stage, ...]:
        every = self.experts, self.distillation, self.evaluation
        return tuple(stage for stage in every if stage.name in self.only)

    @property
    def seconds(self) -> float:
        """Of the whole run."""
        return sum(stage.seconds for stage in self.stages)

    @property
    def shortage(self) -> str:
        """What is missing where the experts cannot fit on the disk; else empty."""
        if self.room is None or self.room.free is None or not self.experts.count:
            return ""
        needed = self.disk - self.room.stored
        if needed <= self.room.free:
            return ""
        return (
            f"the experts need {byte_size(needed)} of disk and {byte_size(self.room.free)} "
            f"are free in {self.room.folder}"
        )

    def require_room(self) -> None:
        """Raises SettingError where the experts alone, without headers, exceed the free disk."""
        if self.shortage:
            raise SettingError(
                f"{self.shortage}; give another --out or fewer --experts.experts; "
                "--experts.storage=bf16 takes half of float32"
            )

    def lines(self) -> list[str]:
        """For a person to read: a heading, a row for each stage and for all, and a warning where
        the disk is too small. Of a finished run the heading alone."""
        if not any(stage.count for stage in self.stages):
            return [self.heading]
        sizes = f"{byte_size(self.memory)} of memory"
        if "experts" in self.only:
            sizes = f"{byte_size(self.disk)} of disk for experts, {sizes}"
        total = Stage("in all", seconds=self.seconds, words=sizes)
        rows = [
            f"  {stage.name:<12}  {duration(stage.seconds):>12}  {stage.words}"
            for stage in (*self.stages, total)
        ]
        warning = [f"  warning: {self.shortage}"] if self.shortage else []
        return [self.heading, *rows, *warning]


def estimate(
    recipe: Recipe,
    shape: Shape,
    *,
    done: Done = NOTHING,
    resources: Resources = Resources(),
    measure: Measure = measure,
    stages: Sequence[str] = STAGES,
    compared: int = COMPARED,
) -> Cost:
    """What is left of a run of `recipe` on data of `shape` will cost.

    stages: those that are carried out; what the others need is left out.
    compared: sets that are evaluated at the end.

    Takes some seconds of measuring, and nothing for a finished run.

    Raises SettingError for a network that does not fit the images, for settings that the method
    refuses, and for those that at the least they take do not fit into memory.
    """
    spec = shape.network(recipe.network)
    require_recipe_memory(recipe, shape, resources)
    if distills := "distillation" in stages:
        recipe.method.check(shape.conditions(recipe))
    disk = recipe.experts.experts * (recipe.experts.epochs + 1) * spec.parameters()
    disk *= 2 if recipe.experts.storage == "bf16" else 4
    if finished(recipe, done, stages):
        there = f"{done.experts:,} experts"
        if distills:
            there += f", {done.iterations:,} iterations and the test"
        heading = f"nothing is left to do: {there} are there"
        experts, distillation, evaluation = map(Stage, STAGES)
        return Cost(experts, distillation, evaluation, disk, 0, heading, done.room, stages)
    speeds = measure(recipe, spec, shape, resources, distills)
    compiled = compiled_stages(recipe, spec, shape.train, resources)
    if compiled is not None:
        compiled = [name for name in compiled if name in stages]
    speedup = {name: COMPILER_SPEEDUP if name in (compiled or ()) else 1.0 for name in STAGES}
    workers = resources.worker_count(max(1, recipe.experts.experts - done.experts))
    return Cost(
        _experts(recipe, shape, done, workers, speeds.image / speedup["experts"]),
        _distillation(recipe, done, speeds, speedup["distillation"]),
        _evaluation(recipe, shape, done, resources, speeds, speedup, compared),
        disk,
        _memory(recipe, shape, speeds, resources),
        _heading(recipe, done, resources, compiled),
        done.room,
        stages,
    )


def finished(recipe: Recipe, done: Done, stages: Sequence[str] = STAGES) -> bool:
    """Whether nothing of a run, or of these stages of it, is left."""
    if done.experts < recipe.experts.experts and "experts" in stages:
        return False
    return "distillation" not in stages or (
        done.iterations >= recipe.distill.iterations and done.networks >= recipe.evaluate.n
    )


def _experts(recipe: Recipe, shape: Shape, done: Done, workers: int, image: float) -> Stage:
    """Experts train in turns of `workers`; each is tested once, forward only."""
    missing, epochs = max(0, recipe.experts.experts - done.experts), recipe.experts.epochs
    epoch = recipe.experts.images_per_epoch(shape.train) * image
    each = epochs * epoch + (shape.val + shape.test) * image * FORWARD_SHARE
    words = f"{missing:,} experts x {epochs} epochs, {duration(epoch)} each, {workers} at a time"
    return Stage("experts", missing, epoch, math.ceil(missing / workers) * each, words)


def _distillation(recipe: Recipe, done: Done, speeds: Speeds, speedup: float) -> Stage:
    left = max(0, recipe.distill.iterations - done.iterations)
    each = speeds.iteration.seconds / speedup
    words = f"{left:,} iterations, {duration(each)} each; {speeds.iteration.measured}"
    return Stage("distillation", left, each, left * each, words)


def _evaluation(
    recipe: Recipe,
    shape: Shape,
    done: Done,
    resources: Resources,
    speeds: Speeds,
    speedup: dict[str, float],
    compared: int,
) -> Stage:
    """Fresh networks on validation images along the way, and on test images at the end."""
    config, distill = recipe.evaluate, recipe.distill
    workers = config.workers or (cores() if resources.on_cpu else 1)
    steps = config.epochs * math.ceil(distill.ipc * shape.classes / config.batch)
    training = steps * speeds.evaluation / speedup["evaluation"]
    forward = speeds.image / speedup["experts"] * FORWARD_SHARE
    validations = 0
    if done.iterations < distill.iterations:
        every = distill.eval_every
        validations = math.ceil(distill.iterations / every) - done.iterations // every
        validations += not done.iterations  # of the set that the run begins with
    final = compared * max(0, config.n - done.networks)
    validating = training + shape.val * forward
    each = training + shape.test * forward
    seconds = validations * math.ceil(distill.eval_networks / workers) * validating
    seconds += math.ceil(final / workers) * each
    count = validations * distill.eval_networks + final
    return Stage("evaluation", count, each, seconds, f"{count:,} networks, {duration(each)} each")


def compiled_stages(
    recipe: Recipe, spec: NetworkSpec, images: int, resources: Resources
) -> list[str] | None:
    """The stages that a run compiles and that gain by it; `images` are those of an expert's epoch.

    None on a GPU and for a network that `ConvNetGradient` does not cover: the gain is not known.
    """
    module, device = spec.build(seed=0), resources.torch_device
    if not resources.on_cpu or ConvNetGradient.of(module) is None:
        return None
    experts, distill, evaluation = recipe.experts, recipe.distill, recipe.evaluate
    count = distill.ipc * spec.classes
    one = TrainingSet(torch.empty(count, 0, 0, 0), torch.empty(count, dtype=torch.int64))
    compared = [one] * COMPARED
    stages = []
    if wanted(experts.compile, expert_work(module, experts, images, device)):
        stages.append("experts")
    if isinstance(method := recipe.method, UnrolledMethod):
        batch = method.images_per_step(count)
        if wanted(distill.compile, method.work(module, distill.iterations, batch, device)):
            stages.append("distillation")
    if wanted(evaluation.compile, training_work(spec, evaluation, compared)):
        stages.append("evaluation")
    return stages


def _memory(recipe: Recipe, shape: Shape, speeds: Speeds, resources: Resources) -> int:
    """Bytes at the peak: of all processes together on the CPU, else of the GPU.

    The images are there all the time, a byte a pixel. Each stage holds whitened ones beside them, 4
    bytes a pixel. What iterations computed with is many small tensors, whose memory the process
    does not give back when they are freed, so the stages that follow come on top of it.
    """
    pixels, d, peak = shape.pixels, shape.image_pixels, round(RESIDENT * speeds.iteration.peak)
    train, zca = 4 * shape.train * d, recipe.data.whitening in ("zca", "zca-compact")
    distilling = 4 * shape.val * d + (train if speeds.iteration.reads_images else 0)
    if not resources.on_cpu:
        return max(4 * pixels, distilling + speeds.iteration.peak)
    workers = resources.worker_count(recipe.experts.experts)
    fitting = FIT_MATRICES * 8 * d**2 if zca else 0
    training = 4 * pixels + _processes(workers)  # experts share one copy of the images
    herding = train + min(HERDING_BATCH, shape.train) * speeds.embedding
    testing = 4 * shape.test * d + _processes(recipe.evaluate.workers or cores())
    matrices = 2 * 4 * d**2 if zca else 0  # of the whitening and its inverse
    largest = max(fitting, training, peak + max(distilling, herding, testing))
    return PROCESS_BYTES + pixels + matrices + largest


def _processes(workers: int) -> int:
    """Bytes of as many worker processes; one worker is the process itself."""
    return workers * PROCESS_BYTES if workers > 1 else 0


def _heading(recipe: Recipe, done: Done, resources: Resources, stages: Sequence[str] | None) -> str:
    """stages: those that are compiled; None where the compiler's gain is not known."""
    words = "estimated cost"
    if done.experts or done.iterations:
        words += (
            f" of what is left ({done.experts} experts and {done.iterations} iterations are there)"
        )
    words += f" on this machine ({resources.device})"
    if stages:
        *others, last = stages
        named = f"{', '.join(others)} and {last}" if others else last
        words += (
            f", {named} taken to be {COMPILER_SPEEDUP:g} times as fast compiled as they are "
            "without the compiler"
        )
    parts = recipe.experts, recipe.distill, recipe.evaluate
    if stages is None and any(part.compile != "no" for part in parts):
        words += ", without the compiler; with it less"
    return f"{words}:"
