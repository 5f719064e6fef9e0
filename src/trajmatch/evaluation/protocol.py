"""How a small set is judged: fresh networks trained on it alone, and what they score on average."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from trajmatch import rng
from trajmatch.compiling import Work, forward_flop, wanted
from trajmatch.config import EvaluateConfig
from trajmatch.data.augment import DSA
from trajmatch.errors import MismatchError
from trajmatch.evaluation.train import accuracy, is_finite, train_network
from trajmatch.networks import NetworkSpec
from trajmatch.parallel.local import run_tasks
from trajmatch.types import Float, Int, Tensor

DEFAULT_LR = 0.01
"""For a set that has no learned step size, as in the paper's baselines."""
WORKER_START = 3.0
"""Seconds until a process of our own is ready to work: importing torch, mostly."""
WHITENING_WORDS = {"zca": "ZCA", "normalize": "normalized"}


@dataclasses.dataclass(frozen=True)
class Score:
    """A number with what is needed to believe it."""

    method: str
    model: str
    ipc: int | None
    n: int
    """Networks trained, each from its own initialization."""
    mean: float
    """Accuracy in percent."""
    sd: float | None
    """Over the networks, with ddof=1; None for one network."""
    protocol: str
    """How they were trained, in full."""
    split: str
    """What they were tested on: val or test."""
    values: tuple[float, ...]
    """The accuracy of each, in order."""
    diverged: int = 0
    """Networks whose training ended in non-finite numbers; they count, at what they score."""
    brief: str = ""
    """The protocol in a few words, for `str`."""

    @classmethod
    def of(cls, values: Sequence[float], **known: Any) -> Score:
        """A score of these accuracies; `known` are the other fields but n, mean and sd."""
        sd = statistics.stdev(values) if len(values) > 1 else None
        mean = statistics.fmean(values)
        return cls(n=len(values), mean=mean, sd=sd, values=tuple(values), **known)

    def to_json(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**dataclasses.asdict(self), "values": list(self.values)}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Score:
        """The score that `to_json` wrote; entries added by others are left out."""
        names = {field.name for field in dataclasses.fields(cls)}
        known = {name: value for name, value in values.items() if name in names}
        return cls(**{**known, "values": tuple(known["values"])})

    def __str__(self) -> str:
        """For example `63.1 +- 0.4 (n=5, ConvNet-D3 width 128 instance, ZCA, DSA, 1000 epochs)`."""
        spread = "" if self.sd is None else f" +- {self.sd:.1f}"
        about = [f"n={self.n}", self.model, self.brief or self.protocol]
        if self.diverged:
            about.append(f"{self.diverged} diverged")
        return f"{self.mean:.1f}{spread} ({', '.join(about)})"


@dataclasses.dataclass(frozen=True)
class SmallSet:
    """What is to be judged: whitened images, their labels, and what a score says of them."""

    images: Float[Tensor, "n channels height width"]
    labels: Int[Tensor, "n"] | Float[Tensor, "n classes"]
    lr: float | None = None
    """The set's own step size; None takes 0.01."""
    method: str = ""
    ipc: int | None = None


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
        [SmallSet(images, labels, lr, method, ipc)],
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
    sets: Sequence[SmallSet],
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
    on_score: Callable[[Score], None] | None = None,
) -> list[Score]:
    """Train `config.n` fresh networks on each set alone and test each network.

    test_images: whitened as the sets' images are.
    lr of a set: its own step size, unless config.lr is set.
    whitening: its name, for the scores' words only.
    workers: processes of one thread, for all sets together. None takes config.workers; if that is
        None too, one on a GPU, and on the CPU one per core, or only this process where that is done
        sooner.
    on_score: called with each set's score as soon as it and those before it are known.

    Network i's initialization, order and augmentation follow from (seed, i), and each is trained by
    one thread: on the CPU the scores are the same to the bit whatever the number of workers.

    Raises MismatchError when images do not fit the network or the test images.
    """
    for one in sets:
        _check_shapes(one.images, spec, test_images)
    device = torch.device(device)
    count = len(sets) * config.n
    if workers is None:
        workers = config.workers
    if workers is None:
        workers = _default_workers(spec, config, sets, count) if device.type == "cpu" else 1
    workers = max(1, min(workers, count))
    compile = wanted(config.compile, training_work(spec, config, sets))
    lrs = [config.lr or one.lr or DEFAULT_LR for one in sets]
    scores: dict[int, Score] = {}
    results: dict[int, tuple[float, bool]] = {}

    def hear(number: int, result: tuple[float, bool]) -> None:
        results[number] = result
        while (k := len(scores)) < len(sets) and all(
            i in results for i in range(k * config.n, (k + 1) * config.n)
        ):
            of_set = [results[i] for i in range(k * config.n, (k + 1) * config.n)]
            scores[k] = Score.of(
                [percent for percent, _ in of_set],
                method=sets[k].method,
                model=spec.describe(),
                ipc=sets[k].ipc,
                protocol=_protocol(config, lrs[k]),
                split=split,
                diverged=sum(not finite for _, finite in of_set),
                brief=_brief(config, whitening),
            )
            if on_score is not None:
                on_score(scores[k])

    with contextlib.ExitStack() as stack:
        folder: Path | None = None
        if workers > 1:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="trajmatch-")))

        def shared(tensor: Tensor, name: str) -> Tensor | _Mapped:
            tensor = tensor.detach().contiguous()
            return tensor.to(device) if folder is None else _Mapped.write(tensor, folder / name)

        test = [shared(test_images, "test-images"), shared(test_labels, "test-labels")]
        tasks = []
        for k, one in enumerate(sets):
            data = [shared(one.images, f"images-{k}"), shared(one.labels, f"labels-{k}"), *test]
            tasks += [
                _Task(spec, config, lrs[k], rng.derive(seed, "evaluate", i), data, device, compile)
                for i in range(config.n)
            ]
        run_tasks(_score_one, tasks, workers=workers, threads=1, on_result=hear)
    return [scores[k] for k in range(len(sets))]


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


def _score_one(task: _Task) -> tuple[float, bool]:
    """(accuracy in percent, whether the trained parameters are finite)."""
    config = task.config
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
    )
    percent = accuracy(module, test_images, test_labels, compile=task.compile)
    return percent, is_finite(module)


def training_work(
    spec: NetworkSpec, config: EvaluateConfig, sets: Sequence[SmallSet]
) -> Work:
    """What it takes to train `config.n` networks on each set."""
    images = sum(len(one.images) for one in sets)
    steps = sum(math.ceil(len(one.images) / config.batch) for one in sets)
    module = spec.build(seed=0)
    flop = 3 * config.n * config.epochs * images * forward_flop(module, module.image_shape)
    return Work(config.n * config.epochs * steps, flop)


def _augmentation(config: EvaluateConfig) -> DSA | None:
    return None if config.augment in (None, "none") else DSA(str(config.augment))


def _default_workers(
    spec: NetworkSpec, config: EvaluateConfig, sets: Sequence[SmallSet], count: int
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


def _protocol(config: EvaluateConfig, lr: float) -> str:
    """For example `1000 epochs, lr 0.0102, momentum 0.9, wd 0.0005, batch 256, DSA`."""
    return (
        f"{config.epochs} epochs, lr {lr:.3g}, momentum {config.momentum:g}, "
        f"wd {config.weight_decay:g}, batch {config.batch}, {_augment_words(config)}"
    )


def _brief(config: EvaluateConfig, whitening: str | None) -> str:
    """For example `ZCA, DSA, 1000 epochs`."""
    words = [WHITENING_WORDS.get(whitening, whitening)] if whitening else []
    return ", ".join([*words, _augment_words(config), f"{config.epochs} epochs"])


def _augment_words(config: EvaluateConfig) -> str:
    augmentation = _augmentation(config)
    if augmentation is None:
        return "no augmentation"
    return "DSA" if augmentation == DSA() else f"DSA {augmentation.strategy}"
