"""Where distillation starts: real images, noise, or an existing set."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch

from trajmatch.config import DistillConfig
from trajmatch.data import ImageDataset
from trajmatch.data.whiten import Whitening
from trajmatch.methods import Method, SyntheticParameters, coresets, to_settings
from trajmatch.pipeline.checks import canvas_of, learned_of, starting_set
from trajmatch.rng import derive, stream
from trajmatch.synthetic import SyntheticSet, rewhiten

_LEAST = 1e-6
"""Probabilities of a soft label below this start from it: logits must be finite."""


def initial_parameters(
    data: ImageDataset,
    whitening: Whitening,
    method: Method,
    config: DistillConfig,
    *,
    seed: int,
    start: SyntheticSet | None = None,
) -> SyntheticParameters:
    """Where distillation starts: random training images of each class, noise, or the images of a
    set; whitened. Canvases begin as tilings of real images, or as a set's canvases. Learned labels
    begin one-hot, or as the set's.

    start: the set that `config.init` names, where it is read already.
    """
    start = start or starting_set(config, method, data)
    soft = data.num_classes if method.learns_labels else None
    if start is not None:
        return _of_set(rewhiten(start, whitening), method, data, soft)
    classes = torch.arange(data.num_classes).repeat_interleave(config.ipc)
    sampler, (tall, wide) = canvas_of(data, method)
    if config.init == "real":
        each = config.ipc * math.prod(sampler.grid(tall, wide))
        chosen = coresets.select_coreset(
            "random", data, each, seed=derive(seed, "initial"), whitening=whitening
        )
        images = sampler.tile(chosen.images, tall, wide)
    else:
        shape = (len(classes), data.channels, tall, wide)
        images = torch.randn(shape, generator=stream(seed, "initial", "noise"))
    return SyntheticParameters.begin(images, classes, step_size=method.first_step_size, soft=soft)


def recorded_settings(
    config: DistillConfig, method: Method, start: SyntheticSet | None
) -> dict[str, Any]:
    """The settings as sets and checkpoints record them: a set to start from by its fingerprint, as
    the folder is this machine's and its contents may change."""
    settings = to_settings(config, method)
    return settings if start is None else {**settings, "init": f"set {start.fingerprint}"}


def _of_set(
    start: SyntheticSet, method: Method, data: ImageDataset, soft: int | None
) -> SyntheticParameters:
    images = learned_of(start, method, data)
    assert images is not None
    labels = start.hard_labels[: len(images)]
    order = labels.argsort(stable=True)  # class by class, as from real images and noise
    parameters = SyntheticParameters.begin(
        images[order], labels[order], step_size=method.first_step_size, soft=soft
    )
    if soft is None or not start.is_soft:
        return parameters
    logits = start.labels[: len(images)][order].clamp(min=_LEAST).log()
    return dataclasses.replace(parameters, label_logits=logits)
