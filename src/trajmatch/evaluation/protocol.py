"""How a small set is judged: fresh networks trained on it alone, and what they score on average."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from trajmatch import rng
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
    """Train `config.n` fresh networks on the images alone and test each.

    images, test_images: whitened alike.
    lr: the set's own step size, used unless config.lr is set; None takes 0.01.
    whitening: its name, for the score's words only.
    workers: processes of one thread. None takes config.workers; if that is None too, one on a GPU,
        and on the CPU one per core, or only this process where that is done sooner.

    Network i's initialization, order and augmentation follow from (seed, i), and each is trained by
    one thread: on the CPU the score is the same to the bit whatever the number of workers.

    Raises MismatchError when the images do not fit the network or the test images.
    """
    _check_shapes(images, spec, test_images)
    lr = config.lr or lr or DEFAULT_LR
    device = torch.device(device)
    if workers is None:
        workers = config.workers
    if workers is None:
        workers = _default_workers(spec, config, images) if device.type == "cpu" else 1
    workers = max(1, min(workers, config.n))
    tensors = [t.detach().contiguous() for t in (images, labels, test_images, test_labels)]
    with contextlib.ExitStack() as stack:
        data: list[Tensor] | list[_Mapped] = [tensor.to(device) for tensor in tensors]
        if workers > 1:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="trajmatch-")))
            data = [_Mapped.write(t, folder / str(i)) for i, t in enumerate(tensors)]
        tasks = [
            _Task(spec, config, lr, rng.derive(seed, "evaluate", i), data, device)
            for i in range(config.n)
        ]
        results = run_tasks(_score_one, tasks, workers=workers, threads=1)
    return Score.of(
        [percent for percent, _ in results],
        method=method,
        model=spec.describe(),
        ipc=ipc,
        protocol=_protocol(config, lr),
        split=split,
        diverged=sum(not finite for _, finite in results),
        brief=_brief(config, whitening),
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
    data: list[Tensor] | list[_Mapped]
    """Images, labels, test images, test labels."""
    device: torch.device


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
    )
    return accuracy(module, test_images, test_labels), is_finite(module)


def _augmentation(config: EvaluateConfig) -> DSA | None:
    return None if config.augment in (None, "none") else DSA(str(config.augment))


def _default_workers(spec: NetworkSpec, config: EvaluateConfig, images: Tensor) -> int:
    """One per core, or 1 where starting processes would cost more than they save."""
    affinity = getattr(os, "sched_getaffinity", None)  # counts what a container may use; Linux only
    workers = min(len(affinity(0)) if affinity else os.cpu_count() or 1, config.n)
    saved = config.n - math.ceil(config.n / workers)
    if saved == 0:
        return 1
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
