"""From a library of experts to a distilled set."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from trajmatch.config import (
    DistillConfig,
    EvaluateConfig,
    NetworkConfig,
    to_dict,
)
from trajmatch.data import ImageDataset
from trajmatch.data.canvas import CropSampler
from trajmatch.data.whiten import Whitening, fit_whitening
from trajmatch.errors import SettingError
from trajmatch.evaluation import Score, TrainingSet, evaluate_images, training_work
from trajmatch.experts import ExpertLibrary
from trajmatch.methods import (
    Outcome,
    Problem,
    SyntheticParameters,
    begin,
    coresets,
    method_class,
    run_loop,
)
from trajmatch.networks import NetworkSpec
from trajmatch.networks.spec import network_for
from trajmatch.pipeline.checks import require_experts, require_fit, require_sound
from trajmatch.rng import derive, stream
from trajmatch.runtime.compiling import wanted
from trajmatch.runtime.threads import limited_threads
from trajmatch.synthetic import SyntheticSet


def distill(
    data: ImageDataset,
    experts: str | Path | ExpertLibrary | None,
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
    """Make `config.ipc` images per class by `config.method`, such as "mtt", which matches the
    trajectories of experts.

    Network and whitening are the experts'; when given, they must agree. Methods that match no
    experts need none: without, `network` is trained and `whitening` is fitted. The set kept is the
    one whose fresh networks score best on validation images; the test images are not touched. A run
    that is there already in `out` is continued to the same bits as if never interrupted (CPU).

    With `config.texture` they are canvases that wrap around, of which students see random crops.
    The set made then holds them as `canvases`; its `images`, which fresh networks are trained on,
    are fixed crops, the fewest that show every pixel.

    Raises MismatchError when data, network or whitening are not the experts', SettingError when
    the experts are too short for the segments asked for or absent where the method needs them, and
    what `require_texture` raises.
    """
    where = torch.device(device)
    if isinstance(experts, (str, Path)):
        experts = ExpertLibrary.open(Path(experts))
    require_method(config, experts=experts is not None)
    ground = _ground(data, experts, network, whitening, where)
    require_sound(data, config, evaluation, experts.epochs if experts else None)
    require_texture(data, config, ground.whitening.name)
    method = begin(ground, config, seed=seed)
    initial = initial_images(data, ground.whitening, config, seed=seed)
    if config.init_labels == "experts":
        initial = dataclasses.replace(initial, label_logits=ground.teacher_logits(initial.images))
    validation = data.val
    if validation is None:
        raise SettingError("the data have no validation split; use data.with_validation(0.1)")
    val_images = ground.whitening.apply_split(validation, where)
    val_labels = validation.labels.to(where)
    info: dict[str, Any] = {
        "method": method.name,
        "ipc": config.ipc,
        "seed": seed,
        "settings": to_dict(config),
        "network": ground.spec.to_json(),
        "data": data.summary(),
    }
    if experts is not None:
        info["experts"] = experts.summary()
    cover = None
    if config.texture:
        window, _ = _canvas(data, config)
        count, _, tall, wide = initial.images.shape
        info["texture"] = {"canvas": [tall, wide], "samples": config.samples}
        cover = window.cover(stream(seed, "texture", "cover"), count, tall, wide)

    def package(learned: SyntheticParameters, iteration: int) -> SyntheticSet:
        images, labels = learned.images.detach().cpu(), learned.labels.detach().cpu()
        canvases = None
        if cover is not None:
            canvases, images, labels = images, cover.apply(images), cover.repeat(labels)
        return SyntheticSet(
            images=images,
            labels=labels,
            classes=data.classes,
            whitening=ground.whitening,
            step_size=float(learned.step_size) if method.learns_step_size else None,
            info={**info, "iteration": iteration},
            canvases=canvases,
        )

    quick = _quick(evaluation, config, package(initial, 0), ground.spec)

    def validate(made: SyntheticSet, iteration: int) -> Score:
        return evaluate_images(
            made.images.to(where),
            made.labels.to(where),
            ground.spec,
            quick,
            val_images,
            val_labels,
            lr=made.step_size,
            seed=derive(seed, "validate", iteration),
            method=method.name,
            ipc=made.ipc,
            split="val",
            whitening=ground.whitening.name,
            device=where,
        )

    with limited_threads(threads or method.threads(initial)):
        return run_loop(
            method,
            SyntheticParameters(
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
                ground, config, dataclasses.replace(quick, compile=evaluation.compile), seed
            ),
            tracker=tracker,
            on_iteration=on_iteration,
        )


def initial_images(
    data: ImageDataset, whitening: Whitening, config: DistillConfig, *, seed: int
) -> SyntheticParameters:
    """Where distillation starts: random training images of each class, or noise; whitened.
    Canvases begin laid with such images. Learned labels begin one-hot."""
    learns_labels = config.soft_labels or method_class(config.method).learns_labels
    soft = data.num_classes if learns_labels else None
    classes = torch.arange(data.num_classes).repeat_interleave(config.ipc)
    window, (tall, wide) = _canvas(data, config)
    if config.init == "real":
        each = config.ipc * math.prod(window.grid(tall, wide))
        chosen = coresets.select_coreset(
            "random", data, each, seed=derive(seed, "initial"), whitening=whitening
        )
        images = window.lay(chosen.images, tall, wide)
    else:
        shape = (len(classes), data.channels, tall, wide)
        images = torch.randn(shape, generator=stream(seed, "initial", "noise"))
    return SyntheticParameters.begin(images, classes, step_size=config.step_size, soft=soft)


def require_method(config: DistillConfig, *, experts: bool) -> None:
    """Refuse an unknown method, one that matches experts where there are none, and settings that
    are not the method's."""
    maker = method_class(config.method)
    if maker.needs_experts and not experts:
        raise SettingError(
            f"{config.method} matches experts; give --experts a library of `trajmatch experts`"
        )
    if config.texture and config.method != "mtt":
        raise SettingError(f"--texture is made by mtt, not {config.method}; leave one of them out")
    if config.init_labels == "experts":
        if not (config.soft_labels or maker.learns_labels):
            raise SettingError(
                "init_labels is experts and no labels are learned; add --soft-labels"
            )
        if not experts:
            raise SettingError(
                f"init_labels is experts and {config.method} has none; give --experts a library of "
                "`trajmatch experts`, or leave it out"
            )
        if config.texture:
            raise SettingError(
                "init_labels is experts, who see images and not canvases; leave it or --texture out"
            )


def _ground(
    data: ImageDataset,
    library: ExpertLibrary | None,
    network: NetworkConfig | None,
    whitening: str | None,
    device: torch.device,
) -> Problem:
    """What a method stands on: the experts' network and whitening, or those asked for."""
    if library is None:
        fitted = fit_whitening(whitening or "normalize", data.train)
        return Problem(data, network_for(data, network or NetworkConfig()), fitted, device)
    require_fit(library, data, network=network, whitening=whitening)
    require_experts(library)
    return Problem.of(data, library, device)


def require_texture(data: ImageDataset, config: DistillConfig, whitening: str | None) -> None:
    """Refuse whitening and canvases that no texture can be made with.

    whitening: its name; None: not known yet.
    """
    require_texture_whitening(config, whitening)
    if not config.texture:
        return
    window, (tall, wide) = _canvas(data, config)
    if tall < window.height or wide < window.width:
        raise SettingError(
            f"canvas is {config.canvas} and the images are {window.height}x{window.width} pixels; "
            f"use at least {max(window.height, window.width)}, or none for twice the image"
        )
    crops = config.ipc * math.prod(window.grid(tall, wide))
    counts = torch.bincount(data.train.labels, minlength=data.num_classes)
    fewest = int(counts.argmin())
    if crops > counts[fewest]:
        raise SettingError(
            f"{config.ipc} canvases of {tall}x{wide} are as large as {crops} images and class "
            f"'{data.classes[fewest]}' has {counts[fewest]} training images to begin from and to "
            "compare with; use a smaller --ipc or --canvas"
        )


def require_texture_whitening(config: DistillConfig, whitening: str | None) -> None:
    """The part of `require_texture` that needs no images."""
    if config.texture and whitening == "zca":
        raise SettingError(
            "whitening is 'zca', which is fitted to images of one size, and --texture learns "
            "larger canvases; match experts trained with --whitening normalize"
        )


def _canvas(data: ImageDataset, config: DistillConfig) -> tuple[CropSampler, tuple[int, int]]:
    """The window that a student sees through, and height and width of what it looks at: of plain
    images the window's own."""
    height, width = data.train.images.shape[2:]
    side = (height, width)
    if config.texture:
        side = (2 * height, 2 * width) if config.canvas is None else (config.canvas, config.canvas)
    return CropSampler(height, width, config.samples), side


def _origin(
    ground: Problem,
    config: DistillConfig,
    evaluation: EvaluateConfig,
    seed: int,
) -> dict[str, Any]:
    """All that determines a run's numbers. The number of iterations may grow; how often a
    checkpoint is written, and by how many workers sets are judged, changes nothing."""
    settings = to_dict(config)
    for free in ("iterations", "checkpoint_every", "texture", "canvas", "samples"):
        del settings[free]
    if config.texture:
        window, (tall, wide) = _canvas(ground.data, config)
        settings["ipc"] = f"{config.ipc} (canvases of {tall}x{wide}, {window.samples} crops a step)"
    judged = {f"evaluate.{k}": v for k, v in to_dict(evaluation).items() if k != "workers"}
    library = ground.library
    return {
        "seed": seed,
        "data": ground.data.fingerprint,
        "network": ground.spec.describe(),
        "whitening": ground.whitening.checksum,
        "experts": f"{len(library.experts)} of {library.digest}" if library else "none",
        **settings,
        **judged,
    }


def _quick(
    evaluation: EvaluateConfig, config: DistillConfig, first: SyntheticSet, spec: NetworkSpec
) -> EvaluateConfig:
    """How a set is judged on the way: by fewer networks, compiled if all of them together pay."""
    few = dataclasses.replace(evaluation, n=config.eval_networks)
    one = TrainingSet(first.images, first.labels)
    times = -(-config.iterations // config.eval_every)
    work = training_work(spec, few, [one]).times(times)
    return dataclasses.replace(few, compile="yes" if wanted(few.compile, work) else "no")
