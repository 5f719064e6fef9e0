"""The evaluation of training sets: fresh networks trained on each set alone, and their accuracy."""

from __future__ import annotations

import contextlib
import math
import tempfile
from collections.abc import MutableMapping, Sequence
from pathlib import Path

import torch

from trajmatch import rng
from trajmatch.config import EvaluateConfig
from trajmatch.data.augment import Augmentation
from trajmatch.errors import MismatchError
from trajmatch.evaluation.recall import by_class
from trajmatch.evaluation.task import EvaluationTask, MappedTensor, train_and_test
from trajmatch.evaluation.train import TrainingSettings, augmentation_of
from trajmatch.evaluation.training_set import TestSet, TrainingSet
from trajmatch.evaluation.workers import measured_seconds, worker_count
from trajmatch.networks import NetworkSpec
from trajmatch.networks.base import height_width
from trajmatch.runtime.compiling import Work, forward_flop, wanted
from trajmatch.runtime.executor import run_tasks
from trajmatch.runtime.progress import SILENT, Progress
from trajmatch.runtime.resources import Resources
from trajmatch.runtime.threads import cores
from trajmatch.storage.results import Score, Trained
from trajmatch.types import Tensor

WHITENING_WORDS = {"zca": "ZCA", "zca-compact": "ZCA", "normalize": "normalized"}

Place = tuple[int, int]
"""(number of the set, number i of the network)."""


def evaluate_sets(
    sets: Sequence[TrainingSet],
    spec: NetworkSpec,
    config: EvaluateConfig,
    test: TestSet,
    *,
    seed: int = 0,
    resources: Resources = Resources(),
    results: MutableMapping[Place, Trained] | None = None,
    progress: Progress = SILENT,
) -> list[Score]:
    """Train `config.n` fresh networks on each set and test them; one score per set.

    Network i's initialization, batch order and augmentation follow from (seed, i), and each network
    is trained by one thread, so on the CPU the scores are the same to the bit whatever the number
    of workers.

    resources: processes serve all sets together. Without `workers` here or in `config`: one on a
        GPU; on the CPU one per core, or none besides this one where that is faster.
    results: (number of the set, i) -> result of network i. Networks found in it are not trained;
        the others are added as they finish.
    progress: `update("evaluation", epochs, total epochs, network=...)` of the networks that are
        trained, `event("network", ...)` for each of them, and `event("score", ...)` for each set as
        soon as it and those before it have a score.

    Raises MismatchError when images do not fit the network or the test images.

    Examples:
        >>> spec = NetworkSpec("mlp", channels=1, classes=2, size=4)
        >>> images = torch.stack([torch.zeros(1, 4, 4), torch.ones(1, 4, 4)])
        >>> labels = torch.tensor([0, 1])
        >>> config = EvaluateConfig(n=2, epochs=20, augment="none", workers=1)
        >>> test = TestSet(images, labels)
        >>> [score] = evaluate_sets([TrainingSet(images, labels, lr=0.05)], spec, config, test)
        >>> score.n, score.mean
        (2, 100.0)
    """
    for training_set in sets:
        _require_shape("the set's images", training_set.images, spec)
        _require_shape("the test images", test.images, spec)
    results = {} if results is None else results
    evaluation = _Evaluation(sets, spec, config, test, seed, results, progress)
    evaluation.run(resources)
    return evaluation.scores


def training_work(spec: NetworkSpec, config: EvaluateConfig, sets: Sequence[TrainingSet]) -> Work:
    """Forward passes and FLOP for training `config.n` networks on each set.

    Examples:
        >>> training_set = TrainingSet(torch.zeros(10, 1, 8, 8), torch.arange(10))
        >>> spec = NetworkSpec("mlp", channels=1, classes=10, size=8)
        >>> training_work(spec, EvaluateConfig(n=2, epochs=3), [training_set]).calls
        6
    """
    images = sum(len(training_set.images) for training_set in sets)
    steps = sum(math.ceil(len(training_set.images) / config.batch) for training_set in sets)
    module = spec.build(seed=0)
    flop = 3 * config.n * config.epochs * images * forward_flop(module, module.image_shape)
    return Work(config.n * config.epochs * steps, flop)


class _Evaluation:
    """The networks of one call of `evaluate_sets`, and the scores that are known so far."""

    def __init__(
        self,
        sets: Sequence[TrainingSet],
        spec: NetworkSpec,
        config: EvaluateConfig,
        test: TestSet,
        seed: int,
        results: MutableMapping[Place, Trained],
        progress: Progress,
    ) -> None:
        self.sets, self.spec, self.config, self.test, self.seed = sets, spec, config, test, seed
        self.results, self.progress = results, progress
        self.scores: list[Score] = []
        places = ((k, i) for k in range(len(sets)) for i in range(config.n))
        self._left = [place for place in places if place not in results]
        self._epochs = 0

    def run(self, resources: Resources) -> None:
        """Train and test the networks that have no result yet."""
        self._add_scores()
        if not self._left:
            return
        workers = self._workers(resources)
        with contextlib.ExitStack() as stack:
            folder: Path | None = None
            if workers > 1:
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="trajmatch-")))
            run_tasks(
                train_and_test,
                self._tasks(resources.torch_device, folder),
                workers=workers,
                threads=1,
                on_result=self._add_result,
                on_event=self._add_epochs,
            )

    def _workers(self, resources: Resources) -> int:
        networks, given = len(self._left), resources.workers or self.config.workers
        if given is not None:
            return max(1, min(given, networks))
        if not resources.on_cpu:
            return 1
        images = self.sets[0].images
        return worker_count(
            networks, cores(), lambda: measured_seconds(self.spec, self.config, images)
        )

    def _tasks(self, device: torch.device, folder: Path | None) -> list[EvaluationTask]:
        """A task for each network that is left. Workers read the tensors from files in `folder`;
        None where this process does all tasks."""

        def shared(tensor: Tensor, name: str) -> Tensor | MappedTensor:
            tensor = tensor.detach().contiguous()
            if folder is None:
                return tensor.to(device)
            return MappedTensor.write(tensor, folder / name)

        config, test = self.config, self.test
        compile = wanted(config.compile, training_work(self.spec, config, self.sets))
        tests = shared(test.images, "test-images"), shared(test.labels, "test-labels")
        trained = [
            (shared(each.images, f"images-{k}"), shared(each.labels, f"labels-{k}"))
            for k, each in enumerate(self.sets)
        ]
        settings = [TrainingSettings.of(config, each.learning_rate(config)) for each in self.sets]
        return [
            EvaluationTask(
                self.spec,
                settings[k],
                rng.derive(self.seed, "evaluate", i),
                (*trained[k], *tests),
                device,
                compile,
            )
            for k, i in self._left
        ]

    def _add_result(self, number: int, result: Trained) -> None:
        k, i = self._left[number]
        self.results[k, i] = result
        self.progress.event(
            "network",
            set=k,
            number=i,
            **result._asdict(),
            method=self.sets[k].method,
            model=self.spec.describe(),
            lr=self.sets[k].learning_rate(self.config),
            split=self.test.split,
        )
        self._add_scores()

    def _add_epochs(self, epochs: int) -> None:
        self._epochs += epochs
        total = len(self._left) * self.config.epochs
        self.progress.update("evaluation", self._epochs, total, network=self.spec.describe())

    def _add_scores(self) -> None:
        """Score the sets whose networks are all done, in order."""
        while (k := len(self.scores)) < len(self.sets):
            places = [(k, i) for i in range(self.config.n)]
            if not all(place in self.results for place in places):
                return
            finished = [self.results[place] for place in places]
            self.scores.append(_score(finished, self.sets[k], self.spec, self.config, self.test))
            self.progress.event("score", **self.scores[k].to_json())


def _score(
    results: Sequence[Trained],
    training_set: TrainingSet,
    spec: NetworkSpec,
    config: EvaluateConfig,
    test: TestSet,
) -> Score:
    """The score of a set whose networks are all tested."""
    lr, origin = training_set.learning_rate(config), "" if config.lr else training_set.lr_origin
    return Score.of(
        [result.percent for result in results],
        method=training_set.method,
        model=spec.describe(),
        ipc=training_set.ipc,
        protocol=_protocol(config, lr, origin),
        split=test.split,
        diverged=sum(not result.finite for result in results),
        brief=_brief(config, test.whitening),
        lr=lr,
        lr_origin=origin,
        parameters=spec.parameters(),
        **by_class(results, test.per_class(spec.classes)),
    )


def _require_shape(name: str, images: Tensor, spec: NetworkSpec) -> None:
    taken = (spec.channels, *height_width(spec.size))
    if tuple(images.shape[1:]) != taken:
        raise MismatchError(
            f"{name} are {'x'.join(map(str, images.shape[1:]))} (channels x height x width) "
            f"and the network takes {'x'.join(map(str, taken))}; load the data with the size "
            "and channels that the set was made with"
        )


def _protocol(config: EvaluateConfig, lr: float, origin: str) -> str:
    """For example `1000 epochs, lr 0.0102, momentum 0.9, wd 0.0005, batch 256, DSA`."""
    rate = f"{lr:.3g} {origin}" if origin else f"{lr:.3g}"
    precision = "" if config.precision == "float32" else f", {config.precision}"
    return (
        f"{config.epochs} epochs, lr {rate}, momentum {config.momentum:g}, "
        f"wd {config.weight_decay:g}, batch {config.batch}, {_augment_words(config)}{precision}"
    )


def _brief(config: EvaluateConfig, whitening: str | None) -> str:
    """For example `ZCA, DSA, 1000 epochs`."""
    words = [WHITENING_WORDS.get(whitening, whitening)] if whitening else []
    return ", ".join([*words, _augment_words(config), f"{config.epochs} epochs"])


def _augment_words(config: EvaluateConfig) -> str:
    augmentation = augmentation_of(config)
    if augmentation is None:
        return "no augmentation"
    return "DSA" if augmentation == Augmentation() else f"DSA {augmentation.strategy}"
