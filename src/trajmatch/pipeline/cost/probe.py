"""How fast this machine does each kind of work of a run.

A little of the real work is done on random images, with the real network, in pieces of the real
size and in the real precision. The compiler is left out, for it would take a minute.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from trajmatch.config import RunConfig
from trajmatch.data.augment import Augmentation
from trajmatch.evaluation.train import train_network
from trajmatch.experts.train import gradient_step
from trajmatch.methods import method_class
from trajmatch.methods.unrolled import WORK_PER_THREAD
from trajmatch.networks import NetworkSpec
from trajmatch.networks.base import Network
from trajmatch.networks.functional import parameter_vector
from trajmatch.pipeline.cost.microbenchmark import Trial, iteration
from trajmatch.runtime.memory import available_bytes, saved_bytes
from trajmatch.runtime.micro_batches import micro_batch_size, micro_batch_sizes
from trajmatch.runtime.threads import limited_threads
from trajmatch.types import Float, Int, Tensor
from trajmatch.unroll import match_segment
from trajmatch.unroll.gradient import gradient_fn
from trajmatch.unroll.schedule import Schedule
from trajmatch.unroll.student import Student

PROBE_SECONDS = 0.4
"""How long each of the three kinds of work is done, at least."""
PROBE_STEPS = 5
"""Steps of a walk, and of training on a small set, that are taken together."""
PROBE_IMAGES = 128
"""Images at a time in a probe, at most. Work is taken to grow with images, which a GPU's hardly
does below this number."""


@dataclass(frozen=True)
class Speed:
    """What a probe found, for one network, precision and machine."""

    image: float
    """Seconds for one real image of an expert's epoch, on one worker."""
    judging: float
    """Seconds for one SGD step of a fresh network on the small set, on one worker."""
    step: float = 0.0
    """Seconds for one student step, out and back, of a method that matches experts."""
    record: int = 0
    """Bytes of what the way back needs of one student step."""
    piece: int = 0
    """Bytes of the part of a record that is made at a time where it is not kept."""
    keep: int = 0
    """Records that are kept from the way out."""
    trial: Trial | None = None
    """Of any other method: its own iteration."""


Probe = Callable[[NetworkSpec, RunConfig, str, int | None, int | None], Speed]
"""(network, settings, device, threads of the distillation, training images) -> Speed."""


def measure(
    spec: NetworkSpec,
    config: RunConfig,
    device: str,
    threads: int | None,
    images: int | None = None,
) -> Speed:
    """Do a little of each kind of work, on random images. Seconds; more for large networks.

    images: how many there are to train on; None: as many as a method asks for.
    """
    where = torch.device(device)
    with limited_threads(1):
        image = _image_seconds(spec, config, where)
        judging = _evaluation_seconds(spec, config, where)
    if not method_class(config.distill.method).needs_experts:
        of_class = images and max(1, images // spec.classes)
        trial = iteration(spec, config.distill, where, of_class=of_class, threads=threads)
        return Speed(image=image, judging=judging, trial=trial)
    return _walking(spec, config, where, threads, image=image, judging=judging)


def _image_seconds(spec: NetworkSpec, config: RunConfig, device: torch.device) -> float:
    """One image of an expert's SGD step."""
    module = spec.build(seed=0).to(device)
    vector, step = parameter_vector(module), gradient_step(module, config.experts.precision)
    images, labels = _first_pieces(module, config.experts.batch, device)
    augment, draws = _augmentation(config.experts.augment), torch.Generator().manual_seed(0)

    def train() -> None:
        seen = images
        if augment is not None:
            height, width = images.shape[2:]
            seen = augment.apply(images, augment.draw(draws, len(images), height, width))
        step(vector, seen, labels)

    return _seconds(train, device) / len(images)


def _evaluation_seconds(spec: NetworkSpec, config: RunConfig, device: torch.device) -> float:
    """One SGD step of a fresh network on the small set."""
    module = spec.build(seed=0).to(device)
    batch = min(config.evaluate.batch, config.distill.ipc * spec.classes)
    images, labels = _first_pieces(module, batch, device)
    augment = _augmentation(config.evaluate.augment)

    def train() -> None:
        train_network(module, images, labels, lr=1e-3, epochs=PROBE_STEPS, augment=augment)

    return _seconds(train, device) / PROBE_STEPS * batch / len(images)


def _walking(
    spec: NetworkSpec,
    config: RunConfig,
    device: torch.device,
    threads: int | None,
    *,
    image: float,
    judging: float,
) -> Speed:
    """The student's walk, and with it all speeds."""
    distill = config.distill
    module = spec.build(seed=0).to(device)
    vector = parameter_vector(module)
    batch = distill.ipc * spec.classes
    batch = min(distill.batch_syn or batch, batch) * distill.samples
    images, labels = _first_pieces(module, batch, device)
    if distill.soft_labels:
        labels = torch.eye(spec.classes, device=device)[labels]
    augment, share = _augmentation(distill.augment), batch / len(images)

    length = micro_batch_size(module, module.image_shape, device)
    schedule = Schedule.make(images, steps=1, batch_syn=None, augment=augment, seed=0)
    eager = gradient_fn(module, precision=distill.precision)
    student = Student(eager, images, labels, augment, schedule, length)
    record = int(share * saved_bytes(lambda: student.residuals(0, vector, keep=True)))
    keep = {"stored": distill.syn_steps, "reverse": 0, "tesla": 0}.get(distill.gradient)
    if keep is None:  # as unroll.plan decides
        keep = min(distill.syn_steps, int(available_bytes(device) // 2 // max(1, record)))
    steps = min(PROBE_STEPS, distill.syn_steps)

    def unroll() -> None:
        match_segment(
            module,
            vector,
            vector + 1e-3,
            images,
            labels,
            distill.step_size,
            steps=steps,
            augment=augment,
            method="stored" if keep == distill.syn_steps else "reverse",
            precision=distill.precision,
        )

    alone = device.type == "cpu" and batch * WORK_PER_THREAD <= length  # as Walker.threads
    with limited_threads(threads or (1 if alone else torch.get_num_threads())):
        step = _seconds(unroll, device) / steps * share
    piece = record * micro_batch_sizes(batch, length)[0] // batch
    return Speed(image=image, step=step, judging=judging, record=record, piece=piece, keep=keep)


def _first_pieces(
    module: Network, batch: int, device: torch.device
) -> tuple[Float[Tensor, "few channels height width"], Int[Tensor, "few"]]:
    """Random images, with classes, for the first pieces of a batch: work on each of them is what it
    is on each of the batch."""
    length = micro_batch_size(module, module.image_shape, device)
    count = min(sum(micro_batch_sizes(batch, length)[:2]), PROBE_IMAGES)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(count, *module.image_shape, generator=generator)
    labels = torch.arange(count) % module.classifier.out_features
    return images.to(device), labels.to(device)


def _seconds(work: Callable[[], None], device: torch.device) -> float:
    """Of one call of `work`, after a first one that prepares it: the median of some."""

    def finished() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    work()
    times: list[float] = []
    while sum(times) < PROBE_SECONDS:
        began = finished()
        work()
        times.append(finished() - began)
    return statistics.median(times)


def _augmentation(strategy: str | None) -> Augmentation | None:
    return None if strategy in (None, "none") else Augmentation(str(strategy))
