"""Chosen sets, and what any small set is worth."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from trajmatch import coresets
from trajmatch.config import (
    EvaluateConfig,
    NetworkConfig,
)
from trajmatch.data import ImageDataset
from trajmatch.data.whiten import fit_whitening
from trajmatch.errors import MismatchError, SettingError
from trajmatch.evaluation import Score, SmallSet, evaluate_images, evaluate_sets
from trajmatch.experts import ExpertLibrary
from trajmatch.networks import NetworkSpec
from trajmatch.pipeline.checks import (
    network_for,
    require_experts,
    require_fit,
    shape_words,
    some_words,
)
from trajmatch.pipeline.training import full_data_score
from trajmatch.synthetic import SyntheticSet
from trajmatch.types import Tensor

QUICK_EPOCHS = 300
"""Epochs of the quick protocol."""


def select_coreset(
    method: str,
    data: ImageDataset,
    ipc: int,
    *,
    experts: str | Path | ExpertLibrary | None = None,
    whitening: str | None = None,
    seed: int = 0,
) -> SyntheticSet:
    """`ipc` real training images per class, chosen by `method`: "random", "herding".

    experts: a library whose first expert gives the features that herding looks at (paper: features
    of a trained network), and whose whitening is used. Without it `whitening` is fitted.
    """
    library = None
    if experts is not None:
        library = (
            experts if isinstance(experts, ExpertLibrary) else ExpertLibrary.open(Path(experts))
        )
        require_fit(library, data, whitening=whitening)
    if method in coresets.NEEDS_FEATURES and library is None:
        raise SettingError(
            f"{method} looks at features of a trained network; give --experts a library"
        )
    fitted = library.whitening if library else fit_whitening(whitening or "normalize", data.train)
    features: Tensor | None = None
    if library is not None and method in coresets.NEEDS_FEATURES:
        require_experts(library)
        vector = library.segment(library.experts[0], 0, library.epochs)[1]
        features = coresets.embeddings(library.spec, vector, fitted.apply_split(data.train))
    return coresets.select_coreset(
        method, data, ipc, seed=seed, whitening=fitted, features=features
    )


def evaluate(
    small: SyntheticSet | str | Path,
    data: ImageDataset,
    *,
    networks: Sequence[NetworkConfig | NetworkSpec] | None = None,
    config: EvaluateConfig = EvaluateConfig(),
    split: str = "test",
    seed: int = 0,
    device: str = "cpu",
    on_score: Callable[[Score], None] | None = None,
) -> list[Score]:
    """Train fresh networks on a small set alone and test them on `split` of `data`.

    networks: which; None takes the one the set was distilled with (the default ConvNet for a set
    that says nothing). One score each.

    Raises MismatchError when the set's images or classes are not those of `data`.
    """
    made = small if isinstance(small, SyntheticSet) else SyntheticSet.load(Path(small))
    if made.classes != data.classes:
        raise MismatchError(
            f"the set has classes {some_words(made.classes)} and the data "
            f"{some_words(data.classes)}; give the --data the set was made from"
            + (f" ({made.info['data']['name']})" if "data" in made.info else "")
        )
    splits = {"train": data.train, "val": data.val, "test": data.test}
    if split not in splits or splits[split] is None:
        raise SettingError(f"unknown split '{split}'; use test or val")
    chosen = splits[split]
    assert chosen is not None
    theirs = made.info.get("data", {}).get("fingerprint", data.fingerprint)
    if split == "val" and theirs != data.fingerprint:
        raise MismatchError(
            f"the set was made from data with fingerprint {theirs} and these have "
            f"{data.fingerprint}, so their validation images may be among those it was made from; "
            "give the same --data, --size and --val-fraction, or --split test"
        )
    if networks is None:
        known = made.info.get("network")
        networks = [NetworkSpec.from_json(known)] if known else [NetworkConfig()]
    where = torch.device(device)
    specs = [_spec(made, data, n) for n in networks]
    if specs and tuple(made.images.shape[1:]) != tuple(data.train.images.shape[1:]):
        raise MismatchError(
            f"the set's images are {shape_words(made.images)} and the data's "
            f"{shape_words(data.train.images)} (channels x height x width); give the --size it was "
            "made with"
        )
    images = made.whitening.apply_split(chosen, where)
    scores = []
    for spec in specs:
        score = evaluate_images(
            made.images.to(where),
            made.labels.to(where),
            spec,
            config,
            images,
            chosen.labels.to(where),
            lr=made.step_size,
            seed=seed,
            method=str(made.info.get("method", "")),
            ipc=made.ipc,
            split=split,
            whitening=made.whitening.name,
            device=where,
        )
        scores.append(score)
        if on_score is not None:
            on_score(score)
    return scores


def _spec(
    made: SyntheticSet, data: ImageDataset, asked: NetworkConfig | NetworkSpec
) -> NetworkSpec:
    """A network asked for by name alone, where the set was made with one of that name, is that."""
    if isinstance(asked, NetworkSpec):
        return asked
    own = made.info.get("network")
    if own and asked == NetworkConfig(network=own["name"]):
        return NetworkSpec.from_json(own)
    return network_for(data, asked)


def compare_on_test(
    made: SyntheticSet,
    data: ImageDataset,
    library: ExpertLibrary,
    config: EvaluateConfig,
    *,
    seed: int,
    device: str,
    say: Callable[[str], None] = lambda line: None,
) -> list[Score]:
    """A made set, random and herding images of the same number, and the full data, on the test
    split, under one protocol."""
    chosen = [
        select_coreset(method, data, made.ipc, experts=library, seed=seed)
        for method in coresets.CORESETS
    ]
    sets = [
        SmallSet(one.images, one.labels, one.step_size, str(one.info["method"]), one.ipc)
        for one in (made, *chosen)
    ]
    scores = evaluate_sets(
        sets,
        library.spec,
        config,
        made.whitening.apply_split(data.test),
        data.test.labels,
        seed=seed,
        whitening=made.whitening.name,
        device=device,
        on_score=lambda score: say(f"{score.method}: {score}"),
    )
    return [*scores, full_data_score(library)]
