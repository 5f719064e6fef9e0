"""The number of processes of an evaluation on the CPU where none is given."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import torch

from trajmatch.config import EvaluateConfig
from trajmatch.evaluation.train import TrainingSettings, train_network
from trajmatch.evaluation.training_set import DEFAULT_LR
from trajmatch.networks import NetworkSpec
from trajmatch.runtime.executor import run_tasks
from trajmatch.types import Tensor

WORKER_START = 3.0
"""Seconds until a new process is ready to work, mostly for importing torch."""


def worker_count(networks: int, cores: int, seconds_per_network: Callable[[], float]) -> int:
    """One process per core, or 1 where starting processes would cost more than they save.

    seconds_per_network: measures the training of one network; called only where it matters.

    Examples:
        >>> worker_count(5, cores=4, seconds_per_network=lambda: 100.0)
        4
        >>> worker_count(5, cores=4, seconds_per_network=lambda: 0.5)
        1
    """
    workers = min(cores, networks)
    saved = networks - math.ceil(networks / workers)
    if saved == 0:
        return 1
    return workers if saved * seconds_per_network() > 2 * WORKER_START else 1


def measured_seconds(spec: NetworkSpec, config: EvaluateConfig, images: Tensor) -> float:
    """Seconds that training one network takes on one core, extrapolated from three steps."""
    return run_tasks(_extrapolated_seconds, [(spec, config, images)], workers=1, threads=1)[0]


def _extrapolated_seconds(job: tuple[NetworkSpec, EvaluateConfig, Tensor]) -> float:
    spec, config, images = job
    module, batch = spec.build(seed=0), images[: config.batch].cpu()
    labels = torch.zeros(len(batch), dtype=torch.int64)
    warm_up, timed = (
        TrainingSettings(lr=DEFAULT_LR, epochs=epochs, batch=config.batch) for epochs in (1, 3)
    )
    train_network(module, batch, labels, warm_up)
    start = time.perf_counter()
    train_network(module, batch, labels, timed)
    step = (time.perf_counter() - start) / 3
    return step * config.epochs * math.ceil(len(images) / config.batch)
