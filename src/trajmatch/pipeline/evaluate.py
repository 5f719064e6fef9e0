"""What any small set is worth."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from trajmatch.config import (
    EvaluateConfig,
    NetworkConfig,
)
from trajmatch.data import ImageDataset
from trajmatch.data.augment import Augmentation
from trajmatch.errors import MismatchError, SettingError
from trajmatch.evaluation import Score
from trajmatch.evaluation.batch import BatchEvaluator, Entry, EvaluationBatch, Progress, split_of
from trajmatch.evaluation.evaluator import Evaluator, network_of
from trajmatch.evaluation.resume import EvaluationLog, require_own_folder
from trajmatch.experts import ExpertLibrary
from trajmatch.methods import coresets
from trajmatch.networks import NetworkSpec
from trajmatch.networks.base import height_width
from trajmatch.networks.spec import network_for
from trajmatch.pipeline.checks import shape_words, some_words
from trajmatch.pipeline.experts import full_data_score
from trajmatch.pipeline.select import select_coreset
from trajmatch.synthetic import SyntheticSet, load_distilled

QUICK_EPOCHS = 300
"""Epochs of the quick protocol."""


def evaluate(
    small: SyntheticSet | str | Path,
    data: ImageDataset,
    *,
    networks: Sequence[NetworkConfig | NetworkSpec] | None = None,
    config: EvaluateConfig = EvaluateConfig(),
    split: str = "test",
    seed: int = 0,
    device: str = "cpu",
    out: str | Path | None = None,
    on_score: Callable[[Score], None] | None = None,
    on_progress: Progress | None = None,
) -> list[Score]:
    """Train fresh networks on a small set alone and test them on `split` of `data`.

    networks: which; None takes the one the set was distilled with (the default ConvNet for a set
    that says nothing). One score each.
    out: a folder whose log.jsonl hears of every network that is done. A later call with the same
    set, data, settings and seed takes those up and trains the others; with a larger `config.n`,
    only what is added.

    With `config.lr` None, the set's own network is trained at the set's step size, and for any
    other network the best rate of `LR_GRID` is found on the validation images first, with networks
    of their own: at the cost of ten networks more. The protocol of such a score says so.

    Raises MismatchError when the images or classes of the set or of a network are not those of
    `data`; SettingError when a rate has to be chosen and there are no validation images, or `out`
    is another command's.
    """
    made = small if isinstance(small, SyntheticSet) else load_distilled(small)
    if made.classes != data.classes:
        raise MismatchError(
            f"the set has classes {some_words(made.classes)} and the data "
            f"{some_words(data.classes)}; give the --data the set was made from"
            + (f" ({made.info['data']['name']})" if "data" in made.info else "")
        )
    if split_of(data, split) is None:
        raise SettingError(f"unknown split '{split}'; use test or val")
    theirs = made.info.get("data", {}).get("fingerprint", data.fingerprint)
    if split == "val" and theirs != data.fingerprint:
        raise MismatchError(
            f"the set was made from data with fingerprint {theirs} and these have "
            f"{data.fingerprint}, so their validation images may be among those it was made from; "
            "give the same --data, --size and --val-fraction, or --split test"
        )
    if networks is None:
        networks = [network_of(made) or NetworkConfig()]
    specs = [_spec(made, data, n) for n in networks]
    if specs and tuple(made.images.shape[1:]) != tuple(data.train.images.shape[1:]):
        raise MismatchError(
            f"the set's images are {shape_words(made.images)} and the data's "
            f"{shape_words(data.train.images)} (channels x height x width); give the --size it was "
            "made with"
        )
    for spec in specs:
        _require_takes(spec, data)
    if config.augment not in (None, "none"):
        Augmentation(str(config.augment))  # a mistake in it is told now
    if out is not None:
        require_own_folder(Path(out), "evaluate")
    scores = []
    with contextlib.closing(EvaluationLog(None if out is None else Path(out))) as record:
        judge = Evaluator(
            made,
            data,
            config,
            record,
            split=split,
            seed=seed,
            device=device,
            on_progress=on_progress,
        )
        for spec in specs:
            if judge.chooses(spec) and data.val is None:
                raise SettingError(
                    f"a learning rate for {spec.describe()} is chosen on validation images, and "
                    "the data have none; use data.with_validation(0.1), or set one with --lr (lr=)"
                )
        for spec in specs:
            scores.append(judge.score(spec))
            if on_score is not None:
                on_score(scores[-1])
    return scores


def _require_takes(spec: NetworkSpec, data: ImageDataset) -> None:
    """Refuse a network for other images or classes than those of `data`."""
    asked = (spec.channels, *height_width(spec.size))
    if asked != tuple(data.train.images.shape[1:]):
        raise MismatchError(
            f"{spec.describe()} takes images of {'x'.join(map(str, asked))} and the data's are "
            f"{shape_words(data.train.images)} (channels x height x width); build it for "
            "those, or give a NetworkConfig"
        )
    if spec.classes != data.num_classes:
        raise MismatchError(
            f"{spec.describe()} tells {spec.classes} classes apart and the data have "
            f"{data.num_classes}; build it with classes={data.num_classes}"
        )


def _spec(
    made: SyntheticSet, data: ImageDataset, asked: NetworkConfig | NetworkSpec
) -> NetworkSpec:
    """A network of the name of the one the set was made with is that, but for options given."""
    if isinstance(asked, NetworkSpec):
        return asked
    own = network_of(made)
    if own and asked.network == own.name:
        return dataclasses.replace(own, options={**own.options, **asked.options()})
    return network_for(data, asked)


def compare_on_test(
    made: SyntheticSet,
    data: ImageDataset,
    library: ExpertLibrary | None,
    config: EvaluateConfig,
    *,
    seed: int,
    device: str,
    out: str | Path | None = None,
    say: Callable[[str], None] = lambda line: None,
    on_progress: Progress | None = None,
) -> list[Score]:
    """A made set, random and herding images of the same number, and the full data, on the test
    split, under one protocol. Without experts there are no features to herd by, and no networks
    trained on the full data.

    out: the run's folder, whose log.jsonl hears of every network that is done: a later call takes
    those up and trains the others.
    """
    spec = network_of(made)
    assert spec is not None
    chosen = [
        select_coreset(
            method, data, made.ipc, experts=library, whitening=made.whitening.name, seed=seed
        )
        for method in coresets.BASELINES
        if library is not None or coresets.CORESETS[method].looks_at == "nothing"
    ]
    where = torch.device(device)
    entries = [Entry.of(one, where) for one in (made, *chosen)]
    final = EvaluationBatch("score", "evaluation", spec, config, entries, "test", seed)
    with contextlib.closing(EvaluationLog(None if out is None else Path(out))) as record:
        rounds = BatchEvaluator(data, made.whitening, record, device=where, on_progress=on_progress)
        scores = rounds.scores(final, lambda score: say(f"{score.method}: {score}"))
    return scores if library is None else [*scores, full_data_score(library)]
