"""Evaluation batches: networks of one kind on several sets, without repeating what is in a log."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from typing import Any, Literal

from trajmatch.config import EvaluateConfig, determining, to_dict
from trajmatch.data import ImageDataset
from trajmatch.data.dataset import Split
from trajmatch.data.whiten import Whitening
from trajmatch.evaluation.protocol import evaluate_sets
from trajmatch.evaluation.resume import EvaluationLog, LoggedResults
from trajmatch.evaluation.training_set import TestSet, TrainingSet
from trajmatch.networks import NetworkSpec
from trajmatch.runtime.progress import SILENT, Progress
from trajmatch.runtime.resources import Resources
from trajmatch.storage.results import CEILING, Score

NEUTRAL_SETTINGS = ("n", "lr", "workers", "compile")
"""Settings that are not part of a log key: they do not change the result of network i (its learning
rate enters the key by its value, wherever it came from)."""


@dataclasses.dataclass(frozen=True)
class EvaluationBatch:
    """`config.n` networks of one kind for each of some sets, tested on one split."""

    event: Literal["score", "trial"]
    """The event of its scores in the log: trial while a learning rate is selected."""
    spec: NetworkSpec
    config: EvaluateConfig
    sets: Sequence[TrainingSet]
    split: str
    seed: int


class BatchEvaluator:
    """Evaluates batches on one data set, whitened as the sets are, with results kept in a log."""

    def __init__(
        self,
        data: ImageDataset,
        whitening: Whitening,
        log: EvaluationLog,
        *,
        resources: Resources = Resources(),
        progress: Progress = SILENT,
    ) -> None:
        self._data, self._whitening, self._log = data, whitening, log
        self._resources, self.progress = resources, progress
        self._tests: dict[str, TestSet] = {}

    def scores(self, batch: EvaluationBatch) -> list[Score]:
        """One score per set. Networks whose results are in the log are not trained again.

        Progress: the task is "evaluation", or "learning rate" in a batch of trials; each score is
        an event named `batch.event`; final ones also a message.
        """
        keys = [self._key(batch, training_set) for training_set in batch.sets]
        model = batch.spec.describe()
        about = [
            {
                "method": each.method,
                "model": model,
                "lr": each.learning_rate(batch.config),
                "split": batch.split,
            }
            for each in batch.sets
        ]
        results = LoggedResults(self._log, keys, batch.config.n, about)
        if len(results) == len(keys) * batch.config.n and batch.event == "score":
            self.progress.message(f"{model}: found in {self._log.path or 'this evaluation'}")
        scores = evaluate_sets(
            batch.sets,
            batch.spec,
            batch.config,
            self._test_set(batch.split),
            seed=batch.seed,
            resources=self._resources,
            results=results,
            progress=_BatchProgress(batch, self.progress),
        )
        for key, score in zip(keys, scores, strict=True):
            self._log.add_score(batch.event, key, score)
        return scores

    def _test_set(self, split: str) -> TestSet:
        """The whitened images of a split, made once."""
        if split not in self._tests:
            images = split_of(self._data, split)
            assert images is not None
            device = self._resources.torch_device
            self._tests[split] = TestSet(
                self._whitening.apply_split(images, device),
                images.labels.to(device),
                split,
                self._whitening.name,
            )
        return self._tests[split]

    def _key(self, batch: EvaluationBatch, training_set: TrainingSet) -> str:
        """A digest of all that determines the results of a batch's networks on one set."""
        settings = {k: v for k, v in to_dict(batch.config).items() if k not in NEUTRAL_SETTINGS}
        images = [training_set.fingerprint, self._data.fingerprint, batch.split]
        rate = training_set.learning_rate(batch.config)
        text = json.dumps([images, batch.spec.to_json(), determining(settings), rate, batch.seed])
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


class _BatchProgress:
    """Names the task and the scores after the batch."""

    def __init__(self, batch: EvaluationBatch, progress: Progress) -> None:
        self._batch, self._progress = batch, progress

    def update(self, task: str, done: int, total: int, **values: Any) -> None:
        task = task if self._batch.event == "score" else "learning rate"
        self._progress.update(task, done, total, **values)

    def message(self, text: str) -> None:
        self._progress.message(text)

    def event(self, name: str, **values: Any) -> None:
        if name != "score":
            self._progress.event(name, **values)
            return
        self._progress.event(self._batch.event, **values)
        if self._batch.event == "score":
            score = Score.from_json(values)
            # Sets side by side differ in their methods; a set by itself is tried on networks.
            model = f"{score.model}, {score.label}" if score.method == CEILING else score.model
            self.message(f"{score.method if len(self._batch.sets) > 1 else model}: {score}")


def split_of(data: ImageDataset, name: str) -> Split | None:
    """The images called train, val or test; None where there are none of that name."""
    return {"train": data.train, "val": data.val, "test": data.test}.get(name)
