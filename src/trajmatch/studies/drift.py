"""Drift: how far a student trained on a distilled set stays from an expert trained on real images.

From an expert's parameters after t epochs a student takes plain SGD steps on the set, with the
set's own step size and the augmentation of the distillation. The measure for a stretch of dt
epochs is the squared distance of the paper's loss,

    min over k of ||student after k steps - expert(t + dt)||^2 / ||expert(t) - expert(t + dt)||^2,

at the nearest step k = 0, 1, ...: a set is good if training on it for some number of steps ends
close to the parameters that real images lead to. 1 is never nearer than at the start. The idea of
distances to the real-data trajectory over dt is that of Cazenavette et al., CVPR 2022, where
short-range and long-range matching are compared; this definition is ours.
"""

from __future__ import annotations

import dataclasses
import math
import re
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from trajmatch.errors import MismatchError, SettingError
from trajmatch.methods import METHODS, MTT
from trajmatch.networks.precision import arithmetic
from trajmatch.pipeline.recipe import Recipe
from trajmatch.runtime.micro_batches import micro_batch_size
from trajmatch.studies.study import Row, Subject, Variant, trained_with
from trajmatch.types import Float, Tensor
from trajmatch.unroll.gradient import gradient_fn
from trajmatch.unroll.schedule import Schedule
from trajmatch.unroll.student import Student

STRETCH = 2
"""A student may take this many times the steps that matching allows for as many epochs."""
LONGEST = 4
"""The longest dt, in matched segments (M), where experts are that long."""
TEST_SHARE = 5
"""One expert of so many, and no more than so many, are measured on and not matched."""
STARTS = 10
"""At most so many start epochs, evenly chosen."""


def drift(subject: Subject) -> list[Row]:
    """Rows for dt = 1, 2, 4, ... epochs, over all start epochs of the experts held out.

    Cost: experts x starts x steps gradients on the set.

    Raises MismatchError for a set whose whitening, classes or shape are not the experts'.
    """
    library, config = subject.library, segments_of(subject.config)
    _require_fit(subject)
    starts = _starts(subject.config)
    longest = min(library.epochs - starts[-1], LONGEST * config.segment[0])
    if longest < 1:
        raise SettingError(
            f"segments start at up to epoch {starts[-1]} and the experts have {library.epochs} "
            f"epochs; use --max-start-epoch {library.epochs} or less"
        )
    stretches = [2**i for i in range(longest.bit_length()) if 2**i <= longest]
    steps = math.ceil(STRETCH * config.student_steps * stretches[-1] / config.segment[0])
    # A library's only expert is measured on where sets were distilled elsewhere.
    experts = library.experts[subject.config.experts.experts :] or library.experts
    nearest = [
        _nearest(subject, expert, start, stretches, steps) for expert in experts for start in starts
    ]
    rows = []
    for place, stretch in enumerate(stretches):
        values = [distances[place] for distances, _ in nearest]
        rows.append(
            {
                "at": {"epochs": stretch},
                "mean": statistics.fmean(values),
                "sd": statistics.stdev(values) if len(values) > 1 else None,
                "n": len(values),
                "values": values,
                "steps": statistics.fmean(taken[place] for _, taken in nearest),
                "step_size": _step_size(subject),
            }
        )
    return rows


def _nearest(
    subject: Subject, expert: int, start: int, stretches: Sequence[int], steps: int
) -> tuple[list[float], list[int]]:
    """For each stretch the normalized squared distance at the nearest step, and that step."""
    config, device = segments_of(subject.config), torch.device(subject.device)
    trajectory = subject.library.trajectory(expert)
    vector = trajectory.row(start).to(device)
    targets = torch.stack([trajectory.row(start + stretch) for stretch in stretches]).to(device)
    augment = config.augmentation
    batch = config.batch_syn if (config.batch_syn or 0) < len(subject.distilled) else None
    module = subject.library.spec.build(seed=0).to(device)
    images = subject.distilled.images.to(device)
    student = Student(
        gradient_fn(module, precision=subject.config.distill.precision),
        images,
        subject.distilled.labels.to(device),
        augment,
        Schedule.make(
            images,
            steps=steps,
            batch_syn=batch,
            augment=augment,
            seed=subject.seed,
            names=("drift", expert, start),
        ),
        micro_batch_size(module, module.image_shape, device),
    )
    lengths, step_size = _squared(targets, vector), _step_size(subject)
    ratios = [torch.ones_like(lengths)]
    with arithmetic(subject.config.distill.precision):
        for n in range(steps):
            vector = vector - step_size * student.step(n, vector)
            ratios.append(_squared(targets, vector) / lengths)
    # A student that diverges is nearest before it does.
    least = torch.stack(ratios).nan_to_num(nan=math.inf).min(0)
    return least.values.tolist(), least.indices.tolist()


def _squared(
    targets: Float[Tensor, "stretches params"], vector: Float[Tensor, "params"]
) -> Float[Tensor, "stretches"]:
    return (targets - vector).square().sum(1)


def _step_size(subject: Subject) -> float:
    """The set's own, or for a set without one what the distillation begins with."""
    return subject.distilled.step_size or segments_of(subject.config).first_step_size


def _require_fit(subject: Subject) -> None:
    distilled, library = subject.distilled, subject.library
    shape, theirs = (tuple(x.shape[1:]) for x in (distilled.images, subject.data.train.images))
    if (distilled.classes, shape) != (subject.data.classes, theirs):
        raise MismatchError(
            f"the set's classes or the shape of its images {shape} are not the data's {theirs}; "
            "give sets distilled from the same --data and --size"
        )
    if distilled.whitening.checksum != library.whitening.checksum:
        raise MismatchError(
            f"the set's whitening ({distilled.whitening.name}, {distilled.whitening.checksum}) is "
            f"not the experts' ({library.whitening.name}, {library.whitening.checksum}), so its "
            "images do not mean the same to them; give the --experts it was distilled with"
        )


# -- variants ------------------------------------------------------------------------------------


COMPARED = ("mtt", "dsa", "random", "herding")


def compared(base: Recipe) -> list[Variant]:
    """A set distilled here, one whose gradients match those of real images (with what
    `base.methods` says of it), and random and herding ones of as many images."""
    if base.experts.experts < 2:
        raise SettingError(
            f"there is {base.experts.experts} expert, and drift is measured on one that was not "
            "matched; give 2 experts or more, or finished sets with --sets"
        )
    config = _without_test_experts(base)
    variants = []
    for name in COMPARED:
        own = config
        if name in METHODS and name != base.method.name:
            chosen = base.by(name)
            own = dataclasses.replace(config, distill=chosen.distill, method=chosen.method)
        variants.append(Variant(name, own, {"set": name}, name))
    return variants


def of_sets(words: str) -> Callable[[Recipe], list[Variant]]:
    """Variants of finished sets: folders separated by commas, each `FOLDER` or `NAME=FOLDER`.

    Raises SettingError for a name that is no word or is there twice.
    """
    named: dict[str, str] = {}
    for word in filter(None, (part.strip() for part in words.split(","))):
        name, equals, folder = word.rpartition("=")
        name = name if equals else _name_of(Path(folder))
        if not re.fullmatch(r"[\w+-][\w.+-]*", name) or name.startswith("experts") or name in named:
            taken = "is there twice" if name in named else "cannot name a row and a folder"
            raise SettingError(f"--sets: '{name}' {taken}; write NAME={folder} with another NAME")
        named[name] = folder
    if not named:
        raise SettingError(f"--sets is '{words}'; give folders of sets, separated by commas")

    def variants(base: Recipe) -> list[Variant]:
        config = _without_test_experts(base)
        return [Variant(name, config, {"set": name}, named[name]) for name in named]

    return variants


def _name_of(folder: Path) -> str:
    """`ipc1` for runs/ipc1/best: every run calls its sets best and last."""
    return folder.parent.name if folder.name in ("best", "last") else folder.name


def _without_test_experts(base: Recipe) -> Recipe:
    """Matching the experts that are not held out; those of the study's own are long enough."""
    count, longest = base.experts.experts, LONGEST * segments_of(base).segment[0]
    return trained_with(
        base,
        experts=max(1, count - min(TEST_SHARE, math.ceil(count / TEST_SHARE))),
        epochs=max(base.experts.epochs, _starts(base)[-1] + longest),
    )


def segments_of(config: Recipe) -> MTT:
    """The settings of the segments that drift is measured on: the recipe's mtt, with customary ones
    where it leaves them to be calibrated."""
    method = config.method if isinstance(config.method, MTT) else MTT()
    return method.assumed()


def _starts(config: Recipe) -> range:
    last = segments_of(config).segment[1]
    return range(0, last, math.ceil(last / STARTS))


def rule(base: Recipe) -> str:
    """What is drawn, in words."""
    method = segments_of(base)
    return (
        "A student starts from an expert's parameters after t epochs and trains on the set alone "
        f"(plain SGD at the set's own step size, {method.first_step_size:g} for a set without one, "
        f"up to {STRETCH * method.student_steps / method.segment[0]:g} steps for each epoch of the "
        "longest Δt). Drawn is the squared distance to the expert's parameters Δt epochs later, at "
        "the student's nearest step, divided by the squared distance between the expert's two: 1 "
        "is never nearer than at the start, 0 is there. Over t from 0 to "
        f"{_starts(base)[-1]}, on experts that sets distilled here were not matched to."
    )
