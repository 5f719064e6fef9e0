"""The accuracy of networks trained to the end on all training images: the ceiling of any set."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

from trajmatch.config import EvaluateConfig
from trajmatch.data import ImageDataset
from trajmatch.data.whiten import fit_whitening
from trajmatch.evaluation import Score, TrainingSet
from trajmatch.evaluation.batch import BatchEvaluator, EvaluationBatch
from trajmatch.evaluation.train import augmentation_of
from trajmatch.experts import ExpertLibrary
from trajmatch.networks.spec import network_for
from trajmatch.pipeline.checks import require_fit, require_split
from trajmatch.pipeline.distill import Untrained
from trajmatch.pipeline.evaluate import log_in
from trajmatch.runtime.display import shown_or
from trajmatch.runtime.progress import Progress
from trajmatch.runtime.resources import Resources
from trajmatch.storage.results import CEILING

CEILING_EPOCHS, CEILING_STEPS = 50, 2000
"""Epochs and steps of SGD that a network is trained for at least where no number is given."""


def ceiling(
    data: ImageDataset,
    network: ExpertLibrary | Untrained = Untrained(),
    *,
    config: EvaluateConfig | None = None,
    split: str = "test",
    seed: int = 0,
    out: str | Path | None = None,
    resources: Resources = Resources(),
    progress: Progress | None = None,
) -> Score:
    """Train `config.n` fresh networks on all training images of `data` and test them on `split`.

    They are trained as those of `evaluate` are: SGD with momentum and a learning rate (0.01 unless
    given) that drops to a tenth at the middle. Experts are not such a ceiling: they are trained for
    the few epochs that distillation reads.

    network: the library or `Untrained` whose network and whitening are used.
    config: None takes `ceiling_config`; epochs of a given one are passes over all images.
    out: a folder of `evaluate`, whose log.jsonl receives the result of every network: a later call
        trains the others.

    Cost: n * epochs passes over the training images, forward and backward; at the defaults at
    least 50 epochs and 2,000 steps a network. The whitened images are held in memory.

    Raises MismatchError for a library of other data, SettingError for a split that is not there and
    where `out` belongs to another command.

    Examples:
        >>> data = trajmatch.load_data("digits")  # doctest: +SKIP
        >>> print(pipeline.ceiling(data))  # doctest: +SKIP
        98.4 +- 0.2 (n=5, ConvNet-D2 width 128 instance, normalized, DSA, 334 epochs)
    """
    if isinstance(network, ExpertLibrary):
        require_fit(network, data)
        spec, whitening = network.spec, network.whitening
    else:
        spec = network_for(data, network.network)
        whitening = fit_whitening(network.whitening, data.train)
    require_split(data, split)
    config = config or ceiling_config(EvaluateConfig(), len(data.train))
    augmentation_of(config)  # refuses an unknown strategy before anything is trained
    device = resources.torch_device
    everything = TrainingSet(
        images=whitening.apply_split(data.train, device),
        labels=data.train.labels.to(device),
        method=CEILING,
        fingerprint=f"all training images, {whitening.checksum}",
    )
    batch = EvaluationBatch("score", spec, config, [everything], split, seed)
    with log_in(out, "evaluate") as log, shown_or(progress) as observer:
        evaluator = BatchEvaluator(data, whitening, log, resources=resources, progress=observer)
        return evaluator.scores(batch)[0]


def ceiling_config(
    config: EvaluateConfig, images: int, epochs: int | None = None
) -> EvaluateConfig:
    """`config` for training on `images` images to the end: with `epochs`, or None: at least
    `CEILING_EPOCHS` and as many as make `CEILING_STEPS` steps.

    Examples:
        >>> [ceiling_config(EvaluateConfig(), images).epochs for images in (45_000, 1293, 36)]
        [50, 334, 2000]
    """
    steps = math.ceil(images / config.batch)
    enough = max(CEILING_EPOCHS, math.ceil(CEILING_STEPS / steps))
    return dataclasses.replace(config, epochs=enough if epochs is None else epochs)
