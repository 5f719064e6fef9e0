"""Experts for a data set, and the ceiling they set."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from trajmatch.config import (
    ExpertConfig,
    NetworkConfig,
)
from trajmatch.data import ImageDataset
from trajmatch.data.whiten import fit_whitening
from trajmatch.evaluation import Score
from trajmatch.experts import ExpertLibrary, fill
from trajmatch.networks import NetworkSpec
from trajmatch.networks.spec import network_for
from trajmatch.pipeline.checks import require_fit
from trajmatch.runtime.threads import cores

Progress = Callable[[Mapping[str, Any]], None]
"""Called with what has just been done, as plain values."""


def train_experts(
    data: ImageDataset,
    out: str | Path,
    *,
    network: NetworkConfig | NetworkSpec = NetworkConfig(),
    config: ExpertConfig = ExpertConfig(),
    whitening: str | None = None,
    seed: int = 0,
    workers: int | None = None,
    device: str = "cpu",
    on_progress: Progress | None = None,
) -> ExpertLibrary:
    """Train `config.experts` networks on `data` and record their trajectories in the folder `out`.

    A library that is there already is continued: only missing experts are trained, and any number
    of processes may do so at once. The result is the same to the bit on the CPU.

    Raises MismatchError when `out` holds experts made otherwise.
    """
    spec = network if isinstance(network, NetworkSpec) else network_for(data, network)
    name, fitted = whitening or "normalize", None
    if (Path(out) / "library.json").exists():  # fitting a ZCA again would take half a minute
        library = ExpertLibrary.open(out)
        require_fit(library, data, whitening=name)
        fitted = library.whitening
    return fill(
        out,
        data,
        spec,
        fitted or fit_whitening(name, data.train),
        config,
        seed=seed,
        workers=workers or (cores() if device == "cpu" else 1),
        device=device,
        on_progress=on_progress,
    )


def full_data_score(library: ExpertLibrary) -> Score:
    """The experts' own test accuracy after their last epoch: the ceiling of this network."""
    config = library.settings
    words = f"{library.epochs} epochs on all training images, lr {config.lr:g}"
    protocol = f"{words}, batch {config.batch}"
    if library.imported:
        words = f"{library.epochs} epochs on all training images"
        protocol = f"{words}, imported, settings not known"
    return Score.of(
        [score for score in library.accuracy("test").values() if score is not None],
        method="full data",
        model=library.spec.describe(),
        ipc=None,
        protocol=protocol,
        split="test",
        brief=words,
    )
