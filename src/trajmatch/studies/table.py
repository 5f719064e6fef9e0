"""The studies by name. A new one is a function of the base recipe and an entry here."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from trajmatch.errors import SettingError
from trajmatch.pipeline.recipe import Recipe
from trajmatch.studies import drift
from trajmatch.studies.accuracy import accuracy
from trajmatch.studies.study import Study, Variant, distilled_with, setting, trained_with

STEP_SIZES = (0.25, 1.0, 4.0)
"""alpha_0 of the step-size study, as multiples of the base recipe's."""
COUNTS = (1, 2, 5, 10, 20, 50, 100, 200)
"""Numbers of experts to distill with."""


def _budget(base: Recipe) -> int:
    """Student steps of a whole distillation."""
    return int(base.distill.iterations * setting(base, "syn_steps"))


def _ranges(base: Recipe) -> list[Variant]:
    """N in {1/4, 1/2, 1, 2} and M in {1/2, 1, 2} of the base's, each at the same budget."""
    distill, found = base.distill, dict[str, Variant]()
    base_m, base_n = setting(base, "expert_epochs"), setting(base, "syn_steps")
    for m in (base_m // 2, base_m, 2 * base_m):
        for n in (base_n // 4, base_n // 2, base_n, 2 * base_n):
            steps, epochs = max(1, n), max(1, m)
            more = base_n / steps
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


def _step_sizes(base: Recipe) -> list[Variant]:
    first, rate_lr = setting(base, "step_size"), setting(base, "lr_lr")
    if rate_lr == 0:
        raise SettingError("lr_lr is 0, so the step size would be fixed throughout; give --lr-lr")
    # On log(alpha) the rate is lr_lr / alpha_0^2 (a factor keeps it), or lr_log_step_size.
    variants = []
    for factor in STEP_SIZES:
        alpha = first * factor
        learned = None if rate_lr is None else rate_lr * factor**2
        for name, rate in (("learned", learned), ("fixed", 0.0)):
            config = distilled_with(base, step_size=alpha, lr_lr=rate)
            place = {"start": alpha, "step_size": name}
            variants.append(Variant(f"{name}-{alpha:g}", config, place))
    return variants


def _counts(base: Recipe) -> list[Variant]:
    most = base.experts.experts
    counts = [count for count in COUNTS if count < most] + [most]
    return [
        Variant(f"{count}-experts", trained_with(base, experts=count), {"experts": count})
        for count in counts
    ]


def _either(axis: str, name: str, config: Recipe) -> Variant:
    return Variant(name, config, {axis: name})


_ALL = (
    Study(
        name="range",
        purpose="Is it better to match short or long stretches of training?",
        rule=lambda base: (
            f"Every cell may take {_budget(base):,} student steps in all: iterations = "
            f"{_budget(base):,} / N, with equally many evaluations on the validation split. All "
            "else is as in the settings, learning rates too."
        ),
        variants=_ranges,
        figure="grid",
        axes={"syn_steps": "N, student steps", "expert_epochs": "M, expert epochs"},
        measure=accuracy,
    ),
    Study(
        name="drift",
        purpose="How near does training on a distilled set come to where real images lead?",
        rule=drift.rule,
        variants=drift.compared,
        figure="lines",
        axes={"epochs": "Δt, epochs of the expert", "set": "trained on"},
        measure=drift.drift,
        measured="squared distance to the expert, as a share of the expert's own way",
        counted="segments (an expert and a start epoch)",
    ),
    Study(
        name="init",
        purpose="Does it matter whether the images begin as real ones or as noise?",
        rule=lambda base: "Only where the images begin differs.",
        variants=lambda base: [
            _either("init", name, distilled_with(base, init=name)) for name in ("real", "noise")
        ],
        figure="bars",
        axes={"init": "begun from"},
        measure=accuracy,
    ),
    Study(
        name="zca",
        purpose="What does ZCA whitening do for the distilled images?",
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
    Study(
        name="step-size",
        purpose="Is it better to learn the student's step size than to fix it?",
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
    Study(
        name="experts",
        purpose="How many experts does a distillation need?",
        rule=lambda base: "The first experts of one library; the number of iterations stays.",
        variants=_counts,
        figure="lines",
        axes={"experts": "experts"},
        measure=accuracy,
    ),
)
STUDIES: dict[str, Study] = {study.name: study for study in _ALL}


def _whitened(base: Recipe, name: Any) -> Recipe:
    return dataclasses.replace(base, data=dataclasses.replace(base.data, whitening=name))


QUICKER = 4
"""`quick` divides the number of iterations by this."""


def quick(base: Recipe) -> Recipe:
    """Cut down to about a fifth of the time, for a first look."""
    experts, distill, fresh = base.experts, base.distill, base.evaluate
    return dataclasses.replace(
        base,
        experts=dataclasses.replace(experts, experts=min(5, experts.experts)),
        distill=dataclasses.replace(
            distill,
            iterations=max(1, distill.iterations // QUICKER),
            eval_every=max(1, distill.eval_every // QUICKER),
        ),
        evaluate=dataclasses.replace(fresh, n=min(3, fresh.n), epochs=max(1, fresh.epochs // 5)),
        methods={name: _quicker(table) for name, table in base.methods.items()},
    )


def _quicker(table: Mapping[str, Any]) -> dict[str, Any]:
    """A table of `Recipe.methods` with fewer iterations, and the tables in it."""
    found: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, Mapping):
            found[key] = _quicker(value)
        else:
            found[key] = max(1, value // QUICKER) if key in ("iterations", "eval_every") else value
    return found
