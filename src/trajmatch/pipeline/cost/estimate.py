"""What a run will cost, before it starts: time, disk and memory.

A probe finds how fast this machine is; the rest is counting how much of each work there will be.
"""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trajmatch.config import DataConfig, RunConfig, to_dict
from trajmatch.data import ImageDataset
from trajmatch.errors import FileFormatError, SettingError
from trajmatch.evaluation.batch import FREE
from trajmatch.experts.library import present
from trajmatch.methods.coresets import BASELINES
from trajmatch.methods.loop import CHECKPOINT, KIND, VERSION
from trajmatch.networks import NetworkSpec
from trajmatch.networks.base import height_width
from trajmatch.pipeline.cost.compile_speedup import GAIN, compiled_stages, known
from trajmatch.pipeline.cost.microbenchmark import require_method_fits
from trajmatch.pipeline.cost.probe import Probe, Speed, measure
from trajmatch.runtime.threads import cores
from trajmatch.storage import read_result
from trajmatch.storage.files import open_tensors
from trajmatch.types import Size
from trajmatch.units import byte_size, duration

PROCESS_BYTES = 350 * 10**6
"""Memory of a process that has imported torch."""
PASSES = 3
"""Forward passes that a forward and a backward pass take as long as."""


@dataclass(frozen=True)
class Shape:
    """What must be known of a data set to say what a run on it costs."""

    channels: int
    size: Size
    classes: int
    train: int
    """Images, without those for validation."""
    val: int
    test: int

    @classmethod
    def of(cls, data: ImageDataset) -> Shape:
        val = 0 if data.val is None else len(data.val)
        train, test = len(data.train), len(data.test)
        return cls(data.channels, data.size, data.num_classes, train, val, test)

    @classmethod
    def known(cls, config: DataConfig) -> Shape | None:
        """Of a well-known data set, without its files; None for any other."""
        if config.data not in _KNOWN:
            return None
        channels, size, classes, train, test = _KNOWN[config.data]
        if config.classes is not None:
            chosen = len(config.classes.split(","))
            classes, train, test = chosen, train * chosen // classes, test * chosen // classes
        val = round(train * config.val_fraction)
        return cls(channels, config.size or size, classes, train - val, val, test)

    @property
    def pixels(self) -> int:
        """Numbers in all images together."""
        height, width = height_width(self.size)
        return (self.train + self.val + self.test) * self.channels * height * width


_SUBSETS = ("imagenette", "imagewoof", "imagefruit", "imageyellow", "imagemeow", "imagesquawk")
_KNOWN = {
    "cifar10": (3, 32, 10, 50_000, 10_000),
    "cifar100": (3, 32, 100, 50_000, 10_000),
    "svhn": (3, 32, 10, 73_257, 26_032),
    "mnist": (1, 28, 10, 60_000, 10_000),
    "fashion-mnist": (1, 28, 10, 60_000, 10_000),
    "tiny-imagenet": (3, 64, 200, 100_000, 10_000),
    **dict.fromkeys(_SUBSETS, (3, 128, 10, 13_000, 500)),  # about
    "imagenette2": (3, 128, 10, 9_469, 3_925),
    "imagewoof2": (3, 128, 10, 9_025, 3_929),
    "imagenet": (3, 128, 1000, 1_281_167, 50_000),
}
"""Channels, side, classes, training and test images."""


@dataclass(frozen=True)
class Room:
    """The disk that a run's experts are written to."""

    folder: str
    """Of the run."""
    stored: int
    """Bytes of its experts that are there, those trained in part among them."""
    free: int | None
    """Bytes; None where the file system does not tell."""

    @classmethod
    def of(cls, out: Path) -> Room:
        """Of the folder `out`, which need not exist yet."""
        library = (out / "experts").absolute()  # perhaps a link to another disk
        there = next(place for place in (library, *library.parents) if place.is_dir())
        total, _, free = shutil.disk_usage(there)
        stored = 0
        for path in library.glob("expert_*.safetensors"):
            with contextlib.suppress(FileNotFoundError):  # another process is filling the library
                stored += path.stat().st_size
        return cls(str(out), stored, free if total else None)


@dataclass(frozen=True)
class Cost:
    """What a run, or what is left of it, will cost: seconds, and bytes of disk and memory."""

    experts: int
    """How many are still to be trained."""
    epochs: int
    """Of each."""
    epoch: float
    """Seconds of one epoch of one expert."""
    workers: int
    """Processes that train experts at the same time."""
    expert_seconds: float
    iterations: int
    """How many are still to be done."""
    iteration: float
    """Seconds of one."""
    networks: int
    """Fresh networks that judge, on validation and on test images."""
    network: float
    """Seconds of one of them."""
    evaluate_seconds: float
    disk: int
    """Of all experts."""
    memory: int
    """At the peak: of all processes together, or of the GPU."""
    heading: str
    """What is estimated, and on what."""
    walk: str
    """How the student's walk will be gone back, or how an iteration without one was timed."""
    room: Room | None = None
    """Where the experts go; None: not looked at."""

    @property
    def distill_seconds(self) -> float:
        return self.iterations * self.iteration

    @property
    def seconds(self) -> float:
        """Of everything."""
        return self.expert_seconds + self.distill_seconds + self.evaluate_seconds

    @property
    def nothing(self) -> bool:
        """Whether all of it is there already."""
        return not (self.experts or self.iterations or self.networks)

    @property
    def shortage(self) -> str:
        """What is missing where the experts cannot fit on the disk; else empty."""
        if self.room is None or self.room.free is None or not self.experts:
            return ""
        needed = self.disk - self.room.stored
        if needed <= self.room.free:
            return ""
        return (
            f"the experts need {byte_size(needed)} of disk and {byte_size(self.room.free)} "
            f"are free in {self.room.folder}"
        )

    def require_room(self) -> None:
        """Refuse a run whose experts alone, headers and all else left out, are too large."""
        if self.shortage:
            raise SettingError(
                f"{self.shortage}; give another --out or fewer --experts.experts; "
                "--experts.storage bf16 takes half of float32"
            )

    def lines(self) -> list[str]:
        """For a person to read: a heading, a row for each stage and for all, and a warning where
        the disk is too small. Of a finished run the heading alone."""
        if self.nothing:
            return [self.heading]
        rows = [
            (
                "experts",
                self.expert_seconds,
                f"{self.experts:,} experts x {self.epochs} epochs, {duration(self.epoch)} each, "
                f"{self.workers} at a time",
            ),
            (
                "distillation",
                self.distill_seconds,
                f"{self.iterations:,} iterations, {duration(self.iteration)} each; {self.walk}",
            ),
            (
                "evaluation",
                self.evaluate_seconds,
                f"{self.networks:,} networks, {duration(self.network)} each",
            ),
            (
                "in all",
                self.seconds,
                f"{byte_size(self.disk)} of disk for experts, {byte_size(self.memory)} of memory",
            ),
        ]
        return (
            [self.heading]
            + [f"  {name:<12}  {duration(seconds):>12}  {words}" for name, seconds, words in rows]
            + ([f"  warning: {self.shortage}"] if self.shortage else [])
        )


def estimate(
    config: RunConfig,
    shape: Shape,
    *,
    device: str = "cpu",
    workers: int | None = None,
    threads: int | None = None,
    trained: int = 0,
    iterated: int = 0,
    judged: int = 0,
    room: Room | None = None,
    probe: Probe | None = None,
) -> Cost:
    """What a run of `config` on data of `shape` will cost, after a probe of a few seconds.

    trained, iterated: experts and iterations that are there already (`done_in`).
    judged: networks that have judged each of the sets at the end (`evaluated_in`).
    room: the disk they go to, to be compared with what they need.
    probe: what measures; None: `measure`.

    Raises SettingError for a network that does not fit the images, and for settings that the method
    refuses.
    """
    spec = NetworkSpec(
        config.network.network or "convnet",
        shape.channels,
        shape.classes,
        shape.size,
        config.network.options(),
    )
    experts, distill, judge = config.experts, config.distill, config.evaluate
    require_method_fits(spec, distill)
    final = (1 + len(BASELINES)) * max(0, judge.n - judged)
    if trained >= experts.experts and iterated >= distill.iterations and not final:
        speed = Speed(image=0.0, judging=0.0)  # nothing to be done, however fast
    else:
        speed = (probe or measure)(spec, config, device, threads, shape.train)
    stages = compiled_stages(spec, config, shape.train) if known(spec, device) else None
    speed = _compiled(speed, stages or [])
    trial = speed.trial
    parallel = cores() if device == "cpu" else 1

    missing = max(0, experts.experts - trained)
    workers = max(1, min(workers or parallel, missing))
    epoch = shape.train * speed.image
    looking = speed.image / PASSES  # seconds to classify an image
    each = experts.epochs * epoch + (shape.val + shape.test) * looking

    iterations = max(0, distill.iterations - iterated)
    choices = -(-distill.iterations // distill.eval_every) - iterated // distill.eval_every
    choices = choices if iterations else 0
    crew = judge.workers or parallel
    training = judge.epochs * -(-distill.ipc * shape.classes // judge.batch) * speed.judging
    network = training + shape.test * looking
    rounds = choices * -(-distill.eval_networks // crew), -(-final // crew)

    parameters = spec.parameters()
    number = 2 if experts.storage == "bf16" else 4  # bytes
    heading = _heading(config, device, trained, iterated, stages)
    if not (missing or iterations or choices or final):
        heading = (
            f"nothing is left to do: {trained:,} experts, {iterated:,} iterations and the test are "
            "there"
        )
    return Cost(
        experts=missing,
        epochs=experts.epochs,
        epoch=epoch,
        workers=workers,
        expert_seconds=-(-missing // workers) * each,
        iterations=iterations,
        iteration=trial.seconds if trial else distill.segments * distill.syn_steps * speed.step,
        networks=choices * distill.eval_networks + final,
        network=network,
        evaluate_seconds=rounds[0] * (training + shape.val * looking) + rounds[1] * network,
        disk=experts.experts * (experts.epochs + 1) * parameters * number,
        memory=_memory(shape, speed, distill.syn_steps, parameters, device, workers),
        heading=heading,
        walk=trial.describe(distill.method)
        if trial
        else f"keeping {speed.keep} of {distill.syn_steps} step records "
        f"({byte_size(speed.record)} each)",
        room=room,
    )


def done_in(out: Path) -> tuple[int, int]:
    """How many experts and iterations an earlier run left in the folder `out`."""
    library, checkpoint = out / "experts", out / CHECKPOINT
    trained = len(present(library)) if library.is_dir() else 0
    if not checkpoint.exists():
        return trained, 0
    return trained, open_tensors(checkpoint, kind=KIND, version=VERSION).metadata["iteration"]


def evaluated_in(out: Path, config: RunConfig) -> int:
    """How many networks have judged each set at the end of a run of `config` in the folder `out`:
    none where it has not come to that, or was of other settings."""
    try:
        result = read_result(out)
    except FileFormatError:
        return 0
    if result.get("command") != "run" or result["last_iteration"] < config.distill.iterations:
        return 0
    before, now = result["settings"], to_dict(config)
    if _determining(before) != _determining(now):
        return 0
    return int(before["evaluate"]["n"])


def _determining(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that decide which networks judge: not how many, nor how fast they come there."""
    own = ("data", "network", "experts", "distill", "evaluate")
    free = {*FREE, "data_root", "iterations", "checkpoint_every", "experts"} - {"lr"}
    parts = {name: {k: v for k, v in settings[name].items() if k not in free} for name in own}
    return {**parts, "seed": settings["seed"]}


def _memory(
    shape: Shape, speed: Speed, steps: int, parameters: int, device: str, workers: int
) -> int:
    """At the peak. Pixels are a byte each, and 4 bytes more once whitened."""
    walk = speed.keep * speed.record + (steps - speed.keep + 4) * 4 * parameters
    if speed.keep < steps:
        walk += speed.piece
    if speed.trial is not None:
        walk = speed.trial.peak
    if device == "cpu":
        return PROCESS_BYTES + 5 * shape.pixels + max(walk, workers * PROCESS_BYTES)
    return 4 * shape.pixels + walk


def _compiled(speed: Speed, stages: Sequence[str]) -> Speed:
    """The speed with the compiler's gain in these stages of a run."""
    image, step, judging = (
        GAIN if stage in stages else 1 for stage in ("experts", "distillation", "evaluation")
    )
    trial = speed.trial and dataclasses.replace(speed.trial, seconds=speed.trial.seconds / step)
    return dataclasses.replace(
        speed,
        image=speed.image / image,
        step=speed.step / step,
        judging=speed.judging / judging,
        trial=trial,
    )


def _heading(
    config: RunConfig, device: str, trained: int, iterated: int, stages: Sequence[str] | None
) -> str:
    """stages: those that are compiled; None where nothing is known of what that gains."""
    words = "estimated cost"
    if trained or iterated:
        words += f" of what is left ({trained} experts and {iterated} iterations are there)"
    words += f" on this machine ({device})"
    parts = config.experts, config.distill, config.evaluate
    if stages:
        *others, last = stages
        named = f"{', '.join(others)} and {last}" if others else last
        words += (
            f", {named} taken to be {GAIN:g} times as fast compiled as they are without the "
            "compiler"
        )
    elif stages is None and any(part.compile != "no" for part in parts):
        words += ", without the compiler; with it less"
    return f"{words}:"
