"""One small set on its way through networks: at which learning rate, and what they score."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from collections.abc import Callable, Sequence

import torch

from trajmatch.compiling import Work, wanted
from trajmatch.config import Compile, EvaluateConfig, NetworkConfig, to_dict
from trajmatch.data import ImageDataset
from trajmatch.data.dataset import Split
from trajmatch.evaluation import Score, SmallSet, Trained, evaluate_sets, training_work
from trajmatch.evaluation.learning_rate import (
    LR_GRID,
    LR_ORIGIN,
    best_rate,
    trial_config,
    trial_sets,
)
from trajmatch.evaluation.protocol import DEFAULT_LR
from trajmatch.networks import NetworkSpec
from trajmatch.pipeline.checks import network_for
from trajmatch.pipeline.record import Record
from trajmatch.rng import derive
from trajmatch.synthetic import SyntheticSet
from trajmatch.types import Int, Tensor

Progress = Callable[[str, int, int], None]
"""Called with (what is being trained, epochs done, epochs in all) of what was left to be done."""

log = logging.getLogger("trajmatch")

_FREE = ("n", "lr", "workers", "compile")
"""Settings that do not determine what network i comes to: how many there are, by whom and how the
same numbers are computed. The rate is told apart from them."""


@dataclasses.dataclass(frozen=True)
class _Round:
    """Networks of one kind, `config.n` for each of `sets`, tested on one split."""

    event: str
    """What its scores are called in the log: score or trial."""
    spec: NetworkSpec
    config: EvaluateConfig
    sets: Sequence[SmallSet]
    split: str
    seed: int


class Judge:
    """A set, the images that networks trained on it are tested on, and what they came to."""

    def __init__(
        self,
        made: SyntheticSet,
        data: ImageDataset,
        config: EvaluateConfig,
        record: Record,
        *,
        split: str,
        seed: int,
        device: str,
        on_progress: Progress | None = None,
    ) -> None:
        self._made, self._data, self._config, self._record = made, data, config, record
        self._split, self._seed, self._device = split, seed, torch.device(device)
        self._on_progress = on_progress
        self._own = own_network(made) or network_for(data, NetworkConfig())
        self._content = made.fingerprint
        self._seen: dict[str, tuple[Tensor, Int[Tensor, "tests"]]] = {}
        self._small = SmallSet(
            made.images.to(self._device),
            made.labels.to(self._device),
            made.step_size,
            str(made.info.get("method", "")),
            made.ipc,
        )

    def chooses(self, spec: NetworkSpec) -> bool:
        """Whether the rate for `spec` has to be found.

        A step size fits the network it was learned with. A set without one takes the field's 0.01,
        which is meant for networks of the kind sets are made with, of any width and depth.
        """
        if self._config.lr is not None or spec == self._own:
            return False
        return self._made.step_size is not None or spec.name != self._own.name

    def score(self, spec: NetworkSpec) -> Score:
        """Fresh networks on the set alone; those that the record holds are not trained again."""
        small, seed = self._small, derive(self._seed, "choose lr")
        final = _Round("score", spec, self._config, [small], self._split, self._seed)
        if not self.chooses(spec):
            return self._judge(final)[0]
        trial = _Round("trial", spec, trial_config(self._config), trial_sets(small), "val", seed)
        # Decided once for both, by all of the work: a continued evaluation decides alike.
        parts = [training_work(spec, part.config, part.sets) for part in (trial, final)]
        work = Work(sum(part.calls for part in parts), sum(part.flop for part in parts))
        compile: Compile = "yes" if wanted(self._config.compile, work) else "no"
        trial, final = (
            dataclasses.replace(part, config=dataclasses.replace(part.config, compile=compile))
            for part in (trial, final)
        )
        lr = best_rate(self._judge(trial))
        if lr in (LR_GRID[0], LR_GRID[-1]):
            which = "smallest" if lr == LR_GRID[0] else "largest"
            log.info(f"{spec.describe()}: lr {lr:g} is the {which} tried; --lr sets another")
        chosen = dataclasses.replace(small, lr=lr, lr_origin=LR_ORIGIN)
        return self._judge(dataclasses.replace(final, sets=[chosen]))[0]

    def _judge(self, part: _Round) -> list[Score]:
        """The score of each set of a round."""
        model, of = part.spec.describe(), [self._determined_by(part, one) for one in part.sets]
        known = {
            (k, i): result
            for k, key in enumerate(of)
            for i, result in self._record.networks(key).items()
            if i < part.config.n
        }
        left = (len(part.sets) * part.config.n - len(known)) * part.config.epochs
        what = f"{model}, learning rate" if part.event == "trial" else model
        done = 0

        def on_epochs(more: int) -> None:
            nonlocal done
            done += more
            if self._on_progress is not None:
                self._on_progress(what, done, left)

        def on_network(k: int, number: int, result: Trained) -> None:
            about = {"model": model, "lr": _rate(part, part.sets[k]), "split": part.split}
            self._record.network(of[k], number, result, **about)

        if not left and part.event == "score":
            log.info(f"{what}: found in {self._record.path or 'this evaluation'}")
        images, labels = self._images(part.split)
        scores = evaluate_sets(
            part.sets,
            part.spec,
            part.config,
            images,
            labels,
            seed=part.seed,
            split=part.split,
            whitening=self._made.whitening.name,
            device=self._device,
            known=known,
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
            images = self._made.whitening.apply_split(chosen, self._device)
            self._seen[split] = images, chosen.labels.to(self._device)
        return self._seen[split]

    def _determined_by(self, part: _Round, one: SmallSet) -> str:
        """A digest of all that determines what a round's networks on one set come to."""
        settings = {k: v for k, v in to_dict(part.config).items() if k not in _FREE}
        images = [self._content, self._data.fingerprint, part.split]
        text = json.dumps([images, part.spec.to_json(), settings, _rate(part, one), part.seed])
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def own_network(made: SyntheticSet) -> NetworkSpec | None:
    """The network a set was made with; None for a set that says nothing of one."""
    known = made.info.get("network")
    return NetworkSpec.from_json(known) if known else None


def split_of(data: ImageDataset, name: str) -> Split | None:
    """The images called train, val or test; None where there are none of that name."""
    return {"train": data.train, "val": data.val, "test": data.test}.get(name)


def _rate(part: _Round, one: SmallSet) -> float:
    return part.config.lr or one.lr or DEFAULT_LR
