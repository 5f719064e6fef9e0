"""What a set is worth in a comparison: by the labels and the augmentation it is tested with."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence

import torch

from trajmatch import pipeline
from trajmatch.config import NetworkConfig
from trajmatch.evaluation import Score
from trajmatch.evaluation.ranking import augmentation_robust, label_robust
from trajmatch.experts import ExpertLibrary
from trajmatch.methods import Problem
from trajmatch.methods.coresets import CORESETS
from trajmatch.networks import NetworkSpec
from trajmatch.studies.study import Made, Row
from trajmatch.synthetic import SyntheticSet


def judged(made: Made, networks: Sequence[NetworkConfig]) -> list[Row]:
    """The row of a set: its accuracy with class labels, and

    scores: {"hard": with class labels, "soft": with the soft labels that it has, or for real images
        that experts give (None where there are none), "plain": without augmentation, and for real
        images "plain soft"}
    own: which labels the set has, "hard" or "soft"
    networks: the scores of others of `networks`, for the first seed, with the labels it has.
    """
    small = made.small
    hard = dataclasses.replace(small, labels=small.hard_labels)
    own, soft = "hard", None
    if small.is_soft:
        own, soft = "soft", small
    elif small.info.get("method") in CORESETS:
        soft = _labelled_by_experts(made)
    scores = {
        "hard": _score(made, hard),
        "soft": None if soft is None else _score(made, soft),
        "plain": _score(made, small, augment="none"),
    }
    if own == "hard" and soft is not None:
        scores["plain soft"] = _score(made, soft, augment="none")
    first = made.seed == made.config.seed
    others = [_score(made, small, network=one) for one in networks] if first else []
    told = {name: None if score is None else score.to_json() for name, score in scores.items()}
    assert scores["hard"] is not None
    row = scores["hard"].to_json()
    return [{**row, "own": own, "scores": told, "networks": [one.to_json() for one in others]}]


def _score(
    made: Made,
    small: SyntheticSet,
    *,
    augment: str | None = None,
    network: NetworkConfig | NetworkSpec | None = None,
) -> Score:
    config = made.config.evaluate
    if augment is not None:
        config = dataclasses.replace(config, augment=augment)
    (score,) = pipeline.evaluate(
        small,
        made.data,
        networks=[network or made.library.spec],
        config=config,
        seed=made.seed,
        device=made.device,
    )
    return score


def _labelled_by_experts(made: Made) -> SyntheticSet:
    """The same images with the mean opinion of a few experts, as labels of networks are."""
    device = torch.device(made.device)
    ground = Problem.of(made.data, made.library, device)
    labels = ground.teacher_logits(made.small.images.to(device)).softmax(1).cpu()
    return dataclasses.replace(made.small, labels=labels)


def ranked(cells: list[Row], library: ExpertLibrary) -> None:
    """Give each cell `ranking`: DD-Ranking's scores {"lrs", "ars"} in percent, None for a cell that
    has no random images of its seed and number beside it, or no networks trained on all images."""
    tests = [score for score in library.accuracy("test").values() if score is not None]
    full = statistics.fmean(tests) if tests else None
    random = {
        (cell["at"]["ipc"], cell["seed"]): cell["scores"]
        for cell in cells
        if cell["at"]["method"] == "random" and "scores" in cell
    }
    for cell in cells:
        if "scores" not in cell:
            continue
        beside = random.get((cell["at"]["ipc"], cell["seed"]))
        cell["ranking"] = None if beside is None or full is None else _ranking(cell, beside, full)


def _ranking(cell: Row, random: Row, full: float) -> Row:
    scores, kind = cell["scores"], cell["own"]
    own, plain = scores[kind]["mean"], scores["plain"]["mean"]
    beside = random[kind]["mean"]
    plain_beside = random["plain" if kind == "hard" else "plain soft"]["mean"]
    return {
        "lrs": label_robust(full=full, hard=scores["hard"]["mean"], own=own, random=beside),
        "ars": augmentation_robust(own=own, random=beside, plain=plain, plain_random=plain_beside),
    }
