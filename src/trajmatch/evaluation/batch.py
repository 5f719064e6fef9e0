"""Rounds of fresh networks on small sets: none is trained that the record already knows."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from collections.abc import Callable, Sequence

import torch

from trajmatch.config import EvaluateConfig, to_dict
from trajmatch.data import ImageDataset
from trajmatch.data.dataset import Split
from trajmatch.data.whiten import Whitening
from trajmatch.evaluation import Score, Trained, TrainingSet, evaluate_sets
from trajmatch.evaluation.protocol import DEFAULT_LR
from trajmatch.evaluation.resume import EvaluationLog
from trajmatch.networks import NetworkSpec
from trajmatch.synthetic import SyntheticSet
from trajmatch.types import Int, Tensor

Progress = Callable[[str, int, int], None]
"""Called with (what is being trained, epochs done, epochs in all) of what was left to be done."""

log = logging.getLogger("trajmatch")

FREE = ("n", "lr", "workers", "compile")
"""Settings that do not determine what network i comes to: how many there are, by whom and how the
same numbers are computed. The rate is told apart from them."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """A small set in a round."""

    small: TrainingSet
    content: str
    """The set's fingerprint."""

    @classmethod
    def of(cls, made: SyntheticSet, device: torch.device) -> Entry:
        method = str(made.info.get("method", ""))
        images, labels = made.images.to(device), made.labels.to(device)
        return cls(TrainingSet(images, labels, made.step_size, method, made.ipc), made.fingerprint)


@dataclasses.dataclass(frozen=True)
class EvaluationBatch:
    """Networks of one kind, `config.n` for each entry, tested on one split."""

    event: str
    """What its scores are called in the log: score or trial."""
    title: str
    """What it is called while it goes on."""
    spec: NetworkSpec
    config: EvaluateConfig
    entries: Sequence[Entry]
    split: str
    seed: int

    @property
    def sets(self) -> list[TrainingSet]:
        return [entry.small for entry in self.entries]

    def rate(self, entry: Entry) -> float:
        return self.config.lr or entry.small.lr or DEFAULT_LR


class BatchEvaluator:
    """The images that networks are tested on, whitened as the sets are, and the record of those."""

    def __init__(
        self,
        data: ImageDataset,
        whitening: Whitening,
        record: EvaluationLog,
        *,
        device: torch.device,
        on_progress: Progress | None = None,
    ) -> None:
        self._data, self._whitening, self._record = data, whitening, record
        self._device, self._on_progress = device, on_progress
        self._seen: dict[str, tuple[Tensor, Int[Tensor, "tests"]]] = {}

    def scores(
        self, part: EvaluationBatch, on_score: Callable[[Score], None] | None = None
    ) -> list[Score]:
        """Of each entry of a round. `on_score` hears of each as soon as it is known."""
        model, of = part.spec.describe(), [self._determined_by(part, one) for one in part.entries]
        known = {
            (k, i): result
            for k, key in enumerate(of)
            for i, result in self._record.networks(key).items()
            if i < part.config.n
        }
        left = (len(of) * part.config.n - len(known)) * part.config.epochs
        done = 0

        def on_epochs(more: int) -> None:
            nonlocal done
            done += more
            if self._on_progress is not None:
                self._on_progress(part.title, done, left)

        def on_network(k: int, number: int, result: Trained) -> None:
            entry = part.entries[k]
            about = {"model": model, "lr": part.rate(entry), "split": part.split}
            self._record.network(of[k], number, result, method=entry.small.method, **about)

        if not left and part.event == "score":
            log.info(f"{part.title}: found in {self._record.path or 'this evaluation'}")
        images, labels = self._images(part.split)
        scores = evaluate_sets(
            part.sets,
            part.spec,
            part.config,
            images,
            labels,
            seed=part.seed,
            split=part.split,
            whitening=self._whitening.name,
            device=self._device,
            known=known,
            on_score=on_score,
            on_network=on_network,
            on_epochs=on_epochs,
        )
        for key, score in zip(of, scores, strict=True):
            self._record.score(part.event, key, score)
        return scores

    def _images(self, split: str) -> tuple[Tensor, Int[Tensor, "tests"]]:
        """Whitened images of a split, and their labels."""
        if split not in self._seen:
            chosen = split_of(self._data, split)
            assert chosen is not None
            images = self._whitening.apply_split(chosen, self._device)
            self._seen[split] = images, chosen.labels.to(self._device)
        return self._seen[split]

    def _determined_by(self, part: EvaluationBatch, entry: Entry) -> str:
        """A digest of all that determines what a round's networks on one entry come to."""
        settings = {k: v for k, v in to_dict(part.config).items() if k not in FREE}
        images = [entry.content, self._data.fingerprint, part.split]
        text = json.dumps([images, part.spec.to_json(), settings, part.rate(entry), part.seed])
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def split_of(data: ImageDataset, name: str) -> Split | None:
    """The images called train, val or test; None where there are none of that name."""
    return {"train": data.train, "val": data.val, "test": data.test}.get(name)
