"""The studies by name. A new one is a function of the base config and an entry here."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from trajmatch.config import RunConfig
from trajmatch.errors import SettingError
from trajmatch.studies import drift
from trajmatch.studies.accuracy import accuracy
from trajmatch.studies.study import Study, Variant, distilled_with, trained_with

STEP_SIZES = (0.25, 1.0, 4.0)
"""alpha_0 of the step-size study, in those of the base config."""
COUNTS = (1, 2, 5, 10, 20, 50, 100, 200)
"""Numbers of experts to distill with."""


def _budget(base: RunConfig) -> int:
    """Student steps of a whole distillation."""
    return base.distill.iterations * base.distill.syn_steps


def _ranges(base: RunConfig) -> list[Variant]:
    """N in {1/4, 1/2, 1, 2} and M in {1/2, 1, 2} of the base's, each at the same budget."""
    distill, found = base.distill, dict[str, Variant]()
    for m in (distill.expert_epochs // 2, distill.expert_epochs, 2 * distill.expert_epochs):
        for n in (distill.syn_steps // 4, distill.syn_steps // 2, distill.syn_steps,
                  2 * distill.syn_steps):  # fmt: skip
            steps, epochs = max(1, n), max(1, m)
            more = distill.syn_steps / steps
            config = distilled_with(
                base,
                syn_steps=steps,
                expert_epochs=epochs,
                iterations=max(1, round(distill.iterations * more)),
                eval_every=max(1, round(distill.eval_every * more)),
            )
            name = f"N{steps}-M{epochs}"
            found[name] = Variant(name, config, {"syn_steps": steps, "expert_epochs": epochs})
    return list(found.values())


def _step_sizes(base: RunConfig) -> list[Variant]:
    if base.distill.lr_lr == 0:
        raise SettingError("lr_lr is 0, so the step size would be fixed throughout; give --lr-lr")
    variants = []
    for factor in STEP_SIZES:
        alpha = base.distill.step_size * factor
        # On log(alpha) the rate is lr_lr / alpha_0^2: this keeps it.
        for name, rate in (("learned", base.distill.lr_lr * factor**2), ("fixed", 0.0)):
            config = distilled_with(base, step_size=alpha, lr_lr=rate)
            place = {"start": alpha, "step_size": name}
            variants.append(Variant(f"{name}-{alpha:g}", config, place))
    return variants


def _counts(base: RunConfig) -> list[Variant]:
    most = base.experts.experts
    counts = [count for count in COUNTS if count < most] + [most]
    return [
        Variant(f"{count}-experts", trained_with(base, experts=count), {"experts": count})
        for count in counts
    ]


def _either(axis: str, name: str, config: RunConfig) -> Variant:
    return Variant(name, config, {axis: name})


STUDIES: dict[str, Study] = {
    "range": Study(
        question="Is it better to match short or long stretches of training?",
        rule=lambda base: (
            f"Every cell may take {_budget(base):,} student steps in all: iterations = "
            f"{_budget(base):,} / N, with equally many looks at the validation split. All else is "
            "as in the settings, learning rates too."
        ),
        variants=_ranges,
        figure="grid",
        axes={"syn_steps": "N, student steps", "expert_epochs": "M, expert epochs"},
        measure=accuracy,
    ),
    "drift": Study(
        question="How near does training on a small set come to where real images lead?",
        rule=drift.rule,
        variants=drift.compared,
        figure="lines",
        axes={"epochs": "Δt, epochs of the expert", "set": "trained on"},
        measure=drift.drift,
        measured="squared distance to the expert, as a share of the expert's own way",
        counted="segments (an expert and a start epoch)",
    ),
    "init": Study(
        question="Does it matter whether the images begin as real ones or as noise?",
        rule=lambda base: "Only where the images begin differs.",
        variants=lambda base: [
            _either("init", name, distilled_with(base, init=name)) for name in ("real", "noise")
        ],
        figure="bars",
        axes={"init": "begun from"},
        measure=accuracy,
    ),
    "zca": Study(
        question="What does ZCA whitening do for the distilled images?",
        rule=lambda base: (
            "Each whitening has experts of its own, trained alike; students and fresh networks see "
            "images of the same whitening as the experts."
        ),
        variants=lambda base: [
            _either("whitening", name, _whitened(base, name)) for name in ("normalize", "zca")
        ],
        figure="bars",
        axes={"whitening": "whitening"},
        measure=accuracy,
    ),
    "step-size": Study(
        question="Is it better to learn the student's step size than to fix it?",
        rule=lambda base: (
            "alpha_0 is the step size at the start; fixed, it stays so, and fresh networks are "
            "trained with it. Learned, lr_lr goes with alpha_0^2, which keeps the rate on "
            "log(alpha) the same."
        ),
        variants=_step_sizes,
        figure="grid",
        axes={"start": "alpha_0", "step_size": "step size"},
        measure=accuracy,
    ),
    "experts": Study(
        question="How many experts does a distillation need?",
        rule=lambda base: "The first experts of one library; the number of iterations stays.",
        variants=_counts,
        figure="lines",
        axes={"experts": "experts"},
        measure=accuracy,
    ),
}


def _whitened(base: RunConfig, name: Any) -> RunConfig:
    return dataclasses.replace(base, data=dataclasses.replace(base.data, whitening=name))


QUICKER = 4
"""Of so many iterations, one is made for a first look."""


def quick(base: RunConfig) -> RunConfig:
    """Cut down to about a fifth of the time, for a first look."""
    experts, distill, judge = base.experts, base.distill, base.evaluate
    return dataclasses.replace(
        base,
        experts=dataclasses.replace(experts, experts=min(5, experts.experts)),
        distill=dataclasses.replace(
            distill,
            iterations=max(1, distill.iterations // QUICKER),
            eval_every=max(1, distill.eval_every // QUICKER),
        ),
        evaluate=dataclasses.replace(judge, n=min(3, judge.n), epochs=max(1, judge.epochs // 5)),
        methods={name: _quicker(table) for name, table in base.methods.items()},
    )


def _quicker(table: Mapping[str, Any]) -> dict[str, Any]:
    """What a method changes, and of that what it changes for a number of images."""
    found: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, Mapping):
            found[key] = _quicker(value)
        else:
            found[key] = max(1, value // QUICKER) if key in ("iterations", "eval_every") else value
    return found
