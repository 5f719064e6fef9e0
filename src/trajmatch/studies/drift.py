"""How far a student trained on a small set stays from the way an expert goes on real images.

From an expert's parameters after t epochs a student takes plain SGD steps on the set, with the
set's own step size and the augmentation of the distillation. What is measured for a stretch of
dt epochs is the squared distance of the paper's loss,

    min over k of ||student after k steps - expert(t + dt)||^2 / ||expert(t) - expert(t + dt)||^2,

at the step k = 0, 1, ... that comes nearest: a set is good if training on it for some number of
steps arrives close to where real images lead. 1 is never nearer than at the start. The idea of
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

from trajmatch.config import RunConfig
from trajmatch.data.augment import Augmentation
from trajmatch.errors import MismatchError, SettingError
from trajmatch.methods import METHODS
from trajmatch.runtime.micro_batches import micro_batch_size
from trajmatch.studies.study import Made, Row, Variant, trained_with
from trajmatch.types import Float, Tensor
from trajmatch.unroll.gradient import arithmetic, gradient_fn
from trajmatch.unroll.schedule import Schedule
from trajmatch.unroll.student import Student

STRETCH = 2
"""A student may take this many times the steps that matching allows for as many epochs."""
LONGEST = 4
"""The longest dt, in matched segments (M), where experts are that long."""
HELD_OUT = 5
"""One expert of so many, and no more than so many, are measured on and not matched."""
STARTS = 10
"""At most so many start epochs, evenly chosen."""


def drift(made: Made) -> list[Row]:
    """Rows for dt = 1, 2, 4, ... epochs, over all start epochs of the experts held out.

    Cost: experts x starts x steps gradients on the set.

    Raises MismatchError for a set whose whitening, classes or shape are not the experts'.
    """
    library, config = made.library, made.config.distill
    _require_fit(made)
    starts = _starts(made.config)
    longest = min(library.epochs - starts[-1], LONGEST * config.expert_epochs)
    if longest < 1:
        raise SettingError(
            f"segments start at up to epoch {starts[-1]} and the experts have {library.epochs} "
            f"epochs; use --max-start-epoch {library.epochs} or less"
        )
    stretches = [2**i for i in range(longest.bit_length()) if 2**i <= longest]
    steps = math.ceil(STRETCH * config.syn_steps * stretches[-1] / config.expert_epochs)
    # The only expert of a library can be held out for sets that were made elsewhere.
    experts = library.experts[made.config.experts.experts :] or library.experts
    nearest = [
        _nearest(made, expert, start, stretches, steps) for expert in experts for start in starts
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
                "step_size": _step_size(made),
            }
        )
    return rows


def _nearest(
    made: Made, expert: int, start: int, stretches: Sequence[int], steps: int
) -> tuple[list[float], list[int]]:
    """For each stretch the normalized squared distance at the nearest step, and that step."""
    config, device = made.config.distill, torch.device(made.device)
    trajectory = made.library.trajectory(expert)
    vector = trajectory.row(start).to(device)
    targets = torch.stack([trajectory.row(start + stretch) for stretch in stretches]).to(device)
    augment = None if config.augment in (None, "none") else Augmentation(str(config.augment))
    batch = config.batch_syn if (config.batch_syn or 0) < len(made.small) else None
    module = made.library.spec.build(seed=0).to(device)
    images = made.small.images.to(device)
    student = Student(
        gradient_fn(module, precision=config.precision),
        images,
        made.small.labels.to(device),
        augment,
        Schedule.make(
            images,
            steps=steps,
            batch_syn=batch,
            augment=augment,
            seed=made.seed,
            names=("drift", expert, start),
        ),
        micro_batch_size(module, module.image_shape, device),
    )
    lengths, step_size = _squared(targets, vector), _step_size(made)
    walked = [torch.ones_like(lengths)]
    with arithmetic(config.precision):
        for n in range(steps):
            vector = vector - step_size * student.step(n, vector)
            walked.append(_squared(targets, vector) / lengths)
    # A student that diverges is nearest before it does.
    least = torch.stack(walked).nan_to_num(nan=math.inf).min(0)
    return least.values.tolist(), least.indices.tolist()


def _squared(
    targets: Float[Tensor, "stretches params"], vector: Float[Tensor, "params"]
) -> Float[Tensor, "stretches"]:
    return (targets - vector).square().sum(1)


def _step_size(made: Made) -> float:
    """The set's own, or for a set without one what the distillation begins with."""
    return made.small.step_size or made.config.distill.step_size


def _require_fit(made: Made) -> None:
    small, library = made.small, made.library
    ours = (made.data.classes, tuple(made.data.train.images.shape[1:]))
    if (small.classes, tuple(small.images.shape[1:])) != ours:
        raise MismatchError(
            f"the set's classes or the shape of its images {tuple(small.images.shape[1:])} are not "
            f"the data's {ours[1]}; give sets made from the same --data and --size"
        )
    if small.whitening.checksum != library.whitening.checksum:
        raise MismatchError(
            f"the set's whitening ({small.whitening.name}, {small.whitening.checksum}) is not the "
            f"experts' ({library.whitening.name}, {library.whitening.checksum}), so its images "
            "mean something else to them; give the --experts it was made with"
        )


# -- whose drift ---------------------------------------------------------------------------------


COMPARED = ("mtt", "dsa", "random", "herding")


def compared(base: RunConfig) -> list[Variant]:
    """A set distilled here, one whose gradients match those of real images (with what
    `base.methods` says of it), and random and herding ones of as many images."""
    if base.experts.experts < 2:
        raise SettingError(
            f"there is {base.experts.experts} expert, and drift is measured on one that was not "
            "matched; give 2 experts or more, or sets made before with --sets"
        )
    config = _without_held_out(base)
    variants = []
    for name in COMPARED:
        own = config
        if name in METHODS and name != base.distill.method:
            own = dataclasses.replace(config, distill=base.by(name))
        variants.append(Variant(name, own, {"set": name}, name))
    return variants


def of_sets(words: str) -> Callable[[RunConfig], list[Variant]]:
    """Variants of sets made before: folders separated by commas, each `FOLDER` or `NAME=FOLDER`.

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

    def variants(base: RunConfig) -> list[Variant]:
        config = _without_held_out(base)
        return [Variant(name, config, {"set": name}, named[name]) for name in named]

    return variants


def _name_of(folder: Path) -> str:
    """`ipc1` for runs/ipc1/best: every run calls its sets best and last."""
    return folder.parent.name if folder.name in ("best", "last") else folder.name


def _without_held_out(base: RunConfig) -> RunConfig:
    """Matching the experts that are not held out; those of the study's own are long enough."""
    count, longest = base.experts.experts, LONGEST * base.distill.expert_epochs
    return trained_with(
        base,
        experts=max(1, count - min(HELD_OUT, math.ceil(count / HELD_OUT))),
        epochs=max(base.experts.epochs, _starts(base)[-1] + longest),
    )


def _starts(config: RunConfig) -> range:
    last = config.distill.max_start_epoch
    return range(0, last, math.ceil(last / STARTS))


def rule(base: RunConfig) -> str:
    """What is drawn, in words."""
    distill = base.distill
    return (
        "A student starts from an expert's parameters after t epochs and trains on the set alone "
        f"(plain SGD at the set's own step size, {distill.step_size:g} for a set without one, up "
        f"to {STRETCH * distill.syn_steps / distill.expert_epochs:g} steps for each epoch of the "
        "longest Δt). Drawn is the squared distance to the expert's parameters Δt epochs later, at "
        "the student's nearest step, divided by the squared distance between the expert's two: 1 "
        "is never nearer than at the start, 0 is there. Over t from 0 to "
        f"{_starts(base)[-1]}, on experts that sets made here were not matched to."
    )
