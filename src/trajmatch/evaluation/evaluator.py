"""One small set on its way through networks: at which learning rate, and what they score."""

from __future__ import annotations

import dataclasses
import logging

import torch

from trajmatch.config import Compile, EvaluateConfig, NetworkConfig
from trajmatch.data import ImageDataset
from trajmatch.evaluation import Score, training_work
from trajmatch.evaluation.batch import BatchEvaluator, Entry, EvaluationBatch, Progress
from trajmatch.evaluation.learning_rate import (
    LR_GRID,
    LR_ORIGIN,
    best_rate,
    trial_config,
    trial_sets,
)
from trajmatch.evaluation.resume import EvaluationLog
from trajmatch.networks import NetworkSpec
from trajmatch.networks.spec import network_for
from trajmatch.rng import derive
from trajmatch.runtime.compiling import Work, wanted
from trajmatch.synthetic import SyntheticSet

log = logging.getLogger("trajmatch")


class Evaluator:
    """A set, and what networks that are trained on it alone come to."""

    def __init__(
        self,
        made: SyntheticSet,
        data: ImageDataset,
        config: EvaluateConfig,
        record: EvaluationLog,
        *,
        split: str,
        seed: int,
        device: str,
        on_progress: Progress | None = None,
    ) -> None:
        self._made, self._config, self._split, self._seed = made, config, split, seed
        self._own = network_of(made) or network_for(data, NetworkConfig())
        where = torch.device(device)
        self._entry = Entry.of(made, where)
        self._rounds = BatchEvaluator(
            data, made.whitening, record, device=where, on_progress=on_progress
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
        entry, model = self._entry, spec.describe()
        final = EvaluationBatch(
            "score", model, spec, self._config, [entry], self._split, self._seed
        )
        if not self.chooses(spec):
            return self._rounds.scores(final)[0]
        seed = derive(self._seed, "choose lr")
        tried = [dataclasses.replace(entry, small=one) for one in trial_sets(entry.small)]
        quick = trial_config(self._config)
        trial = EvaluationBatch("trial", f"{model}, learning rate", spec, quick, tried, "val", seed)
        # Decided once for both, by all of the work: a continued evaluation decides alike.
        parts = [training_work(spec, part.config, part.sets) for part in (trial, final)]
        work = Work(sum(part.calls for part in parts), sum(part.flop for part in parts))
        compile: Compile = "yes" if wanted(self._config.compile, work) else "no"
        trial, final = (
            dataclasses.replace(part, config=dataclasses.replace(part.config, compile=compile))
            for part in (trial, final)
        )
        lr = best_rate(self._rounds.scores(trial))
        if lr in (LR_GRID[0], LR_GRID[-1]):
            which = "smallest" if lr == LR_GRID[0] else "largest"
            log.info(f"{model}: lr {lr:g} is the {which} tried; --lr sets another")
        small = dataclasses.replace(entry.small, lr=lr, lr_origin=LR_ORIGIN)
        chosen = dataclasses.replace(entry, small=small)
        return self._rounds.scores(dataclasses.replace(final, entries=[chosen]))[0]


def network_of(made: SyntheticSet) -> NetworkSpec | None:
    """The network a set was made with; None for a set that says nothing of one."""
    known = made.info.get("network")
    return NetworkSpec.from_json(known) if known else None
