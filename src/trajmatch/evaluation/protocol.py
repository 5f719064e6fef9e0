"""How a small set is judged: fresh networks trained on it alone, and what they score on average."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import torch

from trajmatch import rng
from trajmatch.config import EvaluateConfig
from trajmatch.data.augment import Augmentation
from trajmatch.errors import MismatchError
from trajmatch.evaluation.score import Score, Trained
from trajmatch.evaluation.train import accuracy, is_finite, train_network
from trajmatch.networks import NetworkSpec
from trajmatch.runtime.compiling import Work, forward_flop, wanted
from trajmatch.runtime.executor import emit, run_tasks
from trajmatch.types import Float, Int, Tensor

DEFAULT_LR = 0.01
"""For a set that has no learned step size, as in the paper's baselines."""
WORKER_START = 3.0
"""Seconds until a process of our own is ready to work: importing torch, mostly."""
TOLD_EVERY = 1.0
"""Seconds between two words of a network on how far it is."""
WHITENING_WORDS = {"zca": "ZCA", "zca-compact": "ZCA", "normalize": "normalized"}


@dataclasses.dataclass(frozen=True)
class TrainingSet:
    """What is to be judged: whitened images, their labels, and what a score says of them."""

    images: Float[Tensor, "n channels height width"]
    labels: Int[Tensor, "n"] | Float[Tensor, "n classes"]
    lr: float | None = None
    """The set's own step size, or one that was found for the network; None takes 0.01."""
    method: str = ""
    ipc: int | None = None
    lr_origin: str = ""
    """How `lr` was found where it is not the set's own, such as `chosen on validation from 5`."""


def evaluate_images(
    images: Float[Tensor, "n channels height width"],
    labels: Int[Tensor, "n"] | Float[Tensor, "n classes"],
    spec: NetworkSpec,
    config: EvaluateConfig,
    test_images: Float[Tensor, "tests test_channels test_height test_width"],
    test_labels: Int[Tensor, "tests"],
    *,
    lr: float | None = None,
    seed: int = 0,
    method: str = "",
    ipc: int | None = None,
    split: str = "test",
    whitening: str | None = None,
    workers: int | None = None,
    device: str | torch.device = "cpu",
) -> Score:
    """`evaluate_sets` of one set."""
    return evaluate_sets(
        [TrainingSet(images, labels, lr, method, ipc)],
        spec,
        config,
        test_images,
        test_labels,
        seed=seed,
        split=split,
        whitening=whitening,
        workers=workers,
        device=device,
    )[0]


def evaluate_sets(
    sets: Sequence[TrainingSet],
    spec: NetworkSpec,
    config: EvaluateConfig,
    test_images: Float[Tensor, "tests test_channels test_height test_width"],
    test_labels: Int[Tensor, "tests"],
    *,
    seed: int = 0,
    split: str = "test",
    whitening: str | None = None,
    workers: int | None = None,
    device: str | torch.device = "cpu",
    known: Mapping[tuple[int, int], Trained] = MappingProxyType({}),
    on_score: Callable[[Score], None] | None = None,
    on_network: Callable[[int, int, Trained], None] | None = None,
    on_epochs: Callable[[int], None] | None = None,
) -> list[Score]:
    """Train `config.n` fresh networks on each set alone and test each network.

    test_images: whitened as the sets' images are.
    lr of a set: its own step size, unless config.lr is set.
    whitening: its name, for the scores' words only.
    workers: processes of one thread, for all sets together. None takes config.workers; if that is
        None too, one on a GPU, and on the CPU one per core, or only this process where that is done
        sooner.
    known: (number of the set, i) -> what network i came to in an earlier call; left out here.
    on_score: called with each set's score as soon as it and those before it are known.
    on_network: called with (number of the set, i, what network i came to) as networks are done.
    on_epochs: called with a number of epochs that some network has done, every second or so.

    Network i's initialization, order and augmentation follow from (seed, i), and each is trained by
    one thread: on the CPU the scores are the same to the bit whatever the number of workers.

    Raises MismatchError when images do not fit the network or the test images.
    """
    for one in sets:
        _check_shapes(one.images, spec, test_images)
    device = torch.device(device)
    lrs = [config.lr or one.lr or DEFAULT_LR for one in sets]
    left = [(k, i) for k in range(len(sets)) for i in range(config.n) if (k, i) not in known]
    scores: list[Score] = []
    results = dict(known)

    def complete() -> None:
        while (k := len(scores)) < len(sets):
            of_set = [results.get((k, i)) for i in range(config.n)]
            done = [one for one in of_set if one is not None]
            if len(done) < config.n:
                return
            scores.append(_score(done, sets[k], spec, config, lrs[k], split, whitening))
            if on_score is not None:
                on_score(scores[k])

    def hear(number: int, result: Trained) -> None:
        results[left[number]] = result
        if on_network is not None:
            on_network(*left[number], result)
        complete()

    complete()
    if not left:
        return scores
    if workers is None:
        workers = config.workers
    if workers is None:
        workers = _default_workers(spec, config, sets, len(left)) if device.type == "cpu" else 1
    workers = max(1, min(workers, len(left)))
    compile = wanted(config.compile, training_work(spec, config, sets))

    with contextlib.ExitStack() as stack:
        folder: Path | None = None
        if workers > 1:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="trajmatch-")))

        def shared(tensor: Tensor, name: str) -> Tensor | _Mapped:
            tensor = tensor.detach().contiguous()
            return tensor.to(device) if folder is None else _Mapped.write(tensor, folder / name)

        test = [shared(test_images, "test-images"), shared(test_labels, "test-labels")]
        data = [
            [shared(one.images, f"images-{k}"), shared(one.labels, f"labels-{k}"), *test]
            for k, one in enumerate(sets)
        ]
        tasks = [
            _Task(spec, config, lrs[k], rng.derive(seed, "evaluate", i), data[k], device, compile)
            for k, i in left
        ]
        run_tasks(_score_one, tasks, workers=workers, threads=1, on_result=hear, on_event=on_epochs)
    return scores


def _score(
    results: Sequence[Trained],
    one: TrainingSet,
    spec: NetworkSpec,
    config: EvaluateConfig,
    lr: float,
    split: str,
    whitening: str | None,
) -> Score:
    """What the networks came to, with what is needed to believe it."""
    origin = "" if config.lr else one.lr_origin
    return Score.of(
        [result.percent for result in results],
        method=one.method,
        model=spec.describe(),
        ipc=one.ipc,
        protocol=_protocol(config, lr, origin),
        split=split,
        diverged=sum(not result.finite for result in results),
        brief=_brief(config, whitening),
        lr=lr,
        lr_origin=origin,
        parameters=spec.parameters(),
    )


@dataclasses.dataclass(frozen=True)
class _Mapped:
    """A tensor in a file, which any number of processes map into memory without copying it."""

    path: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def write(cls, tensor: Tensor, path: Path) -> _Mapped:
        tensor.cpu().numpy().tofile(path)
        return cls(str(path), tuple(tensor.shape), tensor.dtype)

    def read(self) -> Tensor:
        size = torch.Size(self.shape).numel()
        flat = torch.from_file(self.path, shared=False, size=size, dtype=self.dtype)
        return flat.view(self.shape)


@dataclasses.dataclass(frozen=True)
class _Task:
    """One network: everything it needs, small enough to send to another process."""

    spec: NetworkSpec
    config: EvaluateConfig
    lr: float
    seed: int
    data: list[Tensor | _Mapped]
    """Images, labels, test images, test labels."""
    device: torch.device
    compile: bool


def _score_one(task: _Task) -> Trained:
    config = task.config
    done, told, when = 0, 0, time.monotonic()

    def on_epoch() -> None:
        nonlocal done, told, when
        done += 1
        if done == config.epochs or time.monotonic() - when >= TOLD_EVERY:
            emit(done - told)
            told, when = done, time.monotonic()

    images, labels, test_images, test_labels = (
        (part.read() if isinstance(part, _Mapped) else part).to(task.device) for part in task.data
    )
    module = task.spec.build(seed=task.seed).to(task.device)
    train_network(
        module,
        images,
        labels,
        lr=task.lr,
        epochs=config.epochs,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        batch=config.batch,
        augment=_augmentation(config),
        seed=task.seed,
        compile=task.compile,
        on_epoch=on_epoch,
    )
    percent = accuracy(module, test_images, test_labels, compile=task.compile)
    return Trained(percent, is_finite(module))


def training_work(spec: NetworkSpec, config: EvaluateConfig, sets: Sequence[TrainingSet]) -> Work:
    """What it takes to train `config.n` networks on each set."""
    images = sum(len(one.images) for one in sets)
    steps = sum(math.ceil(len(one.images) / config.batch) for one in sets)
    module = spec.build(seed=0)
    flop = 3 * config.n * config.epochs * images * forward_flop(module, module.image_shape)
    return Work(config.n * config.epochs * steps, flop)


def _augmentation(config: EvaluateConfig) -> Augmentation | None:
    return None if config.augment in (None, "none") else Augmentation(str(config.augment))


def _default_workers(
    spec: NetworkSpec, config: EvaluateConfig, sets: Sequence[TrainingSet], count: int
) -> int:
    """One per core, or 1 where starting processes would cost more than they save."""
    affinity = getattr(os, "sched_getaffinity", None)  # counts what a container may use; Linux only
    workers = min(len(affinity(0)) if affinity else os.cpu_count() or 1, count)
    saved = count - math.ceil(count / workers)
    if saved == 0:
        return 1
    images = sets[0].images
    seconds = run_tasks(_seconds_per_network, [(spec, config, images)], workers=1, threads=1)[0]
    return workers if saved * seconds > 2 * WORKER_START else 1


def _seconds_per_network(job: tuple[NetworkSpec, EvaluateConfig, Tensor]) -> float:
    """A guess from a few steps of training on a batch of the set."""
    spec, config, images = job
    module, few = spec.build(seed=0), images[: config.batch].cpu()
    labels = torch.zeros(len(few), dtype=torch.int64)
    train_network(module, few, labels, lr=DEFAULT_LR, epochs=1, batch=config.batch)
    start = time.perf_counter()
    train_network(module, few, labels, lr=DEFAULT_LR, epochs=3, batch=config.batch)
    step = (time.perf_counter() - start) / 3
    return step * config.epochs * math.ceil(len(images) / config.batch)


def _check_shapes(images: Tensor, spec: NetworkSpec, test_images: Tensor) -> None:
    size = spec.size if isinstance(spec.size, tuple) else (spec.size, spec.size)
    wanted = (spec.channels, *size)
    for name, tensor in (("the set's images", images), ("the test images", test_images)):
        if tuple(tensor.shape[1:]) != wanted:
            raise MismatchError(
                f"{name} are {'x'.join(map(str, tensor.shape[1:]))} (channels x height x width) "
                f"and the network takes {'x'.join(map(str, wanted))}; load the data with the size "
                "and channels that the set was made with"
            )


def _protocol(config: EvaluateConfig, lr: float, origin: str) -> str:
    """For example `1000 epochs, lr 0.0102, momentum 0.9, wd 0.0005, batch 256, Augmentation`."""
    found = f"{lr:.3g} {origin}" if origin else f"{lr:.3g}"
    return (
        f"{config.epochs} epochs, lr {found}, momentum {config.momentum:g}, "
        f"wd {config.weight_decay:g}, batch {config.batch}, {_augment_words(config)}"
    )


def _brief(config: EvaluateConfig, whitening: str | None) -> str:
    """For example `ZCA, Augmentation, 1000 epochs`."""
    words = [WHITENING_WORDS.get(whitening, whitening)] if whitening else []
    return ", ".join([*words, _augment_words(config), f"{config.epochs} epochs"])


def _augment_words(config: EvaluateConfig) -> str:
    augmentation = _augmentation(config)
    if augmentation is None:
        return "no augmentation"
    return "DSA" if augmentation == Augmentation() else f"DSA {augmentation.strategy}"
