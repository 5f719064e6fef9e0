"""One network of an evaluation as a task for a process: train it, test it, report its epochs."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

import torch

from trajmatch.evaluation.train import TrainingSettings, is_correct, is_finite, train_network
from trajmatch.networks import NetworkSpec
from trajmatch.runtime.executor import emit
from trajmatch.runtime.progress import Silent
from trajmatch.storage.results import Trained
from trajmatch.types import Tensor

EMIT_SECONDS = 1.0
"""Seconds between two reports of how many epochs a network has done."""


@dataclasses.dataclass(frozen=True)
class MappedTensor:
    """A tensor in a file, which any number of processes map into memory without copying it."""

    path: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def write(cls, tensor: Tensor, path: Path) -> MappedTensor:
        """Write a contiguous tensor to `path`."""
        tensor.cpu().numpy().tofile(path)
        return cls(str(path), tuple(tensor.shape), tensor.dtype)

    def read(self) -> Tensor:
        """The tensor, mapped from the file."""
        size = torch.Size(self.shape).numel()
        flat = torch.from_file(self.path, shared=False, size=size, dtype=self.dtype)
        return flat.view(self.shape)


@dataclasses.dataclass(frozen=True)
class EvaluationTask:
    """Everything one network needs, small enough to be sent to another process."""

    spec: NetworkSpec
    settings: TrainingSettings
    seed: int
    tensors: tuple[Tensor | MappedTensor, ...]
    """Images, labels, test images, test labels."""
    device: torch.device
    compile: bool


def train_and_test(task: EvaluationTask) -> Trained:
    """Train the network of a task and test it.

    Emits numbers of finished epochs (`executor.emit`), at most one a second; they add up to
    `settings.epochs`.
    """
    images, labels, test_images, test_labels = (
        (part.read() if isinstance(part, MappedTensor) else part).to(task.device)
        for part in task.tensors
    )
    module = task.spec.build(seed=task.seed).to(task.device)
    train_network(
        module,
        images,
        labels,
        task.settings,
        seed=task.seed,
        compile=task.compile,
        progress=_EmittedEpochs(),
    )
    hits = is_correct(module, test_images, test_labels, compile=task.compile)
    correct = torch.bincount(test_labels[hits], minlength=task.spec.classes).tolist()
    return Trained(100 * sum(correct) / len(test_labels), is_finite(module), tuple(correct))


class _EmittedEpochs(Silent):
    """Emits how many epochs were finished since the last report."""

    def __init__(self) -> None:
        self._emitted, self._time = 0, time.monotonic()

    def update(self, task: str, done: int, total: int, **values: Any) -> None:
        if done == total or time.monotonic() - self._time >= EMIT_SECONDS:
            emit(done - self._emitted)
            self._emitted, self._time = done, time.monotonic()
