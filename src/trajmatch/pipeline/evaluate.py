"""The accuracy of fresh networks trained on a distilled set, on real images."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from trajmatch.config import EvaluateConfig, NetworkConfig
from trajmatch.data import ImageDataset
from trajmatch.errors import MismatchError, SettingError
from trajmatch.evaluation import Score, TrainingSet
from trajmatch.evaluation.batch import BatchEvaluator, EvaluationBatch
from trajmatch.evaluation.evaluator import Evaluator, network_of
from trajmatch.evaluation.resume import EvaluationLog
from trajmatch.evaluation.train import augmentation_of
from trajmatch.experts import ExpertLibrary
from trajmatch.methods import coresets
from trajmatch.networks import NetworkSpec
from trajmatch.networks.base import height_width
from trajmatch.networks.spec import network_for
from trajmatch.pipeline.checks import (
    baselines_left_out,
    require_split,
    shape_words,
    some_words,
)
from trajmatch.pipeline.distill import Untrained
from trajmatch.pipeline.experts import experts_score
from trajmatch.pipeline.memory_needs import evaluation_needs
from trajmatch.pipeline.select import select_coreset
from trajmatch.runtime.display import shown_or
from trajmatch.runtime.memory import require_memory
from trajmatch.runtime.progress import Progress
from trajmatch.runtime.resources import Resources
from trajmatch.storage.folder import claim
from trajmatch.synthetic import SyntheticSet, load_distilled

QUICK_EPOCHS = 300
"""Epochs of the quick protocol."""


def evaluate(
    distilled: SyntheticSet | str | Path,
    data: ImageDataset,
    *,
    networks: Sequence[NetworkConfig | NetworkSpec] | None = None,
    config: EvaluateConfig = EvaluateConfig(),
    split: str = "test",
    seed: int = 0,
    out: str | Path | None = None,
    resources: Resources = Resources(),
    progress: Progress | None = None,
) -> list[Score]:
    """Train fresh networks on a distilled set alone and test them on `split` of `data`.

    networks: one score each; None takes the network the set was distilled with (the default ConvNet
    where the set does not record one).
    out: a folder whose log.jsonl receives the result of every network. A later call with the same
    set, data, settings and seed uses these and trains the others; with a larger `config.n`, only
    the additional ones.

    With `config.lr` None, the set's own network is trained at the set's step size. For any other
    network the best rate of `LR_GRID` is selected on the validation images first, with networks of
    their own, at the cost of ten more networks; the protocol of such a score says so.

    Raises MismatchError when the images or classes of the set or of a network are not those of
    `data`; SettingError when a rate has to be selected and there are no validation images, or `out`
    belongs to another command.

    Examples:
        >>> import trajmatch
        >>> score, = trajmatch.evaluate("runs/ipc1/best", data)  # doctest: +SKIP
        >>> print(score)  # doctest: +SKIP
        71.9 +- 1.5 (n=5, ConvNet-D2 width 32 instance, normalized, DSA, 1000 epochs)
    """
    if not isinstance(distilled, SyntheticSet):
        distilled = load_distilled(distilled)
    _require_split(distilled, data, split)
    specs = networks_for(distilled, data, networks)
    _require_startable(specs, data, len(distilled), config, resources)
    with log_in(out, "evaluate") as log, shown_or(progress) as observer:
        evaluator = Evaluator(
            distilled,
            data,
            config,
            log,
            split=split,
            seed=seed,
            resources=resources,
            progress=observer,
        )
        for spec in specs:
            if evaluator.selects_rate(spec) and data.val is None:
                raise SettingError(
                    f"a learning rate for {spec.describe()} is chosen on validation images, and "
                    "the data have none; use data.with_validation(0.1), or give one with --lr"
                )
        return [evaluator.score(spec) for spec in specs]


@contextlib.contextmanager
def log_in(
    out: str | Path | None, command: str, *, also: Sequence[str] = ()
) -> Iterator[EvaluationLog]:
    """The log of the folder `out`, which is claimed as by `storage.folder.claim`; one in memory
    where that is None."""
    folder = None if out is None else Path(out)
    with contextlib.ExitStack() as stack:
        if folder is not None:
            stack.enter_context(claim(folder, command, also=also))
        yield stack.enter_context(contextlib.closing(EvaluationLog(folder)))


def _require_split(distilled: SyntheticSet, data: ImageDataset, split: str) -> None:
    """Refuse data of other classes, an unknown split, and validation images that the set may have
    been made from."""
    if distilled.classes != data.classes:
        raise MismatchError(
            f"the set has classes {some_words(distilled.classes)} and the data "
            f"{some_words(data.classes)}; give the --data the set was made from"
            + (f" ({distilled.info['data']['name']})" if "data" in distilled.info else "")
        )
    require_split(data, split)
    recorded = distilled.info.get("data", {}).get("fingerprint", data.fingerprint)
    if split == "val" and recorded != data.fingerprint:
        raise MismatchError(
            f"the set was made from data with fingerprint {recorded} and these have "
            f"{data.fingerprint}, so their validation images may be among those it was made from; "
            "give the same --data, --size and --val-fraction, or --split=test"
        )


def networks_for(
    distilled: SyntheticSet,
    data: ImageDataset,
    networks: Sequence[NetworkConfig | NetworkSpec] | None = None,
) -> list[NetworkSpec]:
    """The networks that `evaluate` trains; None: the one the set was distilled with.

    Raises MismatchError where they or the set do not fit the images of `data`.

    Examples:
        >>> networks_for(load_distilled("cifar10-ipc1"), data)  # doctest: +SKIP
    """
    if networks is None:
        networks = [network_of(distilled) or NetworkConfig()]
    specs = [_spec(distilled, data, network) for network in networks]
    if specs and tuple(distilled.images.shape[1:]) != tuple(data.train.images.shape[1:]):
        raise MismatchError(
            f"the set's images are {shape_words(distilled.images)} and the data's "
            f"{shape_words(data.train.images)} (channels x height x width); give the --size it was "
            "made with"
        )
    for spec in specs:
        _require_fit(spec, data)
    return specs


def _require_startable(
    specs: Sequence[NetworkSpec],
    data: ImageDataset,
    count: int,
    config: EvaluateConfig,
    resources: Resources,
) -> None:
    """Refuse, before anything is trained, an unknown augmentation and a network that cannot be
    trained on `count` images in the memory that is free."""
    augmentation_of(config)
    for spec in specs:
        needs = evaluation_needs(spec, len(data.test), count, config, resources)
        require_memory(needs, resources.torch_device)


def _require_fit(spec: NetworkSpec, data: ImageDataset) -> None:
    """Refuse a network for other images or classes than those of `data`."""
    taken = (spec.channels, *height_width(spec.size))
    if taken != tuple(data.train.images.shape[1:]):
        raise MismatchError(
            f"{spec.describe()} takes images of {'x'.join(map(str, taken))} and the data's are "
            f"{shape_words(data.train.images)} (channels x height x width); build it for "
            "those, or give a NetworkConfig"
        )
    if spec.classes != data.num_classes:
        raise MismatchError(
            f"{spec.describe()} is for {spec.classes} classes and the data have "
            f"{data.num_classes}; build it with classes={data.num_classes}"
        )


def _spec(
    distilled: SyntheticSet, data: ImageDataset, network: NetworkConfig | NetworkSpec
) -> NetworkSpec:
    """A config that names the set's own network gives that network, with the config's options."""
    if isinstance(network, NetworkSpec):
        return network
    own = network_of(distilled)
    if own and network.network == own.name:
        return dataclasses.replace(own, options={**own.options, **network.options()})
    return network_for(data, network)


def compare_on_test(
    distilled: SyntheticSet,
    data: ImageDataset,
    library: ExpertLibrary | None,
    config: EvaluateConfig,
    *,
    seed: int,
    out: str | Path | None = None,
    resources: Resources = Resources(),
    progress: Progress | None = None,
) -> list[Score]:
    """Test accuracy of a distilled set, and of random and herding images of the same number, under
    one protocol; and that of the experts.

    Without experts there are no networks trained on the full data. What is left out beside, and
    why, is in `checks.baselines_left_out`. Each score is a message of `progress` as soon as it is
    known.

    out: the run's folder, whose log.jsonl receives the result of every network: a later call uses
    these and trains the others.
    """
    left_out = baselines_left_out(data, distilled.ipc, experts=library is not None)
    baselines = [
        select_coreset(
            name,
            data,
            distilled.ipc,
            library or Untrained(whitening=distilled.whitening),
            seed=seed,
        )
        for name in coresets.BASELINES
        if name not in left_out
    ]
    scores = _scores_of(
        [distilled, *baselines],
        data,
        config,
        "test",
        seed=seed,
        out=out,
        resources=resources,
        progress=progress,
    )
    return scores if library is None else [*scores, experts_score(library, data)]


def final_scores(
    distilled: SyntheticSet,
    data: ImageDataset,
    library: ExpertLibrary | None,
    config: EvaluateConfig,
    *,
    test: bool = True,
    seed: int,
    out: str | Path | None = None,
    **options: Any,
) -> list[Score]:
    """The scores at the end of a run: `compare_on_test`, or without `test` that of the set on
    validation images alone, for which no test image is looked at.

    options: `resources` and `progress`, as for `compare_on_test`.
    """
    if test:
        return compare_on_test(distilled, data, library, config, seed=seed, out=out, **options)
    return _scores_of([distilled], data, config, "val", seed=seed, out=out, **options)


def _scores_of(
    sets: Sequence[SyntheticSet],
    data: ImageDataset,
    config: EvaluateConfig,
    split: str,
    *,
    seed: int,
    out: str | Path | None,
    resources: Resources = Resources(),
    progress: Progress | None = None,
) -> list[Score]:
    """Of sets of one whitening, on the network of the first; with every network's result in the log
    of `out`."""
    spec = network_of(sets[0])
    assert spec is not None
    on_device = [TrainingSet.of(each, resources.torch_device) for each in sets]
    batch = EvaluationBatch("score", spec, config, on_device, split, seed)
    with log_in(out, "distill", also=["run"]) as log, shown_or(progress) as observer:
        evaluator = BatchEvaluator(
            data, sets[0].whitening, log, resources=resources, progress=observer
        )
        return evaluator.scores(batch)
