"""From a library of experts to a distilled set."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from trajmatch import coresets
from trajmatch.compiling import wanted
from trajmatch.config import (
    DistillConfig,
    EvaluateConfig,
    NetworkConfig,
    to_dict,
)
from trajmatch.data import ImageDataset
from trajmatch.distillation import Learned, Outcome, TrajectoryMatching, run_loop
from trajmatch.errors import SettingError
from trajmatch.evaluation import Score, SmallSet, evaluate_images, training_work
from trajmatch.experts import ExpertLibrary
from trajmatch.parallel import limited_threads
from trajmatch.pipeline.checks import require_experts, require_fit, require_sound
from trajmatch.rng import derive, stream
from trajmatch.synthetic import SyntheticSet

WORK_PER_THREAD = 16
"""A second thread is started from a 16th of a cache-sized piece on: half a megabyte."""


def distill(
    data: ImageDataset,
    experts: str | Path | ExpertLibrary,
    out: str | Path,
    *,
    config: DistillConfig = DistillConfig(),
    evaluation: EvaluateConfig = EvaluateConfig(),
    network: NetworkConfig | None = None,
    whitening: str | None = None,
    seed: int = 0,
    device: str = "cpu",
    threads: int | None = None,
    tracker: str | None = None,
    on_iteration: Callable[[int, Mapping[str, float]], None] | None = None,
) -> Outcome:
    """Make `config.ipc` images per class by matching the experts' trajectories (MTT).

    Network and whitening are the experts'; when given, they must agree. The set kept is the one
    whose fresh networks score best on validation images; the test images are not touched. A run
    that is there already in `out` is continued to the same bits as if never interrupted (CPU).

    Raises MismatchError when data, network or whitening are not the experts', SettingError when
    the experts are too short for the segments asked for.
    """
    library = experts if isinstance(experts, ExpertLibrary) else ExpertLibrary.open(Path(experts))
    require_fit(library, data, network=network, whitening=whitening)
    require_experts(library)
    require_sound(data, config, evaluation, library.epochs)
    where = torch.device(device)
    method = TrajectoryMatching(library, config, seed=seed, device=where)
    initial = initial_images(data, library, config, seed=seed)
    validation = data.val
    if validation is None:
        raise SettingError("the data have no validation split; use data.with_validation(0.1)")
    val_images = library.whitening.apply_split(validation, where)
    val_labels = validation.labels.to(where)
    quick = _quick(evaluation, config, initial, library)
    info = {
        "method": method.name,
        "ipc": config.ipc,
        "seed": seed,
        "settings": to_dict(config),
        "network": library.spec.to_json(),
        "data": data.summary(),
        "experts": library.summary(),
    }

    def package(learned: Learned, iteration: int) -> SyntheticSet:
        return SyntheticSet(
            images=learned.images.detach().cpu(),
            labels=learned.labels.detach().cpu(),
            classes=data.classes,
            whitening=library.whitening,
            step_size=float(learned.step_size),
            info={**info, "iteration": iteration},
        )

    def validate(made: SyntheticSet, iteration: int) -> Score:
        return evaluate_images(
            made.images.to(where),
            made.labels.to(where),
            library.spec,
            quick,
            val_images,
            val_labels,
            lr=made.step_size,
            seed=derive(seed, "validate", iteration),
            method=method.name,
            ipc=config.ipc,
            split="val",
            whitening=library.whitening.name,
            device=where,
        )

    with limited_threads(threads or _walking_threads(method, initial)):
        return run_loop(
            method,
            Learned(
                initial.images.to(where),
                initial.classes.to(where),
                initial.log_step_size.to(where),
                None if initial.label_logits is None else initial.label_logits.to(where),
            ),
            config,
            Path(out),
            package=package,
            validate=validate,
            origin=_origin(
                data, library, config, dataclasses.replace(quick, compile=evaluation.compile), seed
            ),
            tracker=tracker,
            on_iteration=on_iteration,
        )


def initial_images(
    data: ImageDataset, library: ExpertLibrary, config: DistillConfig, *, seed: int
) -> Learned:
    """Where distillation starts: random training images of each class, or noise; whitened."""
    soft = data.num_classes if config.soft_labels else None
    if config.init == "real":
        chosen = coresets.select_coreset(
            "random", data, config.ipc, seed=derive(seed, "initial"), whitening=library.whitening
        )
        return Learned.begin(
            chosen.images, chosen.hard_labels, step_size=config.step_size, soft=soft
        )
    classes = torch.arange(data.num_classes).repeat_interleave(config.ipc)
    shape = (len(classes), *data.train.images.shape[1:])
    images = torch.randn(shape, generator=stream(seed, "initial", "noise"))
    return Learned.begin(images, classes, step_size=config.step_size, soft=soft)


def _origin(
    data: ImageDataset,
    library: ExpertLibrary,
    config: DistillConfig,
    evaluation: EvaluateConfig,
    seed: int,
) -> dict[str, Any]:
    """All that determines a run's numbers. The number of iterations may grow; how often a
    checkpoint is written, and by how many workers sets are judged, changes nothing."""
    settings = to_dict(config)
    for free in ("iterations", "checkpoint_every"):
        del settings[free]
    judged = {f"evaluate.{k}": v for k, v in to_dict(evaluation).items() if k != "workers"}
    return {
        "seed": seed,
        "data": data.fingerprint,
        "experts": f"{len(library.experts)} of {library.digest}",
        **settings,
        **judged,
    }


def _walking_threads(method: TrajectoryMatching, initial: Learned) -> int:
    """More than one thread only where there is work enough for each."""
    batch = method.config.batch_syn or len(initial.images)
    return 1 if batch * WORK_PER_THREAD <= method.piece else torch.get_num_threads()


def _quick(
    evaluation: EvaluateConfig, config: DistillConfig, initial: Learned, library: ExpertLibrary
) -> EvaluateConfig:
    """How a set is judged on the way: by fewer networks, compiled if all of them together pay."""
    few = dataclasses.replace(evaluation, n=config.eval_networks)
    one = SmallSet(initial.images, initial.classes)
    times = -(-config.iterations // config.eval_every)
    work = training_work(library.spec, few, [one]).times(times)
    return dataclasses.replace(few, compile="yes" if wanted(few.compile, work) else "no")
