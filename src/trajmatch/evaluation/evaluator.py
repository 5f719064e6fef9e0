"""The evaluation of one set on networks, including those it was not made with."""

from __future__ import annotations

import dataclasses

from trajmatch.config import Compile, EvaluateConfig, NetworkConfig
from trajmatch.data import ImageDataset
from trajmatch.evaluation.batch import BatchEvaluator, EvaluationBatch
from trajmatch.evaluation.learning_rate import (
    LR_ORIGIN,
    best_rate,
    end_of_grid,
    selection_config,
    sets_over_rates,
)
from trajmatch.evaluation.protocol import training_work
from trajmatch.evaluation.resume import EvaluationLog
from trajmatch.evaluation.training_set import TrainingSet
from trajmatch.networks import NetworkSpec
from trajmatch.networks.spec import network_for
from trajmatch.rng import derive
from trajmatch.runtime.compiling import Work, wanted
from trajmatch.runtime.progress import SILENT, Progress
from trajmatch.runtime.resources import Resources
from trajmatch.storage.results import Score
from trajmatch.synthetic import SyntheticSet


class Evaluator:
    """Trains fresh networks on one set and tests them; selects learning rates where needed."""

    def __init__(
        self,
        distilled: SyntheticSet,
        data: ImageDataset,
        config: EvaluateConfig,
        log: EvaluationLog,
        *,
        split: str = "test",
        seed: int = 0,
        resources: Resources = Resources(),
        progress: Progress = SILENT,
    ) -> None:
        self._config, self._split, self._seed = config, split, seed
        self._own_network = network_of(distilled) or network_for(data, NetworkConfig())
        self._training_set = TrainingSet.of(distilled, resources.torch_device)
        self._batches = BatchEvaluator(
            data, distilled.whitening, log, resources=resources, progress=progress
        )

    def selects_rate(self, spec: NetworkSpec) -> bool:
        """Whether the learning rate for `spec` has to be selected on validation images.

        A learned step size fits the network it was learned with. A set without one takes the
        field's 0.01, which is meant for ConvNets of any width and depth, so for networks of the
        same name as the set's own.
        """
        if self._config.lr is not None or spec == self._own_network:
            return False
        return self._training_set.lr is not None or spec.name != self._own_network.name

    def score(self, spec: NetworkSpec) -> Score:
        """The score of `config.n` networks. Raises what `evaluate_sets` raises.

        Cost: those networks that are not in the log, and where the rate is selected ten more.
        """
        final = EvaluationBatch(
            "score", spec, self._config, [self._training_set], self._split, self._seed
        )
        if not self.selects_rate(spec):
            return self._batches.scores(final)[0]
        trials = EvaluationBatch(
            "trial",
            spec,
            selection_config(self._config),
            sets_over_rates(self._training_set),
            "val",
            derive(self._seed, "choose lr"),
        )
        trials, final = _compiled_alike(trials, final)
        lr = best_rate(self._batches.scores(trials))
        if hint := end_of_grid(lr):
            self._batches.progress.message(f"{spec.describe()}: {hint}")
        selected = dataclasses.replace(self._training_set, lr=lr, lr_origin=LR_ORIGIN)
        return self._batches.scores(dataclasses.replace(final, sets=[selected]))[0]


def _compiled_alike(
    trials: EvaluationBatch, final: EvaluationBatch
) -> tuple[EvaluationBatch, EvaluationBatch]:
    """Both compiled or neither. Decided by the work of both, whatever of it is done already: a
    resumed evaluation decides as the interrupted one did."""
    works = [training_work(each.spec, each.config, each.sets) for each in (trials, final)]
    work = Work(sum(each.calls for each in works), sum(each.flop for each in works))
    compile: Compile = "yes" if wanted(final.config.compile, work) else "no"

    def replaced(batch: EvaluationBatch) -> EvaluationBatch:
        return dataclasses.replace(batch, config=dataclasses.replace(batch.config, compile=compile))

    return replaced(trials), replaced(final)


def network_of(distilled: SyntheticSet) -> NetworkSpec | None:
    """The network a set was made with; None for a set that does not record it."""
    network = distilled.info.get("network")
    return NetworkSpec.from_json(network) if network else None
