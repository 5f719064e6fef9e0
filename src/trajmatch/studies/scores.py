"""What a comparison measures of a set: its accuracy by labels and by augmentation, and the scores
of DD-Ranking that follow from them."""

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
from trajmatch.runtime.resources import Resources
from trajmatch.studies.study import Row, Subject
from trajmatch.synthetic import SyntheticSet


def set_scores(subject: Subject, networks: Sequence[NetworkConfig]) -> list[Row]:
    """The row of a set: its accuracy with class labels, and

    validated: its score on validation images, with its own labels
    scores: {"hard": with class labels, "soft": with the set's soft labels, or for real images with
        soft labels from experts (None for a distilled set without soft labels), "plain": without
        augmentation, and for real images "plain soft"}
    own: which labels the set has, "hard" or "soft"
    networks: the scores of others of `networks`, for the first seed, with the set's own labels.
    """
    distilled = subject.distilled
    hard = dataclasses.replace(distilled, labels=distilled.hard_labels)
    own, soft = "hard", None
    if distilled.is_soft:
        own, soft = "soft", distilled
    elif distilled.info.get("method") in CORESETS:
        soft = _labelled_by_experts(subject)
    scores = {
        "hard": _score(subject, hard),
        "soft": None if soft is None else _score(subject, soft),
        "plain": _score(subject, distilled, augment="none"),
    }
    if own == "hard" and soft is not None:
        scores["plain soft"] = _score(subject, soft, augment="none")
    first = subject.seed == subject.config.seed
    others = [_score(subject, distilled, network=one) for one in networks] if first else []
    values = {name: None if score is None else score.to_json() for name, score in scores.items()}
    assert scores["hard"] is not None
    row = scores["hard"].to_json()
    known = {"own": own, "scores": values, "networks": [one.to_json() for one in others]}
    return [{**row, **known, **validation_score(subject)[0]}]


def validation_score(subject: Subject) -> list[Row]:
    """A row of the set's score on validation images alone, with its own labels."""
    return [{"validated": _score(subject, subject.distilled, split="val").to_json()}]


def _score(
    subject: Subject,
    training_set: SyntheticSet,
    *,
    augment: str | None = None,
    network: NetworkConfig | NetworkSpec | None = None,
    split: str = "test",
) -> Score:
    config = subject.config.evaluate
    if augment is not None:
        config = dataclasses.replace(config, augment=augment)
    (score,) = pipeline.evaluate(
        training_set,
        subject.data,
        networks=[network or subject.library.spec],
        config=config,
        split=split,
        seed=subject.seed,
        resources=Resources(subject.device),
    )
    return score


def _labelled_by_experts(subject: Subject) -> SyntheticSet:
    """The same images with the mean probabilities of a few experts as labels."""
    device = torch.device(subject.device)
    problem = Problem.of(subject.data, subject.library, device)
    labels = problem.teacher_logits(subject.distilled.images.to(device)).softmax(1).cpu()
    return dataclasses.replace(subject.distilled, labels=labels)


def add_ranking(cells: list[Row], library: ExpertLibrary) -> None:
    """Give each cell `ranking`: DD-Ranking's scores {"lrs", "ars"} in percent. None for a cell
    without random images of the same seed and number, or without networks trained on all images."""
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
